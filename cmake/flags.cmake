# The interface target that every target of ours links: include root, warnings, hardening, sanitizers.

add_library(pgpoll_flags INTERFACE)
target_include_directories(pgpoll_flags INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_compile_options(pgpoll_flags INTERFACE -Wall -Wextra -Wconversion -Wshadow)
if(PGPOLL_WERROR)
  target_compile_options(pgpoll_flags INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 11)
  message(FATAL_ERROR "pgpoll needs C++20 coroutines: GCC 11 or later")
endif()

if(PGPOLL_SANITIZE)
  # Not vptr: its check opens a pipe, and takes the failure of that, where a test has used up the descriptors, for a
  # wrong object.
  target_compile_options(
    pgpoll_flags INTERFACE -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr
                           -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS)
  target_link_options(pgpoll_flags INTERFACE -fsanitize=address,undefined)
else()
  target_compile_options(pgpoll_flags INTERFACE -fstack-protector-strong)
  # Level 3 needs GCC 12 (older ones warn and take 2); distributions may predefine a level.
  if(CMAKE_BUILD_TYPE MATCHES "^(Release|RelWithDebInfo|MinSizeRel)$")
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12)
      target_compile_options(pgpoll_flags INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
    else()
      target_compile_options(pgpoll_flags INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
    endif()
  endif()
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(pgpoll_flags INTERFACE LINKER:-z,relro LINKER:-z,now LINKER:-z,noexecstack)
  endif()
endif()

if(PGPOLL_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang" OR NOT PGPOLL_SANITIZE)
    message(FATAL_ERROR "PGPOLL_FUZZ needs clang (CMAKE_CXX_COMPILER=clang++) and PGPOLL_SANITIZE")
  endif()
  # What -fsanitize=fuzzer-no-link means, less the tracing of comparisons: corpora and targets know the protocol.
  target_compile_options(pgpoll_flags INTERFACE -O2 -fsanitize-coverage=inline-8bit-counters,pc-table)
endif()

if(PGPOLL_LTO)
  include(CheckIPOSupported)
  check_ipo_supported()
  set(CMAKE_INTERPROCEDURAL_OPTIMIZATION ON)
endif()

# pgpoll_layer(wire SOURCES backend.cpp LINKS ...): the static library of one layer.
function(pgpoll_layer name)
  cmake_parse_arguments(PARSE_ARGV 1 layer "" "" "SOURCES;LINKS")
  add_library(pgpoll_${name} STATIC ${layer_SOURCES})
  target_link_libraries(pgpoll_${name} PUBLIC pgpoll_flags ${layer_LINKS})
endfunction()
