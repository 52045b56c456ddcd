// The dialogues of a session that is up: the extended query protocol (manual, section 54.2.3), the simple one
// (54.2.2), and the end (54.2.9).
#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

// Bind's parameter section where there are none.
const std::string no_arguments("\0\0\0\0", 4);

std::string_view after_comment(std::string_view sql) {
  int depth = 0;
  std::size_t at = 0;
  do {
    if (sql.substr(at, 2) == "/*") {
      ++depth;
      at += 2;
    } else if (sql.substr(at, 2) == "*/") {
      --depth;
      at += 2;
    } else {
      ++at;
    }
  } while (depth > 0 && at < sql.size());
  return sql.substr(std::min(at, sql.size()));
}

// Whether the first keyword is COPY, past white space, comments and empty statements.
bool begins_with_copy(std::string_view sql) {
  for (;;) {
    const auto at = sql.find_first_not_of(" \t\n\r\f\v;");
    if (at == std::string_view::npos) return false;
    sql.remove_prefix(at);
    if (sql.starts_with("--")) {
      const auto line = sql.find_first_of("\r\n");
      if (line == std::string_view::npos) return false;
      sql.remove_prefix(line);
    } else if (sql.starts_with("/*")) {
      sql = after_comment(sql);
    } else {
      break;
    }
  }
  constexpr std::string_view copy = "copy";
  for (std::size_t i = 0; i < copy.size(); ++i)
    if (i >= sql.size() || (sql[i] | 0x20) != copy[i]) return false;
  return true;
}

}  // namespace

exchange session::execute(operation_ptr op, std::string sql, statement_ptr prepared, std::string arguments) {
  co_await write_turn();
  if (!prepared) {
    prepared = cache_.find(sql);  // described meanwhile by a request ahead of this one
    if (!prepared) prepared = co_await describe(std::move(sql));
    op->statement = prepared;
    auto supplied = co_await encoded_arguments();
    if (!supplied) {  // no Bind; the statement stays cached
      if (!running_->in_replies) co_return;
      sync(*running_);
      ready_for_query(co_await next_message());
      co_return;
    }
    arguments = std::move(*supplied);
  }
  const auto& columns = prepared->columns;
  static const std::vector<column> no_columns;
  out().bind(prepared->name, arguments, columns ? columns->columns : no_columns).execute();
  arguments = {};
  if (prepared->may_copy)
    await_copy(*running_);
  else
    sync(*running_);
  if (!running_->in_replies) co_await reply_turn();
  expect(co_await next_message(), backend::bind_complete);
  auto& result = op->results.emplace_back();
  result.columns = columns;
  co_await data_rows(result);
  const auto end = co_await next_message();
  if (running_->rows_came) expect(end, backend::command_complete);
  if (end.type == backend::command_complete) {
    result.tag = command_tag(end);
  } else if (prepared->may_copy) {
    co_await refuse_copy(end);
  } else {
    expect(end, backend::empty_query_response).read("EmptyQueryResponse").end();
  }
  sync(*running_);
  ready_for_query(co_await next_message());
}

exchange session::prepare_statement(operation_ptr op, std::string sql) {
  co_await write_turn();
  op->statement = cache_.find(sql);
  if (op->statement) co_return;
  op->statement = co_await describe(std::move(sql));
  sync(*running_);
  ready_for_query(co_await next_message());
}

// Parse, Describe, Flush: no Sync, at which a transaction pooler may switch servers. The writer stays ours.
step<statement_ptr> session::describe(std::string sql) {
  const auto evicted = cache_.evict();
  if (evicted) out().close_statement(evicted->name);
  auto found = std::make_shared<statement>();
  found->name = "pgpoll_" + std::to_string(++statements_named_);
  found->sql = std::move(sql);
  found->origin = origin_;
  found->may_copy = begins_with_copy(found->sql);
  out().parse(found->name, found->sql).describe_statement(found->name).flush();
  co_await reply_turn();

  if (evicted) expect(co_await next_message(), backend::close_complete);
  expect(co_await next_message(), backend::parse_complete);
  auto parameters = expect(co_await next_message(), backend::parameter_description).read("ParameterDescription");
  for (auto left = parameters.uint16(); left > 0; --left) found->parameter_types.push_back(parameters.uint32());
  parameters.end();
  const auto columns = co_await next_message();
  if (columns.type == backend::row_description)
    found->columns = row_description_of(columns, false);
  else
    expect(columns, backend::no_data).read("NoData").end();
  cache_.insert(found);
  co_return found;
}

// A simple query may hold COPY anywhere, so nothing is written behind it before its ReadyForQuery.
exchange session::script(operation_ptr op, std::string sql) {
  co_await write_turn();
  out().query(sql);
  running_->synced = true;
  co_await reply_turn();
  for (bool answered = false;; answered = true) {
    const auto got = co_await next_message();
    switch (got.type) {
      case backend::row_description: {
        auto& result = op->results.emplace_back();
        result.columns = row_description_of(got, true);
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
        co_await refuse_copy(got);
        break;
      default:
        if (!answered) expect(got, backend::command_complete);
        ready_for_query(got);
        co_return;
    }
  }
}

// BEGIN, SAVEPOINT, COMMIT and the like: nothing to describe, so one flight even the first time.
exchange session::command(operation_ptr op, std::string sql) {
  co_await write_turn();
  out().parse("", sql).bind("", no_arguments, std::vector<column>{}).execute();
  sync(*running_);
  co_await reply_turn();
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

// COPY is not what this verb does: the server is told to stop, or is drained, and the request fails at its
// ReadyForQuery.
step<bool> session::refuse_copy(wire::message response) {
  const bool in = response.type == backend::copy_in_response;
  if (!in) expect(response, backend::copy_out_response);
  auto refusal = std::make_shared<failure>();
  refusal->kind = failure::kind::misuse;
  refusal->message = in ? "COPY FROM STDIN can't be executed: use copy_in() or copy_records()"
                        : "COPY TO STDOUT can't be executed: use copy_out() or copy_out_records()";
  fail_later(*running_, refusal);
  if (in) {
    out().copy_fail(refusal->message);
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
