// Backend messages, byte for byte, for tests that play the server.
#pragma once

#include <string>

#include "wire/bytes.hpp"

namespace pgpoll::messages {

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
inline std::string field(char code, const std::string& value) {
  return std::string(1, code) + value + '\0';
}
inline std::string error(const std::string& severity, const std::string& code) {
  return message('E', field('S', severity) + field('V', severity) + field('C', code) + field('M', "no") + '\0');
}
inline std::string notice(const std::string& text_of_it) {
  return message('N', field('S', "NOTICE") + field('M', text_of_it) + '\0');
}
inline std::string one_column() {
  return message('T', int16(1) + text("n") + int32(0) + int16(0) + int32(23) + int16(4) + int32(-1) + int16(0));
}

}  // namespace pgpoll::messages
