// The dialogues of a session that is up: the extended query protocol (manual, section 54.2.3), the simple one
// (54.2.2), and the end (54.2.9).
#include <algorithm>

#include "core/keyword.hpp"
#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

// Bind's parameter section where there are none.
const std::string no_arguments("\0\0\0\0", 4);

}  // namespace

// BEGIN, SAVEPOINT ...: nothing to describe, so they leave with the request. What the status byte says of a transaction
// holds here: nothing that could have begun or ended one is unanswered.
bool session::write_preamble(exchange_promise& p) {
  if (p.outermost && transaction_status_ != 'I') {
    fail_later(p, make_failure(failure::kind::misuse, "a transaction was begun by hand: end it first"));
    return false;
  }
  for (const auto& each : p.preamble)
    out().parse({}, each->sql).bind("", no_arguments, std::vector<column>{}).execute();
  return true;
}

step<bool> session::read_preamble() {
  while (!running_->preamble.empty()) {
    expect(co_await next_message(), backend::parse_complete);
    expect(co_await next_message(), backend::bind_complete);
    auto tag = command_tag(expect(co_await next_message(), backend::command_complete));
    running_->preamble.front()->results.emplace_back().tag = std::move(tag);
    finish_command(*running_, operation::state::succeeded);
  }
  co_return true;
}

exchange session::execute(operation_ptr op, statement_ptr prepared, std::string arguments) {
  co_await write_turn();
  if (!prepared || prepared->stale)
    if (!co_await described(op, prepared, arguments)) co_return;
  auto closed = 0;
  if (!running_->parsed) {
    if (!write_preamble(*running_)) co_return;
    // BEGIN is answered at once, not at the end of the request, which can be cancelled at the server from then on.
    if (!running_->preamble.empty()) out().flush();
    closed = close_surplus();
    running_->closing = closed > 0;
  }
  const bool unnamed = bind(*prepared, arguments);
  out().execute();
  arguments = {};
  if (prepared->verb == verb::copy)
    await_copy(*running_);
  else
    sync(*running_);
  if (!running_->in_replies) co_await reply_turn();
  if (!running_->preamble.empty()) co_await read_preamble();

  for (; closed > 0; --closed) expect(co_await next_message(), backend::close_complete);
  running_->closing = false;
  if (unnamed) expect(co_await next_message(), backend::parse_complete);
  expect(co_await next_message(), backend::bind_complete);
  running_->bound = true;
  auto& result = op->results.emplace_back();
  result.columns = prepared->columns;
  if (unnamed) result.columns = described_again(co_await next_message(), *prepared);
  co_await data_rows(result);
  const auto end = co_await next_message();
  if (running_->rows_came) expect(end, backend::command_complete);
  if (end.type == backend::command_complete) {
    result.tag = command_tag(end);
  } else if (prepared->verb == verb::copy) {
    co_await refuse_copy(end, refusal_of(end));
  } else {
    expect(end, backend::empty_query_response).read("EmptyQueryResponse").end();
  }
  sync(*running_);
  ready_for_query(co_await next_message());
}

// A statement that was not known when it was asked for: its description, and then the arguments. Where there are none,
// false: no Bind follows, and the exchange is over; the statement stays cached.
step<bool> session::described(operation_ptr op, statement_ptr& prepared, std::string& arguments) {
  std::string sql = op->statement ? op->statement->sql : op->sql;
  op->statement = cache_.find(sql);  // described meanwhile by a request ahead of this one
  if (!op->statement) {
    if (!write_preamble(*running_)) co_return false;
    op->statement = co_await describe(std::move(sql));
  }
  auto supplied = co_await encoded_arguments();
  if (supplied) {
    prepared = op->statement;
    arguments = std::move(*supplied);
    co_return true;
  }
  if (running_->in_replies) {
    sync(*running_);
    ready_for_query(co_await next_message());
  }
  co_return false;
}

// Bind, and where the statement is not kept on the server Parse before it and Describe behind; whether that was so.
bool session::bind(const statement& prepared, const std::string& arguments, const std::string& portal) {
  static const std::vector<column> no_columns;
  const bool unnamed = prepared.name.empty() && !running_->parsed;
  if (unnamed) out().parse({}, prepared.sql, prepared.parameter_types);
  out().bind(prepared.name, arguments, prepared.columns ? prepared.columns->columns : no_columns, portal);
  if (unnamed) out().describe_portal(portal);
  return unnamed;
}

