// The names of a row's columns, shared by all records of a result.
#pragma once

#include "py/ref.hpp"

namespace pgpoll::py {

// A Python object only for its reference count.
struct record_descriptor {
  PyObject ob_base;
  PyObject* names;  // tuple of str
  PyObject* index;  // name -> position, -1 for a name that occurs twice; made when first asked for
  bool collectable;
};

// New reference; null with an exception set. `names` is a tuple of str.
record_descriptor* record_descriptor_new(PyObject* names, bool collectable);

// The dict of name to position, borrowed; null with an exception set.
PyObject* record_index(record_descriptor* descriptor);

int register_record_descriptor();

}  // namespace pgpoll::py
