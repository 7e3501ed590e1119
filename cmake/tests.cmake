# tests/test_*.c and tests/check_*.c and tests/sim_*.c: one Check program each, run by CTest.
pkg_check_modules(dep_check REQUIRED IMPORTED_TARGET check)
add_library(test_support STATIC ${CMAKE_SOURCE_DIR}/tests/walled_device.c)
target_link_libraries(test_support PRIVATE fs_kernels fs_core)
foresight_flags(test_support)
file(GLOB test_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/test_*.c
     ${CMAKE_SOURCE_DIR}/tests/check_*.c ${CMAKE_SOURCE_DIR}/tests/sim_*.c)
foreach(source ${test_sources})
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE test_support fs_trainer fs_rewards fs_rollout fs_model fs_transport
                        fs_kernels fs_core PkgConfig::dep_check dep_jansson dep_mpi Threads::Threads m)
  foresight_flags(${name})
  target_compile_definitions(${name} PRIVATE
    FORESIGHT_SOURCE_DIR="${CMAKE_SOURCE_DIR}" FORESIGHT_BINARY="$<TARGET_FILE:foresight>")
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 ENVIRONMENT "CK_DEFAULT_TIMEOUT=300")
endforeach()

# Tests that run on the emulated GPU too, as NAME_emulated: the same source, linked with kernels/cuda
# in C++.
enable_language(CXX)
function(emulation_flags target)
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE)
  target_compile_options(${target} PRIVATE -g -O2 -ffp-contract=off -Wall -Wextra
    -Wno-unknown-pragmas -Wno-unused-function)
  set_target_properties(${target} PROPERTIES CXX_STANDARD 17)
  if(FORESIGHT_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(FORESIGHT_SANITIZE AND NOT FORESIGHT_SANITIZE STREQUAL "thread") # which knows no fibers
    target_compile_options(${target} PRIVATE -fsanitize=${FORESIGHT_SANITIZE}
      -fno-omit-frame-pointer -fno-sanitize-recover=all)
  endif()
  if(FORESIGHT_SANITIZE)
    target_link_options(${target} PRIVATE -fsanitize=${FORESIGHT_SANITIZE})
  endif()
endfunction()
add_subdirectory(${CMAKE_SOURCE_DIR}/tests/emulation)
foreach(name check_kernels check_gradients check_same_bits check_sampling test_kernels_device test_model_device
        test_model_golden test_model_same_bits test_transport_weight_device
        test_model_replay)
  add_executable(${name}_emulated ${CMAKE_SOURCE_DIR}/tests/${name}.c
                 $<TARGET_OBJECTS:kernels_emulated>)
  target_link_libraries(${name}_emulated PRIVATE fs_model fs_transport fs_kernels fs_core
                        PkgConfig::dep_check Threads::Threads m)
  foresight_flags(${name}_emulated)
  set_target_properties(${name}_emulated PROPERTIES LINKER_LANGUAGE CXX)
  target_compile_definitions(${name}_emulated PRIVATE SUPPORT_EMULATED=1
    FORESIGHT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  add_test(NAME ${name}_emulated COMMAND ${name}_emulated WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name}_emulated PROPERTIES TIMEOUT 600 ENVIRONMENT "CK_DEFAULT_TIMEOUT=300")
endforeach()

# Those that want a GPU as one program, for scripts/gpu_check --bundle.
add_executable(gpu_programs EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/tests/gpu_programs.c)
foreach(name check_kernels check_gradients check_same_bits check_sampling test_model_golden test_model_same_bits
        test_transport_weight_device test_transport_nccl)
  add_library(gpu_${name} OBJECT EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/tests/${name}.c)
  target_link_libraries(gpu_${name} PRIVATE fs_model PkgConfig::dep_check Threads::Threads)
  foresight_flags(gpu_${name})
  target_compile_options(gpu_${name} PRIVATE -Wno-missing-prototypes)
  target_compile_definitions(gpu_${name} PRIVATE main=${name}_main FORESIGHT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_sources(gpu_programs PRIVATE $<TARGET_OBJECTS:gpu_${name}>)
endforeach()
target_link_libraries(gpu_programs PRIVATE fs_model fs_transport fs_kernels fs_core PkgConfig::dep_check
                      Threads::Threads m)
foresight_flags(gpu_programs)

# Tests of the emulation itself and of what kernels/cuda is made of, written against it.
file(GLOB emulated_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/test_*_emulated.cpp)
foreach(source ${emulated_sources})
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source} $<TARGET_OBJECTS:kernels_emulated>)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests/emulation)
  target_link_libraries(${name} PRIVATE fs_kernels fs_core PkgConfig::dep_check Threads::Threads m)
  emulation_flags(${name})
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 ENVIRONMENT "CK_DEFAULT_TIMEOUT=300")
endforeach()

