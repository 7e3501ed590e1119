# Warnings, sanitizers and the numeric contract: no reassociation, no contraction behind our back.
# -Wno-format-truncation: snprintf is used here because it cuts.
# The linker is the C compiler's: what nvcc makes needs nothing of C++ at run time.
function(foresight_flags target)
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE C)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
    -Wstrict-prototypes -Wmissing-prototypes -Wno-format-truncation -fno-math-errno -ffp-contract=off -fno-common -g)
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE FORESIGHT_VERSION="${PROJECT_VERSION}")
  if(FORESIGHT_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(FORESIGHT_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${FORESIGHT_SANITIZE} -fno-omit-frame-pointer
      -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${FORESIGHT_SANITIZE})
  endif()
endfunction()

file(GLOB avx2_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cpu/*_avx2.c)
file(GLOB avx512_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cpu/*_avx512.c)
set_source_files_properties(${avx2_sources} PROPERTIES COMPILE_OPTIONS "-O3;-mavx2;-mfma;-mf16c")
set_source_files_properties(${avx512_sources} PROPERTIES COMPILE_OPTIONS
  "-O3;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx2;-mfma;-mf16c;-mprefer-vector-width=512")
