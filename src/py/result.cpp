#include "py/result.hpp"

#include <charconv>
#include <cstddef>
#include <new>

#include "py/errors.hpp"
#include "py/plan.hpp"
#include "py/static_type.hpp"

namespace pgpoll::py {
namespace {

extern PyTypeObject result_type;
extern PyTypeObject iterator_type;

struct result {
  PyObject ob_base;
  core::raw_result raw;
  plan_ptr plan;  // null where the statement returns no rows

  std::size_t size() const { return raw.rows.size(); }
  PyObject* row(const char* message, std::size_t index) const { return plan->row(*raw.columns, message, index); }
  PyObject* row(std::size_t index) const { return row(raw.rows.row(index), index); }
};

struct iterator {
  PyObject ob_base;
  result* over;
  core::row_walk at;
};

result* as_result(PyObject* object) {
  return reinterpret_cast<result*>(object);
}
PyObject* as_object(result* self) {
  return reinterpret_cast<PyObject*>(self);
}

void result_dealloc(PyObject* object) {
  auto* self = as_result(object);
  std::destroy_at(&self->raw);
  std::destroy_at(&self->plan);
  PyObject_Free(object);
}

PyObject* out_of_range() {
  PyErr_SetString(PyExc_IndexError, "result index out of range");
  return nullptr;
}

// Sequence -------------------------------------------------------------------------------------------------------

Py_ssize_t result_length(PyObject* self) {
  return static_cast<Py_ssize_t>(as_result(self)->size());
}

PyObject* result_item(PyObject* object, Py_ssize_t i) {
  auto* self = as_result(object);
  if (i < 0 || static_cast<std::size_t>(i) >= self->size()) return out_of_range();
  return self->row(static_cast<std::size_t>(i));
}

// `count` rows from `start`, each `step` after the other; decoded in order.
PyObject* list_of(result* self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count) {
  ref made;
  if (count == 0) return PyList_New(0);
  if (step == 1 && start == 0 && count == result_length(as_object(self)))
    return self->plan->append(*self->raw.columns, self->raw.rows, made) ? finish_list(made) : nullptr;
  made = new_list(count);
  if (!made) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i, start += step) {
    PyObject* row = self->row(static_cast<std::size_t>(start));
    if (row == nullptr) return nullptr;
    PyList_SET_ITEM(made.get(), i, row);
  }
  return finish_list(made);
}

PyObject* result_subscript(PyObject* self, PyObject* key) {
  if (PyIndex_Check(key)) {
    const auto i = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred()) return nullptr;
    return result_item(self, i < 0 ? i + result_length(self) : i);
  }
  if (!PySlice_Check(key))
    return PyErr_Format(PyExc_TypeError, "a result is indexed by position or slice, not by %.100s",
                        Py_TYPE(key)->tp_name);
  Py_ssize_t start = 0;
  Py_ssize_t stop = 0;
  Py_ssize_t step = 0;
  if (PySlice_Unpack(key, &start, &stop, &step) < 0) return nullptr;
  const auto count = PySlice_AdjustIndices(result_length(self), &start, &stop, step);
  return list_of(as_result(self), start, step, count);
}

PyObject* result_iterate(PyObject* self) {
  auto* made = PyObject_New(iterator, &iterator_type);
  if (made == nullptr) return nullptr;
  made->over = as_result(Py_NewRef(self));
  new (&made->at) core::row_walk(made->over->raw.rows);
  return reinterpret_cast<PyObject*>(made);
}

void iterator_dealloc(PyObject* self) {
  Py_DECREF(reinterpret_cast<iterator*>(self)->over);
  PyObject_Free(self);
}

PyObject* iterator_next(PyObject* object) {
  auto* self = reinterpret_cast<iterator*>(object);
  const auto index = self->at.taken();
  const char* message = self->at.take();
  return message == nullptr ? nullptr : self->over->row(message, index);
}

PyObject* iterator_length_hint(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<iterator*>(object);
  return PyLong_FromSize_t(self->over->size() - self->at.taken());
}

// Verbs ----------------------------------------------------------------------------------------------------------

PyObject* result_fetch(PyObject* self, PyObject*) {
  return list_of(as_result(self), 0, 1, result_length(self));
}

PyObject* result_first(PyObject* self, PyObject*) {
  return as_result(self)->size() == 0 ? Py_NewRef(Py_None) : as_result(self)->row(0);
}

PyObject* result_one(PyObject* self, PyObject*) {
  if (const auto size = as_result(self)->size(); size != 1)
    return raise_interface_error("one row was asked for, but the result has " + std::to_string(size));
  return as_result(self)->row(0);
}

PyObject* result_scalar(PyObject* object, PyObject*) {
  auto* self = as_result(object);
  if (self->size() == 0) return Py_NewRef(Py_None);
  return self->plan->first_value(*self->raw.columns, self->raw.rows.row(0), 0);
}

