// The server's messages, for tests: each function returns whole messages as bytes.
#pragma once

#include <cstdint>
#include <string>

#include "wire/bytes.hpp"

namespace pgpoll::test {

inline std::string int16(int value) {
  std::string out;
  wire::append_uint16(out, static_cast<std::uint16_t>(value));
  return out;
}
inline std::string int32(std::int64_t value) {
  std::string out;
  wire::append_uint32(out, static_cast<std::uint32_t>(value));
  return out;
}
inline std::string text(const std::string& value) {
  return value + '\0';
}
inline std::string message(char type, const std::string& body = {}) {
  return type + int32(static_cast<std::int64_t>(body.size()) + 4) + body;
}
inline std::string ready(char status = 'I') {
  return message('Z', std::string(1, status));
}
inline std::string started() {
  return message('R', int32(0)) + message('S', text("server_version") + text("18.0")) +
         message('K', int32(4711) + "abcd") + ready();
}
inline std::string described(const std::string& name) {
  return message('1') + message('t', int16(0)) +
         message('T', int16(1) + text(name) + int32(0) + int16(0) + int32(23) + int16(4) + int32(-1) + int16(0));
}
inline std::string row(int value) {
  return message('D', int16(1) + int32(4) + int32(value));
}
inline std::string selected(int first, int count) {
  std::string out = message('2');
  for (int i = 0; i < count; ++i) out += row(first + i);
  return out + message('C', text("SELECT " + std::to_string(count)));
}
inline std::string server_error(const std::string& code, const std::string& severity = "ERROR",
                                const std::string& said = "failed") {
  return message('E', "S" + text(severity) + "V" + text(severity) + "C" + text(code) + "M" + text(said) + '\0');
}

}  // namespace pgpoll::test
