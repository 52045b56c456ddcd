// _RecordEncoder: records of any kind to slices of COPY's binary format (manual, COPY, "Binary Format").
//
// An iterator of bytes over an iterator of records: one slice a call, so that nothing of Python runs for a row but the
// iterator's own code. Where records come from an asynchronous iterator they are added one by one, and taken in slices.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "py/codecs/codec.hpp"
#include "py/copying.hpp"
#include "py/errors.hpp"
#include "py/record.hpp"

namespace pgpoll::py {
namespace {

constexpr std::size_t slice = std::size_t{64} << 10;
constexpr long slice_milliseconds = 20;  // of slow records a slice is smaller: their face looks at the time

// A few nanoseconds to read, some milliseconds fine.
long milliseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<long>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

struct record_encoder {
  PyObject_HEAD PyObject* records;  // an iterator, or a list; null where they are added
  Py_ssize_t taken;                 // of a list
  PyObject* names;                  // of the columns: tuple of str,
  PyObject* types;                  // and of their types, for errors
  std::vector<const codec*> codecs;
  std::string out;
  std::uint64_t count;  // records so far
  bool ended;
};

record_encoder* self_of(PyObject* object) {
  return reinterpret_cast<record_encoder*>(object);
}

std::string number_of(const record_encoder* self) {
  return "record " + std::to_string(self->count + 1);
}

const char* utf8_item(PyObject* tuple, std::size_t i) {
  const char* text = PyUnicode_AsUTF8(PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(i)));
  if (text == nullptr) PyErr_Clear();
  return text == nullptr ? "?" : text;
}

// ---- what a record may be

bool wrong_size(const record_encoder* self, Py_ssize_t size) {
  raise_error("DataError", number_of(self) + " has " + std::to_string(size) + " values, but " +
                               std::to_string(self->codecs.size()) + " columns are copied");
  return false;
}

// Its values by the columns' names.
template <class Fetch>
ref values_by_name(const record_encoder* self, PyObject* record, PyObject* missing, Fetch fetch) {
  const auto size = PyTuple_GET_SIZE(self->names);
  auto values = ref::steal(PyTuple_New(size));
  for (Py_ssize_t i = 0; values && i < size; ++i) {
    auto value = fetch(PyTuple_GET_ITEM(self->names, i));
    if (!value) {
      if (PyErr_Occurred() != nullptr && !PyErr_ExceptionMatches(missing)) return {};
      PyErr_Clear();
      raise_error("DataError", number_of(self) + " (" + Py_TYPE(record)->tp_name + ") has no value for column \"" +
                                   utf8_item(self->names, static_cast<std::size_t>(i)) + '"');
      return {};
    }
    PyTuple_SET_ITEM(values.get(), i, value.release());
  }
  return values;
}

int is_mapping(PyObject* record) {
  static PyObject* cache = nullptr;
  auto* kind = imported(cache, "collections.abc", "Mapping");
  return kind == nullptr ? -1 : PyObject_IsInstance(record, kind);
}

bool is_dataclass(PyObject* record) {
  static PyObject* name = PyUnicode_InternFromString("__dataclass_fields__");
  const auto fields = ref::steal(PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(record)), name));
  if (!fields) PyErr_Clear();
  return static_cast<bool>(fields);
}

// Anything but a tuple or a Record, as a tuple.
ref values_of(const record_encoder* self, PyObject* record) {
  if (PyList_Check(record)) return ref::steal(PyList_AsTuple(record));
  if (PyDict_CheckExact(record))
    return values_by_name(self, record, PyExc_KeyError,
                          [&](PyObject* name) { return ref::borrow(PyDict_GetItemWithError(record, name)); });
  if (is_dataclass(record))
    return values_by_name(self, record, PyExc_AttributeError,
                          [&](PyObject* name) { return ref::steal(PyObject_GetAttr(record, name)); });
  const int mapping = is_mapping(record);
  if (mapping < 0) return {};
  if (mapping == 1)
    return values_by_name(self, record, PyExc_KeyError,
                          [&](PyObject* name) { return ref::steal(PyObject_GetItem(record, name)); });
  const bool text = PyUnicode_Check(record) || PyBytes_Check(record) || PyByteArray_Check(record);
  if (PySequence_Check(record) && !text) return ref::steal(PySequence_Tuple(record));
  raise_error("DataError", number_of(self) + " is of type " + Py_TYPE(record)->tp_name +
                               ": records are sequences, mappings or dataclasses");
  return {};
}

// ---- encoding

bool encode_values(record_encoder* self, encoder& to, PyObject* const* values) {
  const auto start = to.size();
  const auto columns = self->codecs.size();
  to.uint16(static_cast<std::uint16_t>(columns));
  for (std::size_t i = 0; i < columns; ++i) {
    if (to.value(values[i], *self->codecs[i])) continue;
    explain_refusal(
        to, number_of(self) + ", column \"" + utf8_item(self->names, i) + "\" (" + utf8_item(self->types, i) + ")",
        values[i]);
    to.truncate(start);
    return false;
  }
  ++self->count;
  return true;
}

bool encode_record(record_encoder* self, encoder& to, PyObject* record) {
  const auto columns = static_cast<Py_ssize_t>(self->codecs.size());
  if (PyTuple_Check(record)) {
    if (PyTuple_GET_SIZE(record) != columns) return wrong_size(self, PyTuple_GET_SIZE(record));
    return encode_values(self, to, &PyTuple_GET_ITEM(record, 0));
  }
  if (PyObject_TypeCheck(record, record_type())) {
    if (Py_SIZE(record) != columns) return wrong_size(self, Py_SIZE(record));
    return encode_values(self, to, reinterpret_cast<struct record*>(record)->items);
  }
  const auto values = values_of(self, record);
  if (!values) return false;
  if (PyTuple_GET_SIZE(values.get()) != columns) return wrong_size(self, PyTuple_GET_SIZE(values.get()));
  return encode_values(self, to, &PyTuple_GET_ITEM(values.get(), 0));
}

