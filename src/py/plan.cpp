#include "py/plan.hpp"

#include <array>

#include "py/codecs/codecs.hpp"
#include "py/errors.hpp"
#include "wire/bytes.hpp"

namespace pgpoll::py {
namespace {

PyTypeObject* column_type = nullptr;

constexpr std::size_t row_header = 7;  // 'D', Int32 length, Int16 number of columns

// A name that is no UTF-8 shows its bytes as \xNN, so that it harms nobody who does not ask for it.
ref column_name(const core::column& column) {
  auto name = ref::steal(
      PyUnicode_DecodeUTF8(column.name.data(), static_cast<Py_ssize_t>(column.name.size()), "backslashreplace"));
  if (!name) return {};
  PyObject* interned = name.release();
  PyUnicode_InternInPlace(&interned);
  return ref::steal(interned);
}

plan_ptr make_plan(const core::row_description& description, bool text_only) {
  auto made = std::make_shared<decode_plan>();
  const auto size = description.columns.size();
  auto names = ref::steal(PyTuple_New(static_cast<Py_ssize_t>(size)));
  if (!names) return nullptr;
  bool collectable = false;
  made->steps.reserve(size);
  for (std::size_t i = 0; i < size; ++i) {
    const auto& column = description.columns[i];
    auto name = column_name(column);
    if (!name) return nullptr;
    PyTuple_SET_ITEM(names.get(), static_cast<Py_ssize_t>(i), name.release());
    const auto* type = text_only || column.format == 0 ? &text_codec : find_codec(column.type_oid);
    if (type == nullptr) {
      bad_value("column %zu came in binary, but its type %s was asked for as text", i, type_name(column.type_oid));
      return nullptr;
    }
    made->steps.push_back({type->decode, type});
    collectable = collectable || !type->atomic;
  }
  made->descriptor = record_descriptor_new(names.get(), collectable);
  return made->descriptor == nullptr ? nullptr : made;
}

// An entry counts while its description lives: the weak pointer keeps the address from being used again.
struct cached_plan {
  std::weak_ptr<const core::row_description> key;
  plan_ptr plan;
};

cached_plan& cache_place(const core::row_description* description) {
  constexpr std::size_t places = 1024;
  static auto* cache = new std::array<cached_plan, places>();  // never freed: it holds Python objects
  const auto address = reinterpret_cast<std::uintptr_t>(description);
  return (*cache)[(address >> 5 ^ address >> 15) % places];
}

// Adds to the pending DataError where the value was.
void locate_bad_value(const core::row_description& description, std::size_t row, std::size_t column) {
  auto pending = pending_error::fetch();
  auto found = ref::steal(pending.take());
  auto* kind = error_class("DataError");
  const int is_ours = kind == nullptr ? -1 : PyObject_IsInstance(found.get(), kind);
  if (is_ours < 0) return;
  const auto& where = description.columns[column];
  auto error = ref::borrow(found.get());  // out of memory, interrupted: as it is
  if (is_ours == 1) {
    auto name = column_name(where);
    auto message = ref::steal(name ? PyUnicode_FromFormat("row %zu, column %zu (%R, %s): %S", row, column, name.get(),
                                                          type_name(where.type_oid), found.get())
                                   : nullptr);
    error = ref::steal(message ? PyObject_CallOneArg(kind, message.get()) : nullptr);
    if (!error) return;
    PyException_SetCause(error.get(), PyException_GetCause(found.get()));
  }
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.get())), error.get());
}

}  // namespace

plan_ptr find_plan(const core::columns_ptr& columns, bool text_only) {
  if (text_only) return make_plan(*columns, true);
  auto& place = cache_place(columns.get());
  if (place.plan && !place.key.owner_before(columns) && !columns.owner_before(place.key)) return place.plan;
  auto made = make_plan(*columns, false);
  if (made) place = {columns, made};
  return made;
}

PyObject* decode_plan::row(const core::row_description& description, const char* message, std::size_t index) const {
  auto* made = record_new(descriptor);
  if (made == nullptr) return nullptr;
  const char* p = message + row_header;
  const auto size = steps.size();
  for (std::size_t i = 0; i < size; ++i) {
    const auto length = wire::load_int32(p);
    p += 4;
    if (length < 0) {
      made->items[i] = Py_NewRef(Py_None);
      continue;
    }
    const auto& how = steps[i];
    PyObject* value = how.decode(p, static_cast<std::size_t>(length), *how.type);
    if (value == nullptr) {
      locate_bad_value(description, index, i);
      for (; i < size; ++i) made->items[i] = nullptr;
      Py_DECREF(record_finish(made));
      return nullptr;
    }
    made->items[i] = value;
    p += length;
  }
  return record_finish(made);
}

