#include "core/session.hpp"

#include <algorithm>
#include <new>

#include "core/scram.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

// Before the server has proved who it is, nothing needs to be long.
constexpr std::size_t unauthenticated_limit = 64 * 1024;
constexpr std::size_t max_descriptions = 1000;  // where statements are not kept

}  // namespace

session::session(settings options)
    : settings_(std::move(options)),
      cache_(settings_.statement_cache_size != 0 ? settings_.statement_cache_size : max_descriptions,
             settings_.statement_cache_bytes),
      out_of_memory_(make_failure(failure::kind::lost, "connection lost: out of memory")) {
  inbound_.limit(unauthenticated_limit);
}

session::~session() {
  for (auto& op : completed_) op->exchange = nullptr;
  fail_all(ending(failure::kind::closed, "closed"));
}

// ---- requests

operation_ptr session::admit(enum operation::kind kind, preamble* first) {
  auto op = std::make_shared<operation>();
  op->kind = kind;
  const bool opens_it = kind == operation::kind::connect || kind == operation::kind::cancel;
  if (accepting() && (state_ == state::fresh) == opens_it) return op;
  op->state = operation::state::failed;
  op->error = state_ == state::ended && why_ended_
                  ? make_failure(failure::kind::lost, "connection lost", nullptr, why_ended_)
                  : make_failure(failure::kind::closed, "closed");
  completed_.push_back(op);
  if (first != nullptr) {
    for (auto& each : first->commands) {
      each->state = op->state;
      each->error = op->error;
    }
    completed_.splice(std::prev(completed_.end()), first->commands);
  }
  return op;
}

operation_ptr session::begin(operation_ptr op, exchange dialogue, preamble first) {
  auto& p = dialogue.handle.promise();
  op->exchange = &p;
  p.opens = !first.commands.empty();
  p.outermost = first.outermost;
  for (auto& each : first.commands) each->exchange = &p;
  p.preamble = std::move(first.commands);
  ++in_flight_;
  guarded([&] { run(p); });
  return op;
}

operation_ptr session::start_connect() {
  auto op = admit(operation::kind::connect);
  return op->done() ? op : begin(op, startup(op));
}

operation_ptr session::start_execute(std::string sql, preamble first) {
  auto op = admit(operation::kind::execute, &first);
  op->sql = std::move(sql);
  return op->done() ? op : begin(op, execute(op), std::move(first));
}

operation_ptr session::start_execute(statement_ptr known, std::string arguments, preamble first) {
  auto op = admit(operation::kind::execute, &first);
  if (op->done()) return op;
  op->statement = known;
  return begin(op, execute(op, std::move(known), std::move(arguments)), std::move(first));
}

operation_ptr session::start_prepare(std::string sql, preamble first) {
  auto op = admit(operation::kind::prepare, &first);
  op->sql = std::move(sql);
  return op->done() ? op : begin(op, prepare_statement(op), std::move(first));
}

operation_ptr session::start_script(std::string sql) {
  auto op = admit(operation::kind::script);
  op->sql = std::move(sql);
  return op->done() ? op : begin(op, script(op));
}

operation_ptr session::start_command(std::string sql, preamble first) {
  auto op = admit(operation::kind::command, &first);
  op->sql = std::move(sql);
  return op->done() ? op : begin(op, command(op), std::move(first));
}

operation_ptr session::start_cancel(cancel_key key) {
  auto op = admit(operation::kind::cancel);
  if (op->done()) return op;
  auto dialogue = cancel(op, std::move(key));
  state_ = state::closing;
  return begin(std::move(op), dialogue);
}

operation_ptr session::start_close() {
  if (closing_) return closing_;
  auto op = std::make_shared<operation>();
  op->kind = operation::kind::close;
  if (state_ == state::fresh || state_ == state::ended) {
    completed_.push_back(op);
    op->state = operation::state::succeeded;
    fail_all(ending(failure::kind::closed, "closed"));
    return closing_ = std::move(op);
  }
  auto dialogue = close(op);
  closing_ = op;
  state_ = state::closing;
  return begin(std::move(op), dialogue);
}

