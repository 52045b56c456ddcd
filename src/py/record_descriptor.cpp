#include "py/record_descriptor.hpp"

#include "py/static_type.hpp"

namespace pgpoll::py {
namespace {

void descriptor_dealloc(PyObject* self) {
  auto* descriptor = reinterpret_cast<record_descriptor*>(self);
  Py_XDECREF(descriptor->names);
  Py_XDECREF(descriptor->index);
  PyObject_Free(self);
}

PyTypeObject descriptor_type =
    static_type("pgpoll.core._RecordDescriptor", sizeof(record_descriptor), descriptor_dealloc);

}  // namespace

record_descriptor* record_descriptor_new(PyObject* names, bool collectable) {
  auto* made = PyObject_New(record_descriptor, &descriptor_type);
  if (made == nullptr) return nullptr;
  made->names = Py_NewRef(names);
  made->index = nullptr;
  made->collectable = collectable;
  return made;
}

PyObject* record_index(record_descriptor* descriptor) {
  if (descriptor->index != nullptr) return descriptor->index;
  auto index = ref::steal(PyDict_New());
  auto twice = ref::steal(PyLong_FromLong(-1));
  if (!index || !twice) return nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(descriptor->names); ++i) {
    auto position = ref::steal(PyLong_FromSsize_t(i));
    if (!position) return nullptr;
    PyObject* name = PyTuple_GET_ITEM(descriptor->names, i);
    const int known = PyDict_Contains(index.get(), name);
    if (known < 0 || PyDict_SetItem(index.get(), name, (known == 0 ? position : twice).get()) < 0) return nullptr;
  }
  if (descriptor->index == nullptr) descriptor->index = index.release();
  return descriptor->index;
}

int register_record_descriptor() {
  return PyType_Ready(&descriptor_type);
}

}  // namespace pgpoll::py
