// Messages as text: golden lines, what is never shown, and that any bytes in any pieces give lines and nothing worse.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wire/bytes.hpp"
#include "wire/frontend.hpp"
#include "wire/trace.hpp"

namespace pgpoll::wire {
namespace {

using namespace std::string_literals;

std::string message(char type, std::string_view body) {
  std::string out(1, type);
  append_uint32(out, static_cast<std::uint32_t>(body.size() + 4));
  return out.append(body);
}

// A tracer past start-up.
tracer begun(bool show_values = false) {
  tracer out(show_values);
  std::string startup;
  frontend(startup).startup_message(std::vector<std::pair<std::string, std::string>>{});
  out.sent(startup);
  return out;
}

std::string from_backend(char type, std::string_view body, bool show_values = false) {
  return begun(show_values).received(message(type, body));
}

std::string from_frontend(char type, std::string_view body, bool show_values = false) {
  return begun(show_values).sent(message(type, body));
}

TEST(Trace, WhatHasNoType) {
  std::string bytes;
  frontend(bytes).startup_message(std::vector<std::pair<std::string, std::string>>{{"user", "ann"}});
  EXPECT_EQ(tracer().sent(bytes), "F\t18\tStartupMessage\t 3 0 \"user\" \"ann\"\n");
  EXPECT_EQ(tracer().sent("\0\0\0\x08\x04\xd2\x16\x2f"s + bytes),
            "F\t8\tSSLRequest\t 1234 5679\nF\t18\tStartupMessage\t 3 0 \"user\" \"ann\"\n");
  bytes.clear();
  frontend(bytes).cancel_request(4711, "\x01\x02\x03\x04");
  EXPECT_EQ(tracer().sent(bytes), "F\t16\tCancelRequest\t 1234 5678 4711 'BBBB'\n");
  bytes.clear();
  frontend(bytes).cancel_request(4711, std::string(32, 'k'));
  EXPECT_EQ(tracer().sent(bytes), "F\t44\tCancelRequest\t 1234 5678 4711 'BBBB'\n");
}

TEST(Trace, FrontendMessages) {
  EXPECT_EQ(from_frontend('Q', "select 1\0"s), "F\t13\tQuery\t \"select 1\"\n");
  EXPECT_EQ(from_frontend('P', "s\0select $1\0\0\1\0\0\0\x17"s), "F\t22\tParse\t \"s\" \"select $1\" 1 23\n");
  EXPECT_EQ(from_frontend('D', "Ss\0"s), "F\t7\tDescribe\t S \"s\"\n");
  EXPECT_EQ(from_frontend('C', "P\0"s), "F\t6\tClose\t P \"\"\n");
  EXPECT_EQ(from_frontend('E', "\0\0\0\0\x05"s), "F\t9\tExecute\t \"\" 5\n");
  EXPECT_EQ(from_frontend('f', "no\0"s), "F\t7\tCopyFail\t \"no\"\n");
  EXPECT_EQ(begun().sent(message('H', "") + message('S', "") + message('c', "") + message('X', "")),
            "F\t4\tFlush\nF\t4\tSync\nF\t4\tCopyDone\nF\t4\tTerminate\n");
}

TEST(Trace, ValuesAreMaskedUnlessTheyAreAskedFor) {
  const auto bind = "\0s\0\0\1\0\1\0\2\0\0\0\4\0\0\0\7\xff\xff\xff\xff\0\1\0\0"s;
  EXPECT_EQ(from_frontend('B', bind), "F\t29\tBind\t \"\" \"s\" 1 1 2 4 'BBBB' -1 1 0\n");
  EXPECT_EQ(from_frontend('B', bind, true), "F\t29\tBind\t \"\" \"s\" 1 1 2 4 '\\x00\\x00\\x00\\x07' -1 1 0\n");
  const auto row = "\0\2\0\0\0\3a\nb\xff\xff\xff\xff"s;
  EXPECT_EQ(from_backend('D', row), "B\t17\tDataRow\t 2 3 'BBBB' -1\n");
  EXPECT_EQ(from_backend('D', row, true), "B\t17\tDataRow\t 2 3 'a\\x0ab' -1\n");
  EXPECT_EQ(from_backend('d', "1\n"), "B\t6\tCopyData\t 'BBBB'\n");
  EXPECT_EQ(from_frontend('d', "1\n", true), "F\t6\tCopyData\t '1\\x0a'\n");
  const auto notification = "\0\0\0\7channel\0payload\0"s;
  EXPECT_EQ(from_backend('A', notification), "B\t24\tNotificationResponse\t 7 \"channel\" \"SSSS\"\n");
  EXPECT_EQ(from_backend('A', notification, true), "B\t24\tNotificationResponse\t 7 \"channel\" \"payload\"\n");
  const auto error = "SERROR\0Mno\0DKey (a)=(1)\0Wparameter $1 = '1'\0\0"s;
  EXPECT_EQ(from_backend('E', error), "B\t49\tErrorResponse\t S \"ERROR\" M \"no\" D \"SSSS\" W \"SSSS\" \\x00\n");
  EXPECT_EQ(from_backend('N', error, true),
            "B\t49\tNoticeResponse\t S \"ERROR\" M \"no\" D \"Key (a)=(1)\" W \"parameter $1 = '1'\" \\x00\n");
}

TEST(Trace, BackendMessages) {
  EXPECT_EQ(from_backend('T', "\0\1name\0\0\0\0\1\0\2\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\1"s),
            "B\t29\tRowDescription\t 1 \"name\" 1 2 25 65535 -1 1\n");
  EXPECT_EQ(from_backend('t', "\0\2\0\0\0\x17\0\0\0\x19"s), "B\t14\tParameterDescription\t 2 23 25\n");
  EXPECT_EQ(from_backend('C', "SELECT 1\0"s), "B\t13\tCommandComplete\t \"SELECT 1\"\n");
  EXPECT_EQ(from_backend('S', "a\0b\n\0"s), "B\t9\tParameterStatus\t \"a\" \"b\\x0a\"\n");
  EXPECT_EQ(from_backend('Z', "T"), "B\t5\tReadyForQuery\t T\n");
  EXPECT_EQ(from_backend('G', "\1\0\1\0\1"s), "B\t9\tCopyInResponse\t \\x01 1 1\n");
  EXPECT_EQ(from_backend('H', "\0\0\0"s), "B\t7\tCopyOutResponse\t \\x00 0\n");
  EXPECT_EQ(from_backend('W', "\0\0\0"s), "B\t7\tCopyBothResponse\t \\x00 0\n");
  EXPECT_EQ(from_backend('v', "\0\0\0\0\0\0\0\1_pq_.x\0"s), "B\t19\tNegotiateProtocolVersion\t 0 1 \"_pq_.x\"\n");
  for (const auto& [type, name] : std::vector<std::pair<char, std::string>>{{'1', "ParseComplete"},
                                                                            {'2', "BindComplete"},
                                                                            {'3', "CloseComplete"},
                                                                            {'I', "EmptyQueryResponse"},
                                                                            {'n', "NoData"},
                                                                            {'s', "PortalSuspended"},
                                                                            {'c', "CopyDone"}})
    EXPECT_EQ(from_backend(type, ""), "B\t4\t" + name + "\n");
}

TEST(Trace, SecretsAreNeverShown) {
  for (const bool show_values : {false, true}) {
    auto it = begun(show_values);
    EXPECT_EQ(it.received(message('R', "\0\0\0\x03"s)), "B\t8\tAuthenticationCleartextPassword\n");
    EXPECT_EQ(it.sent(message('p', "secret\0"s)), "F\t11\tPasswordMessage\t \"SSSS\"\n");
    EXPECT_EQ(it.received(message('R', "\0\0\0\x05salt"s)), "B\t12\tAuthenticationMD5Password\t 'BBBB'\n");
    EXPECT_EQ(it.sent(message('p', "md5secret\0"s)), "F\t14\tPasswordMessage\t \"SSSS\"\n");
    EXPECT_EQ(it.received(message('R', "\0\0\0\x0aSCRAM-SHA-256\0\0"s)),
              "B\t23\tAuthenticationSASL\t \"SCRAM-SHA-256\" \"\"\n");
    EXPECT_EQ(it.sent(message('p', "SCRAM-SHA-256\0\0\0\0\6secret"s)),
              "F\t28\tSASLInitialResponse\t \"SCRAM-SHA-256\" 6 'BBBB'\n");
    EXPECT_EQ(it.received(message('R', "\0\0\0\x0bsecret"s)), "B\t14\tAuthenticationSASLContinue\t 'BBBB'\n");
    EXPECT_EQ(it.sent(message('p', "secret")), "F\t10\tSASLResponse\t 'BBBB'\n");
    EXPECT_EQ(it.received(message('R', "\0\0\0\x0csecret"s)), "B\t14\tAuthenticationSASLFinal\t 'BBBB'\n");
    EXPECT_EQ(it.received(message('R', "\0\0\0\0"s)), "B\t8\tAuthenticationOk\n");
    EXPECT_EQ(it.received(message('R', "\0\0\0\x63what"s)), "B\t12\tUnknown authentication message\t 'BBBB'\n");
    EXPECT_EQ(it.sent(message('p', "secret")), "F\t10\tUnknownAuthenticationResponse\t 'BBBB'\n");
    EXPECT_EQ(it.received(message('K', "\0\0\0\x07kkkk"s)), "B\t12\tBackendKeyData\t 7 'BBBB'\n");
    EXPECT_EQ(it.received(message('K', "\0\0\0\x07"s + std::string(32, 'k'))), "B\t40\tBackendKeyData\t 7 'BBBB'\n");
  }
}

TEST(Trace, WhatDoesNotAddUp) {
  EXPECT_EQ(from_backend('Z', "TT"), "B\t6\tReadyForQuery\t T (malformed)\n");
  EXPECT_EQ(from_backend('Z', ""), "B\t4\tReadyForQuery\t (malformed)\n");
  EXPECT_EQ(from_backend('C', "SELECT 1"), "B\t12\tCommandComplete\t (malformed)\n");
  EXPECT_EQ(from_backend('D', "\0\1\x7f\xff\xff\xff"s), "B\t10\tDataRow\t 1 2147483647 (malformed)\n");
  EXPECT_EQ(from_backend('!', "what"), "B\t8\tUnknown message\t 'BBBB'\n");
  EXPECT_EQ(begun().received("Z\0\0\0\1"s), "B\t1\tReadyForQuery\t (malformed)\n");
  EXPECT_EQ(tracer().sent("\0\0\0\4"s), "F\t4\tStartupMessage\t (malformed)\n");
}

TEST(Trace, AnyPiecesGiveTheSameLines) {
  const auto bytes =
      message('R', "\0\0\0\0"s) + message('D', "\0\1\0\0\0\1x"s) + message('C', "SELECT 1\0"s) + message('Z', "I");
  const auto whole = begun().received(bytes);
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    auto it = begun();
    auto lines = it.received(bytes.substr(0, cut));
    lines += it.received(bytes.substr(cut));
    EXPECT_EQ(lines, whole);
  }
  auto it = begun();
  std::string lines;
  for (const char each : bytes) lines += it.received({&each, 1});
  EXPECT_EQ(lines, whole);
}

TEST(Trace, AnyBytesGiveLines) {
  std::mt19937 random(20);
  for (int i = 0; i < 20'000; ++i) {
    std::string body(random() % 40, '\0');
    for (auto& each : body) each = static_cast<char>(random() % 3 == 0 ? random() % 4 : random());
    auto it = begun(true);
    const auto bytes = message(static_cast<char>(random() % 128), body);
    const auto lines = it.received(bytes) + it.sent(bytes) + tracer(true).sent(bytes.substr(1));
    EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 3) << lines;
  }
}

}  // namespace
}  // namespace pgpoll::wire