exchange session::prepare_statement(operation_ptr op) {
  co_await write_turn();
  op->statement = cache_.find(op->sql);
  if (op->statement && !running_->opens) co_return;
  if (!write_preamble(*running_)) co_return;
  const bool known = op->statement != nullptr;
  if (!known) op->statement = co_await describe(op->sql);
  sync(*running_);
  if (known) {  // only what begins the block is to be answered
    co_await reply_turn();
    co_await read_preamble();
  }
  ready_for_query(co_await next_message());
}

// Parse, Describe, Flush: no Sync, at which a transaction pooler may switch servers. The writer stays ours. Where the
// server may know the name already, Close comes first, which is no error where it does not.
step<statement_ptr> session::describe(std::string sql) {
  auto found = undescribed(std::move(sql));
  const auto closed = parse(*found);
  running_->closing = closed > 0;
  running_->describing = true;
  co_await reply_turn();
  if (!running_->preamble.empty()) co_await read_preamble();
  co_await read_description(found, closed);
  co_return found;
}

std::shared_ptr<statement> session::undescribed(std::string sql) const {
  auto found = std::make_shared<statement>();
  if (settings_.statement_cache_size != 0) found->name = statement_name(sql);
  found->verb = verb_of(sql);
  found->origin = origin_;
  found->sql = std::move(sql);
  return found;
}

// Gives how many Close messages come first.
std::size_t session::parse(const statement& found) {
  std::size_t closed = 0;
  while (const auto evicted = cache_.evict(found.sql.size())) {
    if (evicted->name.empty()) continue;
    out().close_statement(evicted->name);
    ++closed;
  }
  // An abandoned request ahead of this one may be describing the same text; or what evicted it not be executed.
  const bool may_exist =
      names_may_exist_ || std::any_of(replies_.begin(), replies_.end(), [](const auto* ahead) {
        const auto& items = ahead->op->batch;
        const bool closes_behind = ahead->closing && !ahead->preamble.empty();
        return !ahead->draining && (ahead->describing || closes_behind || (items && items->describing));
      });
  if (may_exist && !found.name.empty()) {
    out().close_statement(found.name);
    ++closed;
  }
  out().parse(found.name, found.sql).describe_statement(found.name).flush();
  return closed;
}

step<bool> session::read_description(std::shared_ptr<statement> found, std::size_t closed) {
  running_->describing = true;
  running_->parsed = false;
  const bool closes_its_own = closed > 0;  // perhaps
  running_->closing = closed > 0;
  for (; closed > 0; --closed) expect(co_await next_message(), backend::close_complete);
  running_->closing = false;
  if (closes_its_own)  // what a request ahead of this one has described meanwhile is gone, should Parse fail
    if (const auto other = cache_.find(found->sql)) forget(*other);
  expect(co_await next_message(), backend::parse_complete);
  running_->parsed = true;
  auto parameters = expect(co_await next_message(), backend::parameter_description).read("ParameterDescription");
  for (auto left = parameters.uint16(); left > 0; --left) found->parameter_types.push_back(parameters.uint32());
  parameters.end();
  const auto columns = co_await next_message();
  if (columns.type == backend::row_description)
    found->columns = row_description_of(columns, formats::chosen);
  else
    expect(columns, backend::no_data).read("NoData").end();
  cache_.insert(found);
  running_->describing = false;
  co_return true;
}

// Statements that were kept beyond the cache's bounds because somebody held them are closed by whoever writes next.
int session::close_surplus() {
  auto closed = 0;
  while (cache_.crowded(*origin_)) {
    const auto evicted = cache_.evict(0);
    if (!evicted) break;  // the others are on their way
    if (evicted->name.empty()) continue;
    out().close_statement(evicted->name);
    ++closed;
  }
  return closed;
}

