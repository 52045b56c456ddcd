// What a request leaves behind: columns, rows as they came off the wire, errors, and the operation that
// carries them to the caller. Nothing here decodes a value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pgpoll::core {

// One field of a RowDescription. `format` is the one asked for in Bind: 0 text, 1 binary.
struct column {
  std::string name;
  std::uint32_t table_oid = 0;
  std::int16_t attribute_number = 0;
  std::uint32_t type_oid = 0;
  std::int16_t type_size = 0;
  std::int32_t typmod = -1;
  std::int16_t format = 0;

  bool operator==(const column&) const = default;
};

// Immutable once made; shared by a statement and every result of it, so a face may key caches on its address.
struct row_description {
  std::vector<column> columns;
};
using columns_ptr = std::shared_ptr<const row_description>;

// What a statement's first keyword says of it.
enum class verb {
  query,  // SELECT, INSERT and the like: where it has failed outside of a transaction, nothing of it remains
  copy,   // nothing may follow it on the wire
  other
};

// What a face's handles keep of one session's statements.
struct statement_handles {
  std::size_t count = 0;
  std::size_t bytes = 0;  // of their texts
};

// A prepared statement that the server has parsed and described. Whoever holds one pins it: it is not evicted from the
// cache while the use count says so.
struct statement {
  std::string name;  // empty: only its description is kept, and it is parsed each time
  std::string sql;
  std::vector<std::uint32_t> parameter_types;
  columns_ptr columns;                        // null where the statement returns no rows
  std::shared_ptr<statement_handles> origin;  // of the session that prepared it: its name means nothing to others
  core::verb verb = core::verb::other;
  mutable bool stale = false;  // the server has dropped it or its plan: it is never used again
};
using statement_ptr = std::shared_ptr<const statement>;

// DataRow messages, whole (type byte, length, body) and already checked: the column count is that of the
// columns, every field length is -1 or within the message, and the lengths add up exactly.
class row_store {
 public:
  static constexpr std::size_t stride = 16;  // one index entry for so many rows

  struct chunk {
    std::unique_ptr<char[]> data;
    std::size_t used = 0;
    std::size_t capacity = 0;
    std::size_t first_row = 0;
    std::size_t rows = 0;
    std::vector<std::uint32_t> offsets;  // of rows first_row + 0, + stride, + 2 * stride ...
  };

  void append(const char* run, std::size_t size);
  std::size_t size() const { return rows_; }
  std::size_t bytes() const { return bytes_; }
  const std::vector<chunk>& chunks() const { return chunks_; }

  // The start of row `index`'s DataRow message ('D'); index < size().
  const char* row(std::size_t index) const;

 private:
  std::vector<chunk> chunks_;
  std::size_t rows_ = 0;
  std::size_t bytes_ = 0;
};

// The length of the DataRow message that starts at `row`, type byte included.
inline std::size_t row_length(const char* row) {
  const auto* p = reinterpret_cast<const unsigned char*>(row) + 1;
  return 1 + (std::size_t{p[0]} << 24 | std::size_t{p[1]} << 16 | std::size_t{p[2]} << 8 | std::size_t{p[3]});
}

// A walk over the rows, which must not change meanwhile: each step costs the length of one message.
class row_walk {
 public:
  explicit row_walk(const row_store& rows) : rows_(&rows) { enter(); }

  // The row's message, or null at the end.
  const char* take() {
    if (taken_ == rows_->size()) return nullptr;
    while (next_ == end_) {
      ++chunk_;
      enter();
    }
    const char* message = next_;
    next_ += row_length(message);
    ++taken_;
    return message;
  }
  std::size_t taken() const { return taken_; }

 private:
  void enter() {
    if (chunk_ == rows_->chunks().size()) return;
    const auto& here = rows_->chunks()[chunk_];
    next_ = here.data.get();
    end_ = next_ + here.used;
  }

  const row_store* rows_;
  std::size_t taken_ = 0;
  std::size_t chunk_ = 0;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
};

// One statement's result. `tag` is empty for an EmptyQueryResponse.
struct raw_result {
  columns_ptr columns;  // null where the statement returns no rows
  row_store rows;
  std::string tag;
  bool none = false;  // nothing was executed: no row was affected
};

