#include "core/scram.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace pgpoll::core {
namespace {

constexpr std::size_t max_nonce = 1024;                        // characters; PostgreSQL's have 24
constexpr std::size_t max_salt = 1024;                         // bytes; PostgreSQL's have 16
constexpr std::string_view client_final_header = "c=biws,r=";  // biws: "n,,", no channel binding

struct free_digest_context {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};
using digest_context = std::unique_ptr<EVP_MD_CTX, free_digest_context>;

void check(int openssl_result) {
  if (openssl_result != 1) throw authentication_error("the cryptographic library failed");
}

digest_context new_digest_context() {
  digest_context context(EVP_MD_CTX_new());
  if (!context) throw std::bad_alloc();
  return context;
}

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

std::string base64(const unsigned char* data, std::size_t size) {
  std::string text(4 * ((size + 2) / 3) + 1, '\0');  // EVP_EncodeBlock ends with a NUL
  EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), data, static_cast<int>(size));
  text.pop_back();
  return text;
}

int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

// Strict (RFC 4648, section 3): padded, nothing but the alphabet, unused bits zero. OpenSSL's decoder is laxer.
std::optional<std::string> from_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size() - padding; ++i) {
    int digit = base64_digit(text[i]);
    if (digit < 0) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    if (i % 4 == 3)
      for (int shift : {16, 8, 0}) bytes.push_back(static_cast<char>(bits >> shift & 0xff));
  }
  if (padding == 2) {
    if ((bits & 0x0f) != 0) return std::nullopt;
    bytes.push_back(static_cast<char>(bits >> 4 & 0xff));
  } else if (padding == 1) {
    if ((bits & 0x03) != 0) return std::nullopt;
    bytes.push_back(static_cast<char>(bits >> 10 & 0xff));
    bytes.push_back(static_cast<char>(bits >> 2 & 0xff));
  }
  return bytes;
}

// RFC 5802's posit-number. Past `limit` the exact value doesn't matter: limit + 1.
std::optional<std::uint64_t> positive_number(std::string_view text, std::uint64_t limit) {
  if (text.empty() || text.front() == '0') return std::nullopt;
  std::uint64_t value = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = std::min(value * 10 + static_cast<std::uint64_t>(c - '0'), limit + 1);
  }
  return value;
}

[[noreturn]] void malformed(const char* which, const std::string& why) {
  throw authentication_error(std::string("malformed SCRAM ") + which + " from the server: " + why);
}

// Attributes of one message, taken in order; what is left over must be optional extensions.
class attributes {
 public:
  attributes(const char* message, std::string_view text) : message_(message), rest_(text) {}

  std::string_view take(char name) {
    auto [found, value] = next();
    if (found == 'm') malformed(message_, "a mandatory extension that is not supported");
    if (found != name) malformed(message_, std::string("attribute '") + name + "' expected");
    return value;
  }

  void end() {
    while (more_) {
      auto [name, value] = next();
      if (name == 'm') malformed(message_, "a mandatory extension that is not supported");
      if (std::string_view("rsiveanpc").find(name) != std::string_view::npos)
        malformed(message_, "an attribute out of order");
      if (value.empty()) malformed(message_, "an empty extension");
    }
  }

 private:
  std::pair<char, std::string_view> next() {
    if (!more_) malformed(message_, "it ends too early");
    auto comma = rest_.find(',');
    auto one = rest_.substr(0, comma);
    more_ = comma != std::string_view::npos;
    rest_ = more_ ? rest_.substr(comma + 1) : std::string_view{};
    bool letter = !one.empty() && ((one[0] >= 'a' && one[0] <= 'z') || (one[0] >= 'A' && one[0] <= 'Z'));
    if (!letter || one.size() < 2 || one[1] != '=') malformed(message_, "an attribute is not of the form x=...");
    return {one[0], one.substr(2)};
  }

  const char* message_;
  std::string_view rest_;
  bool more_ = true;
};

void refuse_error_of_server(std::string_view message) {
  if (!message.starts_with("e=")) return;
  std::string reason(message.substr(2, 200));
  for (char& c : reason)
    if (c < 0x20 || c > 0x7e) c = '?';
  throw authentication_error("SCRAM authentication failed; the server says: " + reason);
}

