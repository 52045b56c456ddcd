// A server that speaks the protocol by its rules (manual, section 54.2), one message of work at a time. The same as
// tests/model.py, for exhaustive exploration: a cancel may strike wherever the backend checks for one, or not yet.
//
// Its SQL is a handful of words; what comes back carries the token that was asked with, which is Bind's only argument
// or else the last word of the text:
//
//   select ...          two rows of the token, the second after some work    fail parse, fail describe, fail bind ...
//   copy ...            CopyInResponse                                       fail late    behind a row
//   tag ...             no rows, the tag "TAG 41"                            fail sync    at Sync, behind
//   insert ...          an effect of the token                               CommandComplete
//   begin ...           BEGIN; commit ... and rollback ... alike
//   values ...          two rows, told apart, by the limit of Execute     fail rows    behind one of them
//   copy in ...         an effect of two pieces of data                   copy refused ...   the second is refused
//   copy out ...        two pieces of data, the second after some work    copy broken ...    there is no second
//
// Effects are durable once their transaction has ended well: at Sync, or at COMMIT where BEGIN came before; so long do
// portals last, of which there is one at a time.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend.hpp"

namespace pgpoll::test {

struct frontend_message {
  char type = 0;         // '!' is the StartupMessage
  std::string name;      // of the statement
  std::string sql;       // Parse, Query
  std::string argument;  // Bind's
  std::string portal;    // Bind, Execute
  std::uint32_t limit = 0;
};

// Takes the next whole message off the front of `bytes`.
inline frontend_message take_frontend(std::string_view& bytes, bool begun) {
  frontend_message out;
  out.type = begun ? bytes[0] : '!';
  const std::size_t skip = begun ? 1 : 0;
  const std::size_t size = skip + wire::load_uint32(bytes.data() + skip);
  if (bytes.size() < size) throw std::logic_error("half a message has left");
  wire::reader body(bytes.substr(skip + 4, size - skip - 4), "a frontend message");
  switch (out.type) {
    case 'P':
      out.name = body.string();
      out.sql = body.string();
      break;
    case 'Q':
      out.sql = body.string();
      break;
    case 'D':
    case 'C':
      body.uint8();
      out.name = body.string();
      break;
    case 'E':
      out.portal = body.string();
      out.limit = body.uint32();
      break;
    case 'B': {
      out.portal = body.string();
      out.name = body.string();
      for (auto formats = body.uint16(); formats > 0; --formats) body.uint16();
      for (auto values = body.uint16(); values > 0; --values) out.argument = body.bytes(body.uint32());
      break;
    }
    default:
      break;
  }
  bytes.remove_prefix(size);
  return out;
}

struct effect {
  enum class state : char { pending, durable, undone };
  int token = 0;
  int transaction = 0;  // the token of its BEGIN; 0: its own
  state now = state::pending;
};

class model_server {
 public:
  std::deque<frontend_message> waiting;  // received and not yet dealt with
  std::deque<std::string> answers;       // one message each, on their way
  bool cancel_pending = false;           // the backend's QueryCancelPending
  bool ended = false;                    // Terminate has come
  std::vector<effect> effects;           // those undone by their own error are struck

  void feed(std::string_view bytes) {
    while (!bytes.empty()) {
      waiting.push_back(take_frontend(bytes, begun_));
      begun_ = true;
    }
  }

  bool can_work() const { return !ended && (running_ == running::rows || !waiting.empty()); }

  // Whether a cancel that is pending could strike in the next piece of work.
  bool can_be_hit() const {
    if (!cancel_pending) return false;
    if (running_ != running::no) return true;
    if (skipping_ || !can_work()) return false;
    const char next = waiting.front().type;
    return next == 'P' || next == 'D' || next == 'B' || next == 'E' || next == 'Q' || (next == 'S' && uncommitted_);
  }

  char status() const { return status_; }

  // The table of "insert stale" is altered, and "insert dropped" deallocated.
  void change_plans() {
    for (const auto& [name, sql] : statements_)
      if (sql == "insert stale") stale_.insert(name);
    std::erase_if(statements_, [](const auto& each) { return each.second == "insert dropped"; });
  }

