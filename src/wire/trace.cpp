#include "wire/trace.hpp"

#include <algorithm>

#include "wire/backend.hpp"
#include "wire/bytes.hpp"

namespace pgpoll::wire {
namespace {

constexpr std::int32_t cancel_request = 1234 << 16 | 5678;
constexpr std::int32_t ssl_request = 1234 << 16 | 5679;

// Requests of Authentication messages.
enum : std::int32_t { cleartext_password = 3, md5_password = 5, sasl = 10, sasl_continue = 11, sasl_final = 12 };

bool printable(char byte) {
  return byte >= ' ' && byte <= '~';
}

void append_hex(std::string& out, char byte) {
  constexpr char digits[] = "0123456789abcdef";
  const auto value = static_cast<unsigned char>(byte);
  out += {'\\', 'x', digits[value >> 4], digits[value & 15]};
}

// One message's fields, written as they are read.
class fields {
 public:
  fields(std::string& out, std::string_view body, bool show_values)
      : out_(out), body_(body, "trace"), show_values_(show_values) {}

  void name(const char* name, bool more = true) {
    out_ += name;
    if (more) out_ += '\t';
  }
  std::size_t left() const { return body_.left(); }
  std::uint16_t int16() {
    const auto value = body_.uint16();  // as libpq: a size of -1 is 65535
    out_ += ' ' + std::to_string(value);
    return value;
  }
  std::int32_t int32() {
    const auto value = body_.int32();
    out_ += ' ' + std::to_string(value);
    return value;
  }
  char byte() {
    const auto value = static_cast<char>(body_.uint8());
    out_ += ' ';
    printable(value) ? void(out_ += value) : append_hex(out_, value);
    return value;
  }
  void string(bool shown = true) {
    const auto text = body_.string();
    if (!shown) {
      out_ += " \"SSSS\"";
      return;
    }
    out_ += " \"";
    for (const char each : text) {
      if (static_cast<unsigned char>(each) < ' ' || each == '\x7f') {
        append_hex(out_, each);
      } else {
        out_ += each;
      }
    }
    out_ += '"';
  }
  void value_string() { string(show_values_); }
  void bytes(std::size_t size, bool shown) {
    const auto data = body_.bytes(size);
    if (!shown) {
      out_ += " 'BBBB'";
      return;
    }
    out_ += " '";
    for (const char each : data) printable(each) ? void(out_ += each) : append_hex(out_, each);
    out_ += '\'';
  }
  void rest(bool shown) { bytes(left(), shown); }
  void rest_of_values() { rest(show_values_); }
  void int16s() {
    for (auto count = int16(); count > 0; --count) int16();
  }
  void int32s() {
    for (auto count = int16(); count > 0; --count) int32();
  }
  void value() {
    if (const auto size = int32(); size != -1) bytes(static_cast<std::uint32_t>(size), show_values_);
  }
  void values() {
    for (auto count = int16(); count > 0; --count) value();
  }
  void columns() {
    for (auto count = int16(); count > 0; --count) {
      string();
      int32();
      int16();
      int32();
      int16();
      int32();
      int16();
    }
  }
  void skip(std::size_t size) { body_.bytes(size); }
  std::int32_t unwritten_int32() { return body_.int32(); }
  void end() const { body_.end(); }

  // ErrorResponse and NoticeResponse. DETAIL may quote a row, the context (W) a parameter.
  void message() {
    for (char field = byte(); field != '\0'; field = byte()) string((field != 'D' && field != 'W') || show_values_);
  }

