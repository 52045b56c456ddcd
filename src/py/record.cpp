#include "py/record.hpp"

#include <array>
#include <cstddef>

#include "py/static_type.hpp"

namespace pgpoll::py {
namespace {

extern PyTypeObject iterator_type;
PyObject* unpickle = nullptr;  // pgpoll.core._record

record* as_record(PyObject* object) {
  return reinterpret_cast<record*>(object);
}

// Names ----------------------------------------------------------------------------------------------------------

constexpr Py_ssize_t absent = -2;
constexpr Py_ssize_t ambiguous = -1;
constexpr Py_ssize_t failed = -3;

Py_ssize_t find_column(record* self, PyObject* name) {
  PyObject* index = record_index(self->descriptor);
  if (index == nullptr) return failed;
  PyObject* position = PyDict_GetItemWithError(index, name);
  if (position == nullptr) return PyErr_Occurred() ? failed : absent;
  return PyLong_AsSsize_t(position);
}

// By name, for rec["a"] (KeyError) and rec.a (AttributeError).
PyObject* item_by_name(record* self, PyObject* name, PyObject* error) {
  const auto position = find_column(self, name);
  if (position >= 0) return Py_NewRef(self->items[position]);
  if (position == ambiguous) PyErr_Format(error, "the record has several columns named %R; use the position", name);
  if (position == absent) PyErr_Format(error, "the record has no column %R", name);
  return nullptr;
}

// Allocation -----------------------------------------------------------------------------------------------------

// Records without GC header that were given back, by size, chained through their first item.
#ifdef Py_GIL_DISABLED
constexpr std::size_t most_free = 0;
#else
constexpr std::size_t most_free = 1024;
#endif
constexpr Py_ssize_t largest_free = 16;  // items
struct free_list {
  record* first = nullptr;
  std::size_t count = 0;
};
std::array<free_list, largest_free + 1> free_lists;

void drop_items(record* self) {
  for (Py_ssize_t i = 0; i < Py_SIZE(self); ++i) Py_XDECREF(self->items[i]);
  Py_DECREF(self->descriptor);
}

void record_dealloc(PyObject* object) {
  auto* self = as_record(object);
  const auto size = Py_SIZE(self);
  drop_items(self);
  if (size > 0 && size <= largest_free) {
    auto& kept = free_lists[static_cast<std::size_t>(size)];
    if (kept.count < most_free) {
      self->items[0] = reinterpret_cast<PyObject*>(kept.first);
      kept.first = self;
      ++kept.count;
      return;
    }
  }
  PyObject_Free(object);
}

void collectable_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  drop_items(as_record(object));
  PyObject_GC_Del(object);
}

int collectable_traverse(PyObject* object, visitproc visit, void* arg) {
  for (Py_ssize_t i = 0; i < Py_SIZE(object); ++i) Py_VISIT(as_record(object)->items[i]);
  return 0;
}

// Sequence -------------------------------------------------------------------------------------------------------

Py_ssize_t record_length(PyObject* self) {
  return Py_SIZE(self);
}

PyObject* record_item(PyObject* self, Py_ssize_t i) {
  if (i < 0 || i >= Py_SIZE(self)) {
    PyErr_SetString(PyExc_IndexError, "record index out of range");
    return nullptr;
  }
  return Py_NewRef(as_record(self)->items[i]);
}

PyObject* tuple_of(PyObject* self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count) {
  PyObject* made = PyTuple_New(count);
  if (made == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i, start += step)
    PyTuple_SET_ITEM(made, i, Py_NewRef(as_record(self)->items[start]));
  return made;
}

PyObject* record_subscript(PyObject* self, PyObject* key) {
  if (PyUnicode_Check(key)) return item_by_name(as_record(self), key, PyExc_KeyError);
  if (PyIndex_Check(key)) {
    const auto i = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred()) return nullptr;
    return record_item(self, i < 0 ? i + Py_SIZE(self) : i);
  }
  if (PySlice_Check(key)) {
    Py_ssize_t start = 0;
    Py_ssize_t stop = 0;
    Py_ssize_t step = 0;
    if (PySlice_Unpack(key, &start, &stop, &step) < 0) return nullptr;
    const auto count = PySlice_AdjustIndices(Py_SIZE(self), &start, &stop, step);
    return tuple_of(self, start, step, count);
  }
  return PyErr_Format(PyExc_TypeError, "a record is indexed by position, slice or column name, not by %.100s",
                      Py_TYPE(key)->tp_name);
}

