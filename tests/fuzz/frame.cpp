// Framing: core::inbound_bytes and the check of DataRows, against a second reading of the protocol manual's 54.6 and
// 54.7 that knows the whole stream at once. Input: a byte for the number of columns, one for the limit, the stream.
#include <cstring>

#include "core/buffers.hpp"
#include "core/result.hpp"
#include "fuzz.hpp"

namespace pgpoll::fuzz {
namespace {

constexpr std::size_t limits[] = {64 * 1024, wire::max_message, 16, 4};

struct framing {
  std::string taken;      // all messages handed out, as they came
  std::string violation;  // what ended it
  std::size_t rows = 0;
};

struct reading {
  std::size_t whole = 0;  // bytes of whole messages
  std::size_t run = 0;    // of these, where the last run of DataRows begins
  bool violation = false;
};

bool row_is_sound(std::string_view body, std::size_t columns) {
  std::size_t at = 2;
  if (body.size() < at || wire::load_uint16(body.data()) != columns) return false;
  for (std::size_t i = 0; i < columns; ++i) {
    if (body.size() - at < 4) return false;
    const std::int64_t length = wire::load_int32(body.data() + at);
    at += 4;
    if (length < -1 || length > static_cast<std::int64_t>(body.size() - at)) return false;
    at += length == -1 ? 0 : static_cast<std::size_t>(length);
  }
  return at == body.size();
}

reading expected(std::string_view stream, std::size_t columns, std::size_t limit) {
  constexpr std::string_view types = "RK23CWdcGHDIEVvnNAtS1sZT";
  constexpr std::string_view long_types = "WdGHDEVNtST";
  reading read;
  while (stream.size() - read.whole >= 5) {
    const auto left = stream.substr(read.whole);
    const std::size_t length = wire::load_uint32(left.data() + 1);
    const bool is_long =
        types.find(left[0]) == std::string_view::npos || long_types.find(left[0]) != std::string_view::npos;
    read.violation =
        length < 4 || length > limit || (!is_long && length > 30'000) || types.find(left[0]) == std::string_view::npos;
    if (read.violation || left.size() <= length) return read;
    read.violation = left[0] == 'D' && !row_is_sound(left.substr(5, length - 4), columns);
    if (read.violation) return read;
    read.whole += length + 1;
    if (left[0] != 'D') read.run = read.whole;
  }
  return read;
}

void take_all(core::inbound_bytes& inbound, std::size_t columns, framing& out, core::row_store& rows) {
  for (;;) {
    if (inbound.peek_type() == wire::backend::data_row) {
      const auto run = inbound.take_rows(columns);
      if (run.empty()) return;
      out.taken += run;
      rows.append(run.data(), run.size());
    } else {
      wire::message got;
      if (!inbound.next(got)) return;
      out.taken += static_cast<char>(got.type);
      wire::append_uint32(out.taken, static_cast<std::uint32_t>(got.body.size() + 4));
      out.taken += got.body;
    }
  }
}

framing framed(std::string_view stream, std::size_t columns, std::size_t limit, std::size_t piece) {
  core::inbound_bytes inbound;
  inbound.limit(limit);
  core::row_store rows;
  framing out;
  try {
    for (std::size_t at = 0; at < stream.size(); at += piece) {
      const auto arrived = stream.substr(at, piece);
      std::memcpy(inbound.prepare(arrived.size()).data(), arrived.data(), arrived.size());
      inbound.commit(arrived.size());
      take_all(inbound, columns, out, rows);
    }
  } catch (const wire::protocol_violation& violation) {
    out.violation = violation.what();
  }
  core::row_walk walk(rows);
  while (const char* row = walk.take())
    require(row == rows.row(out.rows++), "a row's place is where the walk finds it");
  require(out.rows == rows.size(), "the walk sees every row");
  return out;
}

void check(const framing& got, const reading& wanted, std::string_view stream) {
  require(got.violation.empty() != wanted.violation, "a violation where there is one, and nowhere else", got.violation);
  const auto whole = stream.substr(0, wanted.whole);
  require(whole.starts_with(got.taken), "messages are handed out as they came");
  // The run in which a DataRow is found broken may go with it.
  require(got.taken.size() >= (wanted.violation ? wanted.run : wanted.whole), "every whole message is handed out");
}

}  // namespace
}  // namespace pgpoll::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pgpoll::fuzz;
  input in(data, size);
  const std::size_t columns = in.byte() % 8;
  const std::size_t limit = limits[in.byte() % std::size(limits)];
  const auto stream = in.rest();
  const auto wanted = expected(stream, columns, limit);
  const auto whole = framed(stream, columns, limit, std::max(stream.size(), std::size_t{1}));
  const auto bytewise = framed(stream, columns, limit, 1);
  check(whole, wanted, stream);
  check(bytewise, wanted, stream);
  require(whole.violation == bytewise.violation, "byte at a time is told the same", whole.violation);
  return 0;
}
