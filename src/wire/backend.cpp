#include "wire/backend.hpp"

#include <array>

namespace pgpoll::wire {

namespace {

struct entry {
  backend type;
  const char* name;
  bool is_short;
};

constexpr std::array entries = {
    entry{backend::authentication, "Authentication", true},
    entry{backend::backend_key_data, "BackendKeyData", true},
    entry{backend::bind_complete, "BindComplete", true},
    entry{backend::close_complete, "CloseComplete", true},
    entry{backend::command_complete, "CommandComplete", true},
    entry{backend::copy_both_response, "CopyBothResponse", false},
    entry{backend::copy_data, "CopyData", false},
    entry{backend::copy_done, "CopyDone", true},
    entry{backend::copy_in_response, "CopyInResponse", false},
    entry{backend::copy_out_response, "CopyOutResponse", false},
    entry{backend::data_row, "DataRow", false},
    entry{backend::empty_query_response, "EmptyQueryResponse", true},
    entry{backend::error_response, "ErrorResponse", false},
    entry{backend::function_call_response, "FunctionCallResponse", false},
    entry{backend::negotiate_protocol_version, "NegotiateProtocolVersion", true},
    entry{backend::no_data, "NoData", true},
    entry{backend::notice_response, "NoticeResponse", false},
    entry{backend::notification_response, "NotificationResponse", true},
    entry{backend::parameter_description, "ParameterDescription", false},
    entry{backend::parameter_status, "ParameterStatus", false},
    entry{backend::parse_complete, "ParseComplete", true},
    entry{backend::portal_suspended, "PortalSuspended", true},
    entry{backend::ready_for_query, "ReadyForQuery", true},
    entry{backend::row_description, "RowDescription", false},
};

const entry* find(backend type) {
  for (const auto& each : entries)
    if (each.type == type) return &each;
  return nullptr;
}

}  // namespace

std::string name_of(backend type) {
  if (const auto* found = find(type)) return found->name;
  constexpr char digits[] = "0123456789abcdef";
  const auto byte = static_cast<unsigned char>(type);
  return std::string("message 0x") + digits[byte >> 4] + digits[byte & 15];
}

bool known(char type) {
  return find(static_cast<backend>(type)) != nullptr;
}

bool is_short(backend type) {
  const auto* found = find(type);
  return found != nullptr && found->is_short;
}

void check_data_row(std::string_view body, std::size_t columns) {
  const auto fail = [](const char* why, std::size_t at) {
    throw protocol_violation(std::string("DataRow: ") + why + " at byte " + std::to_string(at));
  };
  if (body.size() < 2) fail("ends too early", body.size());
  if (load_uint16(body.data()) != columns) fail("another number of fields than RowDescription", 0);
  const char* p = body.data() + 2;
  const char* const end = body.data() + body.size();
  for (std::size_t i = 0; i < columns; ++i) {
    if (end - p < 4) fail("ends too early", static_cast<std::size_t>(p - body.data()));
    const auto length = load_int32(p);
    p += 4;
    if (length < 0) {
      if (length != -1) fail("a negative field length", static_cast<std::size_t>(p - body.data()) - 4);
    } else {
      if (end - p < length) fail("a field beyond the message", static_cast<std::size_t>(p - body.data()) - 4);
      p += length;
    }
  }
  if (p != end) fail("bytes after the last field", static_cast<std::size_t>(p - body.data()));
}

}  // namespace pgpoll::wire