  // One piece of work; `hit` where the pending cancel strikes in it.
  void work(bool hit) {
    if (hit) cancel_pending = false;
    if (running_ == running::rows) return finish_rows(hit);
    if (copying() && hit) return end_copy("57014", "canceling statement due to user request");
    const auto got = std::move(waiting.front());
    waiting.pop_front();
    if (copying()) return take_copied(got.type);
    if (got.type == 'd' || got.type == 'c' || got.type == 'f') return;  // too late: the copy had failed by itself
    if (skipping_ && got.type != 'S') return;
    if (hit && got.type != 'Q' && got.type != 'S') return fail("57014", "canceling statement due to user request");
    on(got, hit);
  }

  void key(std::string& out) const {
    out += static_cast<char>(running_);
    out += static_cast<char>(skipping_ | uncommitted_ << 1 | simple_ << 2 | cancel_pending << 3 | ended << 4);
    out += bound_ + '/' + token_ + '/' + late_failure_ + '/' + portal_ + '/';
    out += static_cast<char>(given_ | pieces_ << 4);
    for (const auto& each : rest_) out += each;
    for (const auto& each : waiting) {
      out += each.type + each.name + '.' + each.sql + '.' + each.argument + '.' + each.portal + ';';
      out += static_cast<char>(each.limit);
    }
    out += '|';
    for (const auto& [name, sql] : statements_) out += name + '=' + sql + (stale_.contains(name) ? '!' : ';');
    (out += status_) += static_cast<char>(transaction_);
    for (const auto& each : effects)
      for (const int part : {each.token, each.transaction, static_cast<int>(each.now)}) out += static_cast<char>(part);
  }

 private:
  enum class running : char { no, rows, copy };
  static constexpr const char* no_portal = "none";

  bool copying() const { return running_ == running::copy; }
  void say(std::string message) { answers.push_back(std::move(message)); }
  void ready() {
    if (status_ == 'I') {
      decide(effect::state::durable);
      portal_ = no_portal;
    }
    say(test::ready(status_));
  }

  // What becomes of the pending effects.
  void decide(effect::state how) {
    if (how == effect::state::undone)
      std::erase_if(effects,
                    [](const auto& each) { return each.now == effect::state::pending && each.transaction == 0; });
    for (auto& each : effects)
      if (each.now == effect::state::pending) each.now = how;
  }

  void fail(const std::string& code, const std::string& text) { fail_with(server_error(code, "ERROR", text)); }
  void fail_with(std::string error) {
    say(std::move(error));
    running_ = running::no;
    rest_.clear();
    late_failure_.clear();
    uncommitted_ = false;
    decide(effect::state::undone);
    if (status_ == 'T') status_ = 'E';
    if (simple_)
      ready();
    else
      skipping_ = true;
    simple_ = false;
  }
  void end_copy(const std::string& code, const std::string& text) { fail(code, text); }

  // Flush and Sync are ignored while data is awaited.
  void take_copied(char type) {
    if (type == 'f') return end_copy("57014", "COPY from stdin failed");
    const bool refuses = bound_.starts_with("copy refused");
    if ((type == 'd' || type == 'c') && !refuses && !bound_.starts_with("copy in"))
      throw std::logic_error("data for a COPY that was refused");
    if (type == 'd' && ++pieces_ == 2 && refuses) return fail("P0001", bound_);
    if (type != 'c') return;
    if (pieces_ != 2) throw std::logic_error("half a COPY was ended");
    running_ = running::no;
    effects.push_back({std::stoi(token_), transaction_});
    say(message('C', text("COPY 2")));
  }

  // In a transaction that has failed all but its end is refused.
  bool is_refused(const frontend_message& got) const {
    if (status_ != 'E' || std::string_view("PDBEQ").find(got.type) == std::string_view::npos) return false;
    const auto known = statements_.find(got.name);
    const auto& sql = got.type == 'P' || got.type == 'Q' ? got.sql : got.type == 'E' ? bound_ : known->second;
    return !sql.empty() && !sql.starts_with("commit") && !sql.starts_with("rollback");
  }

