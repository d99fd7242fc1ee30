# exo_room(NAME [MAY_INCLUDE rooms...] [LIBS libraries...])
#
# One room: the static library exo_<name> of src/<name>/**.cc (without main.cc, *_test.cc and *_fuzz.cc), the test
# program <name>_test of its *_test.cc beside the code (run from the source folder, with goldens in ../shared), and one
# libFuzzer program for each *_fuzz.cc when EXO_BUILD_FUZZERS is on. '/' in a name becomes '_' in target names.
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Threads REQUIRED)
if(EXO_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(exo_flags INTERFACE)
target_include_directories(exo_flags INTERFACE ${CMAKE_SOURCE_DIR}/src)
# -ffp-contract=off: the same source gives the same bits in every function, whatever the compiler fuses; kernels ask
# for fused multiply-adds by name.
target_compile_options(exo_flags INTERFACE -Wall -Wextra -Wshadow -Werror -Wno-missing-field-initializers
                       -ffp-contract=off)
if(EXO_SANITIZE STREQUAL "address")
  target_compile_options(exo_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all
                         -fno-omit-frame-pointer)
  target_link_options(exo_flags INTERFACE -fsanitize=address,undefined)
elseif(EXO_SANITIZE STREQUAL "thread")
  # std::atomic_thread_fence isn't modelled by tsan; nothing here uses it.
  target_compile_options(exo_flags INTERFACE -fsanitize=thread -fno-omit-frame-pointer -Wno-tsan)
  target_link_options(exo_flags INTERFACE -fsanitize=thread)
endif()

if(EXO_BUILD_FUZZERS)
  target_compile_options(exo_flags INTERFACE -fsanitize=fuzzer-no-link)  # coverage of the rooms, not of the target alone
endif()

function(exo_room name)
  cmake_parse_arguments(ROOM "" "" "MAY_INCLUDE;LIBS" ${ARGN})
  string(REPLACE "/" "_" target ${name})
  file(GLOB_RECURSE all CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cc)
  set(sources ${all})
  list(FILTER sources EXCLUDE REGEX "(_test|_fuzz|/main)\\.cc$")
  set(tests ${all})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  set(fuzzers ${all})
  list(FILTER fuzzers INCLUDE REGEX "_fuzz\\.cc$")

  if(sources)
    add_library(exo_${target} STATIC ${sources})
    set(scope PUBLIC)
  else()
    add_library(exo_${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_link_libraries(exo_${target} ${scope} exo_flags)
  foreach(other ${ROOM_MAY_INCLUDE})
    string(REPLACE "/" "_" other ${other})
    target_link_libraries(exo_${target} ${scope} exo_${other})
  endforeach()
  target_link_libraries(exo_${target} ${scope} ${ROOM_LIBS})
  set_property(GLOBAL APPEND_STRING PROPERTY EXO_ROOMS "${name}:${ROOM_MAY_INCLUDE}\n")

  if(EXO_BUILD_TESTS AND tests)
    add_executable(${target}_test ${tests})
    target_link_libraries(${target}_test PRIVATE exo_${target} GTest::gtest GTest::gmock GTest::gtest_main)
    set_target_properties(${target}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/test)
    add_test(NAME ${target} COMMAND ${target}_test WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(${target} PROPERTIES ENVIRONMENT "EXO_SHARED=${CMAKE_SOURCE_DIR}/../shared")
  endif()
  if(EXO_BUILD_FUZZERS)
    foreach(source ${fuzzers})
      get_filename_component(fuzzer ${source} NAME_WE)
      add_executable(${fuzzer} ${source})
      target_link_libraries(${fuzzer} PRIVATE exo_${target} -fsanitize=fuzzer,address)
      target_compile_options(${fuzzer} PRIVATE -fsanitize=fuzzer,address)
      set_target_properties(${fuzzer} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
    endforeach()
  endif()
endfunction()

# Hand-written kernels of src/kernels/cpu: *_<isa>.cc is compiled for that instruction set (x86-64 only; each such file
# is empty elsewhere). Nothing else may be included there that other files also instantiate: the linker could keep the
# copy with the wider instructions.
function(exo_isa_flags)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    return()
  endif()
  set(avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mavx512vbmi2)
  set(amx ${avx512} -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16)
  foreach(isa avx2 avx512 amx)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/cpu/*_${isa}.cc)
    set_source_files_properties(${sources} PROPERTIES COMPILE_OPTIONS "${${isa}}")
  endforeach()
endfunction()
