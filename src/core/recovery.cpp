// What is done about requests that nobody awaits any more (D6), and about those that failed for no fault of their own:
// their statement was dropped by the server (D15), or a CancelRequest meant for another struck them.
#include <algorithm>

#include "core/keyword.hpp"
#include "core/session.hpp"

namespace pgpoll::core {

// ---- cancelling at the server

namespace {

bool runs_statement(const operation& op) {
  return op.kind == operation::kind::execute || op.kind == operation::kind::stream || op.kind == operation::kind::fetch;
}

bool cancellable(const operation& op) {
  if (op.portal && (op.portal->spared || op.portal->suspended)) return false;
  return runs_statement(op) || op.kind == operation::kind::prepare || op.kind == operation::kind::script ||
         op.kind == operation::kind::batch || op.kind == operation::kind::copy_in ||
         op.kind == operation::kind::copy_out;
}

}  // namespace

std::uint64_t session::abandoned_head() const {
  if (replies_.empty() || state_ == state::ended) return 0;
  const auto& head = *replies_.front();
  const bool runs = !head.draining && outbound_.sent_total() > *head.first_byte;
  return head.op->abandoned && runs && cancellable(head.current()) ? answered_ + 1 : 0;
}

// While a CancelRequest is on its way no other is wanted; where one came to its end and changed nothing (it came before
// the backend had begun), another is, in a while.
cancel_wish session::cancel_wanted() const {
  if (abandoned_head() == 0) return cancel_wish::none;
  if (cancelling_ == cancelling::drain) return cancel_wish::grace;
  if (cancelling_ != cancelling::no) return cancel_wish::none;
  if (replies_.front()->copy_failed) return cancel_wish::grace;  // CopyFail ends it, as a rule
  const bool alone = std::all_of(replies_.begin(), replies_.end(), [](const auto* each) {
    if (!each->preamble.empty()) return false;  // the block waits for that, whoever asked for what it rides with
    const auto kind = each->op->kind;           // close doesn't wait for such, nobody waits for close_portal
    return each->op->abandoned || kind == operation::kind::close || kind == operation::kind::close_portal;
  });
  return alone ? cancel_wish::now : cancel_wish::grace;
}

// One that nobody wished for was sent by hand, for whoever runs.
void session::cancel_started() {
  stray_cancel_ = abandoned_head() != 0;
  if (cancelling_ == cancelling::no || cancelling_ == cancelling::drain) cancelling_ = cancelling::socket_open;
}

void session::cancel_ended() {
  if (cancelling_ == cancelling::socket_open) cancelling_ = cancelling::drain;
}

// The CancelRequest's socket has ended and so has what it was for.
bool session::may_drain() const {
  return cancelling_ == cancelling::drain && replies_.empty() && (writer_ == nullptr || !writer_->in_replies);
}

// ---- a second attempt

namespace {

constexpr std::string_view query_canceled = "57014";
constexpr std::string_view duplicate_prepared_statement = "42P05";
constexpr std::string_view invalid_sql_statement_name = "26000";
constexpr std::string_view feature_not_supported = "0A000";  // "cached plan must not change result type"
constexpr std::string_view protocol_violation = "08P01";     // another number of parameters, or of columns
constexpr std::string_view invalid_binary_representation = "22P03";

// Of an error before BindComplete: whether it means that the statement is not what it was when it was described.
bool is_dropped(std::string_view code, const statement& used) {
  if (code == invalid_sql_statement_name || code == feature_not_supported) return true;
  return used.name.empty() && (code == protocol_violation || code == invalid_binary_representation);
}

}  // namespace

void session::forget(const statement& dropped) {
  dropped.stale = true;
  names_may_exist_ = true;
  if (const auto cached = cache_.find(dropped.sql); cached.get() == &dropped) cache_.erase(dropped.sql);
}

void session::note_dropped(exchange_promise& p, const server_message& error) {
  const auto& items = p.op->batch;
  const bool unclosed = p.closing || (items && std::any_of(items->unread.begin(), items->unread.end(),
                                                           [](const auto& each) { return each.closed != 0; }));
  if (unclosed) names_may_exist_ = true;
  if (!p.preamble.empty()) return;  // what it needs was never parsed
  const auto code = error.field('C');
  const bool stored = p.describing && (p.parsed || code == query_canceled);  // perhaps, and never described
  if (stored || code == duplicate_prepared_statement) names_may_exist_ = true;
  const auto& used = items ? items->reading : p.op->statement;
  const bool executes = runs_statement(*p.op) || (items && !p.describing);
  if (executes && !p.bound && used && is_dropped(code, *used)) forget(*used);
}

// Whether what comes behind it runs where it would without it: no transaction has begun, or ended, in between.
bool session::leaves_as_it_was(const exchange_promise& other) {
  const auto& op = *other.op;
  if (other.opens) return false;
  switch (op.kind) {
    case operation::kind::prepare:
    case operation::kind::drain:
      return true;
    case operation::kind::execute:
    case operation::kind::stream:
      return (op.statement ? op.statement->verb : verb_of(op.sql)) == verb::query;
    default:  // BEGIN, a script that may have one, close
      return false;
  }
}

// Its error is one that a second attempt mends, and nothing of the first can have remained.
bool session::again_helps(const exchange_promise& p) const {
  const auto& op = *p.op;
  const bool once = op.kind == operation::kind::fetch;  // its transaction is over
  const bool kind = (runs_statement(op) && !once) || op.kind == operation::kind::prepare;
  if (!kind || p.opens || op.abandoned || op.again || !p.error || !p.error->server) return false;
  const auto code = p.error->server->field('C');
  if (code == query_canceled && stray_cancel_) {
    const bool timed_out = p.error->message.find("statement timeout") != std::string::npos;
    const bool query = op.statement && op.statement->verb == verb::query;
    return !timed_out && (!p.bound || (query && !p.rows_came));
  }
  if (code == duplicate_prepared_statement) return !p.bound;
  return !p.bound && op.statement && op.statement->stale;
}

// It has the writer, but has written nothing: who runs again may go in front of it.
bool session::gives_way(const exchange_promise& writer) {
  return writer.op->batch && !writer.in_replies;
}

// Once, outside of a transaction; and where none can have begun meanwhile: the second attempt would be part of it, and
// lost where that is rolled back.
bool session::may_run_again(const exchange_promise& p) const {
  if (transaction_status_ != 'I' || !again_helps(p)) return false;
  if (writer_ != nullptr && writer_ != &p && !gives_way(*writer_) && !leaves_as_it_was(*writer_)) return false;
  return std::all_of(std::next(replies_.begin()), replies_.end(),
                     [](const auto* behind) { return leaves_as_it_was(*behind); });
}

// It waits in front of all that is unsent, behind others of its kind. Whatever may throw comes first.
void session::run_again(exchange_promise& p) {
  const auto op = p.op;
  if (op->sql.empty() && op->statement) op->sql = op->statement->sql;
  const auto dialogue = op->kind == operation::kind::prepare  ? prepare_statement(op)
                        : op->kind == operation::kind::stream ? stream(op)
                                                              : execute(op);
  auto& next = dialogue.handle.promise();
  next.wait = waiting::write_turn;
  auto* const held = writer_ != nullptr && writer_ != &p && gives_way(*writer_) ? writer_ : nullptr;
  const auto behind = std::find_if(writing_.begin(), writing_.end(), [](const auto* each) { return !each->op->again; });
  try {
    const auto at = writing_.insert(behind, &next);
    if (held != nullptr) writing_.insert(std::next(at), held);
  } catch (...) {
    std::erase(writing_, &next);
    dialogue.handle.destroy();
    throw;
  }
  if (held != nullptr) {  // which gets its turn back behind it
    held->wait = waiting::write_turn;
    held->had_turn = true;
    writer_ = nullptr;
  }
  detach(p);
  ++in_flight_;
  op->exchange = &next;
  op->again = true;
  op->results.clear();
  op->statement = nullptr;
}

}  // namespace pgpoll::core