PyObject* result_index(PyObject* self, PyObject* value) {
  const auto at = PySequence_Index(self, value);
  return at < 0 ? nullptr : PyLong_FromSsize_t(at);
}

PyObject* result_count(PyObject* self, PyObject* value) {
  const auto n = PySequence_Count(self, value);
  return n < 0 ? nullptr : PyLong_FromSsize_t(n);
}

PyObject* result_tag(PyObject* self, void*) {
  return decoded(as_result(self)->raw.tag).release();
}

PyObject* result_rowcount(PyObject* self, void*) {
  if (as_result(self)->raw.none) return PyLong_FromLong(0);
  const auto rows = rows_of_tag(as_result(self)->raw.tag);
  return rows ? PyLong_FromLongLong(*rows) : Py_NewRef(Py_None);
}

PyObject* result_columns(PyObject* object, void*) {
  auto* self = as_result(object);
  return self->plan ? plan_columns(*self->plan, *self->raw.columns) : PyTuple_New(0);
}

PyObject* result_repr(PyObject* object) {
  auto tag = ref::steal(result_tag(object, nullptr));
  return tag ? PyUnicode_FromFormat("<Result %R, %zd rows>", tag.get(), result_length(object)) : nullptr;
}

sequence_slots slots(result_length, result_item, result_subscript);

PyMethodDef methods[] = {
    {"fetch", result_fetch, METH_NOARGS, "All rows, decoded: a list of Record. Raises DataError for a bad value."},
    {"first", result_first, METH_NOARGS, "The first row, None where there is none."},
    {"one", result_one, METH_NOARGS, "The only row; InterfaceError where there is none, or more than one."},
    {"scalar", result_scalar, METH_NOARGS, "The first row's first value, None where there is no row."},
    {"index", result_index, METH_O, "The position of the first row that equals this; ValueError where none does."},
    {"count", result_count, METH_O, "How many rows equal this."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, nullptr},
    {}};

PyGetSetDef attributes[] = {
    {"tag", result_tag, nullptr, "The command tag, for instance \"INSERT 0 2\"; \"\" for an empty statement.", nullptr},
    {"rowcount", result_rowcount, nullptr, "The command tag's number of rows; None where it has none.", nullptr},
    {"columns", result_columns, nullptr, "A tuple of Column; () where the statement returns no rows.", nullptr},
    {}};

PyMethodDef iterator_methods[] = {{"__length_hint__", iterator_length_hint, METH_NOARGS, nullptr}, {}};

PyTypeObject iterator_type = [] {
  auto type = static_type("pgpoll.core._ResultIterator", sizeof(iterator), iterator_dealloc);
  type.tp_iter = PyObject_SelfIter;
  type.tp_iternext = iterator_next;
  type.tp_methods = iterator_methods;
  return type;
}();

PyTypeObject result_type = [] {
  auto type = static_type("pgpoll.core.Result", sizeof(result), result_dealloc);
  slots.put_into(type);
  type.tp_repr = result_repr;
  type.tp_doc =
      "What a statement left: a lazy sequence of Record.\n\n"
      "A row is decoded each time it is touched, and not kept; a value that cannot be decoded raises DataError\n"
      "then. Slices are lists. May be read from any thread.";
  type.tp_iter = result_iterate;
  type.tp_methods = methods;
  type.tp_getset = attributes;
  return type;
}();

}  // namespace

std::optional<long long> rows_of_tag(std::string_view tag) {
  const auto number = tag.substr(tag.find_last_of(' ') + 1);
  long long rows = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), rows);
  if (error != std::errc() || end != number.data() + number.size() || rows < 0) return std::nullopt;
  return rows;
}

PyObject* result_new(core::raw_result&& raw, bool text_only) {
  return guarded([&]() -> PyObject* {
    plan_ptr plan;
    if (raw.columns && !(plan = find_plan(raw.columns, text_only))) return nullptr;
    auto* made = PyObject_New(result, &result_type);
    if (made == nullptr) return nullptr;
    new (&made->raw) core::raw_result(std::move(raw));
    new (&made->plan) plan_ptr(std::move(plan));
    return reinterpret_cast<PyObject*>(made);
  });
}

PyObject* columns_new(const core::columns_ptr& columns, bool text_only) {
  return guarded([&]() -> PyObject* {
    if (!columns) return PyTuple_New(0);
    auto plan = find_plan(columns, text_only);
    return plan ? plan_columns(*plan, *columns) : nullptr;
  });
}

int register_result(PyObject* module) {
  if (PyType_Ready(&iterator_type) < 0 || PyType_Ready(&result_type) < 0) return -1;
  return PyModule_AddObjectRef(module, "Result", reinterpret_cast<PyObject*>(&result_type));
}

}  // namespace pgpoll::py
