// The world's part of what lasts: streams, cursors, COPY and batches. The face takes what has come at once; that it
// grants credit, feeds, adds an item or fetches is an action of its own.
#include <algorithm>

#include "world.hpp"

namespace pgpoll::test {

namespace {

using core::failure;
using core::operation;

constexpr std::uint32_t credit = 1;    // of a stream, at first and with each grant
constexpr unsigned most_attended = 2;  // of grants, pieces and items; the end is one more
constexpr std::uint32_t fetched = 5;   // rows, by a cursor's second request: more than there are

bool is_stream(kind what) {
  return what >= kind::stream && what <= kind::fail_stream;
}
bool is_copy_in(kind what) {
  return what >= kind::copy_in && what <= kind::refused_copy_in;
}
bool is_batch(kind what) {
  return what == kind::batch || what == kind::fail_batch;
}

std::string arguments_of(int token) {
  const auto value = std::to_string(token);
  return int16(0) + int16(1) + int32(static_cast<std::int64_t>(value.size())) + value;
}

// The values of rows of one column.
std::string values_of(const core::row_store& rows) {
  std::string out;
  constexpr std::size_t before = 5 + 2 + 4;  // type, length, number of columns, length of the value
  for (std::size_t i = 0; i < rows.size(); ++i)
    out.append(rows.row(i) + before, core::row_length(rows.row(i)) - before).append(" ");
  return out;
}

}  // namespace

// False where it is nothing that lasts.
bool world::start_lasting(request& each) {
  const auto word = each.word();
  if (is_stream(each.what)) {
    const auto rows = each.what == kind::whole_stream ? 0 : credit;
    auto known = talk_.find_statement(word);
    each.op = known ? talk_.start_stream(known, arguments_of(each.token), rows) : talk_.start_stream(word, rows);
  } else if (each.what == kind::cursor) {
    auto known = talk_.find_statement(word);
    each.op = known ? talk_.start_open(known, arguments_of(each.token), each.portal(), credit)
                    : talk_.start_open(word, each.portal(), credit);
  } else if (is_copy_in(each.what)) {
    each.op = talk_.start_copy_in(word);
  } else if (each.what == kind::copy_out || each.what == kind::broken_copy_out) {
    each.op = talk_.start_copy_out(word);
  } else if (is_batch(each.what)) {
    each.op = talk_.start_batch();
  } else {
    return false;
  }
  return true;
}

bool world::may_attend(const request& each) const {
  if (each.what == kind::cursor) return each.opened && !each.op && !each.done;
  if (!each.op || each.abandoned || each.op->done()) return false;
  if (is_copy_in(each.what)) return each.op->feeds();
  if (is_batch(each.what)) return !each.op->batch->ended;
  return is_stream(each.what) && each.op->portal->limited && each.attended < most_attended;
}

void world::attend_to(request& each) {
  const auto turn = each.attended++;
  if (each.what == kind::cursor) {
    each.first_byte.reset();
    each.op = talk_.start_fetch(*each.opened, fetched);
  } else if (is_stream(each.what)) {
    talk_.grant(*each.op, credit);
  } else if (is_batch(each.what) && turn == 0) {
    if (auto known = talk_.find_statement("insert known"))
      talk_.add(*each.op, std::move(known), arguments_of(each.token));
    else
      talk_.add(*each.op, "insert known");
  } else if (is_batch(each.what) && turn == 1) {
    talk_.add(*each.op, (each.what == kind::batch ? "tag " : "fail late ") + std::to_string(each.token));
  } else if (is_batch(each.what)) {
    talk_.end_items(*each.op);
  } else if (each.what == kind::fail_copy_in && turn == 1) {
    talk_.fail_feed(*each.op, "the source has failed");
  } else if (turn < most_attended) {
    talk_.feed(*each.op, std::to_string(each.token));
  } else {
    talk_.finish_feed(*each.op);
  }
}

// All that has stirred, as it comes.
void world::take_what_came() {
  while (const auto op = talk_.next_stirred()) {
    const auto index = index_of(op.get());
    say(index >= 0, "a channel of no request, or one that is over, has stirred");
    auto& each = requests_[static_cast<std::size_t>(index)];
    say(!each.abandoned, "an abandoned channel has stirred");
    take_from(each, *op);
    say(!op->stirred, "it was looked at, and is still stirred");
  }
}

void world::take_from(request& each, operation& op) {
  if (is_stream(each.what))
    each.came += values_of(talk_.take_rows(op));
  else if (op.kind == operation::kind::copy_out)
    each.came += talk_.take_data(op);
  else
    talk_.look(op);
}

// Whether a cursor was opened, and may be fetched from.
bool world::opens(request& each, const core::operation_ptr& op) {
  if (is_stream(each.what) || op->kind == operation::kind::copy_out) take_from(each, *op);
  const bool opened = each.what == kind::cursor && !each.opened && op->state == operation::state::succeeded;
  if (!opened) return false;
  const auto first = std::to_string(each.token) + ".a ";
  say(op->portal->suspended && values_of(op->results[0].rows) == first, "another portal");
  each.opened = op;
  each.op = nullptr;
  return true;
}

// Nothing where the request is not of these kinds.
std::optional<bool> world::lasting_as_asked(const request& each, const operation& op) const {
  const auto token = std::to_string(each.token);
  const auto first = token + ".a ", second = token + ".b ";
  const bool succeeded = op.state == operation::state::succeeded;
  const auto failed = [&](const std::string& text) {
    return op.state == operation::state::failed && op.error->kind == failure::kind::server && op.error->message == text;
  };
  const auto tagged = [&](const std::string& tag) { return succeeded && op.results.back().tag.starts_with(tag); };
  const auto stands = [&] {
    const auto* const left = effect_of(each);
    return left != nullptr && (left->transaction != 0 || left->now == effect::state::durable);
  };
  switch (each.what) {
    case kind::stream:
    case kind::fresh_stream:
    case kind::whole_stream:
      say((first + second).starts_with(each.came), "other rows, or in another order");
      return tagged("SELECT ") && each.came == first + second;
    case kind::fail_stream:
      say(first.starts_with(each.came), "other rows");
      return failed("fail rows " + token) && each.came == first;
    case kind::cursor:
      return tagged("SELECT 1") && each.opened && values_of(op.results[0].rows) == second;
    case kind::copy_in:
      return tagged("COPY 2") && stands();
    case kind::fail_copy_in:
      return failed("COPY from stdin failed");
    case kind::refused_copy_in:
      return failed("copy refused " + token);
    case kind::copy_out:
      return tagged("COPY 2") && each.came == token + ".a" + token + ".b";
    case kind::broken_copy_out:
      return failed("copy broken " + token) && each.came == token + ".a";
    case kind::batch:
      return succeeded && op.results.size() == 2 && tagged("TAG " + token) && stands();
    case kind::fail_batch:
      return failed("fail late " + token) && op.batch->failed == 1;
    default:
      return std::nullopt;
  }
}

// What was not ended by its caller, or was to fail, never lasts.
void world::judge_lasting(const request& each) const {
  const auto* const left = effect_of(each);
  if (left == nullptr || left->now != effect::state::durable) return;
  const bool ended = each.attended > most_attended;
  say(!(is_copy_in(each.what) || is_batch(each.what)) || ended, "it was not ended, and it stands");
  say(each.what != kind::fail_batch && each.what != kind::fail_copy_in && each.what != kind::refused_copy_in,
      "it has failed, and it stands");
}

// An abandoned one is only ended: no more of it is asked for or fed. What breaks a batch names no portal that is.
void world::inspect_lasting(const frontend_message& got) {
  if (writer_ < 0 || std::string_view("Edc").find(got.type) == std::string_view::npos) return;
  const auto& each = requests_[static_cast<std::size_t>(writer_)];
  const bool breaks = got.type == 'E' && got.portal == "pgpoll_broken";
  say(!each.abandoned || (breaks && is_batch(each.what)), "more is asked for or fed, though it was abandoned");
  if (got.type == 'E' && is_stream(each.what) && each.what != kind::whole_stream)
    say(got.limit != 0 && got.limit <= credit * (1 + each.attended), "more rows are asked for than there is credit");
}

void world::lasting_key(const request& each, std::string& out) {
  const auto add = [&out](auto... values) { (out.push_back(static_cast<char>(values)), ...); };
  add(each.attended, each.opened != nullptr);
  out += each.came + '/';
  if (!each.op) return;
  const auto& op = *each.op;
  add(op.stirred, op.full, op.crowded, op.feeding);
  if (op.portal) add(op.portal->credit, op.portal->suspended);
  if (const auto& items = op.batch) {
    add(items->unsent.size(), items->unread.size(), items->asking != nullptr, items->added, items->written);
    add(items->answered, items->ended, items->describing, items->executes, items->settled, items->failed.has_value());
    add(items->unflushed);
  }
}

}  // namespace pgpoll::test
