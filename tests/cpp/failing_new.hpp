// A global operator new that fails when it is told to. Linked into a test of its own, whose every allocation in C++
// comes here; OpenSSL's don't.
#pragma once

#include <cstddef>
#include <new>

namespace pgpoll::failing_new {

inline std::size_t until_failure = 0;  // allocations until the one that fails; 0: none does
inline std::size_t made = 0;
inline bool counted = false;

// Runs a call with its allocations counted; false where one of them failed.
template <typename Call>
bool allocating(Call call) {
  counted = true;
  try {
    call();
  } catch (const std::bad_alloc&) {
    counted = false;
    return false;
  }
  counted = false;
  return true;
}

}  // namespace pgpoll::failing_new