void session::abandon(operation& op) {
  if (op.abandoned) return;
  op.abandoned = true;
  take(op);
  look(op);
  if (op.exchange == nullptr) return;
  auto& p = *op.exchange;
  if (p.op.get() != &op) return;  // of a preamble: the request goes on
  for (auto& result : op.results) result.rows = {};
  op.data = {};
  switch (op.kind) {
    case operation::kind::close:
    case operation::kind::cancel:
    case operation::kind::drain:
    case operation::kind::close_portal:
      return;
    case operation::kind::connect:
      return fail_all(ending(failure::kind::closed, "closed: the connecting task went away"));
    default:
      break;
  }
  if (op.feeds()) return fail_feed(op, "the client gave up");
  if (p.wait == waiting::write_turn || (!p.in_replies && (p.wait == waiting::arguments || op.batch))) {
    finish(p, operation::state::cancelled);
  } else if (op.batch && take_back(p)) {
    finish(p, operation::state::cancelled);
  } else if (op.batch) {
    break_off(p);
  } else if (!p.synced && !p.sync_waits && !p.draining) {
    // It waits for its description, or the arguments: no Bind, but its Sync, at once.
    guarded([&] { sync(p); });
  }
}

statement_ptr session::find_statement(std::string_view sql) {
  return cache_.find(sql);
}

operation_ptr session::next_unencoded() {
  while (!unencoded_.empty()) {
    auto op = std::move(unencoded_.front());
    unencoded_.pop_front();
    if (op->exchange != nullptr && !op->abandoned) return op;
  }
  return nullptr;
}

void session::supply(operation& op, std::string arguments) {
  if (op.batch) return supply_item(op, arguments);
  if (op.exchange == nullptr || op.exchange->wait != waiting::arguments) return;
  op.exchange->answered = true;
  op.exchange->arguments = std::move(arguments);
}

void session::refuse(operation& op) {
  auto refusal = make_failure(failure::kind::refused, "the arguments could not be encoded");
  if (op.batch) return refuse_item(op, std::move(refusal));
  if (op.exchange == nullptr || op.exchange->wait != waiting::arguments) return;
  fail_later(*op.exchange, std::move(refusal));
  op.exchange->answered = true;
}

// ---- outcomes

bool session::has_left(const operation& op) const {
  if (op.exchange == nullptr) return op.done() && op.written;
  return op.exchange->first_byte && outbound_.sent_total() > *op.exchange->first_byte;
}

operation_ptr session::next_completed() {
  if (completed_.empty()) return nullptr;
  auto op = std::move(completed_.front());
  completed_.pop_front();
  return op;
}

void session::take(const operation& op) {
  const auto found =
      std::find_if(completed_.begin(), completed_.end(), [&](const auto& each) { return each.get() == &op; });
  if (found != completed_.end()) completed_.erase(found);
}

// ---- channels

void session::stir(const operation_ptr& op) {
  if (op->stirred || op->abandoned) return;
  stirred_.push_back(op);
  op->stirred = true;
}

operation_ptr session::next_stirred() {
  while (!stirred_.empty()) {
    auto op = std::move(stirred_.front());
    stirred_.pop_front();
    if (op->stirred) return op;
  }
  return nullptr;
}

void session::look(operation& op) {
  op.stirred = false;
  std::erase_if(stirred_, [&](const auto& each) { return each.get() == &op; });
}

bool session::reads() const {
  if (replies_.empty() || !outbound_.empty()) return true;
  const auto& op = *replies_.front()->op;
  return !op.full || op.abandoned;
}

