// One row as Python sees it: a sequence that also answers by column name (rec["a"], rec.a).
//
// Record is no tuple subclass: it is of variable size, shares its names through a descriptor, and has no GC header
// where its values can refer to no container. Where they can (json, arrays) it is of a subtype that the collector
// sees; both call themselves Record.
#pragma once

#include "py/ref.hpp"

namespace pgpoll::py {

// The names of a row's columns, shared by all records of a result. A Python object only for its reference count.
struct record_descriptor {
  PyObject_HEAD PyObject* names;  // tuple of str
  PyObject* index;                // name -> position, -1 for a name that occurs twice; made when first asked for
  bool collectable;
};

// New reference; null with an exception set. `names` is a tuple of str.
record_descriptor* record_descriptor_new(PyObject* names, bool collectable);

struct record {
  PyObject_VAR_HEAD record_descriptor* descriptor;
  PyObject* items[1];
};

// A record whose items are still to be filled in: with values, or all with null before it is given up. Then
// record_finish() shows it to the collector.
record* record_new(record_descriptor* descriptor);
extern PyTypeObject record_collectable_type;
inline PyObject* record_finish(record* made) {
  if (Py_IS_TYPE(reinterpret_cast<PyObject*>(made), &record_collectable_type)) PyObject_GC_Track(made);
  return reinterpret_cast<PyObject*>(made);
}

PyTypeObject* record_type();
int register_record(PyObject* module);

}  // namespace pgpoll::py
