// COPY in the extended query protocol (manual, section 54.2.6), by the unnamed statement, so that a server error and
// a Sync mean the same as for any other request.
//
// The Sync of COPY FROM STDIN leaves behind CopyDone or CopyFail: a server that waits for CopyData swallows it. Where
// the server fails before, it discards everything up to a Sync: server_error() writes that at once, and nothing more
// of the data. The Sync of COPY TO STDOUT leaves when its first answer has come. In both the writer stays ours.
#include <array>

#include "core/session.hpp"

namespace pgpoll::core {

using wire::backend;

namespace {

constexpr std::size_t most_unsent = std::size_t{256} << 10;  // of COPY FROM, before its face is to wait
constexpr std::size_t low_water = std::size_t{64} << 10;     // and when it is to go on
constexpr std::size_t most_kept = std::size_t{1} << 20;      // of COPY TO, before nothing more is read
constexpr std::size_t message_size = std::size_t{1} << 20;   // of CopyData
const std::string no_arguments("\0\0\0\0", 4);

constexpr const char* in_wanted = "COPY FROM STDIN can't be read: use copy_in() or copy_records()";
constexpr const char* out_wanted = "COPY TO STDOUT takes no data: use copy_out() or copy_out_records()";
constexpr const char* no_data_wanted =
    "the server has copied by itself, from or to a file or program of its own: use execute()";

void check_copy_response(wire::message got) {
  auto body = got.read(got.type == backend::copy_in_response ? "CopyInResponse" : "CopyOutResponse");
  const auto format = body.uint8();
  if (format > 1) body.fail("an unknown format");
  const auto columns = body.int16();
  if (columns < 0) body.fail("a negative number of columns");
  for (int i = 0; i < columns; ++i) {
    const auto each = body.uint16();
    if (each > 1 || (format == 0 && each != 0)) body.fail("an unknown format of a column");
  }
  body.end();
}

}  // namespace

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

exchange session::copy_in(operation_ptr op) {
  co_await write_turn();
  if (!co_await copy_begins(*op, backend::copy_in_response, out_wanted)) co_return;
  op->feeding = operation::feeding::open;
  if (op->abandoned)
    write_copy_fail(*op, "the client gave up");
  else
    stir(op);
  const auto end = co_await next_message();
  if (!running_->synced || running_->copy_failed) expect(end, backend::error_response);
  op->results.back().tag = command_tag(expect(end, backend::command_complete));
  ready_for_query(co_await next_message());
}

exchange session::copy_out(operation_ptr op) {
  co_await write_turn();
  if (!co_await copy_begins(*op, backend::copy_out_response, in_wanted)) co_return;
  out().sync();
  running_->synced = true;
  if (op->results.back().columns) stir(op);  // its columns are known
  for (;;) {
    const auto got = co_await next_message();
    if (got.type != backend::copy_data) {
      expect(got, backend::copy_done);
      break;
    }
    running_->rows_came = true;
    op->copied += got.body.size();
    if (op->abandoned) continue;
    op->data.append(got.body);
    op->full = op->data.size() >= most_kept;
    stir(op);
  }
  op->results.back().tag = command_tag(expect(co_await next_message(), backend::command_complete));
  ready_for_query(co_await next_message());
}

// Parse, Bind, Execute, Flush, and before them what describes the data where that is asked for: within the same
// implicit transaction, so that what is described can't change before it is copied. False where the answer is not the
// one that is wanted: it has been refused, and the exchange is over.
step<bool> session::copy_begins(operation& op, backend wanted, const char* why_not) {
  if (!op.query.empty()) out().parse({}, op.query).describe_statement({});
  out().parse({}, op.sql).bind("", no_arguments, std::array<column, 0>{}).execute();
  await_copy(*running_);
  co_await reply_turn();
  auto& result = op.results.emplace_back();
  if (!op.query.empty()) {
    expect(co_await next_message(), backend::parse_complete);
    auto parameters = expect(co_await next_message(), backend::parameter_description).read("ParameterDescription");
    for (auto left = parameters.uint16(); left > 0; --left) parameters.uint32();
    parameters.end();
    const auto columns = co_await next_message();
    if (columns.type == backend::row_description)
      result.columns = row_description_of(columns, formats::chosen);
    else
      expect(columns, backend::no_data).read("NoData").end();
  }
  expect(co_await next_message(), backend::parse_complete);
  expect(co_await next_message(), backend::bind_complete);
  running_->bound = true;
  const auto answer = co_await next_message();
  if (answer.type == wanted) {
    check_copy_response(answer);
    co_return true;
  }
  co_await refuse_copy(answer, answer.type == backend::command_complete ? no_data_wanted : why_not);
  sync(*running_);
  ready_for_query(co_await next_message());
  co_return false;
}

// ---- from the face

bool session::feed(operation& op, std::string_view data) {
  look(op);
  if (!op.feeds()) return false;
  guarded([&] {
    op.copied += data.size();
    for (; !data.empty(); data.remove_prefix(std::min(data.size(), message_size)))
      out().copy_data(data.substr(0, message_size));
  });
  op.crowded = op.feeds() && outbound_.size() >= most_unsent;
  return op.feeds() && !op.crowded;
}

void session::finish_feed(operation& op) {
  look(op);
  if (!op.feeds()) return;
  op.feeding = operation::feeding::ended;
  op.crowded = false;
  guarded([&] {
    out().copy_done().sync();
    op.exchange->synced = true;
  });
}

void session::fail_feed(operation& op, std::string_view reason) {
  look(op);
  if (op.feeds()) guarded([&] { write_copy_fail(op, reason); });
}

void session::write_copy_fail(operation& op, std::string_view reason) {
  op.feeding = operation::feeding::ended;
  op.crowded = false;
  out().copy_fail(reason).sync();
  op.exchange->synced = op.exchange->copy_failed = true;
}

std::string session::take_data(operation& op) {
  look(op);
  op.full = false;
  return std::exchange(op.data, {});
}

// The server has failed: its face is told at once, and what it feeds from now on goes nowhere.
void session::stop_feed(operation& op) {
  op.feeding = operation::feeding::stopped;
  op.crowded = false;
  stir(op.exchange->op);
}

void session::make_room() {
  const auto& op = writer_->op;
  if (outbound_.size() > low_water) return;
  op->crowded = false;
  stir(op);
}

}  // namespace pgpoll::core
