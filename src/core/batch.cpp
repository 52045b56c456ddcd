// Many items under one Sync (manual, section 54.2.4 "Pipelining"): the server runs them as one transaction, unless one
// is open, and skips what follows an error.
//
// Items are written while the answers to earlier ones arrive. The exchange holds the writer to its Sync, and reads;
// what it writes comes from write_items(), whenever there is something to write and room for it. A new statement is
// described in its place: nothing is written behind it before its items are encoded.
//
// So many items may be unanswered as requests elsewhere; of fed ones, which need no room here, some runs. The server
// keeps what it answers until its buffer is full, a Flush or the Sync: so that the window moves there is a Flush
// for each half of it, of fed items for each quarter: every Flush wakes the client.
#include "core/batch.hpp"

#include <algorithm>
#include <charconv>

#include "core/keyword.hpp"
#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

// So much may be unsent before more is asked for.
constexpr std::size_t fed_bytes = std::size_t{1} << 18;

// As many full runs may be unanswered, to fill a long network; and a loop that feeds gets its turn.
constexpr std::size_t fed_runs = 16;

std::size_t window_of(bool many, std::size_t max_pipeline) {
  return many ? std::min(max_pipeline, fed_runs) * largest_run(max_pipeline) : max_pipeline;
}

std::size_t flushed_items(bool many, std::size_t max_pipeline) {
  return many ? std::max(window_of(true, max_pipeline) / 4, std::size_t{1}) : largest_run(max_pipeline);
}

// No portal has this name: to execute it is an error, so that nothing of what came before can be committed.
constexpr std::string_view no_portal = "pgpoll_broken";

const std::vector<column> no_columns;

// The tag's number of rows goes to `rows`; true where it has one. What is left of the tag has none.
bool take_number(std::string& tag, std::uint64_t& rows) {
  const auto at = tag.find_last_of(' ');
  if (at == std::string::npos) return false;
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(tag.data() + at + 1, tag.data() + tag.size(), number);
  if (error != std::errc() || end != tag.data() + tag.size()) return false;
  rows += number;
  tag.resize(at + 1);
  return true;
}

}  // namespace

void append_execution(std::string& out, const statement& prepared, std::string_view arguments, bool opens) {
  wire::frontend to(out);
  if (opens) to.parse({}, prepared.sql, prepared.parameter_types);
  to.bind(prepared.name, arguments, prepared.columns ? prepared.columns->columns : no_columns);
  if (opens) to.describe_portal();
  to.execute();
}

// ---- what the face does

operation_ptr session::start_batch() {
  auto op = admit(operation::kind::batch);
  op->batch = std::make_shared<batch_state>();
  return op->done() ? op : begin(op, batch(op));
}

operation_ptr session::start_executemany(std::string sql) {
  auto op = admit(operation::kind::batch);
  op->batch = std::make_shared<batch_state>();
  op->batch->many = true;
  op->sql = std::move(sql);
  if (op->done()) return op;
  begin(op, batch(op));
  go_on(*op);  // it may be fed at once
  return op;
}

void session::add(operation& op, std::string sql) {
  batch_state::run added;
  added.sql = std::move(sql);
  add(op, std::move(added));
}

void session::add(operation& op, statement_ptr known, std::string_view arguments) {
  batch_state::run added;
  added.opens = known->name.empty();
  append_execution(added.messages, *known, arguments, added.opens);
  added.encoded = true;
  added.statement = std::move(known);
  add(op, std::move(added));
}

void session::describe_items(operation& op) {
  batch_state::run description;
  description.sql = op.sql;
  description.items = 0;
  add(op, std::move(description));
}

void session::feed(operation& op, std::string messages, std::size_t items) {
  batch_state::run fed;
  fed.statement = op.statement;
  fed.opens = opens_items(op);
  fed.messages = std::move(messages);
  fed.items = items;
  fed.encoded = true;
  add(op, std::move(fed));
}

bool session::opens_items(const operation& op) const {
  return op.statement && op.statement->name.empty() && op.batch->fresh != op.statement && op.batch->added == 0;
}

// One that has failed takes no more: they are skipped.
void session::add(operation& op, batch_state::run added) {
  auto& items = *op.batch;
  const auto count = added.items;
  if (op.exchange != nullptr && !op.exchange->draining && !op.exchange->synced) {
    items.unsent.push_back(std::move(added));
    items.added += count;
    go_on(op);
  } else {
    items.added += count;
  }
}

