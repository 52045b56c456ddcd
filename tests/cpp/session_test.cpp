// The conversation without Python and without a socket: dialogues played whole, byte by byte, cut at every byte, and
// broken off after every step. tests/test_session*.py has the many dialogues; these few run under sanitizers.
#include "core/session.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend.hpp"

namespace {

using namespace pgpoll;
using core::failure;
using core::operation;
using core::operation_ptr;
using core::session;
using namespace pgpoll::test;

const std::string noise = message('N', "S" + text("NOTICE") + "M" + text("note") + '\0') +
                          message('S', text("TimeZone") + text("UTC")) + message('A', int32(1) + text("c") + text(""));

// The types of the frontend messages that have left; '!' is the StartupMessage.
std::string types_of(std::string_view bytes, bool& begun) {
  std::string out;
  while (!bytes.empty()) {
    out += begun ? bytes[0] : '!';
    const std::size_t skip = begun ? 1 : 0;
    bytes.remove_prefix(skip + wire::load_uint32(bytes.data() + skip));
    begun = true;
  }
  return out;
}

core::settings settings() {
  core::settings made;
  made.startup_parameters = {{"user", "ann"}, {"database", "shop"}};
  made.user = "ann";
  made.password = made.scram_password = "secret";
  made.decodes_binary = [](std::uint32_t) { return true; };
  return made;
}

// One playing of a dialogue: a session, and every operation that was started.
struct playing {
  session talk{settings()};
  std::vector<operation_ptr> started;
  std::vector<operation_ptr> finished;
  bool begun = false;

