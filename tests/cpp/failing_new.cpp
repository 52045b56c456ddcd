#include "failing_new.hpp"

#include <cstdlib>

// The forms for arrays, and those that don't throw, come here.
void* operator new(std::size_t size) {
  using namespace pgpoll::failing_new;
  if (counted) {
    ++made;
    if (until_failure != 0 && --until_failure == 0) exhausted = true;
    if (exhausted) {
      exhausted = lasting;
      throw std::bad_alloc();
    }
  }
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
