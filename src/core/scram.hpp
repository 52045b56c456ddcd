// SCRAM-SHA-256 as the client plays it (RFC 5802, RFC 7677; PostgreSQL's manual, section 54.3), without I/O:
//
//   scram_client scram("", password_after_saslprep, 1'000'000);
//   send(scram.client_first());          SASLInitialResponse
//   scram.server_first(message);         AuthenticationSASLContinue
//   while (!scram.derive(8192)) ...      PBKDF2, a slice at a time (0.14 µs an iteration with SHA extensions)
//   send(scram.client_final());          SASLResponse
//   scram.server_final(message);         AuthenticationSASLFinal
//   scram.verified();                    only now has the server proved that it knows the password
//
// Nothing from the server is trusted: every message has exactly the RFC's form, comes once and in order, and the
// iteration count is checked before anything is derived. Whatever is wrong throws authentication_error, after which
// the object is of no use. No message of an error holds a secret.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pgpoll::core {

struct authentication_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class scram_client {
 public:
  // PostgreSQL ignores `user` here and takes that of the StartupMessage; "" is what libpq sends. `nonce` is for
  // tests; empty means 24 random bytes, in base64.
  scram_client(std::string user, std::string password_after_saslprep, std::uint32_t max_iterations,
               std::string nonce = {});
  scram_client(const scram_client&) = delete;
  scram_client& operator=(const scram_client&) = delete;
  ~scram_client();

  std::string client_first();
  void server_first(std::string_view message);
  bool derive(std::uint32_t iterations_at_most);  // true when done
  std::string client_final();
  void server_final(std::string_view message);
  bool verified() const { return step_ == step::verified; }

 private:
  enum class step { client_first, server_first, deriving, client_final, server_final, verified, failed };
  using digest = std::array<unsigned char, 32>;
  class keyed_hash;  // HMAC-SHA-256 under one key

  void expect(step wanted);

  std::string password_;
  std::uint32_t max_iterations_;
  std::string nonce_;  // ours
  std::string client_first_bare_;
  std::string server_first_;
  std::string combined_nonce_;
  std::string salt_;
  std::uint32_t iterations_ = 0;
  std::uint32_t derived_ = 0;
  std::unique_ptr<keyed_hash> by_password_;
  digest block_{};            // U1, U2, ...
  digest salted_password_{};  // their XOR
  digest server_signature_{};
  step step_ = step::client_first;
};

// "md5" + hex(md5(hex(md5(password + user)) + salt)), what AuthenticationMD5Password asks for.
std::string md5_password(std::string_view user, std::string_view password, std::span<const char, 4> salt);

}  // namespace pgpoll::core
