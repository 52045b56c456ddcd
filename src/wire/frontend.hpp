// Frontend messages, one function each (protocol manual, section 54.7), written straight into an output buffer.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wire/bytes.hpp"

namespace pgpoll::wire {

// The server refuses messages from 1 GiB on (MaxAllocSize), so nothing larger is begun.
inline constexpr std::size_t max_message = (std::size_t{1} << 30) - 2;
// Of a statement's text, or of its parameters: room is left for the types and formats of 65,535 of them, and names.
inline constexpr std::size_t max_content = max_message - (std::size_t{512} << 10);

struct message_too_large : std::length_error {
  using std::length_error::length_error;
};

class frontend {
 public:
  explicit frontend(std::string& out) : out_(out) {}

  frontend& startup_message(std::span<const std::pair<std::string, std::string>> parameters) {
    auto at = begin();
    append_uint32(out_, 3 << 16);
    for (const auto& [name, value] : parameters) {
      append_string(out_, name);
      append_string(out_, value);
    }
    out_.push_back('\0');
    return end(at);
  }

  frontend& cancel_request(std::int32_t pid, std::string_view secret) {
    auto at = begin();
    append_uint32(out_, 1234 << 16 | 5678);
    append_uint32(out_, static_cast<std::uint32_t>(pid));
    out_.append(secret);
    return end(at);
  }

  frontend& password_message(std::string_view password) { return text('p', password); }

  frontend& sasl_initial_response(std::string_view mechanism, std::string_view data) {
    auto at = begin('p');
    append_string(out_, mechanism);
    append_uint32(out_, static_cast<std::uint32_t>(data.size()));
    out_.append(data);
    return end(at);
  }

  frontend& sasl_response(std::string_view data) {
    auto at = begin('p');
    out_.append(data);
    return end(at);
  }

  frontend& query(std::string_view sql) { return text('Q', sql); }

  // Without parameter types the server infers them.
  frontend& parse(std::string_view name, std::string_view sql, std::span<const std::uint32_t> parameter_types = {}) {
    check(name.size() + sql.size() + 8 + 4 * parameter_types.size());
    auto at = begin('P');
    append_string(out_, name);
    append_string(out_, sql);
    append_uint16(out_, static_cast<std::uint16_t>(parameter_types.size()));
    for (const auto type : parameter_types) append_uint32(out_, type);
    return end(at);
  }

  frontend& describe_portal(std::string_view portal = {}) { return named('D', 'P', portal); }
  frontend& describe_statement(std::string_view name) { return named('D', 'S', name); }
  frontend& close_statement(std::string_view name) { return named('C', 'S', name); }
  frontend& close_portal(std::string_view name) { return named('C', 'P', name); }

  // `arguments` is the section from the parameter format codes to the last value; `formats` are the results'.
  template <typename Columns>
  frontend& bind(std::string_view statement, std::string_view arguments, const Columns& columns,
                 std::string_view portal = {}) {
    check(portal.size() + statement.size() + arguments.size() + 8 + 2 * columns.size());
    auto at = begin('B');
    append_string(out_, portal);
    append_string(out_, statement);
    out_.append(arguments);
    append_uint16(out_, static_cast<std::uint16_t>(columns.size()));
    for (const auto& column : columns) append_uint16(out_, static_cast<std::uint16_t>(column.format));
    return end(at);
  }

  // A row limit forbids parallel plans; 0 is none.
  frontend& execute(std::string_view portal = {}, std::uint32_t limit = 0) {
    auto at = begin('E');
    append_string(out_, portal);
    append_uint32(out_, limit);
    return end(at);
  }

  frontend& copy_data(std::string_view data) {
    check(data.size() + 8);
    auto at = begin('d');
    out_.append(data);
    return end(at);
  }
  frontend& copy_done() { return empty('c'); }
  frontend& copy_fail(std::string_view reason) { return text('f', reason); }
  frontend& flush() { return empty('H'); }
  frontend& sync() { return empty('S'); }
  frontend& terminate() { return empty('X'); }

 private:
  static void check(std::size_t size) {
    if (size > max_message) throw message_too_large("a message of more than 1 GiB can't be sent to the server");
  }

  std::size_t begin() {
    auto at = out_.size();
    out_.append(4, '\0');
    return at;
  }
  std::size_t begin(char type) {
    out_.push_back(type);
    return begin();
  }
  frontend& end(std::size_t at) {
    auto size = static_cast<std::uint32_t>(out_.size() - at);
    for (int i = 0; i < 4; ++i) out_[at + static_cast<std::size_t>(i)] = static_cast<char>(size >> (24 - 8 * i));
    return *this;
  }
  frontend& empty(char type) { return end(begin(type)); }
  frontend& text(char type, std::string_view value) {
    check(value.size() + 8);
    auto at = begin(type);
    append_string(out_, value);
    return end(at);
  }
  frontend& named(char type, char kind, std::string_view name) {
    auto at = begin(type);
    out_.push_back(kind);
    append_string(out_, name);
    return end(at);
  }

  std::string& out_;
};

}  // namespace pgpoll::wire
