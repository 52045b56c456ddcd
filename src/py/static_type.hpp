// The beginning of a static type object, to be filled in: g++ warns of a table that leaves slots out.
#pragma once

#include "py/ref.hpp"

namespace pgpoll::py {

inline PyTypeObject static_type(const char* name, std::size_t basic_size, destructor dealloc) {
  const PyVarObject head[] = {PyVarObject_HEAD_INIT(nullptr, 0)};
  PyTypeObject type{};
  type.ob_base = head[0];
  type.tp_name = name;
  type.tp_basicsize = static_cast<Py_ssize_t>(basic_size);
  type.tp_dealloc = dealloc;
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  return type;
}

// Sequence and mapping slots of a type that is indexed by position and otherwise.
struct sequence_slots {
  PySequenceMethods sequence{};
  PyMappingMethods mapping{};

  sequence_slots(lenfunc length, ssizeargfunc item, binaryfunc subscript) {
    sequence.sq_length = length;
    sequence.sq_item = item;
    mapping.mp_length = length;
    mapping.mp_subscript = subscript;
  }
  void put_into(PyTypeObject& type) {
    type.tp_as_sequence = &sequence;
    type.tp_as_mapping = &mapping;
    type.tp_flags |= Py_TPFLAGS_SEQUENCE;
  }
};

}  // namespace pgpoll::py