// Of a portal whose statement was described once before: what comes is what holds, and where it differs the old
// description is not used again.
columns_ptr session::described_again(wire::message got, const statement& before) {
  columns_ptr now;
  if (got.type == backend::row_description)
    now = row_description_of(got, formats::told);
  else
    expect(got, backend::no_data).read("NoData").end();
  if (now && before.columns && now->columns == before.columns->columns) return before.columns;
  if (now || before.columns) forget(before);
  return now;
}

// A simple query may hold COPY anywhere, so nothing is written behind it before its ReadyForQuery.
exchange session::script(operation_ptr op) {
  co_await write_turn();
  out().query(op->sql);
  running_->synced = true;
  co_await reply_turn();
  for (bool answered = false;; answered = true) {
    const auto got = co_await next_message();
    switch (got.type) {
      case backend::row_description: {
        auto& result = op->results.emplace_back();
        result.columns = row_description_of(got, formats::text);
        co_await data_rows(result);
        result.tag = command_tag(expect(co_await next_message(), backend::command_complete));
        break;
      }
      case backend::command_complete:
        op->results.emplace_back().tag = command_tag(got);
        break;
      case backend::empty_query_response:
        break;
      case backend::copy_in_response:
      case backend::copy_out_response:
        co_await refuse_copy(got, refusal_of(got));
        break;
      default:
        if (!answered) expect(got, backend::command_complete);
        ready_for_query(got);
        co_return;
    }
  }
}

// BEGIN, SAVEPOINT, COMMIT and the like: nothing to describe, so one flight even the first time.
exchange session::command(operation_ptr op) {
  co_await write_turn();
  if (!write_preamble(*running_)) co_return;
  out().parse({}, op->sql).bind("", no_arguments, std::vector<column>{}).execute();
  sync(*running_);
  co_await reply_turn();
  if (!running_->preamble.empty()) co_await read_preamble();
  expect(co_await next_message(), backend::parse_complete);
  expect(co_await next_message(), backend::bind_complete);
  op->results.emplace_back().tag = command_tag(expect(co_await next_message(), backend::command_complete));
  ready_for_query(co_await next_message());
}

// A server that waits for CopyData swallows a Sync, unless a CancelRequest reached it first: so how many ReadyForQuery
// come back is known only where the Sync is written after the answer to Execute.
void session::await_copy(exchange_promise& p) {
  out().flush();
  p.sync_waits = true;
}

const char* session::refusal_of(const wire::message& copy_response) {
  return copy_response.type == backend::copy_in_response
             ? "COPY FROM STDIN can't be executed: use copy_in() or copy_records()"
             : "COPY TO STDOUT can't be executed: use copy_out() or copy_out_records()";
}

// COPY is not what this verb does: the server is told to stop, or is drained, and the request fails at its
// ReadyForQuery.
step<bool> session::refuse_copy(wire::message response, const char* why) {
  const bool in = response.type == backend::copy_in_response;
  const bool over = response.type == backend::command_complete;
  if (!in && !over) expect(response, backend::copy_out_response);
  fail_later(*running_, make_failure(failure::kind::misuse, why));
  if (over) {
    command_tag(response);
    co_return true;
  }
  if (in) {
    out().copy_fail(why);
    sync(*running_);
    expect(co_await next_message(), backend::error_response);  // never comes here: it ends the exchange
  }
  for (;;) {
    const auto got = co_await next_message();
    if (got.type == backend::copy_data) continue;
    expect(got, backend::copy_done);
    command_tag(expect(co_await next_message(), backend::command_complete));
    co_return true;
  }
}

// An empty query that a CancelRequest may still hit instead of a caller's: the rule of D6.
exchange session::drain_stray_cancel(operation_ptr) {
  running_->first_byte = outbound_.written_total();
  out().query("");
  running_->synced = true;
  co_await reply_turn();
  expect(co_await next_message(), backend::empty_query_response);
  ready_for_query(co_await next_message());
}

// On a connection of its own: the server answers by closing it.
exchange session::cancel(operation_ptr, cancel_key key) {
  co_await write_turn();
  out().cancel_request(key.pid, key.secret);
  co_await reply_turn();
  co_await end_of_stream();
}

exchange session::close(operation_ptr) {
  co_await write_turn();
  co_await reply_turn();
  out().terminate();
  co_await end_of_stream();
}

}  // namespace pgpoll::core
