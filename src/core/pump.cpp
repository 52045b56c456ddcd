// What moves a session: bytes that have come are given to the exchange at the head of the replies, and whoever waits
// for the write turn gets it.
#include <algorithm>
#include <new>

#include "core/scram.hpp"
#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

constexpr std::size_t max_startup_messages = 1000;

}  // namespace

// What the work of guarded() has thrown.
void session::fail_for_thrown() {
  try {
    throw;
  } catch (const wire::protocol_violation& violation) {
    fail_all(ending(failure::kind::protocol, violation.what()));
  } catch (const authentication_error& error) {
    fail_all(ending(failure::kind::authentication, error.what()));
  } catch (...) {  // out of memory: what was half written can't be taken back
    fail_all(out_of_memory_);
    throw;
  }
}

void session::run(exchange_promise& p) {
  running_ = &p;
  p.wait = waiting::nothing;
  p.resume_point.resume();
  running_ = nullptr;
  if (!p.handle().done()) return;
  if (p.thrown) {
    const auto thrown = p.thrown;
    if (!p.in_replies && writer_ != &p) finish(p, operation::state::failed, out_of_memory_);
    std::rethrow_exception(thrown);
  }
  finish(p, p.error ? operation::state::failed : operation::state::succeeded, p.error);
}

void session::pump() {
  if (state_ == state::ended) return;
  may_compute_ = true;
  guarded([this] {
    bool progress = true;
    while (progress && state_ != state::ended) {
      progress = read_replies();
      progress |= state_ != state::ended && grant_writers();
    }
    if (eof_ && state_ != state::ended) end_by_peer();
  });
}

void session::eof() {
  eof_ = true;
}

void session::sent(std::size_t size) {
  outbound_.sent(size);
  if (writer_ != nullptr && writer_->op->crowded) make_room();
}

bool session::wants_pump() const {
  if (state_ == state::ended) return false;
  if (computing_ || may_drain()) return true;
  if (writer_ != nullptr && writer_->wait == waiting::credit) return has_credit(*writer_);
  if (writer_ != nullptr && writer_->op->batch) return wants_items(*writer_);
  if (writer_ != nullptr) return writer_->answered && cancelling_ == cancelling::no;
  return !writing_.empty() && may_write(*writing_.front());
}

bool session::read_replies() {
  bool any = false;
  while (state_ != state::ended) {
    if (replies_.empty()) {
      wire::message got;
      if (!next(got)) break;
      unasked(got);
    } else if (!advance_head()) {
      break;
    }
    any = true;
  }
  return any;
}

// Goes on with the exchange whose reply is arriving; false where it must wait.
bool session::advance_head() {
  auto& p = *replies_.front();
  if (fatal_) return fail_all(p.error), true;  // the server ends the connection; its end of file adds nothing
  if (p.draining) return drain();
  switch (p.wait) {
    case waiting::reply_turn:
      run(p);
      return true;
    case waiting::message:
      if (pull()) return run(p), true;
      return p.draining;
    case waiting::rows:
      if (pull_rows()) return run(p), true;
      return false;
    case waiting::arguments:
      if (!p.op->abandoned && (!p.answered || cancelling_ == cancelling::socket_open)) return false;
      p.answered = false;
      run(p);
      return true;
    case waiting::credit:
      if (has_credit(p)) return run(p), true;
      if (pull()) throw wire::protocol_violation(wire::name_of(message_.type) + ": nothing was asked, at byte 0");
      return p.draining;
    case waiting::items:
      if (!run_due(p)) return interrupted(p);
      run(p);
      return true;
    case waiting::computing:
      if (!may_compute_) return false;
      may_compute_ = computing_ = false;
      run(p);
      return true;
    default: {  // the end of the stream: what the server still says is of no interest
      wire::message ignored;
      while (next(ignored)) continue;
      return false;
    }
  }
}