Py_hash_t record_hash(PyObject* self) {
  auto tuple = ref::steal(tuple_of(self, 0, 1, Py_SIZE(self)));
  return tuple ? PyObject_Hash(tuple.get()) : -1;
}

PyObject* const* items_of(PyObject* object) {
  if (PyTuple_Check(object)) return reinterpret_cast<PyTupleObject*>(object)->ob_item;
  return PyObject_TypeCheck(object, record_type()) ? as_record(object)->items : nullptr;
}

// As tuples compare: by the first items that differ, else by length.
PyObject* record_compare(PyObject* left, PyObject* right, int op) {
  PyObject* const* a = items_of(left);
  PyObject* const* b = items_of(right);
  if (a == nullptr || b == nullptr) Py_RETURN_NOTIMPLEMENTED;
  const auto m = Py_SIZE(left);
  const auto n = Py_SIZE(right);
  if (m != n && (op == Py_EQ || op == Py_NE)) return PyBool_FromLong(op == Py_NE);
  for (Py_ssize_t i = 0; i < m && i < n; ++i) {
    const int same = PyObject_RichCompareBool(a[i], b[i], Py_EQ);
    if (same < 0) return nullptr;
    if (same == 1) continue;
    if (op == Py_EQ || op == Py_NE) return PyBool_FromLong(op == Py_NE);
    return PyObject_RichCompare(a[i], b[i], op);
  }
  Py_RETURN_RICHCOMPARE(m, n, op);
}

PyObject* record_repr(PyObject* self) {
  const int inside = Py_ReprEnter(self);
  if (inside != 0) return inside < 0 ? nullptr : PyUnicode_FromString("<Record ...>");
  auto parts = ref::steal(PyList_New(0));
  for (Py_ssize_t i = 0; parts && i < Py_SIZE(self); ++i) {
    PyObject* name = PyTuple_GET_ITEM(as_record(self)->descriptor->names, i);
    auto part = ref::steal(PyUnicode_FromFormat(" %U=%R", name, as_record(self)->items[i]));
    if (!part || PyList_Append(parts.get(), part.get()) < 0) parts = {};
  }
  Py_ReprLeave(self);
  auto nothing = ref::steal(parts ? PyUnicode_New(0, 0) : nullptr);
  auto joined = ref::steal(nothing ? PyUnicode_Join(nothing.get(), parts.get()) : nullptr);
  return joined ? PyUnicode_FromFormat("<Record%U>", joined.get()) : nullptr;
}

// Names ----------------------------------------------------------------------------------------------------------

// keys, _asdict and what Python itself looks up (__class__, __reduce__, ...). Everything else is a column.
bool is_reserved(PyObject* name) {
  if (!PyUnicode_IS_ASCII(name)) return false;
  const auto size = PyUnicode_GET_LENGTH(name);
  const auto* text = PyUnicode_1BYTE_DATA(name);
  if (size > 4 && text[0] == '_' && text[1] == '_') return text[size - 1] == '_' && text[size - 2] == '_';
  return (size == 4 && PyUnicode_CompareWithASCIIString(name, "keys") == 0) ||
         (size == 7 && PyUnicode_CompareWithASCIIString(name, "_asdict") == 0);
}

