// A session that is fed and watched: what every conversation must keep, whatever the server says and the caller does.
//
// Bytes collect until deliver(), which hands them over whole or one at a time. An operation's outcome is written down
// as text, so that two conversations can be compared.
#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/session.hpp"
#include "fuzz.hpp"

namespace pgpoll::fuzz {

using core::operation;
using core::operation_ptr;

enum class arrival { whole, bytewise };

class conversation {
 public:
  conversation(core::settings options, arrival how) : how_(how), before_(allocated()), talk(std::move(options)) {}

  void arrives(std::string_view bytes) { arriving_ += bytes; }

  // Hands over what has arrived, and pumps.
  void deliver() {
    const std::size_t piece = how_ == arrival::whole ? arriving_.size() : 1;
    for (std::size_t at = 0; at < arriving_.size(); at += piece) {
      if (talk.ended()) break;  // nothing is read any more
      const auto written = talk.outbound().size();
      const auto room = talk.prepare(piece);
      std::memcpy(room.data(), arriving_.data() + at, piece);
      talk.commit(piece);
      go_on();
      if (at + piece < arriving_.size())
        note_questions(talk.outbound().substr(std::min(written, talk.outbound().size())));
    }
    received_ += arriving_.size();
    arriving_.clear();
    check();
  }

  void pump() {
    go_on();
    check();
  }

  void watch(operation_ptr op) {
    ++calls_;
    for (const auto& each : watched_)
      if (each.op == op) return;  // one Terminate for all who close
    watched_.push_back({std::move(op), {}, {}, 0});
  }

  // Something else that may need some memory.
  void called() { ++calls_; }

  // Takes what has come of a channel; it counts as its outcome, however that ends.
  void look_at(operation& op) {
    for (auto& each : watched_) {
      if (each.op.get() != &op) continue;
      if (op.portal) append_rows(each.taken, talk.take_rows(op));
      each.taken += talk.take_data(op);
      require(!op.stirred, "who has looked is not told again");
    }
  }

  void hear() {
    while (const auto each = talk.next_notification()) heard_ += each->channel + ' ' + each->payload + ';';
  }

  // An operation that was started; null where there is none, or where it was let go.
  operation* started(std::size_t index) {
    return watched_.empty() ? nullptr : watched_[index % watched_.size()].op.get();
  }

  // The caller has its outcome and drops it.
  void let_go(std::size_t index) {
    if (watched_.empty()) return;
    auto& each = watched_[index % watched_.size()];
    if (!each.op || each.op->kind == operation::kind::close) return;  // the next who closes gets the same one
    if (each.op->done() && (each.handed == 1 || each.op->abandoned)) {
      each.outcome = outcome_of(*each.op);
      each.op = nullptr;
    }
  }

  void take(std::size_t index) {
    auto* op = started(index);
    if (op == nullptr || !op->done()) return;
    talk.take(*op);
    watched_[index % watched_.size()].handed = 1;  // whether it was in the queue or had been taken from it
  }

  bool take_next() {
    const auto done = talk.next_completed();
    if (!done) return false;
    require(done->done(), "only what is finished is handed out");
    require(!done->abandoned, "what is abandoned is not handed out");
    for (auto& each : watched_) {
      if (each.op != done) continue;
      require(each.handed++ == 0, "each operation is handed out once");
      return true;
    }
    require(false, "what is handed out was started");
    return false;
  }

  // The end, in one of three ways; after it everybody has been told, once.
  void end(std::uint8_t how) {
    deliver();
    if (how % 3 == 0) {
      talk.eof();
      pump();
    } else if (how % 3 == 1) {
      talk.fail({core::failure::kind::lost, "reset", nullptr, nullptr});
    } else {
      talk.fail({core::failure::kind::closed, "closed", nullptr, nullptr});
    }
    check();
    require(talk.ended() && !talk.accepting(), "the session has ended");
    require(talk.in_flight() == 0, "nothing is in flight after the end");
    require(talk.why_ended() != nullptr, "the end has a reason");
    while (take_next()) continue;
    for (auto& each : watched_) {
      if (!each.op) continue;
      require(each.op->done(), "every operation has ended");
      require(each.handed == 1 || each.op->abandoned, "every operation is handed out");
      each.outcome = outcome_of(*each.op);
    }
  }

