// Start-up with every way to authenticate, and the client's half of SCRAM by itself. The server's messages are the
// input's, or right ones that it asks for. Whatever comes: no success without the proof that SCRAM asks of the server,
// no password in the clear, and bytes that arrive one at a time end as whole ones.
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>
#include <optional>

#include "conversation.hpp"
#include "core/scram.hpp"
#include "messages.hpp"

namespace pgpoll::fuzz {
namespace {

using namespace messages;

const std::string password = "correct horse";
constexpr std::uint32_t max_iterations = 4097;  // more than one slice of the session's
const std::string own_nonce = "fyko+d2lbbFgONRv9qkxdawL";

using digest = std::array<unsigned char, 32>;

std::string base64(std::string_view bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), reinterpret_cast<const unsigned char*>(bytes.data()),
                  static_cast<int>(bytes.size()));
  text.pop_back();
  return text;
}

digest hmac(const digest& key, std::string_view data) {
  digest out{};
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char*>(data.data()),
       data.size(), out.data(), nullptr);
  return out;
}

// A server that knows the password (RFC 5802), told by the input what to ask for.
class scram_server {
 public:
  std::string first(std::string_view client_nonce, input& in) {
    constexpr std::uint32_t counts[] = {1, 2, 3, max_iterations + 1};
    client_nonce_ = client_nonce;
    iterations_ = counts[in.byte() % std::size(counts)];
    // Two slices cost what a hundred other inputs do: for the corpus, not to be found by chance.
    if (in.bytes(4) == "slow") iterations_ = max_iterations;
    salt_ = std::string(in.bytes(1 + in.byte() % 20)) + 's';
    first_ = "r=" + client_nonce_ + "own,s=" + base64(salt_) + ",i=" + std::to_string(iterations_);
    return first_;
  }

  // The proof, for the client-final-message that answers first(); all of it follows from what both have said.
  std::string final() const {
    if (!acceptable()) return "v=none";  // it is not asked for
    digest salted{};
    PKCS5_PBKDF2_HMAC(password.data(), static_cast<int>(password.size()),
                      reinterpret_cast<const unsigned char*>(salt_.data()), static_cast<int>(salt_.size()),
                      static_cast<int>(iterations_), EVP_sha256(), static_cast<int>(salted.size()), salted.data());
    const auto said = "n=,r=" + client_nonce_ + ',' + first_ + ",c=biws,r=" + client_nonce_ + "own";
    const auto signature = hmac(hmac(salted, "Server Key"), said);
    return "v=" + base64({reinterpret_cast<const char*>(signature.data()), signature.size()});
  }

  bool begun() const { return !first_.empty(); }
  bool acceptable() const { return iterations_ <= max_iterations; }

 private:
  std::string client_nonce_;
  std::string first_;
  std::string salt_;
  std::uint32_t iterations_ = 1;
};

// One byte changed, or an end cut off, as the input says.
std::string disturbed(std::string text, input& in) {
  const std::size_t at = in.byte() % (text.size() + 1);
  const auto change = in.byte();
  if (change == 0)
    text.resize(at);
  else if (at < text.size())
    text[at] = static_cast<char>(text[at] ^ change);
  return text;
}

// ---- scram_client alone

void play_client(input in) {
  core::scram_client scram("", password, max_iterations, own_nonce);
  const auto how = in.byte();
  scram_server server;
  auto first = server.first(own_nonce, in);
  const bool acceptable = server.acceptable();
  try {
    require(scram.client_first() == "n,,n=,r=" + own_nonce, "client-first-message");
    const auto right_first = first;
    if ((how & 1) != 0) first = disturbed(first, in);
    if ((how & 2) != 0) first = std::string(in.bytes(in.byte()));
    scram.server_first(first);
    while (!scram.derive(1 + how)) continue;
    scram.client_final();
    auto final = (how & 4) != 0 ? std::string() : server.final();
    const auto right_final = server.final();
    if ((how & 8) != 0) final = disturbed(final, in);
    if ((how & 16) != 0) final += in.rest();
    scram.server_final(final);
    require(scram.verified(), "what throws nothing has verified");
    require(first == right_first && final.starts_with(right_final), "a proof for these messages alone verifies");
  } catch (const core::authentication_error&) {
    require(!scram.verified(), "who was refused has not verified");
    require(how != 0 || !acceptable, "a right server is accepted");
  }
}

// ---- start-up

