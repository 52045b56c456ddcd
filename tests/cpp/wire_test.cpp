// The wire layer alone: golden bytes of what we send, and reading that ends in a value or in protocol_violation.
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wire/backend.hpp"
#include "wire/bytes.hpp"
#include "wire/frontend.hpp"

namespace pgpoll::wire {
namespace {

using namespace std::string_literals;

struct format {
  std::int16_t format;
};

std::string sent(auto&& build) {
  std::string out;
  build(frontend(out));
  return out;
}

TEST(Frontend, StartupMessage) {
  std::vector<std::pair<std::string, std::string>> parameters{{"user", "ann"}, {"database", "db"}};
  EXPECT_EQ(sent([&](auto out) { out.startup_message(parameters); }),
            "\x00\x00\x00\x1e\x00\x03\x00\x00user\0ann\0database\0db\0\0"s);
}

TEST(Frontend, CancelRequest) {
  EXPECT_EQ(sent([](auto out) { out.cancel_request(7, "\x01\x02\x03\x04"); }),
            "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x07\x01\x02\x03\x04"s);
}

TEST(Frontend, NegativePidKeepsItsBits) {
  EXPECT_EQ(sent([](auto out) { out.cancel_request(-2, ""); }), "\x00\x00\x00\x0c\x04\xd2\x16\x2e\xff\xff\xff\xfe"s);
}

TEST(Frontend, ExtendedQuery) {
  EXPECT_EQ(sent([](auto out) { out.parse("s1", "select 1"); }), "P\x00\x00\x00\x12s1\0select 1\0\x00\x00"s);
  EXPECT_EQ(sent([](auto out) { out.describe_statement("s1"); }), "D\x00\x00\x00\x08Ss1\0"s);
  EXPECT_EQ(sent([](auto out) { out.close_statement("s1"); }), "C\x00\x00\x00\x08Ss1\0"s);
  EXPECT_EQ(sent([](auto out) { out.execute(); }), "E\x00\x00\x00\x09\0\x00\x00\x00\x00"s);
  EXPECT_EQ(sent([](auto out) { out.flush().sync().terminate(); }),
            "H\x00\x00\x00\x04S\x00\x00\x00\x04X\x00\x00\x00\x04"s);
}

TEST(Frontend, BindHasTheArgumentsAndOneFormatAColumn) {
  const std::vector<format> columns{{1}, {0}};
  EXPECT_EQ(sent([&](auto out) { out.bind("s", "\0\0\0\0"s, columns); }),
            "B\x00\x00\x00\x11\0s\0\0\0\0\0\x00\x02\x00\x01\x00\x00"s);
}

TEST(Frontend, SimpleQueryAndPasswords) {
  EXPECT_EQ(sent([](auto out) { out.query("x"); }), "Q\x00\x00\x00\x06x\0"s);
  EXPECT_EQ(sent([](auto out) { out.password_message("pw"); }), "p\x00\x00\x00\x07pw\0"s);
  EXPECT_EQ(sent([](auto out) { out.sasl_initial_response("M", "ab"); }),
            "p\x00\x00\x00\x0cM\0\x00\x00\x00\x02"s + "ab");
  EXPECT_EQ(sent([](auto out) { out.sasl_response("ab"); }), "p\x00\x00\x00\x06"s + "ab");
}

TEST(Frontend, MessagesOfAGigabyteAreRefused) {
  std::string out;
  const std::vector<format> none;
  EXPECT_THROW(frontend(out).bind("s", std::string_view(out.data(), max_message), none), message_too_large);
  EXPECT_EQ(out, "");
}

TEST(Reader, Integers) {
  const auto body = "\x01\x80\x00\xff\xfe\x80\x00\x00\x01"s;
  reader in(body, "X");
  EXPECT_EQ(in.uint8(), 1);
  EXPECT_EQ(in.int16(), -32768);
  EXPECT_EQ(in.int16(), -2);
  EXPECT_EQ(in.uint32(), 0x80000001U);
  in.end();
}

TEST(Reader, EveryTruncationIsAViolationThatNamesItsPlace) {
  const auto whole = "\x00\x07name\0\x00\x00\x00\x2a"s;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const auto part = whole.substr(0, size);
    reader in(part, "RowDescription");
    try {
      in.int16();
      in.string();
      in.int32();
      FAIL() << "no violation with " << size << " bytes";
    } catch (const protocol_violation& violation) {
      EXPECT_NE(std::string_view(violation.what()).find("RowDescription: "), std::string_view::npos);
      EXPECT_NE(std::string_view(violation.what()).find(" at byte "), std::string_view::npos);
    }
  }
}

TEST(Reader, BytesTooMany) {
  reader in(std::string_view("\0\0", 2), "X");
  in.uint8();
  EXPECT_THROW(in.end(), protocol_violation);
}

TEST(DataRow, EveryTruncationIsAViolation) {
  const auto whole =
      "\x00\x03\x00\x00\x00\x02"
      "ab"
      "\xff\xff\xff\xff\x00\x00\x00\x00"s;
  EXPECT_NO_THROW(check_data_row(whole, 3));
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_THROW(check_data_row(std::string_view(whole).substr(0, size), 3), protocol_violation) << size;
  EXPECT_THROW(check_data_row(whole + "x", 3), protocol_violation);
}

TEST(DataRow, CountsAndLengthsOutOfRange) {
  EXPECT_THROW(check_data_row("\x00\x01\x00\x00\x00\x00"s, 2), protocol_violation);
  EXPECT_THROW(check_data_row("\xff\xff"s, 0), protocol_violation);
  EXPECT_THROW(check_data_row("\x00\x01\xff\xff\xff\xfe"s, 1), protocol_violation);
  EXPECT_THROW(check_data_row("\x00\x01\x7f\xff\xff\xff"s, 1), protocol_violation);
  EXPECT_NO_THROW(check_data_row("\x00\x00"s, 0));
}

TEST(Backend, NamesAndSizes) {
  EXPECT_EQ(name_of(backend::ready_for_query), "ReadyForQuery");
  EXPECT_EQ(name_of(static_cast<backend>('!')), "message 0x21");
  EXPECT_TRUE(known('Z'));
  EXPECT_FALSE(known('!'));
  EXPECT_TRUE(is_short(backend::ready_for_query));
  EXPECT_FALSE(is_short(backend::data_row));
}

}  // namespace
}  // namespace pgpoll::wire
