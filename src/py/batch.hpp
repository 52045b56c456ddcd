// What an Operation that is a batch keeps besides: the arguments of items that are not written yet.
#pragma once

#include <cstddef>
#include <deque>

#include "py/operation.hpp"

namespace pgpoll::py {

struct batch_side {
  struct unsent_item {
    std::size_t number;
    ref arguments;
    ref context;
  };

  std::deque<unsent_item> unsent;
  ref first;                           // executemany: the row that was taken before the statement was described
  std::size_t taken = 0;               // its rows, of the iterator
  bool taking = false;                 // of those
  std::optional<std::size_t> refused;  // the row that could not be encoded
  bool encoding_raised = false;        // an item's: the Operation's error is that
};

// Of the item whose arguments the core asks for; null, no exception, where there is none.
batch_side::unsent_item* asked_item(operation_object* handle);

int traverse_batch(operation_object* handle, visitproc visit, void* arg);

extern PyMethodDef batch_add, batch_feed, batch_end, batch_item;
extern PyGetSetDef batch_failed_item, batch_answered, batch_written, batch_settled;

}  // namespace pgpoll::py
