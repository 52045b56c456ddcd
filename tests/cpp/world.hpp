// One session, a model server and all that is on its way between them: the world that the explorer walks through.
// Each action is one event; after it the face's part is done (pump, arguments, outcomes taken), and what has left and
// what was told is judged by the rules of the driver. A rule that is broken throws.
#pragma once

#include <array>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/session.hpp"
#include "model_server.hpp"
#include "session_probe.hpp"

namespace pgpoll::test {

// What a request asks for. Those of the second line know their statement already: one flight. Those of the third leave
// something behind; of stale_insert and dropped_insert the statement is known, and no longer good. Behind those are
// what lasts: a stream with credit, of a new statement, without a limit, or that fails; a portal that is read by two
// requests; COPY, which the source, the server, or the server in the middle may fail; and batches of two items.
// clang-format off
enum class kind : char { fresh, shared, refused, prepare, fail_parse, fail_describe, fail_late, copy, script, copy_script,
                         fail_script, command, known, known_prepare, fail_bind, fail_sync, known_copy,
                         insert, known_insert, stale_insert, dropped_insert, begin, begin_execute, begin_script, commit,
                         rollback, stream, fresh_stream, whole_stream, fail_stream, cursor, copy_in, fail_copy_in,
                         refused_copy_in, copy_out, broken_copy_out, batch, fail_batch, close, kinds };
inline const char* name_of(kind which) {
  constexpr std::array names = {
      "fresh", "shared", "refused", "prepare", "fail_parse", "fail_describe", "fail_late", "copy", "script", "copy_script",
      "fail_script", "command", "known", "known_prepare", "fail_bind", "fail_sync", "known_copy",
      "insert", "known_insert", "stale_insert", "dropped_insert", "begin", "begin_execute", "begin_script", "commit",
      "rollback", "stream", "fresh_stream", "whole_stream", "fail_stream", "cursor", "copy_in", "fail_copy_in",
      "refused_copy_in", "copy_out", "broken_copy_out", "batch", "fail_batch", "close"};
  static_assert(names.size() == static_cast<std::size_t>(kind::kinds));
  return names[static_cast<std::size_t>(which)];
}
// clang-format on

enum action : unsigned {
  start,                 // the next request
  send,                  // all that is outbound leaves and reaches the server
  work,                  // the server deals with one message, or finishes what it runs
  hit,                   // the same, and a pending cancel strikes in it
  receive,               // one message arrives
  receive_half,          // the first half of one
  receive_all,           // all that the server has sent, at once
  cancel_begins,         // the face sends the CancelRequest that is wished for
  cancel_strikes,        // it reaches the backend
  cancel_ends,           // its socket has ended, perhaps before it strikes
  cancel_is_ignored,     // its socket has ended, and it never strikes
  abandon,               // request 0; the next ones follow
  attend = abandon + 4,  // likewise: credit is granted, data fed, an item added, or what was opened is fetched from
  // The ends: nothing comes behind them.
  end_of_file = attend + 4,
  reset,  // the driver is told that the socket is gone
  fatal,  // the server says why it ends the connection, behind what it has sent
  actions
};

inline std::string name_of(action which) {
  constexpr std::array names = {
      "start",       "send",          "work",           "hit",         "receive",          "receive half",
      "receive all", "cancel begins", "cancel strikes", "cancel ends", "cancel is ignored"};
  if (which < abandon) return names[which];
  if (which < attend) return std::string("abandon ").append(std::to_string(which - abandon));
  if (which < end_of_file) return std::string("attend ").append(std::to_string(which - attend));
  return which == end_of_file ? "end of file" : which == reset ? "reset" : "fatal";
}

struct program {
  std::vector<kind> kinds;
  std::size_t max_pipeline = 1000;
  std::size_t statement_cache_size = 100;
  bool halves = true;
  bool grace = false;  // cancel also where somebody waits behind the abandoned head: 57014 may hit him
};

struct broken : std::logic_error {
  using std::logic_error::logic_error;
};

class world {
 public:
  explicit world(const program& made);
  unsigned enabled() const;  // a bit for each action; 0 once all has come to its end
  bool finished() const;     // every request has been started and has its outcome, and nothing is on its way
  void act(unsigned which);
  void expect_usable();  // of a world that is finished
  // All that can still matter, appended: within the client, on the way to it, and at the server. What a loss does
  // depends on the first alone, and what a fatal error does on the first two.
  void client_key(std::string& out) const;
  void answers_key(std::string& out) const;
  void server_key(std::string& out) const;

 private:
  struct request {
    kind what{};
    int token = 0;
    core::operation_ptr op;  // until it is done
    bool started = false, abandoned = false, done = false;
    bool written_again = false;               // of its second attempt
    std::optional<std::uint64_t> first_byte;  // in the stream of what has been written
    unsigned attended = 0;                    // how often
    std::string came;                         // of a channel: the rows and data taken
    core::operation_ptr opened;               // of a cursor: what is fetched from
    std::string word() const;                 // its SQL
    std::string portal() const { return std::string("p").append(std::to_string(token)); }
  };
  static constexpr int nobody = -1, the_drain = -2;

  void start_next();
  // What lasts (world_channels.cpp).
  bool start_lasting(request& each);
  bool may_attend(const request& each) const;
  void attend_to(request& each);
  void take_what_came();
  void take_from(request& each, core::operation& op);
  bool opens(request& each, const core::operation_ptr& op);
  std::optional<bool> lasting_as_asked(const request& each, const core::operation& op) const;
  void judge_lasting(const request& each) const;
  void inspect_lasting(const frontend_message& got);
  static void lasting_key(const request& each, std::string& out);
  void settle();
  void inspect(int head_before);
  void inspect(const frontend_message& got, int head_before);
  void take_outcomes();
  void judge(request& each, const core::operation& op);
  bool may_be_hit(const request& each, const core::operation& op) const;
  bool is_of_its_place(const request& each, std::string_view code) const;
  bool as_asked(const request& each, const core::operation& op) const;
  bool hindered(const request& each) const;
  bool began_before(const request& each) const;
  bool holds_portals(const request& each) const;
  const effect* effect_of(const request& each) const;
  void judge_effects();
  void deliver(std::string_view bytes);
  void lose(unsigned how);
  int head() const;
  int index_of(const core::operation* op) const;
  bool all_done() const;
  void say(bool held, const std::string& rule) const {
    if (!held) throw broken(rule);
  }

  program program_;
  core::session talk_;
  model_server server_;
  std::vector<request> requests_;
  std::size_t next_ = 0;       // to be started
  std::size_t inspected_ = 0;  // bytes outbound that have been looked at
  std::uint64_t sent_ = 0;     // bytes since the beginning of the program
  int writer_ = nobody;        // whose the bytes written last are
  int barrier_ = nobody;       // behind whom nothing may be written
  enum class cancelling : char { no, socket_open, socket_ended, draining } cancel_ = cancelling::no;
  bool cancel_under_way_ = false;  // sent, and not yet struck
  bool half_received_ = false;
  std::string consumed_;  // types of the messages taken since the last ReadyForQuery
  std::string received_;  // and not yet taken
  bool lost_ = false;
};

}  // namespace pgpoll::test