void session::end_items(operation& op) {
  op.batch->ended = true;
  look(op);
  go_on(op);
}

bool session::may_feed(const operation& op) const {
  return op.exchange != nullptr && writer_ == op.exchange && hungry(*op.exchange);
}

void session::supply_item(operation& op, std::string_view arguments) {
  auto& items = *op.batch;
  if (!items.asking) return;
  auto& run = items.unsent.front();
  run.statement = std::move(items.asking);
  run.opens = run.statement->name.empty() && items.fresh != run.statement;
  append_execution(run.messages, *run.statement, arguments, run.opens);
  run.encoded = true;
}

// Its arguments can't be encoded: that is its error, and breaks the batch.
void session::refuse_item(operation& op, failure_ptr error) {
  auto& items = *op.batch;
  if (!items.asking) return;
  items.asking = nullptr;
  items.failed = items.written;
  auto& p = *op.exchange;
  p.error = std::move(error);
  if (!p.in_replies) return finish(p, operation::state::failed, p.error);
  break_off(p);
}

// ---- writing

void session::go_on(operation& op) {
  if (op.exchange != nullptr && writer_ == op.exchange) guarded([&] { write_items(*op.exchange); });
}

void session::break_off(exchange_promise& p) {
  guarded([&] { break_batch(p); });
}

bool session::may_write_items(const exchange_promise& p) const {
  const auto& items = *p.op->batch;
  if (items.describing || items.asking) return false;
  if (!p.in_replies) return may_write(p);
  const auto& head = *replies_.front();
  if (cancelling_ == cancelling::socket_open) return false;  // but no longer: its Sync comes before the drain
  return outbound_.size() < settings_.max_unsent && (&head == &p || !head.op->abandoned);
}

// Whether the face is asked for more items.
bool session::hungry(const exchange_promise& p) const {
  const auto& items = *p.op->batch;
  return items.many && !items.ended && !p.synced && !p.draining && items.unsent.empty() && may_write_items(p) &&
         outbound_.size() < fed_bytes && items.written - items.answered <= window_of(true, settings_.max_pipeline) / 2;
}

bool session::has_room(const exchange_promise& p) const {
  const auto& items = *p.op->batch;
  const auto unanswered = items.written - items.answered;
  return unanswered == 0 || unanswered + items.unsent.front().items <= window_of(items.many, settings_.max_pipeline);
}

// Something could be written, or is wanted, without news of the server.
bool session::wants_items(const exchange_promise& p) const {
  const auto& items = *p.op->batch;
  if (p.synced || p.draining) return false;
  if (!items.unsent.empty()) return may_write_items(p) && has_room(p);
  if (items.ended) return !items.describing;
  return !p.op->stirred && hungry(p);
}

// All that there is room for; true where anything was done.
bool session::write_items(exchange_promise& p) {
  auto& items = *p.op->batch;
  if (p.synced || p.draining) return false;
  bool any = false;
  while (!items.unsent.empty() && may_write_items(p) && has_room(p)) {
    write_run(p);
    any = true;
  }
  if (items.ended && items.unsent.empty() && !items.describing) {
    if (p.in_replies)
      sync(p);
    else
      run(p);  // nothing was written, so there is nothing to wait for
    return true;
  }
  if (hungry(p)) stir(p.op);
  return any;
}

void session::write_run(exchange_promise& p) {
  auto& items = *p.op->batch;
  auto& run = items.unsent.front();
  if (run.statement && run.statement->stale && !items.many) {  // dropped since it was encoded
    run.sql = run.statement->sql;
    run.statement = nullptr;
    run.messages.clear();
    run.encoded = false;
  }
  if (!run.encoded) {
    if (!run.statement || run.statement->stale) run.statement = cache_.find(run.sql);
    if (!run.statement) return write_description(p, run);
    if (run.items == 0) {
      p.op->statement = run.statement;
      items.unsent.pop_front();
      return;
    }
    unencoded_.push_back(p.op);
    items.asking = run.statement;
    return;
  }
  join_replies(p);
  outbound_.buffer().append(run.messages);
  items.unread.push_back({run.statement, nullptr, run.items, 0, run.opens});
  items.executes = true;
  if (run.opens) items.fresh = run.statement;
  items.written += run.items;
  items.unflushed += run.items;
  items.unsent.pop_front();
  if (items.unflushed < flushed_items(items.many, settings_.max_pipeline)) return;
  out().flush();
  items.unflushed = 0;
}