// The first command of a preamble has ended.
void session::finish_command(exchange_promise& p, enum operation::state outcome, failure_ptr error) {
  auto& op = *p.preamble.front();
  op.exchange = nullptr;
  op.written = p.first_byte && outbound_.sent_total() > *p.first_byte;
  op.state = op.abandoned ? operation::state::cancelled : outcome;
  op.error = std::move(error);
  if (op.abandoned)
    p.preamble.pop_front();
  else
    completed_.splice(completed_.end(), p.preamble, p.preamble.begin());
}

void session::finish(exchange_promise& p, enum operation::state outcome, failure_ptr error) {
  const bool succeeded = outcome == operation::state::succeeded;  // without them: it was given up before it was written
  while (!p.preamble.empty()) finish_command(p, succeeded ? operation::state::cancelled : outcome, error);
  const auto op = std::move(p.op);
  auto place = std::move(p.place);
  const auto first_byte = p.first_byte;
  detach(p);
  op->exchange = nullptr;
  if (op->feeds()) op->feeding = operation::feeding::stopped;
  op->full = op->crowded = false;
  op->written = op->again || (first_byte && outbound_.sent_total() > *first_byte);
  if (op->kind == operation::kind::close) {  // however it went, the connection is closed
    outcome = operation::state::succeeded;
    error = nullptr;
  }
  op->state = op->abandoned ? operation::state::cancelled : outcome;
  op->error = std::move(error);
  if (op->kind == operation::kind::drain) cancelling_ = cancelling::no;
  if (!op->abandoned && op->kind != operation::kind::close_portal) completed_.splice(completed_.end(), place);
}

// Takes an exchange out of every queue, and ends it.
void session::detach(exchange_promise& p) {
  if (writer_ == &p) writer_ = nullptr;
  if (p.in_replies && replies_.front() == &p) {
    replies_.pop_front();
    ++answered_;
  } else if (p.in_replies) {
    std::erase(replies_, &p);
  }
  if (p.wait == waiting::write_turn) std::erase(writing_, &p);
  p.handle().destroy();
  --in_flight_;
}

void session::fail(failure why) noexcept {
  try {
    fail_all(std::make_shared<const failure>(std::move(why)));
  } catch (const std::bad_alloc&) {
    fail_all(out_of_memory_);
  }
}

// What everybody is told; where there is no memory to say it, that.
failure_ptr session::ending(enum failure::kind kind, const char* text, failure_ptr cause) const noexcept {
  try {
    return make_failure(kind, text, nullptr, std::move(cause));
  } catch (const std::bad_alloc&) {
    return out_of_memory_;
  }
}

void session::fail_all(failure_ptr why) noexcept {
  if (state_ == state::ended) return;
  state_ = state::ended;
  why_ended_ = why;
  const auto* const head = replies_.empty() ? nullptr : replies_.front();
  const auto rest = why->kind == failure::kind::closed ? why : ending(failure::kind::lost, "connection lost", why);
  const auto tell = [&](exchange_promise& p) {
    const bool told = &p == head || p.op->kind == operation::kind::connect;
    finish(p, operation::state::failed,
           p.error ? p.error : told ? why : rest);  // its own error may have come already
  };
  while (!replies_.empty()) tell(*replies_.front());
  if (writer_ != nullptr) tell(*writer_);
  while (!writing_.empty()) tell(*writing_.front());
}

// The server closed its side, and all that it said before has been served.
void session::end_by_peer() {
  auto* const head = replies_.empty() ? nullptr : replies_.front();
  if (head != nullptr && head->wait == waiting::end_of_stream) {
    finish(*head, operation::state::succeeded);
    return fail(failure{failure::kind::closed, "closed", nullptr, nullptr});
  }
  const char* text = state_ == state::fresh || state_ == state::starting
                         ? "connection lost: the server closed it during start-up"
                         : "connection lost: the server closed it unexpectedly";
  fail(failure{failure::kind::lost, text, nullptr, nullptr});
}

}  // namespace pgpoll::core