// The fields of an ErrorResponse or NoticeResponse (protocol manual, section 54.8).
struct server_message {
  std::vector<std::pair<char, std::string>> fields;
  std::string_view field(char code) const {
    for (const auto& [key, value] : fields)
      if (key == code) return value;
    return {};
  }
  bool fatal() const {
    auto severity = field('V').empty() ? field('S') : field('V');
    return severity == "FATAL" || severity == "PANIC";
  }
};

struct failure {
  enum class kind {
    server,          // `server` is the request's own ErrorResponse
    misuse,          // the caller asked for what this verb can't do (COPY in execute)
    refused,         // the face could not encode the arguments; it has the error
    authentication,  // the server asks for what we can't or won't give, or failed to prove itself
    protocol,        // the peer broke the protocol
    lost,            // the connection went away; `cause` where that is known
    closed           // closed by us before it was served
  };
  kind kind = kind::lost;
  std::string message;
  std::shared_ptr<const server_message> server;
  std::shared_ptr<const failure> cause;
};
using failure_ptr = std::shared_ptr<const failure>;

failure_ptr make_failure(enum failure::kind kind, std::string message,
                         std::shared_ptr<const server_message> server = nullptr, failure_ptr cause = nullptr);

// One request as its caller sees it. It outlives its exchange.
struct exchange_promise;
struct batch_state;

// What an operation that gives its rows in parts knows of its portal.
struct portal {
  std::string name;          // empty: the one that lasts to the Sync
  std::uint32_t credit = 0;  // rows that may still come,
  std::uint32_t asked = 0;   // and of them what the last Execute has asked for
  bool limited = false;      // else all rows come, and `operation::full` is what bounds them
  bool suspended = false;    // it has more rows, perhaps
  bool spared = false;       // abandoned, but not to be cancelled: its transaction goes on
};

struct operation {
  enum class kind {
    connect,
    execute,
    prepare,
    script,
    command,
    batch,
    copy_in,
    copy_out,
    stream,
    fetch,
    close_portal,
    close,
    cancel,
    drain
  };
  enum class state { pending, succeeded, failed, cancelled };
  enum class feeding { not_begun, open, ended, stopped };  // of copy_in: by finish or fail, or by the server

  kind kind = kind::execute;
  state state = state::pending;
  feeding feeding = feeding::not_begun;
  bool written = false;     // pending: it can't be taken back. Done: a byte of it had left, it is not safe to retry
  bool abandoned = false;   // nobody waits any more
  bool again = false;       // it failed for no fault of its own, and runs a second time
  bool stirred = false;     // a channel: there is something to take, or room to feed; nobody has looked yet
  bool full = false;        // a channel: it holds what it may, so that nothing more is read
  bool crowded = false;     // copy_in: so much is unsent that its face waits until it stirs
  std::string sql;          // as it was given; empty where a statement was
  std::string query;        // copy_in, copy_out: described in the same flight; empty for none
  statement_ptr statement;  // execute and prepare: the description
  std::vector<raw_result> results;       // of all, one; but script: one a statement, batch: one an item
  std::unique_ptr<core::portal> portal;  // stream, fetch, close_portal
  std::shared_ptr<batch_state> batch;    // of a batch
  std::string data;                      // copy_out: what has come and was not taken
  std::uint64_t copied = 0;              // bytes of data, so far
  std::uint64_t reply_bytes = 0;         // so far, whole messages; asynchronous ones are not of the reply
  failure_ptr error;                     // where failed
  void* owner = nullptr;                 // the face's handle; the core never looks at it
  exchange_promise* exchange = nullptr;  // its dialogue while that lasts

  bool feeds() const { return feeding == feeding::open; }  // the server takes data, and nobody has ended it
  bool done() const { return state != state::pending; }
};
using operation_ptr = std::shared_ptr<operation>;

// What begins a block: BEGIN, SAVEPOINT ... Each runs in front of a request, under its Sync, and is an operation of its
// own that succeeds at its CommandComplete; where it fails, so do the others and the request, and nothing has run.
// `outermost`: the first is BEGIN, and is not sent within a transaction.
struct preamble {
  std::list<operation_ptr> commands;
  bool outermost = false;

  void add(std::string sql) {
    commands.push_back(std::make_shared<operation>());
    commands.back()->kind = operation::kind::command;
    commands.back()->sql = std::move(sql);
  }
};

}  // namespace pgpoll::core
