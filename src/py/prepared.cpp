// PreparedStatement: a statement that the server has parsed and described, and that holding it pins.

#include "py/codecs/codecs.hpp"
#include "py/errors.hpp"
#include "py/operation.hpp"
#include "py/result.hpp"

namespace pgpoll::py {
namespace {

PyTypeObject* the_prepared_type = nullptr;
PyTypeObject* the_parameter_type = nullptr;

const core::statement& statement_of(PyObject* object) {
  return *reinterpret_cast<prepared_object*>(object)->statement;
}

PyObject* name(PyObject* object, void*) {
  return decoded(statement_of(object).name).release();
}
PyObject* sql(PyObject* object, void*) {
  return decoded(statement_of(object).sql).release();
}

ref parameter_new(std::size_t number, std::uint32_t type_oid) {
  auto out = ref::steal(PyStructSequence_New(the_parameter_type));
  if (!out) return {};
  PyObject* values[] = {PyUnicode_FromFormat("$%zu", number), PyUnicode_FromString(type_name(type_oid)),
                        PyLong_FromUnsignedLong(type_oid)};
  bool complete = true;
  for (Py_ssize_t i = 0; i < 3; ++i) {
    complete = complete && values[i] != nullptr;
    PyStructSequence_SetItem(out.get(), i, values[i]);
  }
  return complete ? out : ref();
}

PyObject* parameters(PyObject* object, void*) {
  return guarded([&]() -> PyObject* {
    const auto& types = statement_of(object).parameter_types;
    auto out = ref::steal(PyTuple_New(static_cast<Py_ssize_t>(types.size())));
    if (!out) return nullptr;
    for (std::size_t i = 0; i < types.size(); ++i) {
      auto parameter = parameter_new(i + 1, types[i]);
      if (!parameter) return nullptr;
      PyTuple_SET_ITEM(out.get(), static_cast<Py_ssize_t>(i), parameter.release());
    }
    return out.release();
  });
}

PyObject* columns(PyObject* object, void*) {
  const auto& described = statement_of(object).columns;
  if (!described) Py_RETURN_NONE;
  return guarded([&] { return columns_new(described); });
}

PyObject* repr(PyObject* object) {
  auto text = decoded(statement_of(object).sql);
  return text ? PyUnicode_FromFormat("<pgpoll.core.PreparedStatement %s %R>", statement_of(object).name.c_str(),
                                     text.get())
              : nullptr;
}

void dealloc(PyObject* object) {
  auto& held = reinterpret_cast<prepared_object*>(object)->statement;
  --held->origin->count;
  held->origin->bytes -= held->sql.size();
  std::destroy_at(&held);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyGetSetDef properties[] = {{"name", name, nullptr, "Its name at the server.", nullptr},
                            {"sql", sql, nullptr, "Its text.", nullptr},
                            {"parameters", parameters, nullptr, "A tuple of (name, type_name, type_oid).", nullptr},
                            {"columns", columns, nullptr, "A tuple of Column; None where it returns no rows.", nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_dealloc, slot(dealloc)},
                       {Py_tp_repr, slot(repr)},
                       {Py_tp_getset, properties},
                       {Py_tp_doc, const_cast<char*>("What start_prepare() gives; start_execute() takes it for sql.")},
                       {0, nullptr}};

PyType_Spec spec = {"pgpoll.core.PreparedStatement", sizeof(prepared_object), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

PyStructSequence_Field parameter_fields[] = {
    {"name", "$1, $2, ..."}, {"type_name", nullptr}, {"type_oid", nullptr}, {nullptr, nullptr}};
PyStructSequence_Desc parameter_spec = {"pgpoll.core.Parameter", "A parameter of a prepared statement.",
                                        parameter_fields, 3};

}  // namespace

bool is_prepared(PyObject* object) {
  return Py_IS_TYPE(object, the_prepared_type);
}

PyObject* prepared_new(core::statement_ptr statement) {
  if (!statement) return raise_interface_error("the statement is not described");
  auto* self = reinterpret_cast<prepared_object*>(the_prepared_type->tp_alloc(the_prepared_type, 0));
  if (self == nullptr) return nullptr;
  ++statement->origin->count;
  statement->origin->bytes += statement->sql.size();
  std::construct_at(&self->statement, std::move(statement));
  return reinterpret_cast<PyObject*>(self);
}

int register_prepared(PyObject* module) {
  the_prepared_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  the_parameter_type = PyStructSequence_NewType(&parameter_spec);
  if (the_prepared_type == nullptr || the_parameter_type == nullptr) return -1;
  return PyModule_AddType(module, the_prepared_type) < 0 ? -1 : PyModule_AddType(module, the_parameter_type);
}

}  // namespace pgpoll::py