 private:
  std::string& out_;
  reader body_;
  bool show_values_;
};

void write_untyped(fields& out, std::int32_t code) {
  out.name(code == cancel_request ? "CancelRequest" : code == ssl_request ? "SSLRequest" : "StartupMessage");
  out.int16();
  out.int16();
  if (code == cancel_request) {
    out.int32();
    out.rest(false);
  } else if (code != ssl_request) {
    while (out.left() > 1) out.string();
    out.skip(1);
  }
}

void write_authentication_answer(fields& out, std::int32_t asked) {
  switch (asked) {
    case cleartext_password:
    case md5_password:
      out.name("PasswordMessage");
      return out.string(false);
    case sasl: {
      out.name("SASLInitialResponse");
      out.string();
      if (const auto size = out.int32(); size != -1) out.bytes(static_cast<std::uint32_t>(size), false);
      return;
    }
    case sasl_continue:
      out.name("SASLResponse");
      return out.rest(false);
    default:
      out.name("UnknownAuthenticationResponse");
      return out.rest(false);
  }
}

void write_frontend(fields& out, char type, std::int32_t asked) {
  switch (type) {
    case 'B':
      out.name("Bind");
      out.string();
      out.string();
      out.int16s();
      out.values();
      return out.int16s();
    case 'C':
    case 'D':
      out.name(type == 'C' ? "Close" : "Describe");
      out.byte();
      return out.string();
    case 'E':
      out.name("Execute");
      out.string();
      out.int32();
      return;
    case 'H':
      return out.name("Flush", false);
    case 'P':
      out.name("Parse");
      out.string();
      out.string();
      return out.int32s();
    case 'Q':
      out.name("Query");
      return out.string();
    case 'S':
      return out.name("Sync", false);
    case 'X':
      return out.name("Terminate", false);
    case 'c':
      return out.name("CopyDone", false);
    case 'd':
      out.name("CopyData");
      return out.rest_of_values();
    case 'f':
      out.name("CopyFail");
      return out.string();
    case 'p':
      return write_authentication_answer(out, asked);
    default:
      out.name("Unknown message");
      return out.rest(false);
  }
}

void write_authentication(fields& out, std::int32_t request) {
  switch (request) {
    case 0:
      return out.name("AuthenticationOk", false);
    case cleartext_password:
      return out.name("AuthenticationCleartextPassword", false);
    case md5_password:
      out.name("AuthenticationMD5Password");
      return out.rest(false);
    case sasl:
      out.name("AuthenticationSASL");
      while (out.left() > 0) out.string();
      return;
    case sasl_continue:
      out.name("AuthenticationSASLContinue");
      return out.rest(false);
    case sasl_final:
      out.name("AuthenticationSASLFinal");
      return out.rest(false);
    default:
      out.name("Unknown authentication message");
      return out.rest(false);
  }
}

void write_copy_response(fields& out, const char* name) {
  out.name(name);
  out.byte();
  out.int16s();
}

void write_backend(fields& out, backend type) {
  switch (type) {
    case backend::bind_complete:
    case backend::close_complete:
    case backend::copy_done:
    case backend::empty_query_response:
    case backend::no_data:
    case backend::parse_complete:
    case backend::portal_suspended:
      return out.name(name_of(type).c_str(), false);
    case backend::authentication:
      return write_authentication(out, out.unwritten_int32());
    case backend::backend_key_data:
      out.name("BackendKeyData");
      out.int32();
      out.rest(false);
      return;
    case backend::command_complete:
      out.name("CommandComplete");
      return out.string();
    case backend::copy_both_response:
      return write_copy_response(out, "CopyBothResponse");
    case backend::copy_in_response:
      return write_copy_response(out, "CopyInResponse");
    case backend::copy_out_response:
      return write_copy_response(out, "CopyOutResponse");
    case backend::copy_data:
      out.name("CopyData");
      return out.rest_of_values();
    case backend::data_row:
      out.name("DataRow");
      return out.values();
    case backend::error_response:
    case backend::notice_response:
      out.name(name_of(type).c_str());
      return out.message();
    case backend::function_call_response:
      out.name("FunctionCallResponse");
      return out.value();
    case backend::negotiate_protocol_version:
      out.name("NegotiateProtocolVersion");
      out.int32();
      for (auto count = out.int32(); count > 0; --count) out.string();
      return;
    case backend::notification_response:
      out.name("NotificationResponse");
      out.int32();
      out.string();
      return out.value_string();
    case backend::parameter_description:
      out.name("ParameterDescription");
      return out.int32s();
    case backend::parameter_status:
      out.name("ParameterStatus");
      out.string();
      return out.string();
    case backend::ready_for_query:
      out.name("ReadyForQuery");
      out.byte();
      return;
    case backend::row_description:
      out.name("RowDescription");
      return out.columns();
  }
  out.name("Unknown message");
  out.rest(false);
}

}  // namespace

std::string tracer::sent(std::string_view bytes) {
  return lines(sent_, bytes, true);
}

std::string tracer::received(std::string_view bytes) {
  return lines(received_, bytes, false);
}

std::string tracer::lines(std::string& buffered, std::string_view bytes, bool frontend) {
  if (!buffered.empty()) {
    buffered += bytes;
    bytes = buffered;
  }
  std::string out;
  for (;;) {
    const std::size_t type = frontend && !begun_ ? 0 : 1;
    if (bytes.size() < type + 4) break;
    // A length below its own four bytes is a lie, after which nothing can be framed: the session ends by it.
    const auto length = std::max<std::size_t>(load_uint32(bytes.data() + type), 4);
    if (bytes.size() < type + length) break;
    line(out, bytes.substr(0, type + length), frontend);
    bytes.remove_prefix(type + length);
  }
  std::string rest(bytes);  // `bytes` may be a part of `buffered`
  buffered = std::move(rest);
  return out;
}

void tracer::line(std::string& out, std::string_view message, bool frontend) {
  const bool untyped = frontend && !begun_;
  const auto body = message.substr(untyped ? 4 : header_size);
  out += frontend ? "F\t" : "B\t";
  out += std::to_string(load_uint32(message.data() + (untyped ? 0 : 1))) + '\t';
  fields written(out, body, show_values_);
  try {
    if (untyped) {
      const auto code = body.size() < 4 ? 0 : load_int32(body.data());
      write_untyped(written, code);
      begun_ = code != ssl_request;
    } else if (frontend) {
      write_frontend(written, message[0], asked_);
    } else {
      const auto type = static_cast<backend>(message[0]);
      if (type == backend::authentication && body.size() >= 4) asked_ = load_int32(body.data());
      write_backend(written, type);
    }
    written.end();
  } catch (const protocol_violation&) {
    out += " (malformed)";
  }
  out += '\n';
}

}  // namespace pgpoll::wire