// What begins a transaction waits for all that may have begun one by hand.
bool session::may_write(const exchange_promise& p) const {
  if (cancelling_ != cancelling::no) return false;
  if (replies_.size() >= settings_.max_pipeline || outbound_.size() >= settings_.max_unsent) return false;
  if (p.outermost &&
      !std::all_of(replies_.begin(), replies_.end(), [](const auto* each) { return leaves_as_it_was(*each); }))
    return false;
  return replies_.empty() || !replies_.front()->op->abandoned;
}

bool session::grant_writers() {
  bool any = false;
  while (state_ != state::ended) {
    if (may_drain()) {
      // Whoever holds the writer has written nothing yet, so the drain goes in front, without a turn.
      auto op = std::make_shared<operation>();
      op->kind = operation::kind::drain;
      op->abandoned = true;
      cancelling_ = cancelling::draining;
      begin(op, drain_stray_cancel(op));
    } else if (writer_ != nullptr && writer_->op->batch) {
      if (!write_items(*writer_)) break;
    } else if (writer_ != nullptr) {
      auto& p = *writer_;
      if (p.in_replies || p.wait != waiting::arguments || !p.answered || cancelling_ != cancelling::no) break;
      p.answered = false;
      run(p);
    } else if (!writing_.empty() && may_write(*writing_.front())) {
      auto& p = *writing_.front();
      writing_.pop_front();
      writer_ = &p;
      if (p.had_turn)
        p.wait = waiting::items;
      else
        run(p);
    } else {
      break;
    }
    any = true;
  }
  return any;
}

bool session::next(wire::message& got) {
  while (inbound_.next(got)) {
    if (!authenticated_ && ++startup_messages_ > max_startup_messages)
      throw wire::protocol_violation(wire::name_of(got.type) +
                                     ": more than 1,000 messages before authentication, at byte 0");
    if (asynchronous(got)) continue;
    if (!replies_.empty()) replies_.front()->current().reply_bytes += wire::header_size + got.body.size();
    return true;
  }
  return false;
}

bool session::pull() {
  auto& p = *replies_.front();
  if (p.draining || !next(message_)) return false;
  if (message_.type != backend::error_response) return true;
  server_error(p, message_);
  return false;
}

bool session::pull_rows() {
  auto& p = *replies_.front();
  const auto& columns = p.sink->columns;
  for (;;) {
    const auto type = inbound_.peek_type();
    if (!type) return false;
    switch (*type) {
      case backend::data_row: {
        if (!columns) throw wire::protocol_violation("DataRow: without a RowDescription at byte 0");
        const auto run_of_rows = inbound_.take_rows(columns->columns.size());
        if (run_of_rows.empty()) return false;
        p.rows_came = true;
        p.op->reply_bytes += run_of_rows.size();
        if (p.op->abandoned) break;
        const auto before = p.sink->rows.size();
        p.sink->rows.append(run_of_rows.data(), run_of_rows.size());
        if (p.op->portal) count_rows(p, before);
        break;
      }
      case backend::notice_response:
      case backend::notification_response:
      case backend::parameter_status: {
        wire::message got;
        if (!inbound_.next(got)) return false;
        asynchronous(got);
        break;
      }
      default:
        return true;
    }
  }
}

bool session::drain() {
  auto& p = *replies_.front();
  wire::message got;
  while (next(got)) {
    if (got.type == backend::error_response) {
      server_error(p, got);
      if (fatal_) return true;
    } else if (got.type == backend::ready_for_query) {
      ready_for_query(got);
      if (p.op->batch) p.op->batch->settled = true;
      if (may_run_again(p))
        run_again(p);
      else
        finish(p, operation::state::failed, p.error);
      return true;
    } else {
      throw wire::protocol_violation(wire::name_of(got.type) + ": after an ErrorResponse, at byte 0");
    }
  }
  return false;
}

void session::sync(exchange_promise& p) {
  if (p.synced) return;
  out().sync();
  p.synced = true;
  release_writer(p);
}

void session::release_writer(exchange_promise& p) {
  if (writer_ == &p) writer_ = nullptr;
}

void session::fail_later(exchange_promise& p, failure_ptr error) {
  p.error = std::move(error);
}

}  // namespace pgpoll::core