ref new_list(Py_ssize_t size) {
  auto made = ref::steal(PyList_New(size));
  if (made) PyObject_GC_UnTrack(made.get());
  return made;
}

PyObject* finish_list(ref& list) {
  PyObject_GC_Track(list.get());
  return list.release();
}

bool decode_plan::append(const core::row_description& description, const core::row_store& rows, ref& list) const {
  core::row_walk at(rows);
  const bool fresh = !list;
  if (fresh && !(list = new_list(static_cast<Py_ssize_t>(rows.size())))) return false;
  for (const auto before = fresh ? 0 : PyList_GET_SIZE(list.get()); const char* message = at.take();) {
    const auto index = static_cast<Py_ssize_t>(at.taken()) - 1;
    auto record = ref::steal(row(description, message, static_cast<std::size_t>(before + index)));
    if (!record) return false;
    if (fresh)
      PyList_SET_ITEM(list.get(), index, record.release());
    else if (PyList_Append(list.get(), record.get()) < 0)
      return false;
  }
  return true;
}

PyObject* decode_plan::first_value(const core::row_description& description, const char* message,
                                   std::size_t index) const {
  if (steps.empty()) return raise_interface_error("a first value was asked for, but the rows have no columns");
  const char* p = message + row_header;
  const auto length = wire::load_int32(p);
  if (length < 0) return Py_NewRef(Py_None);
  PyObject* value = steps[0].decode(p + 4, static_cast<std::size_t>(length), *steps[0].type);
  if (value == nullptr) locate_bad_value(description, index, 0);
  return value;
}

PyObject* plan_columns(decode_plan& plan, const core::row_description& description) {
  if (plan.columns != nullptr) return Py_NewRef(plan.columns);
  const auto size = static_cast<Py_ssize_t>(description.columns.size());
  auto made = ref::steal(PyTuple_New(size));
  if (!made) return nullptr;
  for (Py_ssize_t i = 0; i < size; ++i) {
    const auto& from = description.columns[static_cast<std::size_t>(i)];
    auto column = ref::steal(PyStructSequence_New(column_type));
    if (!column) return nullptr;
    const bool text = plan.steps[static_cast<std::size_t>(i)].type == &text_codec;
    PyObject* const fields[] = {Py_NewRef(PyTuple_GET_ITEM(plan.descriptor->names, i)),
                                PyUnicode_FromString(type_name(from.type_oid)),
                                PyLong_FromUnsignedLong(from.type_oid),
                                PyLong_FromLong(from.typmod),
                                PyLong_FromLong(from.type_size),
                                PyLong_FromUnsignedLong(from.table_oid),
                                PyLong_FromLong(text ? 0 : 1)};
    Py_ssize_t at = 0;
    for (auto* field : fields) PyStructSequence_SetItem(column.get(), at++, field);
    if (PyErr_Occurred()) return nullptr;
    PyTuple_SET_ITEM(made.get(), i, column.release());
  }
  if (plan.columns == nullptr) plan.columns = Py_NewRef(made.get());
  return made.release();
}

int register_column(PyObject* module) {
  static PyStructSequence_Field fields[] = {
      {"name", "the column's name"},
      {"type_name", "the type's name, int4 or int4[]; the OID in digits where the type is not built in"},
      {"type_oid", "the type's OID"},
      {"typmod", "the type's modifier, -1 for none"},
      {"size", "the type's size in bytes, negative where it varies (pg_type.typlen)"},
      {"table_oid", "the OID of the table that it is a column of, else 0"},
      {"format", "0 text, 1 binary: how the values come off the wire"},
      {nullptr, nullptr}};
  static PyStructSequence_Desc description = {"pgpoll.core.Column", "One column of a result (RowDescription).", fields,
                                              7};
  column_type = PyStructSequence_NewType(&description);
  if (column_type == nullptr) return -1;
  return PyModule_AddObjectRef(module, "Column", reinterpret_cast<PyObject*>(column_type));
}

}  // namespace pgpoll::py
