#include "core/session.hpp"

#include <algorithm>
#include <new>

#include "core/scram.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

// Before the server has proved who it is, nothing needs to be long.
constexpr std::size_t unauthenticated_limit = 64 * 1024;
constexpr std::size_t max_error_text = 64 * 1024;
constexpr std::size_t max_parameters = 1000;
constexpr std::size_t max_parameter_bytes = std::size_t{1} << 20;
constexpr std::size_t max_notices = 10'000;  // kept until the face takes them; what comes past either is dropped
constexpr std::size_t max_notice_bytes = std::size_t{1} << 20;
constexpr std::size_t max_notifications = 10'000;  // likewise
constexpr std::size_t max_notification_bytes = std::size_t{8} << 20;
constexpr std::size_t max_lossy_channels = 100;  // that are told apart
constexpr std::size_t max_startup_messages = 1000;
constexpr std::size_t max_descriptions = 1000;  // where statements are not kept

failure_ptr failure_of(enum failure::kind kind, std::string message,
                       std::shared_ptr<const server_message> server = nullptr, failure_ptr cause = nullptr) {
  return std::make_shared<const failure>(failure{kind, std::move(message), std::move(server), std::move(cause)});
}

}  // namespace

session::session(settings options)
    : settings_(std::move(options)),
      cache_(settings_.statement_cache_size != 0 ? settings_.statement_cache_size : max_descriptions,
             settings_.statement_cache_bytes),
      out_of_memory_(failure_of(failure::kind::lost, "connection lost: out of memory")) {
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
                  ? failure_of(failure::kind::lost, "connection lost", nullptr, why_ended_)
                  : failure_of(failure::kind::closed, "closed");
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

operation_ptr session::start_copy_in(std::string sql, std::string query) {
  auto op = admit(operation::kind::copy_in);
  op->sql = std::move(sql);
  op->query = std::move(query);
  return op->done() ? op : begin(op, copy_in(op));
}

operation_ptr session::start_copy_out(std::string sql, std::string query) {
  auto op = admit(operation::kind::copy_out);
  op->sql = std::move(sql);
  op->query = std::move(query);
  return op->done() ? op : begin(op, copy_out(op));
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

void session::go_on(operation& op) {
  if (op.exchange != nullptr && writer_ == op.exchange) guarded([&] { write_items(*op.exchange); });
}

void session::break_off(exchange_promise& p) {
  guarded([&] { break_batch(p); });
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
  auto refusal = failure_of(failure::kind::refused, "the arguments could not be encoded");
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
    return failure_of(kind, text, nullptr, std::move(cause));
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

// ---- the pump

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

// ---- messages

// An ErrorResponse for the head. It may be running: only notes are taken here, its frame goes at ReadyForQuery.
void session::server_error(exchange_promise& p, const wire::message& got) {
  auto fields = fields_of(got);
  const bool ends = fields->fatal() || p.op->kind == operation::kind::connect;
  const bool first = p.op->batch && !p.draining && blame_item(p);
  if (!p.error || ends || first) p.error = failure_of(failure::kind::server, std::string(fields->field('M')), fields);
  p.draining = true;
  if (p.op->feeds()) stop_feed(*p.op);
  note_dropped(p, *fields);
  if (ends) {
    fatal_ = std::move(fields);
  } else if (!p.synced) {
    out().sync();
    p.synced = true;
    if (!again_helps(p)) release_writer(p);  // else nobody writes behind it, so that it may run again
  }
}

// A message while no reply is due: the server may say why it ends the connection, nothing else.
void session::unasked(const wire::message& got) {
  if (got.type != backend::error_response)
    throw wire::protocol_violation(wire::name_of(got.type) + ": nothing was asked, at byte 0");
  auto fields = fields_of(got);
  if (!fields->fatal()) throw wire::protocol_violation("ErrorResponse: nothing was asked, at byte 0");
  auto text = std::string(fields->field('M'));
  fail(failure{failure::kind::server, std::move(text), std::move(fields), nullptr});
}

bool session::asynchronous(const wire::message& got) {
  switch (got.type) {
    case backend::notice_response:
      if (authenticated_) keep_notice(got);
      return true;
    case backend::notification_response:
      keep_notification(got);
      return true;
    case backend::parameter_status:
      parameter_status(got);
      return true;
    default:
      return false;
  }
}

void session::keep_notice(const wire::message& got) {
  if (notices_.size() >= max_notices || notice_bytes_ + got.body.size() > max_notice_bytes) {
    ++notices_dropped_;
    return;
  }
  notices_.push_back({fields_of(got), got.body.size()});
  notice_bytes_ += got.body.size();
  ++notices_kept_;
}

std::optional<notice> session::next_notice() {
  if (notices_.empty()) return std::nullopt;
  auto oldest = std::move(notices_.front());
  notices_.pop_front();
  notice_bytes_ -= oldest.size;
  return oldest;
}

void session::keep_notification(const wire::message& got) {
  auto body = got.read("NotificationResponse");
  const auto pid = body.int32();
  const auto channel = body.string();
  const auto payload = body.string();
  body.end();
  if (!keeps_notifications_) return;
  ++notifications_kept_;
  if (notifications_.size() >= max_notifications || notification_bytes_ + got.body.size() > max_notification_bytes)
    return note_lost(channel);
  notifications_.push_back({std::string(channel), std::string(payload), pid, 0, got.body.size()});
  notification_bytes_ += got.body.size();
}

// At the end of what is kept, once for each channel; where those are too many, once for all.
void session::note_lost(std::string_view channel) {
  std::size_t told = 0;
  for (auto each = notifications_.rbegin(); each != notifications_.rend() && each->lost != 0; ++each, ++told)
    if (each->channel == channel || each->channel.empty()) return void(++each->lost);
  notifications_.push_back({std::string(told < max_lossy_channels ? channel : ""), {}, 0, 1, 0});
}

void session::keep_notifications(bool keep) {
  keeps_notifications_ = keep;
  if (keep) return;
  notifications_.clear();
  notification_bytes_ = 0;
}

std::optional<notification> session::next_notification() {
  if (notifications_.empty()) return std::nullopt;
  auto oldest = std::move(notifications_.front());
  notifications_.pop_front();
  notification_bytes_ -= oldest.size;
  return oldest;
}

void session::parameter_status(const wire::message& got) {
  auto body = got.read("ParameterStatus");
  const auto name = body.string();
  const auto value = body.string();
  body.end();
  if (name == "client_encoding" && value != "UTF8")
    body.fail("client_encoding became " + std::string(value) + "; only UTF8 is spoken here,");
  if (name == "integer_datetimes" && value != "on")
    body.fail("integer_datetimes is off; such servers are not supported,");
  auto found = parameters_.find(name);
  if (found == parameters_.end()) {
    parameter_bytes_ += name.size();
    found = parameters_.emplace(std::string(name), std::string()).first;
  }
  parameter_bytes_ += value.size();
  parameter_bytes_ -= found->second.size();
  found->second.assign(value);
  if (parameters_.size() > max_parameters || parameter_bytes_ > max_parameter_bytes)
    body.fail("more than 1,000 parameters or 1 MiB of them");
}

std::shared_ptr<const server_message> session::fields_of(const wire::message& got) const {
  auto fields = std::make_shared<server_message>();
  auto body = got.read(got.type == backend::error_response ? "ErrorResponse" : "NoticeResponse");
  while (body.left() > 0) {
    const auto code = static_cast<char>(body.uint8());
    if (code == '\0') break;
    fields->fields.emplace_back(
        code, body.string_or_rest().substr(0, max_error_text));  // errors are told, well-formed or not
  }
  return fields;
}

wire::message session::expect(wire::message got, backend wanted) {
  if (got.type != wanted)
    throw wire::protocol_violation(wire::name_of(got.type) + ": " + wire::name_of(wanted) + " was expected, at byte 0");
  if ((wanted == backend::bind_complete || wanted == backend::parse_complete || wanted == backend::close_complete ||
       wanted == backend::copy_done || wanted == backend::portal_suspended) &&
      !got.body.empty())
    throw wire::protocol_violation(wire::name_of(got.type) + ": a body where none belongs, at byte 0");
  return got;
}

void session::ready_for_query(wire::message got) {
  auto body = expect(got, backend::ready_for_query).read("ReadyForQuery");
  const auto status = static_cast<char>(body.uint8());
  if (status != 'I' && status != 'T' && status != 'E') body.fail("an unknown transaction status");
  body.end();
  transaction_status_ = status;
}

std::string session::command_tag(wire::message got) {
  auto body = got.read("CommandComplete");
  auto tag = std::string(body.string());
  body.end();
  if (tag == "DISCARD ALL" || tag == "DEALLOCATE ALL") cache_.forget();
  return tag;
}

columns_ptr session::row_description_of(wire::message got, formats which) const {
  auto body = got.read("RowDescription");
  auto described = std::make_shared<row_description>();
  const std::size_t count = body.uint16();
  constexpr std::size_t shortest = 19;  // an empty name and the fixed fields
  if (body.left() < count * shortest) body.fail("ends too early");
  described->columns.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    auto& column = described->columns.emplace_back();
    column.name = body.string();
    column.table_oid = body.uint32();
    column.attribute_number = body.int16();
    column.type_oid = body.uint32();
    column.type_size = body.int16();
    column.typmod = body.int32();
    const auto format = body.int16();
    if (format != 0 && !(format == 1 && which == formats::told)) body.fail("a format that was not asked for");
    const bool binary = settings_.decodes_binary != nullptr && settings_.decodes_binary(column.type_oid);
    column.format = which == formats::chosen && binary ? std::int16_t{1} : format;
  }
  body.end();
  return described;
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
