// The start-up dialogue (protocol manual, section 54.2.1) and SASL authentication (54.3).
#include "core/scram.hpp"
#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

// Request codes of AuthenticationXxx.
enum : std::int32_t { ok = 0, cleartext_password = 3, md5 = 5, sasl = 10, sasl_continue = 11, sasl_final = 12 };

constexpr std::uint32_t scram_slice = 4096;  // iterations a pump(): 0.5 to 2.5 ms

const char* method_name(std::int32_t code) {
  switch (code) {
    case 2:
      return "Kerberos V5";
    case 6:
      return "SCM credentials";
    case 7:
      return "GSSAPI";
    case 9:
      return "SSPI";
    default:
      return "unknown";
  }
}

const std::string& required(const std::optional<std::string>& password) {
  if (!password || password->empty())
    throw authentication_error("the server asks for a password and none was given: set password= or PGPASSWORD");
  return *password;
}

}  // namespace

exchange session::startup(operation_ptr) {
  co_await write_turn();
  out().startup_message(settings_.startup_parameters);
  state_ = state::starting;
  co_await reply_turn();

  for (bool asked = false; !authenticated_;) {
    auto body = expect(co_await next_message(), backend::authentication).read("Authentication");
    const auto method = body.int32();
    if (method != ok && asked) throw authentication_error("the server asks for a second authentication");
    switch (method) {
      case ok:
        body.end();
        authenticated_ = true;
        break;
      case cleartext_password:
        body.end();
        if (!settings_.cleartext_allowed)
          throw authentication_error(
              "the server asks for a cleartext password on a connection without encryption: refused");
        out().password_message(required(settings_.password));
        asked = true;
        break;
      case md5: {
        const auto salt = body.bytes(4);
        body.end();
        out().password_message(
            md5_password(settings_.user, required(settings_.password), std::span<const char, 4>(salt.data(), 4)));
        asked = true;
        break;
      }
      case sasl:
        asked = co_await authenticate_scram(body.rest());
        break;
      default:
        throw authentication_error("the server asks for authentication method " + std::to_string(method) + " (" +
                                   method_name(method) + "), which is not supported");
    }
  }
  inbound_.limit(wire::max_message);
  settings_.password.reset();
  settings_.scram_password.reset();

  auto got = co_await next_message();
  if (got.type == backend::backend_key_data) {
    auto body = got.read("BackendKeyData");
    const auto pid = body.int32();
    key_ = cancel_key{pid, std::string(body.bytes(4))};  // protocol 3.0: Int32
    body.end();
    got = co_await next_message();
  }
  ready_for_query(got);
  if (state_ == state::starting) state_ = state::ready;  // else a close waits behind us
  release_writer(*running_);
}

// True once the server has proved that it knows the password too; whatever else it says is an error.
step<bool> session::authenticate_scram(std::string_view mechanisms) {
  bool offered = false;
  wire::reader list(mechanisms, "AuthenticationSASL");
  for (auto name = list.string(); !name.empty(); name = list.string()) offered |= name == "SCRAM-SHA-256";
  list.end();
  if (!offered) throw authentication_error("the server offers no SASL mechanism that is supported (SCRAM-SHA-256)");
  required(settings_.password);

  scram_client scram("", settings_.scram_password ? *settings_.scram_password : *settings_.password,
                     settings_.max_scram_iterations);
  out().sasl_initial_response("SCRAM-SHA-256", scram.client_first());
  const auto data_of = [](wire::message got, std::int32_t wanted) {
    auto body = expect(got, backend::authentication).read("Authentication");
    if (body.int32() != wanted)
      throw authentication_error("the server left the SCRAM-SHA-256 exchange before proving itself");
    return body.rest();
  };
  scram.server_first(data_of(co_await next_message(), sasl_continue));
  while (!scram.derive(scram_slice)) co_await next_slice();
  out().sasl_response(scram.client_final());
  scram.server_final(data_of(co_await next_message(), sasl_final));
  co_return scram.verified();
}

}  // namespace pgpoll::core