PyObject* take_slice(record_encoder* self) {
  auto* made = PyBytes_FromStringAndSize(self->out.data(), static_cast<Py_ssize_t>(self->out.size()));
  if (made != nullptr) self->out.clear();
  if (self->out.capacity() > 4 * slice) self->out.shrink_to_fit();
  return made;
}

// A list is walked as its own iterator would, without that.
ref next_record(record_encoder* self) {
  auto* const records = self->records;
  if (!PyList_CheckExact(records)) return ref::steal(PyIter_Next(records));
  if (self->taken >= PyList_GET_SIZE(records)) return {};
  return ref::borrow(PyList_GET_ITEM(records, self->taken++));
}

PyObject* next_slice(PyObject* object) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (self->ended || self->records == nullptr) return nullptr;
    {
      encoder to(self->out);
      const bool at_hand = PyList_CheckExact(self->records);
      for (const auto until = milliseconds() + slice_milliseconds;
           to.size() < slice && (at_hand || milliseconds() < until);) {
        const auto record = next_record(self);
        if (!record) {
          if (PyErr_Occurred() != nullptr) return nullptr;
          self->ended = true;
          to.bytes(copy_trailer.data(), copy_trailer.size());
          break;
        }
        if (!encode_record(self, to, record.get())) return nullptr;
      }
    }
    return take_slice(self);
  });
}

PyObject* add(PyObject* object, PyObject* record) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    encoder to(self->out);
    return encode_record(self, to, record) ? PyBool_FromLong(to.size() >= slice) : nullptr;
  });
}

PyObject* take(PyObject* object, PyObject*) {
  return guarded([&] { return take_slice(self_of(object)); });
}

PyObject* finish(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!self->ended) self->out.append(copy_trailer);
    self->ended = true;
    return take_slice(self);
  });
}

PyObject* count(PyObject* object, void*) {
  return PyLong_FromUnsignedLongLong(self_of(object)->count);
}

// ---- the type

bool all_strings(PyObject* tuple) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i)
    if (!PyUnicode_Check(PyTuple_GET_ITEM(tuple, i))) return false;
  return true;
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* records = nullptr;
  PyObject* names = nullptr;
  PyObject* oids = nullptr;
  PyObject* types = nullptr;
  if (!PyArg_ParseTuple(args, "OO!O!O!:_RecordEncoder", &records, &PyTuple_Type, &names, &PyTuple_Type, &oids,
                        &PyTuple_Type, &types))
    return nullptr;
  const auto size = PyTuple_GET_SIZE(names);
  if (PyTuple_GET_SIZE(oids) != size || PyTuple_GET_SIZE(types) != size || !all_strings(names) || !all_strings(types))
    return PyErr_Format(PyExc_TypeError, "as many names, OIDs and types are wanted");
  return guarded([&]() -> PyObject* {
    auto made = ref::steal(type->tp_alloc(type, 0));
    if (!made) return nullptr;
    auto* self = self_of(made.get());
    std::construct_at(&self->codecs);
    std::construct_at(&self->out, copy_header);
    for (Py_ssize_t i = 0; i < size; ++i) {
      const auto oid = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(oids, i));
      if (PyErr_Occurred() != nullptr) return nullptr;
      const auto* found = find_codec(static_cast<std::uint32_t>(oid));
      self->codecs.push_back(found != nullptr ? found : &text_codec);
    }
    if (records != Py_None) {
      self->records = PyList_CheckExact(records) ? Py_NewRef(records) : PyObject_GetIter(records);
      if (self->records == nullptr) return nullptr;
    }
    self->names = Py_NewRef(names);
    self->types = Py_NewRef(types);
    return made.release();
  });
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self_of(object)->records);
  return 0;
}

int clear(PyObject* object) {
  Py_CLEAR(self_of(object)->records);
  return 0;
}

void dealloc(PyObject* object) {
  auto* self = self_of(object);
  PyObject_GC_UnTrack(object);
  clear(object);
  Py_CLEAR(self->names);
  Py_CLEAR(self->types);
  std::destroy_at(&self->codecs);
  std::destroy_at(&self->out);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef methods[] = {{"add", add, METH_O, "Encodes one record; whether a slice is full."},
                         {"take", take, METH_NOARGS, "What was encoded."},
                         {"finish", finish, METH_NOARGS, "The rest, and the trailer."},
                         {nullptr, nullptr, 0, nullptr}};

PyGetSetDef properties[] = {{"count", count, nullptr, "Records so far.", nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_new, slot(make)},
                       {Py_tp_dealloc, slot(dealloc)},
                       {Py_tp_traverse, slot(traverse)},
                       {Py_tp_clear, slot(clear)},
                       {Py_tp_iter, slot(PyObject_SelfIter)},
                       {Py_tp_iternext, slot(next_slice)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, properties},
                       {Py_tp_doc, const_cast<char*>("_RecordEncoder(records, names, oids, types): slices of COPY's "
                                                     "binary format. Internal.")},
                       {0, nullptr}};

PyType_Spec spec = {"pgpoll.core._RecordEncoder", sizeof(record_encoder), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

int register_record_encoder(PyObject* module) {
  auto type = ref::steal(PyType_FromSpec(&spec));
  return type ? PyModule_AddObjectRef(module, "_RecordEncoder", type.get()) : -1;
}

}  // namespace pgpoll::py