  std::vector<std::string> outcomes() const {
    std::vector<std::string> out;
    for (const auto& each : watched_) out.push_back(each.outcome);
    out.push_back(heard_);
    out.push_back(talk.why_ended()->message);
    out.emplace_back(1, talk.transaction_status());
    return out;
  }

  // What was taken of each channel. Where the protocol is broken amid rows, the cut decides how many came before that.
  bool took_the_same(const conversation& other) const {
    const bool broken = talk.why_ended()->kind == core::failure::kind::protocol;
    for (std::size_t i = 0; i < watched_.size(); ++i) {
      const auto &one = watched_[i].taken, &two = other.watched_[i].taken;
      if (one != two && !(broken && (one.starts_with(two) || two.starts_with(one)))) return false;
    }
    return true;
  }

  // The server answered what it had not been asked: the cut of its bytes decides what that is an answer to.
  bool answered_too_early() const {
    return asked_meanwhile_ || talk.why_ended()->message.find("nothing was asked") != std::string::npos;
  }

 private:
  struct watched {
    operation_ptr op;
    std::string outcome;
    std::string taken;
    int handed;
  };

  static std::string outcome_of(const operation& op) {
    // It ends without a byte, between two replies: whether before a violation or after, the cut decides.
    if (op.kind == operation::kind::prepare && !op.written) return "unwritten";
    std::string out = std::to_string(static_cast<int>(op.state)) + (op.written ? "w" : "");
    if (op.state == operation::state::failed) {
      require(op.error != nullptr, "what failed has an error");
      out += op.error->message;
      if (op.error->server)
        for (const auto& [code, value] : op.error->server->fields) out.append(1, code).append(value);
    }
    if (op.state != operation::state::succeeded) return out;  // what had come of its rows, nobody sees
    for (const auto& each : op.results) {
      out += ';' + each.tag;
      append_rows(out, each.rows);
    }
    return out;
  }

  static void append_rows(std::string& out, const core::row_store& rows) {
    core::row_walk walk(rows);
    while (const auto* row = walk.take()) out.append(row, core::row_length(row));
  }

  void go_on() {
    talk.pump();
    while (talk.wants_pump() && !talk.ended()) talk.pump();
  }

  // The frontend messages that a reply itself brings about, Sync and CopyFail, a stream's next Execute and Flush, are
  // written at the same byte however the bytes are cut; others are written between two replies.
  void note_questions(std::string_view written) {
    while (written.size() >= 5) {
      asked_meanwhile_ |= std::string_view("SfEH").find(written[0]) == std::string_view::npos;
      written.remove_prefix(std::min<std::size_t>(written.size(), 1 + wire::load_uint32(written.data() + 1)));
    }
  }

  void check() {
    for (auto& each : watched_) {
      if (!each.op) continue;
      require(each.op->done() == (each.op->exchange == nullptr), "an exchange lasts as long as its operation");
      require(each.handed == 0 || each.op->done(), "who is handed out is done");
    }
    // A described column of 19 bytes becomes some 100; an operation with its frames has some 2 KiB.
    const auto now = allocated();
    const auto bound = (std::size_t{128} << 10) + 16 * (received_ + arriving_.size()) + 4096 * calls_;
    require(now < before_ + bound, "memory follows the bytes received");
  }

  arrival how_;
  std::size_t before_;
  std::string arriving_;
  std::size_t received_ = 0;
  std::size_t calls_ = 0;
  bool asked_meanwhile_ = false;  // between two bytes of one delivery
  std::vector<watched> watched_;
  std::string heard_;

 public:
  core::session talk;
};

inline void require_same(const conversation& bytewise, const conversation& whole) {
  if (bytewise.answered_too_early() || whole.answered_too_early()) return;
  const auto one = bytewise.outcomes();
  const auto other = whole.outcomes();
  require(one.size() == other.size(), "bytes one at a time allow the same calls as whole ones");
  if (one == other && bytewise.took_the_same(whole)) return;
  for (std::size_t i = 0; i < one.size(); ++i) std::fprintf(stderr, "%s / %s\n", one[i].c_str(), other[i].c_str());
  require(false, "bytes one at a time end as whole ones");
}

}  // namespace pgpoll::fuzz