  void on(const frontend_message& got, bool hit) {
    const bool names = got.type == 'D' || got.type == 'B';
    if (names && !statements_.contains(got.name)) return fail("26000", got.name);
    if (is_refused(got)) {
      simple_ = got.type == 'Q';
      return fail("25P02", "current transaction is aborted");
    }
    switch (got.type) {
      case '!':
        for (auto each : {message('R', int32(0)), message('K', int32(4711) + "abcd"), test::ready()}) say(each);
        break;
      case 'P':
        if (got.sql.starts_with("fail parse")) return fail("P0001", got.sql);
        if (!got.name.empty() && statements_.contains(got.name)) return fail("42P05", got.name);
        statements_[got.name] = got.sql;
        say(message('1'));
        break;
      case 'D':
        describe(statements_.at(got.name));
        break;
      case 'B':
        bind(got);
        break;
      case 'E':
        if (got.portal != portal_) return fail("34000", got.portal);
        run(got.limit);
        break;
      case 'C':
        statements_.erase(got.name);
        stale_.erase(got.name);
        say(message('3'));
        break;
      case 'S':
        if (hit)
          fail("57014", "canceling statement due to user request");
        else if (!late_failure_.empty())
          fail("P0001", std::string(late_failure_));
        skipping_ = uncommitted_ = false;
        ready();
        break;
      case 'Q':
        query(got.sql, hit);
        break;
      case 'X':
        ended = true;
        break;
      case 'H':
        break;
      default:
        throw std::logic_error(std::string("the model does not know ") + got.type);
    }
  }

  void describe(const std::string& sql) {
    if (sql.starts_with("fail describe")) return fail("P0001", sql);
    say(message('t', int16(1) + int32(23)));
    const bool rows = sql.starts_with("select") || sql.starts_with("fail late") || is_series(sql);
    say(rows ? row_of_int4("n") : message('n'));
  }

  void bind(const frontend_message& got) {
    if (stale_.contains(got.name)) return fail("0A000", "cached plan must not change result type");
    bound_ = statements_.at(got.name);
    token_ = got.argument.empty() ? last_word(bound_) : got.argument;
    if (bound_.starts_with("fail bind")) return fail("P0001", "fail bind " + token_);
    portal_ = got.portal;
    given_ = 0;
    say(message('2'));
  }

  static bool is_series(const std::string& sql) { return sql.starts_with("values") || sql.starts_with("fail rows"); }

  // A row without delay, the second after some work, and where as many have come as were asked for no end.
  void run_series(std::uint32_t limit) {
    running_ = running::rows;
    const bool fails = bound_.starts_with("fail rows");
    const std::uint32_t last = fails ? 1 : 2;
    std::uint32_t came = 0;
    for (; given_ < last && (limit == 0 || came < limit); ++came, ++given_)
      rest_.push_back(data_row(given_ == 0 ? ".a" : ".b"));
    if (came > 0 && given_ == came) {
      say(rest_.front());
      rest_.erase(rest_.begin());
    }
    if (limit != 0 && came == limit)
      rest_.push_back(message('s'));
    else if (fails)
      rest_.push_back(server_error("P0001", "ERROR", "fail rows " + token_));
    else
      rest_.push_back(message('C', text("SELECT " + std::to_string(came))));
  }

  void run_copy() {
    const auto format = std::string(1, '\0') + int16(1) + int16(0);
    const bool out = bound_.starts_with("copy out"), broken = bound_.starts_with("copy broken");
    pieces_ = 0;
    say(message(out || broken ? 'H' : 'G', format));
    running_ = out || broken ? running::rows : running::copy;
    if (running_ == running::copy) return;
    say(message('d', token_ + ".a"));
    if (out)
      rest_ = {message('d', token_ + ".b"), message('c'), message('C', text("COPY 2"))};
    else
      rest_ = {server_error("P0001", "ERROR", std::string(bound_))};
  }