std::string saslname(std::string_view name) {
  std::string escaped;
  for (char c : name) {
    if (c == '=')
      escaped += "=3D";
    else if (c == ',')
      escaped += "=2C";
    else
      escaped += c;
  }
  return escaped;
}

std::string random_nonce() {
  std::array<unsigned char, 24> bytes{};
  check(RAND_bytes(bytes.data(), static_cast<int>(bytes.size())));
  return base64(bytes.data(), bytes.size());
}

}  // namespace

// The two states after the padded key are computed once: an iteration of PBKDF2 is then two blocks of SHA-256 and
// two copies of a context.
class scram_client::keyed_hash {
 public:
  explicit keyed_hash(std::string_view key) : inner_(new_digest_context()), outer_(new_digest_context()) {
    std::array<unsigned char, 64> block{};
    if (key.size() > block.size())
      check(EVP_Digest(key.data(), key.size(), block.data(), nullptr, EVP_sha256(), nullptr));
    else
      std::copy(key.begin(), key.end(), block.begin());
    begin(inner_.get(), block, 0x36);
    begin(outer_.get(), block, 0x36 ^ 0x5c);
    OPENSSL_cleanse(block.data(), block.size());
  }

  digest operator()(std::string_view data) {
    digest result;
    hash(inner_.get(), bytes_of(data), data.size(), result);
    hash(outer_.get(), result.data(), result.size(), result);
    return result;
  }

  void again(digest& value) {  // value = HMAC(key, value)
    hash(inner_.get(), value.data(), value.size(), value);
    hash(outer_.get(), value.data(), value.size(), value);
  }

 private:
  static void begin(EVP_MD_CTX* context, std::array<unsigned char, 64>& block, int toggle) {
    for (auto& byte : block) byte = static_cast<unsigned char>(byte ^ toggle);
    check(EVP_DigestInit_ex(context, EVP_sha256(), nullptr));
    check(EVP_DigestUpdate(context, block.data(), block.size()));
  }

  void hash(const EVP_MD_CTX* state, const unsigned char* data, std::size_t size, digest& result) {
    check(EVP_MD_CTX_copy_ex(work_.get(), state));
    check(EVP_DigestUpdate(work_.get(), data, size));
    check(EVP_DigestFinal_ex(work_.get(), result.data(), nullptr));
  }

  digest_context inner_, outer_;
  digest_context work_ = new_digest_context();
};

scram_client::scram_client(std::string user, std::string password_after_saslprep, std::uint32_t max_iterations,
                           std::string nonce)
    : password_(std::move(password_after_saslprep)),
      max_iterations_(max_iterations),
      nonce_(nonce.empty() ? random_nonce() : std::move(nonce)),
      client_first_bare_("n=" + saslname(user) + ",r=" + nonce_) {}

scram_client::~scram_client() {
  OPENSSL_cleanse(password_.data(), password_.size());
  OPENSSL_cleanse(block_.data(), block_.size());
  OPENSSL_cleanse(salted_password_.data(), salted_password_.size());
}

// Until the step has been done in full, the exchange counts as failed: nothing goes on after an exception.
void scram_client::expect(step wanted) {
  if (std::exchange(step_, step::failed) != wanted) throw authentication_error("unexpected SASL message");
}

std::string scram_client::client_first() {
  expect(step::client_first);
  step_ = step::server_first;
  return "n,," + client_first_bare_;
}

void scram_client::server_first(std::string_view message) {
  constexpr const char* name = "server-first-message";
  expect(step::server_first);
  refuse_error_of_server(message);
  attributes parts(name, message);

  auto nonce = parts.take('r');
  if (!nonce.starts_with(nonce_) || nonce.size() == nonce_.size()) malformed(name, "its nonce does not extend ours");
  bool printable = std::all_of(nonce.begin(), nonce.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!printable || nonce.size() > max_nonce) malformed(name, "its nonce is not valid");

  auto salt_text = parts.take('s');
  if (salt_text.size() > 4 * ((max_salt + 2) / 3)) malformed(name, "its salt is too long");
  auto salt = from_base64(salt_text);
  if (!salt) malformed(name, "its salt is not base64");

  auto iterations = positive_number(parts.take('i'), max_iterations_);
  if (!iterations) malformed(name, "its iteration count is not a positive number");
  if (*iterations > max_iterations_)
    throw authentication_error("the server asks for more SCRAM iterations than the limit of " +
                               std::to_string(max_iterations_));
  parts.end();

  server_first_ = message;
  combined_nonce_ = nonce;
  salt_ = std::move(*salt);
  iterations_ = static_cast<std::uint32_t>(*iterations);
  step_ = step::deriving;
}