PyObject* record_attribute(PyObject* self, PyObject* name) {
  if (is_reserved(name)) return PyObject_GenericGetAttr(self, name);
  return item_by_name(as_record(self), name, PyExc_AttributeError);
}

PyObject* record_keys(PyObject* self, PyObject*) {
  return Py_NewRef(as_record(self)->descriptor->names);
}

PyObject* record_asdict(PyObject* self, PyObject*) {
  auto made = ref::steal(PyDict_New());
  PyObject* names = as_record(self)->descriptor->names;
  for (Py_ssize_t i = 0; made && i < Py_SIZE(self); ++i)
    if (PyDict_SetItem(made.get(), PyTuple_GET_ITEM(names, i), as_record(self)->items[i]) < 0) return nullptr;
  if (made && PyDict_GET_SIZE(made.get()) != Py_SIZE(self)) {
    PyErr_SetString(PyExc_ValueError, "the record has several columns of one name");
    return nullptr;
  }
  return made.release();
}

PyObject* record_dir(PyObject* self, PyObject*) {
  auto of_type = ref::steal(PyObject_Dir(reinterpret_cast<PyObject*>(Py_TYPE(self))));
  return of_type ? PySequence_InPlaceConcat(of_type.get(), as_record(self)->descriptor->names) : nullptr;
}

PyObject* record_copy(PyObject* self, PyObject*) {
  return Py_NewRef(self);
}

PyObject* record_reduce(PyObject* self, PyObject*) {
  return Py_BuildValue("O(ON)", unpickle, as_record(self)->descriptor->names, tuple_of(self, 0, 1, Py_SIZE(self)));
}

bool is_atomic(PyObject* value) {
  return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
         PyUnicode_CheckExact(value) || PyBytes_CheckExact(value);
}

// pgpoll.core._record(names, values): what pickle calls.
PyObject* make_record(PyObject*, PyObject* args) {
  PyObject* names = nullptr;
  PyObject* values = nullptr;
  if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &names, &PyTuple_Type, &values)) return nullptr;
  const auto size = PyTuple_GET_SIZE(values);
  bool atomic = true;
  for (Py_ssize_t i = 0; i < size; ++i) atomic = atomic && is_atomic(PyTuple_GET_ITEM(values, i));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i)
    if (!PyUnicode_Check(PyTuple_GET_ITEM(names, i))) {
      PyErr_SetString(PyExc_TypeError, "a record's names are str");
      return nullptr;
    }
  if (PyTuple_GET_SIZE(names) != size) {
    PyErr_SetString(PyExc_ValueError, "a record has as many values as names");
    return nullptr;
  }
  auto* descriptor = record_descriptor_new(names, !atomic);
  if (descriptor == nullptr) return nullptr;
  auto* made = record_new(descriptor);
  Py_DECREF(descriptor);
  if (made == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < size; ++i) made->items[i] = Py_NewRef(PyTuple_GET_ITEM(values, i));
  return record_finish(made);
}

// Iteration ------------------------------------------------------------------------------------------------------

struct iterator {
  PyObject ob_base;
  PyObject* over;
  Py_ssize_t at;
};

PyObject* record_iterate(PyObject* self) {
  auto* made = PyObject_GC_New(iterator, &iterator_type);
  if (made == nullptr) return nullptr;
  made->over = Py_NewRef(self);
  made->at = 0;
  PyObject_GC_Track(made);
  return reinterpret_cast<PyObject*>(made);
}

void iterator_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  Py_DECREF(reinterpret_cast<iterator*>(self)->over);
  PyObject_GC_Del(self);
}

int iterator_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(reinterpret_cast<iterator*>(self)->over);
  return 0;
}

PyObject* iterator_next(PyObject* object) {
  auto* self = reinterpret_cast<iterator*>(object);
  return self->at < Py_SIZE(self->over) ? Py_NewRef(as_record(self->over)->items[self->at++]) : nullptr;
}