  void receive(std::string_view bytes) {
    auto room = talk.prepare(bytes.size());
    std::memcpy(room.data(), bytes.data(), bytes.size());
    talk.commit(bytes.size());
    pump();
  }
  void pump() {
    for (;;) {
      talk.pump();
      bool supplied = false;
      while (auto op = talk.next_unencoded()) {
        talk.supply(*op, std::string("\0\0\0\0", 4));
        supplied = true;
      }
      if (!supplied) break;
    }
    while (auto done = talk.next_completed()) finished.push_back(done);
  }
  std::string sent() {
    pump();
    const std::string bytes(talk.outbound());
    talk.sent(bytes.size());
    return types_of(bytes, begun);
  }
  void execute(const std::string& sql) {
    auto known = talk.find_statement(sql);
    started.push_back(known ? talk.start_execute(known, std::string("\0\0\0\0", 4)) : talk.start_execute(sql));
  }
};

// A step: the caller does something, this leaves, and the server sends that.
struct step {
  std::function<void(playing&)> act;
  std::string leaves;
  std::string arrives;
};
using dialogue = std::vector<step>;

const auto nothing = [](playing&) {};
void connect(playing& p) {
  p.started.push_back(p.talk.start_connect());
}

// Connect, a new statement, four of it in a pipeline of which the second is abandoned and the third fails, and a
// script.
dialogue everyday() {
  const auto four = [](playing& p) {
    for (int i = 0; i < 4; ++i) p.execute("select 1");
    p.talk.abandon(*p.started[3]);
  };
  return {
      {connect, "!", noise + started()},
      {[](playing& p) { p.execute("select 1"); }, "PDH", noise + described("one") + noise},
      {nothing, "BES", selected(1, 1) + ready()},
      {four, "BESBESBESBES", selected(10, 3) + ready() + selected(20, 40) + ready()},
      {nothing, "", message('2') + row(1) + noise + row(2) + server_error("22012") + ready()},
      {nothing, "", selected(30, 2) + ready()},
      {[](playing& p) { p.started.push_back(p.talk.start_script("a; b")); }, "Q",
       described("x").substr(message('1').size() + message('t', int16(0)).size()) + message('D', int16(1) + int32(-1)) +
           message('C', text("SELECT 1")) + message('C', text("UPDATE 2")) + ready()},
  };
}

// A statement that does not parse, COPY without consent, a cancel at the server with its drain, and the end.
dialogue troubled() {
  return {
      {connect, "!", started()},
      {[](playing& p) {
         p.execute("selec");
         p.execute("copy t from stdin");
       },
       "PDH", server_error("42601")},
      {nothing, "SPDH", ready() + message('1') + message('t', int16(0)) + message('n')},
      {nothing, "BEH", message('2') + message('G', std::string(1, '\0') + int16(1) + int16(0))},
      {nothing, "fS", server_error("57014") + ready()},
      {[](playing& p) { p.started.push_back(p.talk.start_command("BEGIN")); }, "PBES",
       message('1') + message('2') + message('C', text("BEGIN")) + ready('T')},
      {[](playing& p) { p.started.push_back(p.talk.start_script("select pg_sleep(9)")); }, "Q", noise},
      {[](playing& p) {
         p.talk.abandon(*p.started.back());
         p.talk.cancel_started();
         p.talk.cancel_ended();
       },
       "", server_error("57014") + ready('E')},
      {nothing, "Q", message('I') + ready('E')},
      {[](playing& p) { p.started.push_back(p.talk.start_close()); }, "X", ""},
  };
}

// A stream with credit, one that is given up, COPY in and out, many rows of one statement, and a batch that is broken.
dialogue channels() {
  const std::string none("\0\0\0\0", 4);
  const std::string copied = message('1') + message('2');
  const auto format = std::string(1, '\0') + int16(1) + int16(0);
  const auto last = [](playing& p) -> operation& { return *p.started.back(); };
  const auto inserted = message('2') + message('C', text("INSERT 0 1"));
  const auto start = [](auto verb) { return [=](playing& p) { p.started.push_back(verb(p.talk)); }; };
  return {
      {connect, "!", started()},
      {start([](session& talk) { return talk.start_stream("select 1", 2); }), "PDH", described("one")},
      {nothing, "BEH", message('2') + row(1) + noise + row(2) + message('s') + noise},
      {[=](playing& p) {
         p.talk.take_rows(last(p));
         p.talk.grant(last(p), 5);
       },
       "EH", row(3) + message('C', text("SELECT 1"))},
      {nothing, "S", ready()},
      {start([=](session& talk) { return talk.start_stream(talk.find_statement("select 1"), none, 0); }), "BEH",
       message('2') + row(1)},
      {[=](playing& p) { p.talk.abandon(last(p)); }, "S", row(2) + message('C', text("SELECT 2")) + ready()},
      {start([](session& talk) { return talk.start_copy_in("copy t from stdin"); }), "PBEH",
       copied + message('G', format) + noise},
      {[=](playing& p) {
         p.talk.feed(last(p), "1\n");
         p.talk.finish_feed(last(p));
       },
       "dcS", noise + message('C', text("COPY 1")) + ready()},
      {start([](session& talk) { return talk.start_copy_out("copy t to stdout", "select 1"); }), "PDPBEH",
       described("one") + copied + message('H', format) + message('d', "1\n")},
      {[=](playing& p) { p.talk.take_data(last(p)); }, "S",
       noise + message('d', "2\n") + message('c') + message('C', text("COPY 2")) + ready()},
      {start([](session& talk) { return talk.start_copy_in("copy t from stdin"); }), "PBEH",
       copied + message('G', format)},
      {[=](playing& p) {
         p.talk.feed(last(p), "1\n");
         p.talk.abandon(last(p));
       },
       "dfS", server_error("57014") + ready()},
      {[=](playing& p) {
         p.started.push_back(p.talk.start_executemany("insert"));
         p.talk.describe_items(last(p));
       },
       "PDH", message('1') + message('t', int16(0)) + message('n')},
      {[=](playing& p) {
         if (!last(p).statement) return;
         std::string run;
         for (int i = 0; i < 3; ++i) core::append_execution(run, *last(p).statement, none, false);
         p.talk.feed(last(p), run, 3);
         p.talk.end_items(last(p));
       },
       "BEBEBES", inserted + noise + inserted + inserted + ready()},
      {[=](playing& p) {
         p.started.push_back(p.talk.start_batch());
         for (const auto* sql : {"select 1", "insert"})
           if (auto known = p.talk.find_statement(sql)) p.talk.add(last(p), std::move(known), none);
       },
       "BEBE", selected(1, 2)},
      {[=](playing& p) { p.talk.abandon(last(p)); }, "ES", inserted + server_error("34000") + ready()},
  };
}

std::size_t size_of(const dialogue& all) {
  std::size_t size = 0;
  for (const auto& each : all) size += each.arrives.size();
  return size;
}

// Plays until `bytes` of the server's stream have arrived, in pieces of `piece` bytes, cut once more at `cut`.
void play(playing& p, const dialogue& all, std::size_t bytes, std::size_t piece, std::size_t cut = 0) {
  std::size_t at = 0;
  for (const auto& each : all) {
    each.act(p);
    ASSERT_EQ(p.sent(), each.leaves);
    for (std::size_t i = 0; i < each.arrives.size();) {
      auto size = std::min({piece, each.arrives.size() - i, bytes - at});
      if (cut > at) size = std::min(size, cut - at);
      p.receive(std::string_view(each.arrives).substr(i, size));
      i += size;
      at += size;
      if (at == bytes) return;
    }
  }
}

std::string outcome(const operation& op) {
  switch (op.state) {
    case operation::state::pending:
      return "pending";
    case operation::state::cancelled:
      return "cancelled";
    case operation::state::failed:
      return "failed: " + op.error->message + (op.error->server ? std::string(op.error->server->field('C')) : "");
    case operation::state::succeeded:
      break;
  }
  std::string out = "succeeded:";
  for (const auto& each : op.results) {
    out += ' ' + each.tag + ' ' + std::to_string(each.rows.size());
    for (std::size_t i = 0; i < each.rows.size(); ++i) out.append(each.rows.row(i), core::row_length(each.rows.row(i)));
  }
  return out;
}

std::vector<std::string> outcomes(const playing& p) {
  std::vector<std::string> out;
  for (const auto& each : p.started) out.push_back(outcome(*each));
  return out;
}

// The session is over: each operation has its outcome and was handed out once, unless nobody waited for it.
void expect_all_told(playing& p) {
  p.pump();
  EXPECT_TRUE(p.talk.ended());
  EXPECT_FALSE(p.talk.accepting());
  EXPECT_EQ(p.talk.in_flight(), 0u);
  for (const auto& each : p.started) {
    EXPECT_TRUE(each->done());
    const auto handed = std::count(p.finished.begin(), p.finished.end(), each);
    EXPECT_EQ(handed, each->abandoned ? 0 : 1);
    EXPECT_TRUE(each->state != operation::state::failed || each->error);
  }
}

class session_test : public testing::TestWithParam<dialogue (*)()> {
 protected:
  dialogue all = GetParam()();
  std::size_t size = size_of(all);
};

TEST_P(session_test, any_split_has_the_same_outcome) {
  playing whole;
  play(whole, all, size, size);
  const auto expected = outcomes(whole);
  EXPECT_EQ(std::count(expected.begin(), expected.end(), "pending"), whole.talk.accepting() ? 0 : 1);  // close()
  playing bytewise;
  play(bytewise, all, size, 1);
  EXPECT_EQ(outcomes(bytewise), expected);
  for (std::size_t cut = 1; cut < size; ++cut) {
    playing split;
    play(split, all, size, size, cut);
    ASSERT_EQ(outcomes(split), expected) << "cut at byte " << cut;
  }
}

TEST_P(session_test, end_of_file_after_every_byte) {
  for (std::size_t bytes = 1; bytes <= size; ++bytes) {
    playing p;
    play(p, all, bytes, size);
    p.talk.eof();
    expect_all_told(p);
    if (HasFailure()) FAIL() << "cut at byte " << bytes;
  }
}

TEST_P(session_test, loss_after_every_byte) {
  for (std::size_t bytes = 1; bytes <= size; ++bytes) {
    playing p;
    play(p, all, bytes, size);
    p.talk.fail({failure::kind::lost, "reset", nullptr, nullptr});
    expect_all_told(p);
    if (HasFailure()) FAIL() << "cut at byte " << bytes;
  }
}

TEST_P(session_test, garbage_after_every_byte) {
  for (const std::string& garbage : {std::string(64, '\0'), std::string(64, '\xff'), std::string("HTTP/1.1 400 Bad")}) {
    for (std::size_t bytes = 1; bytes <= size; ++bytes) {
      playing p;
      play(p, all, bytes, size);
      p.receive(garbage);
      p.talk.eof();
      expect_all_told(p);
      if (HasFailure()) FAIL() << "cut at byte " << bytes;
    }
  }
}

TEST_P(session_test, one_byte_changed) {
  for (const char flip : {'\x01', '\x80', '\xff'}) {
    for (std::size_t at = 0; at < size; ++at) {
      auto changed = all;
      auto left = at;
      for (auto& each : changed) {
        if (left < each.arrives.size()) {
          each.arrives[left] = static_cast<char>(each.arrives[left] ^ flip);
          break;
        }
        left -= each.arrives.size();
      }
      playing p;  // what leaves may differ from here on; that it ends well may not
      for (const auto& each : changed) {
        if (!p.talk.accepting()) break;
        each.act(p);
        p.sent();
        p.receive(each.arrives);
      }
      p.talk.eof();
      expect_all_told(p);
      if (HasFailure()) FAIL() << "byte " << at << " changed";
    }
  }
}

TEST_P(session_test, everything_abandoned_after_every_byte) {
  for (std::size_t bytes = 1; bytes <= size; ++bytes) {
    playing p;
    play(p, all, bytes, size);
    for (const auto& each : p.started)
      if (!each->done() && !each->abandoned) p.talk.abandon(*each);
    p.sent();
    p.talk.eof();
    expect_all_told(p);
    if (HasFailure()) FAIL() << "cut at byte " << bytes;
  }
}

TEST_P(session_test, destroyed_after_every_byte) {
  for (std::size_t bytes = 1; bytes <= size; ++bytes) {
    std::vector<operation_ptr> outlive;
    {
      playing p;
      play(p, all, bytes, size);
      outlive = p.started;
    }
    EXPECT_FALSE(outlive.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(dialogues, session_test, testing::Values(everyday, troubled, channels));

TEST(session, outcomes_of_an_everyday_dialogue) {
  playing p;
  const auto all = everyday();
  play(p, all, size_of(all), size_of(all));
  ASSERT_EQ(p.started.size(), 7u);
  EXPECT_EQ(p.started[1]->results.at(0).tag, "SELECT 1");
  EXPECT_EQ(p.started[2]->results.at(0).rows.size(), 3u);
  EXPECT_EQ(p.started[3]->state, operation::state::cancelled);
  ASSERT_EQ(p.started[4]->state, operation::state::failed);
  EXPECT_EQ(p.started[4]->error->server->field('C'), "22012");
  EXPECT_EQ(p.started[5]->results.at(0).rows.size(), 2u);
  EXPECT_EQ(p.started[6]->results.size(), 2u);
  EXPECT_EQ(p.talk.parameters().at("TimeZone"), "UTC");
  EXPECT_EQ(p.talk.transaction_status(), 'I');
}

TEST(session, outcomes_of_channels) {
  playing p;
  const auto all = channels();
  play(p, all, size_of(all), size_of(all));
  std::vector<std::string> told;
  for (const auto& op : p.started)
    told.push_back(op->state == operation::state::cancelled ? "given up"
                   : op->results.empty()                    ? ""
                                                            : op->results.back().tag);
  const std::vector<std::string> expected = {"",       "SELECT 1", "given up",   "COPY 1",
                                             "COPY 2", "given up", "INSERT 0 3", "given up"};
  EXPECT_EQ(told, expected);
  EXPECT_EQ(p.started[1]->results.at(0).rows.size(), 1u) << "the first two were taken";
  EXPECT_EQ(p.started[4]->data, "2\n") << "as was the first of them";
  EXPECT_TRUE(p.talk.quiet());
}

TEST(session, an_error_has_no_more_fields_than_make_sense) {
  playing p;
  connect(p);
  p.sent();
  p.receive(started());
  p.execute("select 1");
  EXPECT_EQ(p.sent(), "PDH");
  std::string fields = "SERROR" + text("") + "C" + text("22012") + "Mno" + text("");
  for (int i = 0; i < 100'000; ++i) fields += text("x");
  p.receive(message('E', fields + '\0') + ready());
  ASSERT_EQ(p.started[1]->state, operation::state::failed);
  EXPECT_EQ(p.started[1]->error->message, "no");
  EXPECT_LE(p.started[1]->error->server->fields.size(), 100u);
}

TEST(session, a_long_row_is_read_in_pieces_and_buffers_what_has_come) {
  playing p;
  connect(p);
  p.sent();
  p.receive(started());
  p.execute("select 1");
  p.sent();
  p.receive(described("one"));
  EXPECT_EQ(p.sent(), "BES");
  const std::string big(5 << 20, 'x');
  const auto bytes = message('2') + message('D', int16(1) + int32(static_cast<std::int64_t>(big.size())) + big) +
                     row(2) + message('C', text("SELECT 2")) + ready();
  for (std::size_t i = 0; i < bytes.size(); i += 65536) p.receive(std::string_view(bytes).substr(i, 65536));
  ASSERT_TRUE(p.started[1]->done());
  const auto& rows = p.started[1]->results.at(0).rows;
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(core::row_length(rows.row(0)), big.size() + 11);
}

}  // namespace
