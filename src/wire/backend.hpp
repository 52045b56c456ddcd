// Backend messages: their type bytes and what is known of each before its body is looked at
// (protocol manual, section 54.7).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "wire/bytes.hpp"
#include "wire/frontend.hpp"

namespace pgpoll::wire {

enum class backend : char {
  authentication = 'R',
  backend_key_data = 'K',
  bind_complete = '2',
  close_complete = '3',
  command_complete = 'C',
  copy_both_response = 'W',
  copy_data = 'd',
  copy_done = 'c',
  copy_in_response = 'G',
  copy_out_response = 'H',
  data_row = 'D',
  empty_query_response = 'I',
  error_response = 'E',
  function_call_response = 'V',
  negotiate_protocol_version = 'v',
  no_data = 'n',
  notice_response = 'N',
  notification_response = 'A',
  parameter_description = 't',
  parameter_status = 'S',
  parse_complete = '1',
  portal_suspended = 's',
  ready_for_query = 'Z',
  row_description = 'T',
};

// The manual's name, for errors; "message 0x21" for a byte that begins none.
std::string name_of(backend type);

// Whether a type byte begins any message of protocol 3.
bool known(char type);

// Types that can't be long: a larger length is a framing error, caught before anything is awaited.
bool is_short(backend type);
inline constexpr std::size_t max_short_message = 30'000;

inline constexpr std::size_t header_size = 5;  // the type byte and the length, which counts itself

struct message {
  backend type{};
  std::string_view body;

  reader read(const char* what) const { return {body, what}; }
};

// Checks one whole DataRow body against the number of columns described.
void check_data_row(std::string_view body, std::size_t columns);

}  // namespace pgpoll::wire
