# Developer targets. Neither changes what is built.
#   ninja -C build format       rewrite the sources as .clang-format says
#   ninja -C build tidy         clang-tidy over the sources, checks of .clang-tidy
find_program(CLANG_FORMAT NAMES clang-format-14 clang-format)
find_program(CLANG_TIDY NAMES clang-tidy-14 clang-tidy)
file(GLOB_RECURSE tool_sources CONFIGURE_DEPENDS
  ${CMAKE_SOURCE_DIR}/app/*.[ch] ${CMAKE_SOURCE_DIR}/core/*.[ch] ${CMAKE_SOURCE_DIR}/kernels/*.[ch] ${CMAKE_SOURCE_DIR}/kernels/*.cu
  ${CMAKE_SOURCE_DIR}/model/*.[ch] ${CMAKE_SOURCE_DIR}/rewards/*.[ch]
  ${CMAKE_SOURCE_DIR}/rollout/*.[ch] ${CMAKE_SOURCE_DIR}/tests/*.[ch] ${CMAKE_SOURCE_DIR}/tests/*.cpp
  ${CMAKE_SOURCE_DIR}/trainer/*.[ch] ${CMAKE_SOURCE_DIR}/transport/*.[ch])
if(CLANG_FORMAT)
  add_custom_target(format COMMAND ${CLANG_FORMAT} -i ${tool_sources} VERBATIM)
endif()
if(CLANG_TIDY)
  set(tidy_sources ${tool_sources})
  list(FILTER tidy_sources INCLUDE REGEX "\\.c$")
  add_custom_target(tidy COMMAND ${CLANG_TIDY} -p ${CMAKE_BINARY_DIR} --quiet ${tidy_sources} VERBATIM)
endif()