# Ranks on emulated GPUs, with the emulated NCCL.
add_executable(test_transport_nccl_emulated ${CMAKE_SOURCE_DIR}/tests/test_transport_nccl.c
               $<TARGET_OBJECTS:kernels_emulated> $<TARGET_OBJECTS:nccl_emulated>)
target_link_libraries(test_transport_nccl_emulated PRIVATE fs_transport fs_kernels fs_core
                      PkgConfig::dep_check Threads::Threads m)
foresight_flags(test_transport_nccl_emulated)
set_target_properties(test_transport_nccl_emulated PROPERTIES LINKER_LANGUAGE CXX ENABLE_EXPORTS ON)
target_compile_definitions(test_transport_nccl_emulated PRIVATE SUPPORT_EMULATED=1)
add_test(NAME test_transport_nccl_emulated COMMAND test_transport_nccl_emulated
         WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
set_tests_properties(test_transport_nccl_emulated PROPERTIES TIMEOUT 600 RUN_SERIAL TRUE)

# The program on the emulated GPU, for tests/script_gpu.sh.
add_executable(foresight_emulated $<TARGET_OBJECTS:fs_app> $<TARGET_OBJECTS:kernels_emulated>
               $<TARGET_OBJECTS:nccl_emulated>)
target_link_libraries(foresight_emulated PRIVATE fs_trainer fs_rewards fs_rollout fs_model
                      fs_transport fs_kernels fs_core dep_jansson Threads::Threads m)
foresight_flags(foresight_emulated)
set_target_properties(foresight_emulated PROPERTIES LINKER_LANGUAGE CXX ENABLE_EXPORTS ON)

# tests/script_*: whole-program tests written as scripts.
file(GLOB script_tests CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/script_*.sh)
foreach(script ${script_tests})
  get_filename_component(name ${script} NAME_WE)
  add_test(NAME ${name} COMMAND bash ${script} $<TARGET_FILE:foresight> WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT 900)
endforeach()

# Loaded into ranks by script_train_recovers: damages what they send.
add_library(damage_mpi MODULE ${CMAKE_SOURCE_DIR}/tests/damage_mpi.c)
target_link_libraries(damage_mpi PRIVATE dep_mpi)

# Where time matters (deadlines between ranks, whole asynchronous runs), and where a test starts many
# processes, it runs alone.
foreach(name test_transport_mpi test_rewards_pool test_fuzz_smoke)
  if(TEST ${name})
    set_tests_properties(${name} PROPERTIES RUN_SERIAL TRUE)
  endif()
endforeach()
foreach(script ${script_tests})
  get_filename_component(name ${script} NAME_WE)
  if(name MATCHES "^script_(train|sweep|distill)")
    set_tests_properties(${name} PROPERTIES RUN_SERIAL TRUE)
  endif()
endforeach()

# scripts/fuzz: endless fuzzing, no test.
add_executable(fuzz_inputs EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/tests/fuzz_inputs.c)
target_link_libraries(fuzz_inputs PRIVATE fs_trainer fs_rewards fs_rollout fs_model fs_transport
                      fs_kernels fs_core dep_jansson dep_mpi Threads::Threads m)
foresight_flags(fuzz_inputs)