bool scram_client::derive(std::uint32_t iterations_at_most) {
  if (step_ == step::client_final) return true;
  expect(step::deriving);
  if (!by_password_) {
    by_password_ = std::make_unique<keyed_hash>(password_);
    block_ = salted_password_ = (*by_password_)(salt_ + std::string("\0\0\0\1", 4));
    derived_ = 1;
  }
  std::uint32_t slice = std::min(iterations_at_most, iterations_ - derived_);
  for (std::uint32_t i = 0; i < slice; ++i) {
    by_password_->again(block_);
    for (std::size_t k = 0; k < block_.size(); ++k)
      salted_password_[k] = static_cast<unsigned char>(salted_password_[k] ^ block_[k]);
  }
  derived_ += slice;
  step_ = derived_ == iterations_ ? step::client_final : step::deriving;
  return step_ == step::client_final;
}

std::string scram_client::client_final() {
  expect(step::client_final);
  std::string message = std::string(client_final_header) + combined_nonce_;
  std::string signed_text = client_first_bare_ + "," + server_first_ + "," + message;

  std::string_view salted(reinterpret_cast<const char*>(salted_password_.data()), salted_password_.size());
  keyed_hash by_salted_password(salted);
  digest client_key = by_salted_password("Client Key");
  digest server_key = by_salted_password("Server Key");
  digest stored_key{};
  check(EVP_Digest(client_key.data(), client_key.size(), stored_key.data(), nullptr, EVP_sha256(), nullptr));
  std::string_view stored(reinterpret_cast<const char*>(stored_key.data()), stored_key.size());
  digest proof = keyed_hash(stored)(signed_text);
  for (std::size_t k = 0; k < proof.size(); ++k) proof[k] = static_cast<unsigned char>(proof[k] ^ client_key[k]);
  std::string_view server(reinterpret_cast<const char*>(server_key.data()), server_key.size());
  server_signature_ = keyed_hash(server)(signed_text);
  for (auto* key : {&client_key, &server_key, &stored_key}) OPENSSL_cleanse(key->data(), key->size());

  step_ = step::server_final;
  return message + ",p=" + base64(proof.data(), proof.size());
}

void scram_client::server_final(std::string_view message) {
  constexpr const char* name = "server-final-message";
  expect(step::server_final);
  refuse_error_of_server(message);
  attributes parts(name, message);
  auto text = parts.take('v');
  auto signature = text.size() == 44 ? from_base64(text) : std::nullopt;
  if (!signature || signature->size() != server_signature_.size()) malformed(name, "its signature is not valid");
  parts.end();
  if (CRYPTO_memcmp(signature->data(), server_signature_.data(), server_signature_.size()) != 0)
    throw authentication_error("the server failed to prove that it knows the password (wrong SCRAM signature)");
  step_ = step::verified;
}

namespace {

std::string md5_hex(std::string_view data) {
  std::array<unsigned char, 16> bytes{};
  if (EVP_Digest(data.data(), data.size(), bytes.data(), nullptr, EVP_md5(), nullptr) != 1)
    throw authentication_error("the server asks for an MD5 password, which the cryptographic library does not allow");
  std::string hex;
  for (unsigned byte : bytes) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

}  // namespace

std::string md5_password(std::string_view user, std::string_view password, std::span<const char, 4> salt) {
  std::string secret(password);
  secret += user;
  std::string stored = md5_hex(secret);
  OPENSSL_cleanse(secret.data(), secret.size());
  return "md5" + md5_hex(stored + std::string(salt.data(), salt.size()));
}

}  // namespace pgpoll::core
