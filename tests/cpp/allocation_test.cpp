// Memory that runs out: a dialogue is played over and over, each time with another allocation failing: once, or until
// the call returns. What the caller sees is std::bad_alloc from the call that it made; then either the session has
// ended and everybody was told, or nothing has happened and the call can be made again, after which the dialogue ends
// as it always does.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/session.hpp"
#include "failing_new.hpp"
#include "messages.hpp"

namespace pgpoll {
namespace {

using core::operation;
using core::operation_ptr;
using core::session;
using namespace failing_new;
using namespace messages;

core::settings settings() {
  core::settings options;
  options.startup_parameters = {{"user", "ann"}, {"database", "shop"}};
  options.user = "ann";
  options.password = options.scram_password = "secret of more than fifteen bytes";
  options.statement_cache_size = 1;
  return options;
}

const std::string long_text(60, 'x');
const std::string no_arguments(4, '\0');
const std::string started = message('R', int32(0)) + message('S', text("server_version") + text(long_text)) +
                            notice(long_text) + message('K', int32(47) + "abcd") + ready();
const std::string described = message('1') + message('t', int16(1) + int32(23)) + one_column();
const std::string row = message('D', int16(1) + int32(60) + long_text);

// One playing of a dialogue.
struct playing {
  std::optional<session> talk{std::in_place, settings()};
  std::vector<operation_ptr> started;
  std::vector<operation_ptr> handed;
  bool ran_out = false;

  // A call that can be made again where it failed and the session goes on.
  template <typename Call>
  void make(Call call) {
    if (allocating(call)) return;
    EXPECT_FALSE(std::exchange(ran_out, true)) << "one allocation fails, once";
    EXPECT_TRUE(talk->ended() || allocating(call));
  }

  void start(const std::function<operation_ptr()>& verb) {
    const auto in_flight = talk->in_flight();
    operation_ptr op;
    make([&] {
      EXPECT_TRUE(talk->ended() || talk->in_flight() == in_flight) << "what could not be started is not in flight";
      op = verb();
    });
    if (op) started.push_back(op);
  }
  void execute(const std::string& sql) {
    start([&] {
      auto known = talk->find_statement(sql);
      return known ? talk->start_execute(known, no_arguments) : talk->start_execute(sql);
    });
  }