void session::write_description(exchange_promise& p, const batch_state::run& of) {
  auto& items = *p.op->batch;
  join_replies(p);
  auto found = undescribed(of.sql);
  const auto closed = parse(*found);
  items.unread.push_back({nullptr, std::move(found), 0, closed, false});
  items.describing = true;
  items.unflushed = 0;
}

void session::join_replies(exchange_promise& p) {
  if (p.in_replies) return;
  p.first_byte = outbound_.written_total();
  p.op->written = true;
  replies_.push_back(&p);
  p.in_replies = true;
}

// Where no byte of it has left, none does; it has written last.
bool session::take_back(exchange_promise& p) {
  if (writer_ != &p || p.draining || outbound_.sent_total() > *p.first_byte) return false;
  outbound_.take_back(*p.first_byte);
  for (const auto& each : p.op->batch->unread)  // evicted statements that are not closed now
    if (each.closed != 0) names_may_exist_ = true;
  p.op->batch->written = 0;
  p.op->written = false;
  return true;
}

// Nothing more is written of it, and nothing that was can last.
void session::break_batch(exchange_promise& p) {
  if (p.synced || p.draining) return;
  auto& items = *p.op->batch;
  items.unsent.clear();
  items.asking = nullptr;
  if (items.executes) out().execute(no_portal);
  sync(p);
}

// ---- reading

bool session::next_run_awaiter::await_ready() const {
  return owner.run_due(*owner.running_);
}
void session::next_run_awaiter::await_suspend(std::coroutine_handle<> frame) {
  owner.running_->resume_point = frame;
  owner.running_->wait = waiting::items;
}

session::next_run_awaiter session::next_run() {
  return {*this};
}

// Whether there is something to read, or nothing more to write.
bool session::run_due(const exchange_promise& p) const {
  const auto& items = *p.op->batch;
  if (!p.in_replies) return items.ended && items.unsent.empty();
  return replies_.front() == &p && (!items.unread.empty() || p.synced);
}

// Nothing is due: the server may only have an error to tell. Where nothing has come, false.
bool session::interrupted(exchange_promise& p) {
  wire::message got;
  if (!next(got)) return false;
  if (got.type != backend::error_response)
    throw wire::protocol_violation(wire::name_of(got.type) + ": nothing was asked, at byte 0");
  server_error(p, got);
  return true;
}

// Whose error it is: that of the item whose reply was due. Before the break of our own it is the first one.
bool session::blame_item(exchange_promise& p) {
  auto& items = *p.op->batch;
  p.op->results.clear();
  items.unsent.clear();
  items.asking = nullptr;
  const bool due = items.answered < items.written || items.describing;
  if (due) items.failed = items.answered;
  return due;
}

exchange session::batch(operation_ptr op) {
  co_await write_turn();
  op->written = false;  // nothing is, yet
  running_->first_byte.reset();
  auto& items = *op->batch;
  for (;;) {
    co_await next_run();
    if (items.unread.empty()) break;
    const auto due = std::move(items.unread.front());
    items.unread.pop_front();
    if (due.described) {
      co_await read_description(due.described, due.closed);
      items.describing = false;
      items.fresh = due.described;
      if (!items.unsent.empty()) items.unsent.front().statement = due.described;
      continue;
    }
    items.reading = due.statement;
    for (std::size_t i = 0; i < due.items; ++i) {
      running_->bound = running_->rows_came = false;
      const bool opens = due.opens && i == 0;
      if (opens) expect(co_await next_message(), backend::parse_complete);
      expect(co_await next_message(), backend::bind_complete);
      running_->bound = true;
      if (!items.many || op->results.empty()) op->results.emplace_back().columns = due.statement->columns;
      auto& result = op->results.back();
      if (opens) result.columns = described_again(co_await next_message(), *due.statement);
      co_await data_rows(result);
      const auto end = co_await next_message();
      if (end.type == backend::command_complete || running_->rows_came) {
        result.tag = command_tag(expect(end, backend::command_complete));
        if (items.many && take_number(result.tag, items.rows)) result.tag += std::to_string(items.rows);
      } else {
        expect(end, backend::empty_query_response).read("EmptyQueryResponse").end();
      }
      ++items.answered;
    }
  }
  if (!running_->in_replies) co_return;
  ready_for_query(co_await next_message());
  items.settled = true;
}

}  // namespace pgpoll::core
