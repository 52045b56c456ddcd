// What the fuzz targets share: reading one input, and stopping where an oracle does not hold.
//
// A target is one function of bytes, LLVMFuzzerTestOneInput. libFuzzer drives it (scripts/fuzz), and so does replay.cpp
// over the files of corpus/ in CTest.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#if defined(__SANITIZE_ADDRESS__)
#define PGPOLL_COUNTS_MEMORY 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PGPOLL_COUNTS_MEMORY 1
#endif
#endif
#ifdef PGPOLL_COUNTS_MEMORY
extern "C" std::size_t __sanitizer_get_current_allocated_bytes();  // GCC has it without the header
#endif

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace pgpoll::fuzz {

inline void require(bool holds, const char* what, std::string_view detail = {}) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s: %s\n", what, std::string(detail).c_str());
  std::abort();
}

// Bytes that are allocated now; 0 where nobody counts them.
inline std::size_t allocated() {
#ifdef PGPOLL_COUNTS_MEMORY
  return __sanitizer_get_current_allocated_bytes();
#else
  return 0;
#endif
}

// Past its end an input goes on with zeros.
class input {
 public:
  input(const std::uint8_t* data, std::size_t size) : left_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return left_.empty(); }
  std::uint8_t byte() { return left_.empty() ? std::uint8_t{0} : static_cast<std::uint8_t>(bytes(1).front()); }
  std::string_view bytes(std::size_t size) {
    const auto taken = left_.substr(0, size);
    left_.remove_prefix(taken.size());
    return taken;
  }
  std::string_view rest() { return bytes(left_.size()); }

 private:
  std::string_view left_;
};

}  // namespace pgpoll::fuzz
