// More of the server's messages, for tests that fail it on purpose.
#pragma once

#include <string>

#include "backend.hpp"

namespace pgpoll::messages {

using test::int16;
using test::int32;
using test::message;
using test::ready;
using test::text;

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