// The client's nonce, once its SASLInitialResponse has been written.
std::string nonce_of(std::string_view outbound) {
  constexpr std::string_view before = "n,,n=,r=";
  const auto at = outbound.find(before);
  return at == std::string_view::npos ? std::string() : std::string(outbound.substr(at + before.size(), 32));
}

class startup {
 public:
  startup(std::uint8_t choice, arrival how) : with(settings(choice), how), clear_allowed_((choice & 1) != 0) {
    with.watch(with.talk.start_connect());
  }

  void play(input in) {
    while (!in.empty() && !with.talk.ended()) step(in);
    with.deliver();
    check();
  }

  conversation with;

 private:
  static core::settings settings(std::uint8_t choice) {
    core::settings made;
    made.startup_parameters = {{"user", "ann"}};
    made.user = "ann";
    made.cleartext_allowed = (choice & 1) != 0;
    if ((choice & 2) == 0) made.password = password;
    if ((choice & 4) == 0) made.scram_password = password;
    made.max_scram_iterations = max_iterations;
    return made;
  }

  void authentication(std::int32_t code, const std::string& data = {}) {
    with.arrives(message('R', int32(code) + data));
  }

  void step(input& in) {
    const auto verb = in.byte();
    switch (verb % 20) {
      case 0:
        return with.arrives(in.bytes(in.byte()));
      case 1:
        return with.deliver();
      case 2:
        return authentication(0);
      case 3:
        return authentication(3);
      case 4:
        return authentication(5, std::string(in.bytes(4)));
      case 5:
        return authentication(10, text("SCRAM-SHA-256") + '\0');
      case 6:
        return authentication(10, text("SCRAM-SHA-256-PLUS") + text("SCRAM-SHA-256") + '\0');
      case 7:
        return authentication(in.byte(), std::string(in.bytes(in.byte())));
      case 8:
      case 9: {
        with.deliver();
        const auto first = server_.first(nonce_of(with.talk.outbound()), in);
        return authentication(11, verb % 20 == 8 ? first : disturbed(first, in));
      }
      case 10:
      case 11: {
        if (!server_.begun()) return;
        with.deliver();
        const auto final = server_.final();
        const auto said = verb % 20 == 10 ? final : disturbed(final, in);
        proved_ |= said == final;
        return authentication(12, said);
      }
      case 12:
        return with.arrives(message('K', int32(47) + "abcd"));
      case 13:
        return with.arrives(ready());
      case 14:
        return with.arrives(message('S', text("TimeZone") + text("UTC")));
      case 15:
        return with.arrives(notice("note"));
      case 16:
        return with.arrives(error(in.byte() % 2 == 0 ? "FATAL" : "ERROR", "28P01"));
      case 17:
        return with.arrives(
            message('v', int32(3 << 16) + int32(in.byte() % 4) + std::string(in.bytes(in.byte() % 16))));
      case 18:
        with.deliver();
        with.talk.eof();
        return with.pump();
      default:
        return with.arrives(message(static_cast<char>(in.byte()), std::string(in.bytes(in.byte()))));
    }
  }

  void check() {
    const auto outbound = with.talk.outbound();  // nothing was sent: all that was ever written
    const bool scram_begun = !nonce_of(outbound).empty();
    const bool up = with.talk.transaction_status() != '\0';
    require(!up || !scram_begun || proved_, "the server has proved that it knows the password");
    require(clear_allowed_ || outbound.find(password) == std::string_view::npos, "no password in the clear");
  }

  scram_server server_;
  bool clear_allowed_;
  bool proved_ = false;
};

// What OpenSSL allocates when it is first used is not to be counted.
bool warm_up() {
  const std::uint8_t right_server[] = {0, 0, 0};
  play_client({right_server, sizeof right_server});
  return !core::md5_password("ann", password, std::span<const char, 4>("salt", 4)).empty();
}

}  // namespace
}  // namespace pgpoll::fuzz

// Instead of OpenSSL's: an input does the same each time, the nonce included.
extern "C" int RAND_bytes(unsigned char* bytes, int size) {
  std::fill_n(bytes, size, static_cast<unsigned char>('n'));
  return 1;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pgpoll::fuzz;
  static const bool warm = warm_up();
  (void)warm;
  input in(data, size);
  const auto choice = in.byte();
  if ((choice & 128) != 0) return play_client(in), 0;
  startup whole(choice, arrival::whole);
  whole.play(in);
  whole.with.end(choice >> 4);
  startup bytewise(choice, arrival::bytewise);
  bytewise.play(in);
  bytewise.with.end(choice >> 4);
  require_same(bytewise.with, whole.with);
  return 0;
}
