// Big-endian reading and writing (protocol manual, section 54.6 "Message Data Types").
// Every read is checked: bytes from the network end in a value or in protocol_violation.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pgpoll::wire {

// The peer broke the protocol. The text says what and, where known, at which byte of the message's body.
struct protocol_violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::uint16_t load_uint16(const char* p) {
  const auto* u = reinterpret_cast<const unsigned char*>(p);
  return static_cast<std::uint16_t>(u[0] << 8 | u[1]);
}
inline std::uint32_t load_uint32(const char* p) {
  const auto* u = reinterpret_cast<const unsigned char*>(p);
  return std::uint32_t{u[0]} << 24 | std::uint32_t{u[1]} << 16 | std::uint32_t{u[2]} << 8 | std::uint32_t{u[3]};
}
inline std::int16_t load_int16(const char* p) {
  return static_cast<std::int16_t>(load_uint16(p));
}
inline std::int32_t load_int32(const char* p) {
  return static_cast<std::int32_t>(load_uint32(p));
}

// Reads one message's body; `what` names the message in errors.
class reader {
 public:
  reader(std::string_view body, const char* what) : body_(body), what_(what) {}

  std::uint8_t uint8() { return static_cast<std::uint8_t>(*take(1)); }
  std::int16_t int16() { return load_int16(take(2)); }
  std::uint16_t uint16() { return load_uint16(take(2)); }
  std::int32_t int32() { return load_int32(take(4)); }
  std::uint32_t uint32() { return load_uint32(take(4)); }
  std::string_view bytes(std::size_t size) { return {take(size), size}; }

  std::string_view string() {
    auto end = body_.find('\0', at_);
    if (end == std::string_view::npos) fail("a string without its terminating zero");
    auto text = body_.substr(at_, end - at_);
    at_ = end + 1;
    return text;
  }

  // A string that may lack its zero at the end of the message.
  std::string_view string_or_rest() { return body_.find('\0', at_) == std::string_view::npos ? rest() : string(); }

  std::string_view rest() { return bytes(left()); }
  std::size_t left() const { return body_.size() - at_; }
  void end() const {
    if (left() != 0) fail(std::to_string(left()) + " bytes too many");
  }

  [[noreturn]] void fail(const std::string& why) const {
    throw protocol_violation(std::string(what_) + ": " + why + " at byte " + std::to_string(at_));
  }

 private:
  const char* take(std::size_t size) {
    if (left() < size) fail("ends too early");
    const char* p = body_.data() + at_;
    at_ += size;
    return p;
  }

  std::string_view body_;
  const char* what_;
  std::size_t at_ = 0;
};

inline void append_uint16(std::string& out, std::uint16_t value) {
  const char bytes[2] = {static_cast<char>(value >> 8), static_cast<char>(value)};
  out.append(bytes, 2);
}
inline void append_uint32(std::string& out, std::uint32_t value) {
  const char bytes[4] = {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
                         static_cast<char>(value)};
  out.append(bytes, 4);
}
inline void append_string(std::string& out, std::string_view text) {
  out.append(text);
  out.push_back('\0');
}

}  // namespace pgpoll::wire
