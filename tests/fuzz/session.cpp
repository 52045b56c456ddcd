// A session: the server's bytes and the caller's calls mixed, as the input says, one byte a step. Whatever comes, every
// operation ends exactly once, memory follows the bytes received, and bytes that arrive one at a time end as whole
// ones.
#include "channels.hpp"
#include "conversation.hpp"
#include "messages.hpp"

namespace pgpoll::fuzz {
namespace {

using namespace messages;

const std::string statements[] = {"select 1", "select 2", "copy t from stdin", "copy t to stdout", "/* */ COPY t", ""};
const std::string arguments(4, '\0');

// What a server says in answer to something, and in between.
const std::string right_messages[] = {
    message('R', int32(0)) + message('K', int32(47) + "abcd") + ready(),
    message('1') + message('t', int16(0)) + one_column(),
    message('1') + message('t', int16(1) + int32(23)) + message('n'),
    message('2') + message('D', int16(1) + int32(4) + int32(7)) + message('C', text("SELECT 1")) + ready(),
    message('2') + message('C', text("UPDATE 3")) + ready('T'),
    message('D', int16(1) + int32(-1)),
    message('2'),
    message('3'),
    message('n'),
    message('C', text("SELECT 2")),
    message('I'),
    message('I') + ready('E'),
    one_column(),
    ready(),
    ready('E'),
    error("ERROR", "22012"),
    error("ERROR", "57014") + ready(),
    error("FATAL", "57P01"),
    notice("note"),
    message('S', text("TimeZone") + text("UTC")),
    message('A', int32(1) + text("c") + text("")),
    message('G', std::string(1, '\0') + int16(1) + int16(0)),
    message('H', std::string(1, '\0') + int16(1) + int16(0)),
    message('d', "1\n"),
    message('c'),
    message('s'),
    message('1') + message('2') + message('C', text("BEGIN")) + ready('T'),
    message('2') + message('D', int16(1) + int32(4) + int32(7)) + message('s'),
    message('D', int16(1) + int32(4) + int32(8)) + message('s'),
    message('1') + message('2') + message('G', std::string(1, '\0') + int16(1) + int16(0)),
    message('1') + message('2') + message('H', std::string(1, '\0') + int16(1) + int16(0)) + message('d', "1\n"),
    message('c') + message('C', text("COPY 1")) + ready(),
};

core::settings settings(std::uint8_t choice) {
  constexpr std::size_t pipelines[] = {1000, 1, 2, 3};
  constexpr std::size_t unsent[] = {1 << 20, 1, 40, 300};
  core::settings made;
  made.startup_parameters = {{"user", "ann"}};
  made.user = "ann";
  made.password = made.scram_password = "secret";
  made.max_scram_iterations = 5000;
  made.max_pipeline = pipelines[choice & 3];
  made.max_unsent = unsent[choice >> 2 & 3];
  made.statement_cache_size = (choice & 16) != 0 ? 1 : 2;
  if ((choice & 32) != 0) made.decodes_binary = [](std::uint32_t) { return true; };
  return made;
}

void execute(conversation& with, const std::string& sql) {
  auto known = with.talk.find_statement(sql);
  with.watch(known ? with.talk.start_execute(std::move(known), arguments) : with.talk.start_execute(sql));
}

void call(conversation& with, std::uint8_t verb, input& in) {
  auto& talk = with.talk;
  const auto statement = [&in]() -> const std::string& { return statements[in.byte() % std::size(statements)]; };
  switch (verb) {
    case 0:
      return execute(with, statement());
    case 1:
      return with.watch(talk.start_prepare(statement()));
    case 2:
      return with.watch(talk.start_script(statement()));
    case 3:
      return with.watch(talk.start_command("BEGIN"));
    case 4:
      return with.watch(talk.start_close());
    case 5:
      return with.watch(talk.start_connect());
    case 6:
      return with.watch(talk.start_cancel({47, "abcd"}));
    case 7:
      if (auto* op = with.started(in.byte())) talk.abandon(*op);
      return;
    case 8:
      return talk.cancel_started();
    case 9:
      return talk.cancel_ended();
    case 10:
      if (auto op = talk.next_unencoded()) talk.supply(*op, arguments);
      return;
    case 11:
      if (auto op = talk.next_unencoded()) talk.refuse(*op);
      return;
    case 12:
      return talk.sent(std::min<std::size_t>(talk.outbound().size(), in.byte()));
    case 13:
      return talk.sent(talk.outbound().size());
    case 14:
      with.take_next();
      return;
    case 15:
      return with.take(in.byte());
    case 16:
      return with.let_go(in.byte());
    case 17:
      while (talk.next_notice()) continue;
      return;
    case 18:
      talk.eof();
      return with.pump();
    case 19:
      return talk.fail({core::failure::kind::lost, "reset", nullptr, nullptr});
    case 20:  // what the faces do when a statement has been described
      while (auto op = talk.next_unencoded()) talk.supply(*op, arguments);
      return with.pump();
    default:
      (void)talk.cancel_wanted();
      return with.pump();
  }
}

void play(conversation& with, input in) {
  constexpr std::uint8_t calls = 22, raw = 25;
  while (!in.empty()) {
    const auto step = in.byte() % 64;
    if (step < calls) {
      with.deliver();
      call(with, static_cast<std::uint8_t>(step), in);
    } else if (step >= raw && step < 32) {
      with.deliver();
      const auto& sql = statements[in.byte() % std::size(statements)];
      channel_caller(with, in, sql, arguments).call(in.byte() % channel_calls);
    } else if (step < raw) {
      with.arrives(in.bytes(in.byte()));
    } else {
      with.arrives(right_messages[static_cast<std::size_t>(step - 32) % std::size(right_messages)]);
    }
  }
}

}  // namespace
}  // namespace pgpoll::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pgpoll::fuzz;
  input in(data, size);
  const auto choice = in.byte();
  const auto end = in.byte();
  conversation whole(settings(choice), arrival::whole);
  play(whole, in);
  whole.end(end);
  if ((choice & 64) != 0) return 0;  // byte at a time costs ten times as much: every second input
  conversation bytewise(settings(choice), arrival::bytewise);
  play(bytewise, in);
  bytewise.end(end);
  require_same(bytewise, whole);
  return 0;
}
