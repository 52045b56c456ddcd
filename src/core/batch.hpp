// A batch: many items, written in order under one Sync (design.md section 3). What its exchange and its face share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

#include "core/result.hpp"

namespace pgpoll::core {

struct batch_state {
  // Consecutive items of one statement, to be written. `items` is 0 where only its description is wanted.
  struct run {
    statement_ptr statement;  // null: found, or described, by `sql` when its turn comes
    std::string sql;
    std::string messages;  // Bind and Execute of each, once encoded
    std::size_t items = 1;
    bool encoded = false;
    bool opens = false;  // see append_execution
  };
  // What has been written and is to be answered: a run, or the description of a statement.
  struct expected {
    statement_ptr statement;
    std::shared_ptr<core::statement> described;  // null: a run
    std::size_t items = 0;
    std::size_t closed = 0;  // Close messages in front of the description
    bool opens = false;
  };

  bool many = false;  // one statement for all items, one result; the face feeds runs of them
  std::deque<run> unsent;
  std::deque<expected> unread;
  statement_ptr asking;   // of the first unsent run: its arguments are being asked for
  statement_ptr reading;  // of the item whose reply is arriving
  statement_ptr fresh;    // described last, nothing else was parsed since
  std::size_t added = 0;  // items, by the face
  std::size_t written = 0;
  std::size_t answered = 0;
  std::size_t unflushed = 0;
  std::uint64_t rows = 0;  // of all the command tags
  bool ended = false;      // the face has no more
  bool describing = false;
  bool executes = false;              // an Execute has been written
  bool settled = false;               // ReadyForQuery has come
  std::optional<std::size_t> failed;  // the item whose error it is, counted from 0
};

// One item's messages. `opens`: an unnamed statement that is not the one last parsed comes with its Parse, and with the
// description of its portal, for it may not be what it was.
void append_execution(std::string& out, const statement& prepared, std::string_view arguments, bool opens);

// The most items of one fed run.
inline std::size_t largest_run(std::size_t max_pipeline) {
  return max_pipeline < 2 ? 1 : max_pipeline / 2;
}

}  // namespace pgpoll::core
