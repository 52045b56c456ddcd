// Messages as text, in the format of libpq's PQtrace, without its time stamps:
//
//   F	18	Parse	 "s1" "select 1" 0
//   B	4	ParseComplete
//
// that is: F for the frontend's, B for the backend's; the length; the name; the fields, each behind a space. What a
// password or a key could be learnt from is never shown: libpq's own masks of "regress mode" stand in its place
// ("SSSS" for a string, 'BBBB' for bytes). Parameters, columns' values, COPY data, payloads and the DETAIL
// and context of errors are masked too, unless they are asked for.
//
// Other than libpq's, a line is always one: control characters in strings are written as \x0a. And a message whose
// fields don't add up, which a server may well send, ends in (malformed).
//
// Source: PostgreSQL's src/interfaces/libpq/fe-trace.c, for the format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pgpoll::wire {

// Takes the bytes of one connection's two streams, in whatever pieces, and gives a line for each whole message.
class tracer {
 public:
  explicit tracer(bool show_values = false) : show_values_(show_values) {}

  // The lines, each with its '\n', of the messages that these bytes complete.
  std::string sent(std::string_view bytes);
  std::string received(std::string_view bytes);

 private:
  std::string lines(std::string& buffered, std::string_view bytes, bool frontend);
  void line(std::string& out, std::string_view message, bool frontend);

  bool show_values_;
  bool begun_ = false;           // the first message of a connection has no type
  std::int32_t asked_ = 0;       // the last Authentication request: what a 'p' is
  std::string sent_, received_;  // of messages that are not complete
};

}  // namespace pgpoll::wire
