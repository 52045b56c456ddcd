// The dialogues of rows that come in parts: Execute with a row limit, answered by PortalSuspended where there may be
// more (manual, section 54.2.3).
//
// A stream is one exchange from Bind to Sync: it needs no transaction block, but the connection to itself. Each Execute
// asks for all the credit there is, and the next one waits for more. Without a row limit there is one Execute, and what
// bounds the rows is that nothing is received while so many wait to be taken (`operation::full`).
//
// In a transaction block a portal outlives Sync: open and fetch are requests of their own, others go in between.
#include <algorithm>
#include <limits>

#include "core/keyword.hpp"
#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

constexpr std::size_t most_untaken = std::size_t{1} << 20;  // bytes, of a stream without a row limit

std::unique_ptr<portal> portal_of(std::string name, std::uint32_t credit) {
  auto made = std::make_unique<portal>();
  made->name = std::move(name);
  made->credit = credit;
  made->limited = credit != 0;
  return made;
}

}  // namespace

// ---- what the face asks for

operation_ptr session::start_stream(std::string sql, std::uint32_t credit) {
  auto op = admit(operation::kind::stream);
  op->portal = portal_of({}, credit);
  op->sql = std::move(sql);
  return op->done() ? op : begin(op, stream(op));
}

operation_ptr session::start_stream(statement_ptr known, std::string arguments, std::uint32_t credit) {
  auto op = admit(operation::kind::stream);
  op->portal = portal_of({}, credit);
  op->statement = known;
  return op->done() ? op : begin(op, stream(op, std::move(known), std::move(arguments)));
}

operation_ptr session::start_open(std::string sql, std::string portal, std::uint32_t limit) {
  auto op = admit(operation::kind::fetch);
  op->portal = portal_of(std::move(portal), limit);
  op->sql = std::move(sql);
  return op->done() ? op : begin(op, open(op));
}

operation_ptr session::start_open(statement_ptr known, std::string arguments, std::string portal, std::uint32_t limit) {
  auto op = admit(operation::kind::fetch);
  op->portal = portal_of(std::move(portal), limit);
  op->statement = known;
  return op->done() ? op : begin(op, open(op, std::move(known), std::move(arguments)));
}

operation_ptr session::start_fetch(const operation& opened, std::uint32_t limit) {
  auto op = admit(operation::kind::fetch);
  op->portal = portal_of(opened.portal->name, limit);
  op->statement = opened.statement;
  op->results.emplace_back().columns = opened.results.front().columns;
  return op->done() ? op : begin(op, fetch(op));
}

void session::close_portal(std::string portal) {
  if (!open()) return;
  auto op = admit(operation::kind::close_portal);
  op->portal = portal_of(std::move(portal), 0);
  begin(op, portal_end(op));
}

void session::grant(operation& op, std::uint32_t rows) {
  auto& credit = op.portal->credit;
  credit += std::min(rows, std::numeric_limits<std::uint32_t>::max() / 2 - credit);
}

row_store session::take_rows(operation& op) {
  look(op);
  op.full = false;
  return op.results.empty() ? row_store() : std::exchange(op.results.front().rows, {});
}

// ---- what arrives

bool session::has_credit(const exchange_promise& p) const {
  return p.op->abandoned || (p.op->portal->credit != 0 && cancelling_ != cancelling::socket_open);
}

// Rows have come, behind `before` that nobody has taken yet.
void session::count_rows(const exchange_promise& p, std::size_t before) {
  auto& portal = *p.op->portal;
  const auto& rows = p.sink->rows;
  if (portal.limited) {
    const auto came = rows.size() - before;
    if (came > portal.asked) throw wire::protocol_violation("DataRow: more rows than were asked for, at byte 0");
    portal.asked -= static_cast<std::uint32_t>(came);
    portal.credit -= static_cast<std::uint32_t>(came);
  } else if (rows.bytes() >= most_untaken) {
    p.op->full = p.op->kind == operation::kind::stream;
  }
  if (p.op->kind == operation::kind::stream) stir(p.op);
}

// ---- the dialogues

exchange session::stream(operation_ptr op, statement_ptr prepared, std::string arguments) {
  co_await write_turn();
  if (!prepared || prepared->stale)
    if (!co_await described(op, prepared, arguments)) co_return;
  const bool unnamed = bind(*prepared, arguments);
  arguments = {};
  ask_rows(*op);
  out().flush();
  running_->sync_waits = prepared->verb == verb::copy;
  co_await bound(op, unnamed);
  stir(op);  // the columns are known
  while (co_await rows_to_end(op)) {
    co_await more_credit();
    if (op->abandoned) break;
    op->portal->suspended = false;
    ask_rows(*op);
    out().flush();
  }
  sync(*running_);
  ready_for_query(co_await next_message());
}

exchange session::open(operation_ptr op, statement_ptr prepared, std::string arguments) {
  co_await write_turn();
  if (!prepared || prepared->stale)
    if (!co_await described(op, prepared, arguments)) co_return;
  const bool unnamed = bind(*prepared, arguments, op->portal->name);
  arguments = {};
  ask_rows(*op);
  if (prepared->verb == verb::copy)
    await_copy(*running_);
  else
    sync(*running_);
  co_await bound(op, unnamed);
  co_await rows_to_end(op);
  sync(*running_);
  ready_for_query(co_await next_message());
}

exchange session::fetch(operation_ptr op) {
  co_await write_turn();
  ask_rows(*op);
  sync(*running_);
  running_->bound = true;
  co_await reply_turn();
  co_await rows_to_end(op);
  ready_for_query(co_await next_message());
}

// That it does not exist, or the transaction has failed, is no error.
exchange session::portal_end(operation_ptr op) {
  co_await write_turn();
  out().close_portal(op->portal->name);
  sync(*running_);
  co_await reply_turn();
  expect(co_await next_message(), backend::close_complete);
  ready_for_query(co_await next_message());
}

// For all that there is credit for.
void session::ask_rows(operation& op) {
  auto& portal = *op.portal;
  portal.asked = portal.credit;
  out().execute(portal.name, portal.asked);
}

// What answers Bind; then the rows have a place.
step<bool> session::bound(operation_ptr op, bool unnamed) {
  if (!running_->in_replies) co_await reply_turn();
  if (unnamed) expect(co_await next_message(), backend::parse_complete);
  expect(co_await next_message(), backend::bind_complete);
  running_->bound = true;
  auto columns = op->statement->columns;
  if (unnamed) columns = described_again(co_await next_message(), *op->statement);
  op->results.emplace_back().columns = columns;
  co_return true;
}

// What answers Execute; true where the portal has more rows, perhaps.
step<bool> session::rows_to_end(operation_ptr op) {
  auto& result = op->results.front();
  co_await data_rows(result);
  const auto end = co_await next_message();
  if (end.type == backend::portal_suspended && op->portal->limited) {
    expect(end, backend::portal_suspended);
    if (op->portal->asked != 0 && !op->abandoned)  // whose rows are not counted
      throw wire::protocol_violation("PortalSuspended: before all rows that were asked for, at byte 0");
    op->portal->suspended = true;
    co_return true;
  }
  if (!running_->synced && (end.type == backend::copy_in_response || end.type == backend::copy_out_response)) {
    co_await refuse_copy(end, refusal_of(end));
  } else if (running_->rows_came || end.type == backend::command_complete) {
    result.tag = command_tag(expect(end, backend::command_complete));
  } else {
    expect(end, backend::empty_query_response).read("EmptyQueryResponse").end();
  }
  co_return false;
}

}  // namespace pgpoll::core