PyTypeObject iterator_type = [] {
  auto type = static_type("pgpoll.core._RecordIterator", sizeof(iterator), iterator_dealloc);
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = iterator_traverse;
  type.tp_iter = PyObject_SelfIter;
  type.tp_iternext = iterator_next;
  return type;
}();

sequence_slots slots(record_length, record_item, record_subscript);

PyMethodDef methods[] = {
    {"keys", record_keys, METH_NOARGS, "The columns' names, a tuple of str."},
    {"_asdict", record_asdict, METH_NOARGS, "A dict of name to value; ValueError where two columns have one name."},
    {"__copy__", record_copy, METH_NOARGS, nullptr},
    {"__reduce__", record_reduce, METH_NOARGS, nullptr},
    {"__dir__", record_dir, METH_NOARGS, nullptr},
    {}};

PyMethodDef functions[] = {{"_record", make_record, METH_VARARGS, "_record(names, values): internal, for pickle."}, {}};

constexpr const char* record_doc =
    "A row: an immutable sequence of its values that also answers by column name.\n\n"
    "rec[0], rec[1:], rec[\"name\"] (KeyError), rec.name (AttributeError), iteration, unpacking, match, comparison\n"
    "and hash as a tuple's (but it is no tuple). Its only public names are keys() and _asdict(); every other\n"
    "attribute is a column. A name that several columns have raises when it is asked for.";

PyTypeObject plain_type = [] {
  auto type = static_type("pgpoll.core.Record", offsetof(record, items), record_dealloc);
  type.tp_itemsize = sizeof(PyObject*);
  slots.put_into(type);
  type.tp_repr = record_repr;
  type.tp_hash = record_hash;
  type.tp_getattro = record_attribute;
  type.tp_doc = record_doc;
  type.tp_richcompare = record_compare;
  type.tp_iter = record_iterate;
  type.tp_methods = methods;
  return type;
}();

}  // namespace

PyTypeObject record_collectable_type = [] {
  auto type = static_type("pgpoll.core.Record", offsetof(record, items), collectable_dealloc);
  type.tp_itemsize = sizeof(PyObject*);
  type.tp_flags |= Py_TPFLAGS_SEQUENCE | Py_TPFLAGS_HAVE_GC;
  type.tp_doc = record_doc;
  type.tp_traverse = collectable_traverse;
  type.tp_base = &plain_type;
  return type;
}();

PyTypeObject* record_type() {
  return &plain_type;
}

record* record_new(record_descriptor* descriptor) {
  const auto size = PyTuple_GET_SIZE(descriptor->names);
  record* made = nullptr;
  if (descriptor->collectable) {
    made = PyObject_GC_NewVar(record, &record_collectable_type, size);
  } else if (size > 0 && size <= largest_free && free_lists[static_cast<std::size_t>(size)].first != nullptr) {
    auto& kept = free_lists[static_cast<std::size_t>(size)];
    made = kept.first;
    kept.first = reinterpret_cast<record*>(made->items[0]);
    --kept.count;
    PyObject_InitVar(reinterpret_cast<PyVarObject*>(made), &plain_type, size);
  } else {
    made = PyObject_NewVar(record, &plain_type, size);
  }
  if (made == nullptr) return nullptr;
  Py_INCREF(descriptor);
  made->descriptor = descriptor;
  return made;
}

int register_record(PyObject* module) {
  if (register_record_descriptor() < 0 || PyType_Ready(&iterator_type) < 0 || PyType_Ready(&plain_type) < 0 ||
      PyType_Ready(&record_collectable_type) < 0 || PyModule_AddFunctions(module, functions) < 0)
    return -1;
  unpickle = PyObject_GetAttrString(module, "_record");
  if (unpickle == nullptr) return -1;
  return PyModule_AddObjectRef(module, "Record", reinterpret_cast<PyObject*>(&plain_type));
}

}  // namespace pgpoll::py
