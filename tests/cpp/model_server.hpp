// A server that speaks the protocol by its rules (manual, section 54.2), one message of work at a time. The same as
// tests/model.py, for exhaustive exploration: a cancel may strike wherever the backend checks for one, or not yet.
//
// Its SQL is a handful of words; what comes back carries the token that was asked with, which is Bind's only argument
// or else the last word of the text:
//
//   select ...          two rows of the token, the second after some work    fail parse, fail bind, fail execute ...
//   copy ...            CopyInResponse                                       fail late    behind a row
//   tag ...             no rows, the tag "TAG 41"                            fail sync    at Sync, behind
//   CommandComplete
#pragma once

#include <deque>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "backend.hpp"

namespace pgpoll::test {

struct frontend_message {
  char type = 0;         // '!' is the StartupMessage
  std::string name;      // of the statement
  std::string sql;       // Parse, Query
  std::string argument;  // Bind's
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
    case 'B': {
      body.string();
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

class model_server {
 public:
  std::deque<frontend_message> waiting;  // received and not yet dealt with
  std::deque<std::string> answers;       // one message each, on their way
  bool cancel_pending = false;           // the backend's QueryCancelPending
  bool ended = false;                    // Terminate has come

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
    return next == 'P' || next == 'B' || next == 'E' || next == 'Q' || (next == 'S' && in_transaction_);
  }

  // One piece of work; `hit` where the pending cancel strikes in it.
  void work(bool hit) {
    if (hit) cancel_pending = false;
    if (running_ == running::rows) return finish_rows(hit);
    if (copying() && hit) return end_copy("57014", "canceling statement due to user request");
    const auto got = std::move(waiting.front());
    waiting.pop_front();
    if (copying()) {  // Flush and Sync are ignored while data is awaited
      if (got.type == 'f') end_copy("57014", "COPY from stdin failed");
      return;
    }
    if (got.type == 'f') return;  // it came too late: the copy had failed by itself
    if (skipping_ && got.type != 'S') return;
    if (hit && got.type != 'Q' && got.type != 'S') return fail("57014", "canceling statement due to user request");
    on(got, hit);
  }

  void key(std::string& out) const {
    out += static_cast<char>(running_);
    out += static_cast<char>(skipping_ | in_transaction_ << 1 | simple_ << 2 | cancel_pending << 3 | ended << 4);
    out += bound_ + '/' + token_ + '/' + late_failure_ + '/';
    for (const auto& each : waiting) out += each.type + each.name + '.' + each.sql + '.' + each.argument + ';';
    out += '|';
    for (const auto& [name, sql] : statements_) out += name + '=' + sql + ';';
  }

 private:
  enum class running : char { no, rows, copy };

  bool copying() const { return running_ == running::copy; }
  void say(std::string message) { answers.push_back(std::move(message)); }
  void ready() { say(test::ready()); }

  void fail(const std::string& code, const std::string& text) {
    say(server_error(code, "ERROR", text));
    running_ = running::no;
    late_failure_.clear();
    in_transaction_ = false;
    if (simple_)
      ready();
    else
      skipping_ = true;
    simple_ = false;
  }
  void end_copy(const std::string& code, const std::string& text) { fail(code, text); }

  void on(const frontend_message& got, bool hit) {
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
        run();
        break;
      case 'C':
        statements_.erase(got.name);
        say(message('3'));
        break;
      case 'S':
        if (hit)
          say(server_error("57014", "ERROR", "canceling statement due to user request"));
        else if (!late_failure_.empty())
          say(server_error("P0001", "ERROR", late_failure_));
        late_failure_.clear();
        skipping_ = in_transaction_ = false;
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
    say(message('t', int16(1) + int32(23)));
    const bool rows = sql.starts_with("select") || sql.starts_with("fail late");
    say(rows ? row_of_int4("n") : message('n'));
  }

  void bind(const frontend_message& got) {
    const auto found = statements_.find(got.name);
    if (found == statements_.end()) return fail("26000", got.name);
    bound_ = found->second;
    token_ = got.argument.empty() ? last_word(bound_) : got.argument;
    if (bound_.starts_with("fail bind")) return fail("P0001", "fail bind " + token_);
    say(message('2'));
  }

  void run() {
    in_transaction_ = true;
    if (bound_.starts_with("select")) {
      say(data_row());
      running_ = running::rows;
    } else if (bound_.starts_with("tag")) {
      say(message('C', text("TAG " + token_)));
    } else if (bound_.starts_with("copy")) {
      say(message('G', std::string(1, '\0') + int16(1) + int16(0)));
      running_ = running::copy;
    } else if (bound_.starts_with("fail sync")) {
      say(message('C', text("INSERT 0 1")));
      late_failure_ = "fail sync " + token_;
    } else {
      if (bound_.starts_with("fail late")) say(data_row());
      fail("P0001", bound_.substr(0, bound_.rfind(' ')) + ' ' + token_);
    }
  }

  void finish_rows(bool hit) {
    running_ = running::no;
    if (hit) return fail("57014", "canceling statement due to user request");
    say(data_row());
    say(message('C', text("SELECT 2")));
    if (!simple_) return;
    say(message('C', text("TAG " + token_)));  // the script's second statement
    simple_ = in_transaction_ = false;
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
    simple_ = in_transaction_ = false;
    ready();
  }

  std::string data_row() const {
    return message('D', int16(1) + int32(static_cast<std::int64_t>(token_.size())) + token_);
  }
  static std::string row_of_int4(const std::string& name) { return described(name).substr(12); }
  static std::string last_word(const std::string& sql) { return sql.substr(sql.rfind(' ') + 1); }

  std::map<std::string, std::string, std::less<>> statements_;
  std::string bound_;
  std::string token_;
  std::string late_failure_;
  running running_ = running::no;
  bool begun_ = false;
  bool skipping_ = false;        // to the next Sync, after an error
  bool in_transaction_ = false;  // between Execute and Sync, where a cancel may still strike
  bool simple_ = false;          // a simple query is being run
};

}  // namespace pgpoll::test
