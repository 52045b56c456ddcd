// A global operator new that fails when it is told to. Linked into a test of its own, whose every allocation in C++
// comes here; OpenSSL's don't.
#pragma once

#include <cstddef>
#include <new>

namespace pgpoll::failing_new {

inline std::size_t until_failure = 0;  // allocations until the one that fails; 0: none does
inline bool lasting = false;           // that one, and all others of the same call
inline bool exhausted = false;
inline std::size_t made = 0;
inline bool counted = false;

// Runs a call with its allocations counted; false where one of them failed.
template <typename Call>
bool allocating(Call call) {
  bool whole = true;
  counted = true;
  try {
    call();
  } catch (const std::bad_alloc&) {
    whole = false;
  }
  counted = exhausted = false;
  return whole;
}

}  // namespace pgpoll::failing_new