  void run(std::uint32_t limit = 0) {
    uncommitted_ = status_ == 'I';
    const auto word = bound_.substr(0, bound_.find(' '));
    if (word == "begin" || word == "commit" || word == "rollback") return control(word);
    if (word == "insert") {
      effects.push_back({std::stoi(token_), transaction_});
      say(message('C', text("INSERT 0 1")));
    } else if (bound_.starts_with("select")) {
      say(data_row());
      rest_ = {data_row(), message('C', text("SELECT 2"))};
      running_ = running::rows;
    } else if (bound_.starts_with("tag")) {
      say(message('C', text("TAG " + token_)));
    } else if (bound_.starts_with("copy")) {
      run_copy();
    } else if (is_series(bound_)) {
      run_series(limit);
    } else if (bound_.starts_with("fail sync")) {
      say(message('C', text("INSERT 0 1")));
      if (status_ == 'I') late_failure_ = "fail sync " + token_;  // else it would be at COMMIT
    } else {
      if (bound_.starts_with("fail late")) say(data_row());
      fail("P0001", bound_.substr(0, bound_.rfind(' ')) + ' ' + token_);
    }
  }

  // What a server answers with a warning where there is no transaction, or one already, is done all the same.
  void control(const std::string& word) {
    uncommitted_ = false;
    const bool commits = word == "commit" && status_ != 'E';
    if (word == "begin" && status_ == 'I') {
      status_ = 'T';
      transaction_ = std::stoi(token_);
    } else if (word != "begin") {
      decide(commits ? effect::state::durable : effect::state::undone);
      status_ = 'I';
      transaction_ = 0;
      portal_ = no_portal;
    }
    say(message('C', text(word == "begin" ? "BEGIN" : commits ? "COMMIT" : "ROLLBACK")));
  }

  void finish_rows(bool hit) {
    running_ = running::no;
    if (hit) return fail("57014", "canceling statement due to user request");
    for (const auto& each : std::exchange(rest_, {})) {
      if (each[0] == 'E') return fail_with(each);
      say(each);
    }
    if (!simple_) return;
    say(message('C', text("TAG " + token_)));  // the script's second statement
    simple_ = uncommitted_ = false;
    ready();
  }

  // A script is "select 41; tag 41", or one word that is executed as it is.
  void query(const std::string& sql, bool hit) {
    simple_ = true;
    bound_ = sql;
    token_ = last_word(sql);
    if (hit) return fail("57014", "canceling statement due to user request");
    if (sql.empty()) {
      cancel_pending = false;  // what did not strike is ignored while the next command is awaited
      say(message('I'));
      simple_ = false;
      return ready();
    }
    if (sql.starts_with("select") || sql.starts_with("fail late")) say(row_of_int4("n"));
    run();
    if (running_ != running::no || !simple_) return;
    simple_ = uncommitted_ = false;
    ready();
  }

  std::string data_row(const std::string& place = {}) const {
    const auto value = token_ + place;
    return message('D', int16(1) + int32(static_cast<std::int64_t>(value.size())) + value);
  }
  static std::string row_of_int4(const std::string& name) { return described(name).substr(12); }
  static std::string last_word(const std::string& sql) { return sql.substr(sql.rfind(' ') + 1); }

  std::map<std::string, std::string, std::less<>> statements_;
  std::set<std::string, std::less<>> stale_;  // those whose plan has changed
  std::string bound_;
  std::string token_;
  std::string portal_ = no_portal;
  std::uint32_t given_ = 0;        // rows of it
  std::uint32_t pieces_ = 0;       // of the COPY that runs
  std::vector<std::string> rest_;  // what is said when what runs is done
  std::string late_failure_;
  running running_ = running::no;
  bool begun_ = false;
  bool skipping_ = false;     // to the next Sync, after an error
  bool uncommitted_ = false;  // between Execute and Sync, where a cancel may still strike
  bool simple_ = false;       // a simple query is being run
  char status_ = 'I';         // ReadyForQuery's
  int transaction_ = 0;       // the token of its BEGIN
};

}  // namespace pgpoll::test
