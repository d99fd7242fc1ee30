# exo_room(NAME [MAY_INCLUDE rooms...] [LIBS libraries...])
#
# One room: the static library exo_<name> of src/<name>/**.cc (without main.cc, *_test.cc and *_fuzz.cc), the test
# program <name>_test of its *_test.cc beside the code (run from the source folder, with goldens in ../shared), and one
# libFuzzer program for each *_fuzz.cc when EXO_BUILD_FUZZERS is on (all of them:
# exo_fuzzers). '/' in a name becomes '_' in target names.
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Threads REQUIRED)
if(EXO_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()

include(exo_install)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

# What every target of this tree is compiled and linked with. Not a part of the installed package.
add_library(exo_flags INTERFACE)
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

# A room's tests everywhere, and all of its sources where they are sanitized (CMakePresets.json), are compiled several
# files as one: the headers are most of the work. GCC takes the joined files for headers, where a type of an anonymous
# namespace would be a mistake, and one of them hides names of another without harm.
set(unity_flags -Wno-shadow $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
if(CMAKE_UNITY_BUILD)
  target_compile_options(exo_flags INTERFACE ${unity_flags})
endif()

# What a room's tests are compiled with beside that. What they test is as it ships; they themselves needn't be fast.
add_library(exo_test_flags INTERFACE)
target_compile_options(exo_test_flags INTERFACE ${unity_flags} $<$<CONFIG:Release>:-O1>)

if(EXO_BUILD_FUZZERS)
  target_compile_options(exo_flags INTERFACE -fsanitize=fuzzer-no-link)  # coverage of the rooms, not of the target alone
  add_custom_target(exo_fuzzers)
endif()

# What every test runs with. Leaks and the first error of a sanitizer fail a test; a data race does too.
set(EXO_TEST_ENVIRONMENT "EXO_SHARED=${CMAKE_SOURCE_DIR}/../shared" "ASAN_OPTIONS=detect_leaks=1"
    "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0"
    "UBSAN_OPTIONS=print_stacktrace=1" "TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1")

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
    target_link_libraries(exo_${target} PRIVATE $<BUILD_INTERFACE:exo_flags>)
    set(scope PUBLIC)
  else()
    add_library(exo_${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  add_library(exo::${target} ALIAS exo_${target})
  target_include_directories(exo_${target} ${scope} $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/src>
                             $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/exo>)
  target_compile_features(exo_${target} ${scope} cxx_std_20)
  foreach(other ${ROOM_MAY_INCLUDE})
    string(REPLACE "/" "_" other ${other})
    target_link_libraries(exo_${target} ${scope} exo_${other})
  endforeach()
  target_link_libraries(exo_${target} ${scope} ${ROOM_LIBS})
  exo_install_room(${name} ${target})

  if(EXO_BUILD_TESTS AND tests)
    add_executable(${target}_test ${tests})
    target_link_libraries(${target}_test PRIVATE exo_${target} exo_flags exo_test_flags GTest::gtest GTest::gmock
                                                 GTest::gtest_main)
    set_target_properties(${target}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/test UNITY_BUILD ON)
    add_test(NAME ${target} COMMAND ${target}_test WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(${target} PROPERTIES ENVIRONMENT "${EXO_TEST_ENVIRONMENT}" TIMEOUT 1200)
  endif()
  if(EXO_BUILD_FUZZERS)
    foreach(source ${fuzzers})
      get_filename_component(fuzzer ${source} NAME_WE)
      add_executable(${fuzzer} ${source})
      target_link_libraries(${fuzzer} PRIVATE exo_${target} exo_flags -fsanitize=fuzzer)
      target_compile_options(${fuzzer} PRIVATE -fsanitize=fuzzer)
      set_target_properties(${fuzzer} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
      add_dependencies(exo_fuzzers ${fuzzer})
    endforeach()
  endif()
endfunction()

# Hand-written kernels of src/kernels/cpu: *_<isa>.cc is compiled for that instruction set (x86-64 only; each such file
# is empty elsewhere). Nothing else may be included there that other files also instantiate: the linker could keep the
# copy with the wider instructions.
function(exo_isa_flags)
  # Highway compiles a file once for each of its targets, by including it anew: never joined with others.
  set_target_properties(exo_kernels_cpu PROPERTIES UNITY_BUILD OFF)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    return()
  endif()
  set(avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2)
  set(avxvnni ${avx2} -mavxvnni)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mavx512vbmi2)
  set(avx512bf16 ${avx512} -mavx512bf16)
  set(amx ${avx512bf16} -mamx-tile -mamx-int8 -mamx-bf16)
  foreach(isa avx2 avxvnni avx512 avx512bf16 amx)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/cpu/*_${isa}.cc)
    # GCC 12's AVX-512 intrinsics begin from undefined registers on purpose and warn about it (bug 105593).
    set_source_files_properties(${sources} PROPERTIES COMPILE_OPTIONS
                                "${${isa}};-Wno-uninitialized;-Wno-maybe-uninitialized")
  endforeach()
  # What measures the machine is not to measure a sanitizer.
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/cpu/roofline_*.cc)
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$")
  set_property(SOURCE ${sources} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=all)
  # tests/CMakeLists.txt: the AMX kernels without tiles, which are in software there.
  set(EXO_EMULATED_AMX_FLAGS ${avx512bf16} -Wno-uninitialized -Wno-maybe-uninitialized PARENT_SCOPE)
endfunction()