  void receive(const std::string& bytes) {
    std::span<char> room;
    make([&] { room = talk->prepare(bytes.size()); });
    std::memcpy(room.data(), bytes.data(), bytes.size());
    talk->commit(bytes.size());
    pump();
  }
  void pump() {
    do make([&] { talk->pump(); });
    while (!talk->ended() && (talk->wants_pump() || supply()));
    make([&] {
      while (auto done = talk->next_completed()) {
        counted = false;
        handed.push_back(done);
        counted = true;
      }
    });
    talk->sent(talk->outbound().size());
  }
  bool supply() {
    auto op = talk->next_unencoded();
    if (op) talk->supply(*op, no_arguments);
    return op != nullptr;
  }
};

using dialogue = void (*)(playing&);

void connect(playing& p) {
  p.start([&] { return p.talk->start_connect(); });
  p.pump();
}
void connected(playing& p) {
  connect(p);
  p.receive(started);
}

void scram(playing& p) {
  p.start([&] { return p.talk->start_connect(); });
  p.make([&] { p.talk->pump(); });
  const auto ask = message('R', int32(10) + text("SCRAM-SHA-256") + '\0');
  std::memcpy(p.talk->prepare(ask.size()).data(), ask.data(), ask.size());
  p.talk->commit(ask.size());
  p.make([&] { p.talk->pump(); });
  const auto outbound = p.talk->outbound();
  const auto at = outbound.find("n,,n=,r=");
  if (at == std::string_view::npos) return;
  const auto nonce = std::string(outbound.substr(at + 8, 32));
  p.receive(message('R', int32(11) + "r=" + nonce + "own,s=c2FsdA==,i=4097"));
  p.receive(message('R', int32(12) + "v=" + std::string(43, 'A') + '='));
}

void md5(playing& p) {
  connect(p);
  p.receive(message('R', int32(5) + "salt"));
  p.receive(started);
}

void queries(playing& p) {
  connected(p);
  p.execute("select 1 as a_name_of_more_than_fifteen_bytes");
  p.receive(described);
  p.receive(message('2') + row + row + message('C', text("SELECT 2")) + ready());
  for (int i = 0; i < 3; ++i) p.execute("select 1 as a_name_of_more_than_fifteen_bytes");
  p.execute("select 2 as a_name_of_more_than_fifteen_bytes");  // evicts the other once that is free
  p.pump();
  if (!p.talk->ended() && p.started.size() > 2) p.make([&] { p.talk->abandon(*p.started[2]); });
  p.receive(message('2') + row + message('C', text("SELECT 1")) + ready());
  p.receive(message('2') + row + error("ERROR", "22012") + ready());
  p.receive(message('2') + message('C', text("SELECT 0")) + ready());
  p.start([&] { return p.talk->start_prepare("select 3 as a_name_of_more_than_fifteen_bytes"); });
  p.receive(described + ready());
}

void scripts(playing& p) {
  connected(p);
  p.start([&] { return p.talk->start_script("select; update, of more than fifteen bytes"); });
  p.pump();
  p.receive(one_column() + row + message('C', text("SELECT of more than fifteen bytes")));
  p.receive(message('G', std::string(1, '\0') + int16(0)));
  p.receive(error("ERROR", "57014") + ready());
  p.start([&] { return p.talk->start_command("BEGIN"); });
  p.start([&] { return p.talk->start_script("select pg_sleep(9)"); });
  p.pump();
  p.receive(message('1') + message('2') + message('C', text("BEGIN")) + ready('T'));
  if (p.talk->ended() || p.started.size() < 4) return;
  p.make([&] { p.talk->abandon(*p.started[3]); });
  p.talk->cancel_started();
  p.talk->cancel_ended();
  p.receive(error("ERROR", "57014") + ready('E'));
  p.receive(message('I') + ready('E'));
}

// BEGIN and SAVEPOINT in front of a request: they end before it, with it, or where it is given up.
void begins(playing& p) {
  const std::string sql = "select 1 as a_name_of_more_than_fifteen_bytes";
  const std::string begun = message('1') + message('2') + message('C', text("BEGIN of more than fifteen bytes"));
  const auto open = [&](const std::function<operation_ptr(core::preamble)>& verb) {
    std::vector<operation_ptr> commands;
    const auto before = p.started.size();
    p.start([&] {
      core::preamble first;
      first.outermost = p.talk->transaction_status() == 'I';
      first.add("BEGIN of more than fifteen bytes");
      first.add("SAVEPOINT of more than fifteen bytes");
      commands.assign(first.commands.begin(), first.commands.end());
      return verb(std::move(first));
    });
    if (p.started.size() > before) p.started.insert(p.started.end(), commands.begin(), commands.end());
  };
  connected(p);
  open([&](core::preamble first) { return p.talk->start_execute(sql, std::move(first)); });
  p.receive(begun + begun + described);
  p.receive(message('2') + row + message('C', text("SELECT 1")) + ready('T'));
  open([&](core::preamble first) {
    return p.talk->start_execute(p.talk->find_statement(sql), no_arguments, std::move(first));
  });
  p.pump();
  p.receive(begun + error("ERROR", "25P02") + ready('E'));
  open([&](core::preamble first) { return p.talk->start_prepare(sql, std::move(first)); });
  open([&](core::preamble first) { return p.talk->start_command("a third one of them", std::move(first)); });
  p.pump();
  if (p.talk->ended() || p.started.size() < 13) return;
  p.make([&] { p.talk->abandon(*p.started[10]); });
  p.receive(begun + begun + ready('T') + begun + begun + begun + ready('T'));
}

const std::string a_query = "select 1 as a_name_of_more_than_fifteen_bytes";

// What has come of a stream, or of its failure, can be walked to its end.
void take_rows(playing& p, operation& op) {
  core::row_store rows;
  p.make([&] { rows = p.talk->take_rows(op); });
  core::row_walk walk(rows);
  std::size_t bytes = 0;
  while (walk.taken() < rows.size()) bytes += core::row_length(walk.take());
  EXPECT_EQ(bytes, rows.bytes());
}

void streams(playing& p) {
  connected(p);
  p.start([&] { return p.talk->start_stream(a_query, 0); });
  p.pump();
  p.receive(described);
  const auto before = p.started.size();
  std::string many = message('2');
  for (int i = 0; i < 40; ++i) many += row;
  p.receive(many);
  if (before > 1) take_rows(p, *p.started[1]);
  p.receive(row + message('C', text("SELECT 41")) + ready());
  if (before > 1) take_rows(p, *p.started[1]);
  p.start([&] { return p.talk->start_stream(a_query, 2); });
  p.pump();
  p.receive(message('2') + row + row + message('s'));
  if (p.talk->ended() || p.started.size() < 3) return;
  take_rows(p, *p.started[2]);
  p.talk->grant(*p.started[2], 5);
  p.pump();
  p.receive(row);
  if (p.talk->ended()) return;
  p.make([&] { p.talk->abandon(*p.started[2]); });
  p.receive(message('C', text("SELECT 1")) + ready());
}

void copies(playing& p) {
  connected(p);
  const std::string begun = message('1') + message('2');
  p.start([&] { return p.talk->start_copy_in("copy a_table_of_more_than_fifteen_bytes from stdin"); });
  p.pump();
  p.receive(begun + message('G', std::string(1, '\0') + int16(0)));
  if (p.talk->ended() || p.started.size() < 2) return;
  p.make([&] { p.talk->feed(*p.started[1], std::string(300'000, 'x')); });
  p.pump();
  p.make([&] { p.talk->finish_feed(*p.started[1]); });
  p.receive(message('C', text("COPY 1 of more than fifteen bytes")) + ready());
  p.start([&] { return p.talk->start_copy_out("copy a_table_of_more_than_fifteen_bytes to stdout", a_query); });
  p.pump();
  p.receive(described + begun + message('H', std::string(1, '\0') + int16(0)) + message('d', long_text));
  if (p.talk->ended() || p.started.size() < 3) return;
  p.make([&] { EXPECT_EQ(p.talk->take_data(*p.started[2]), long_text); });
  p.receive(message('d', long_text) + error("ERROR", "22012") + ready());
}

// What it is told then has no room in the buffer: nothing has been sent yet.
void copy_given_up(playing& p) {
  connected(p);
  p.start([&] { return p.talk->start_copy_in("copy " + long_text + " from stdin"); });
  if (p.talk->ended() || p.started.size() < 2) return;
  p.make([&] { p.talk->abandon(*p.started[1]); });
  p.receive(message('1') + message('2') + message('G', std::string(1, '\0') + int16(0)));
  p.receive(error("ERROR", "57014") + ready());
}

// The second of two gives way to the request ahead of it, which runs again.
void batches(playing& p) {
  connected(p);
  p.start([&] { return p.talk->start_batch(); });
  if (p.talk->ended() || p.started.size() < 2) return;
  for (int i = 0; i < 2; ++i) p.make([&] { p.talk->add(*p.started[1], a_query); });
  p.pump();
  p.receive(described);
  p.make([&] { p.talk->end_items(*p.started[1]); });
  const auto item = message('2') + row + message('C', text("SELECT 1 of more than fifteen bytes"));
  p.receive(item + item + ready());
  p.execute(a_query);
  p.pump();
  p.start([&] { return p.talk->start_batch(); });
  if (p.talk->ended() || p.started.size() < 4) return;
  p.receive(error("ERROR", "26000") + ready());
  p.make([&] { p.talk->add(*p.started[3], a_query); });
  p.receive(message('3') + described);
  p.receive(item + ready());
  if (p.talk->ended()) return;
  p.make([&] { p.talk->abandon(*p.started[3]); });
  p.receive(item + ready());
}

void many_rows(playing& p) {
  connected(p);
  p.start([&] { return p.talk->start_executemany(a_query); });
  if (p.talk->ended() || p.started.size() < 2) return;
  auto& op = *p.started[1];
  p.make([&] { p.talk->describe_items(op); });
  p.pump();
  p.receive(described);
  for (int i = 0; i < 3 && !p.talk->ended(); ++i) {
    std::string run;
    for (int k = 0; k < 3; ++k) core::append_execution(run, *op.statement, no_arguments, false);
    p.make([&] { p.talk->feed(op, run, 3); });
    p.pump();
  }
  const auto item = message('2') + row + message('C', text("SELECT 1 of more than fifteen bytes"));
  p.receive(item + item);
  if (p.talk->ended()) return;
  p.make([&] { p.talk->abandon(op); });
  p.receive(item + error("ERROR", "34000") + ready());
}

void closed(playing& p) {
  connected(p);
  p.execute("select 1 as a_name_of_more_than_fifteen_bytes");
  p.start([&] { return p.talk->start_close(); });
  p.receive(described);
  p.receive(message('2') + message('C', text("SELECT 0")) + ready());
  p.make([&] { p.talk->eof(); });
  p.pump();
}

// Each of several requests has to be told.
void in_flight(playing& p) {
  connected(p);
  for (int i = 0; i < 5; ++i) p.execute("select 1 as a_name_of_more_than_fifteen_bytes");
  p.pump();
  p.receive(described);
}
void fatal(playing& p) {
  in_flight(p);
  p.receive(message('2') + error("FATAL", "57P01"));
}
void lost(playing& p) {
  in_flight(p);
  p.make([&] { p.talk->eof(); });
  p.pump();
}
void violated(playing& p) {
  in_flight(p);
  p.receive(message('c'));
}
void failed(playing& p) {
  in_flight(p);
  p.make([&] { p.talk->fail({core::failure::kind::lost, long_text, nullptr, nullptr}); });
  EXPECT_TRUE(p.talk->ended());
}
void abandoned_connect(playing& p) {
  connect(p);
  if (!p.started.empty()) p.make([&] { p.talk->abandon(*p.started[0]); });
  EXPECT_TRUE(p.talk->ended());
}
void destroyed(playing& p) {
  in_flight(p);
  EXPECT_TRUE(allocating([&] { p.talk.reset(); })) << "a destructor does not throw";
}

std::string outcome(const operation& op) {
  return std::to_string(static_cast<int>(op.state)) + (op.error ? op.error->message : std::string());
}

std::vector<std::string> outcomes(const playing& p) {
  std::vector<std::string> out;
  for (const auto& each : p.started) out.push_back(outcome(*each));
  return out;
}

void expect_all_told(playing& p) {
  if (p.talk) {
    EXPECT_EQ(p.talk->in_flight(), 0u);
    while (auto done = p.talk->next_completed()) p.handed.push_back(done);
  }
  for (const auto& each : p.started) {
    EXPECT_TRUE(each->done());
    EXPECT_EQ(each->exchange, nullptr);
    EXPECT_TRUE(each->state != operation::state::failed || each->error);
    EXPECT_TRUE(!p.talk || std::count(p.handed.begin(), p.handed.end(), each) == (each->abandoned ? 0 : 1));
  }
}

class allocation : public testing::TestWithParam<std::pair<const char*, dialogue>> {};

TEST_P(allocation, each_fails_once) {
  const auto play = GetParam().second;
  std::vector<std::string> usual;
  {
    until_failure = made = 0;
    playing p;
    play(p);
    usual = outcomes(p);
  }
  const auto all = made;
  ASSERT_GT(all, 5u);
  for (std::size_t nth = 1; nth <= 2 * all; ++nth) {
    lasting = nth > all;
    until_failure = lasting ? nth - all : nth;
    playing p;
    play(p);
    EXPECT_EQ(until_failure, 0u);
    if (p.talk && !p.talk->ended()) {
      EXPECT_EQ(outcomes(p), usual);
      p.talk->fail({core::failure::kind::lost, "the end", nullptr, nullptr});
    }
    expect_all_told(p);
    if (HasFailure()) FAIL() << "allocation " << nth << " of " << all;
  }
}

INSTANTIATE_TEST_SUITE_P(
    dialogues, allocation,
    testing::Values(std::pair{"scram", &scram}, std::pair{"md5", &md5}, std::pair{"queries", &queries},
                    std::pair{"scripts", &scripts}, std::pair{"begins", &begins}, std::pair{"streams", &streams},
                    std::pair{"copies", &copies}, std::pair{"copy_given_up", &copy_given_up},
                    std::pair{"batches", &batches}, std::pair{"many_rows", &many_rows}, std::pair{"closed", &closed},
                    std::pair{"fatal", &fatal}, std::pair{"lost", &lost}, std::pair{"violated", &violated},
                    std::pair{"failed", &failed}, std::pair{"abandoned_connect", &abandoned_connect},
                    std::pair{"destroyed", &destroyed}),
    [](const auto& each) { return each.param.first; });

}  // namespace
}  // namespace pgpoll
