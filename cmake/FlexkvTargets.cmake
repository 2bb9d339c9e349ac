# Common flags and the two helpers every folder uses.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

find_package(Threads REQUIRED)
find_package(absl REQUIRED)

add_library(flexkv_flags INTERFACE)
target_compile_options(flexkv_flags INTERFACE -Wall -Wextra -Wpedantic -Werror -Wshadow -Wnon-virtual-dtor
  -Wno-missing-field-initializers -march=x86-64-v2 -fno-omit-frame-pointer)
if(FLEXKV_SANITIZE)
  target_compile_options(flexkv_flags INTERFACE -fsanitize=${FLEXKV_SANITIZE} -fno-sanitize-recover=all -g)
  target_link_options(flexkv_flags INTERFACE -fsanitize=${FLEXKV_SANITIZE})
  if(FLEXKV_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Fences of libstdc++ that ThreadSanitizer does not know; ours avoid them (FullFence in proto/shm_ring.h).
    target_compile_options(flexkv_flags INTERFACE -Wno-tsan)
  endif()
endif()
target_include_directories(flexkv_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_link_libraries(flexkv_flags INTERFACE Threads::Threads)

# flexkv_library(NAME SOURCES a.cc ... LINK flexkv::base absl::status ...): static library flexkv::NAME.
function(flexkv_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(flexkv_${name} STATIC ${ARG_SOURCES})
  add_library(flexkv::${name} ALIAS flexkv_${name})
  target_link_libraries(flexkv_${name} PUBLIC ${ARG_LINK} PRIVATE flexkv_flags)
  target_include_directories(flexkv_${name} SYSTEM PUBLIC ${absl_INCLUDE_DIRS})
  target_include_directories(flexkv_${name} PUBLIC ${PROJECT_SOURCE_DIR})
endfunction()

# flexkv_test(NAME SOURCES x_test.cc ... LINK flexkv::index ... [LABELS long]): gtest program registered with ctest.
function(flexkv_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} flexkv_flags GTest::gmock GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 600)
endfunction()

# flexkv_bench(NAME SOURCES x_bench.cc LINK ...): program under perf/.
function(flexkv_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} flexkv_flags)
endfunction()
