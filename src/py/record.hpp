// One row as Python sees it: a sequence that also answers by column name (rec["a"], rec.a).
//
// Record is no tuple subclass: it is of variable size, shares its names through a descriptor, and has no GC header
// where its values can refer to no container. Where they can (json, arrays) it is of a subtype that the collector
// sees; both call themselves Record.
#pragma once

#include "py/ref.hpp"

#include "py/record_descriptor.hpp"

namespace pgpoll::py {

struct record {
  PyVarObject ob_base;
  record_descriptor* descriptor;
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
