// _surely(method, undo): a method that is undone where it raises. Called from C, `undo` runs also where a signal
// handler has raised at the first instruction of `method`, before any `try` of its own.
#include "py/mutex.hpp"

namespace pgpoll::py {
namespace {

PyTypeObject* the_type = nullptr;

struct surely_object {
  PyObject_HEAD PyObject* method;
  PyObject* undo;
};

surely_object* self_of(PyObject* object) {
  return reinterpret_cast<surely_object*>(object);
}

PyObject* call(PyObject* object, PyObject* args, PyObject* keywords) {
  auto* self = self_of(object);
  auto* result = PyObject_Call(self->method, args, keywords);
  if (result != nullptr || PyTuple_GET_SIZE(args) == 0) return result;
  auto raised = pending_error::fetch();
  const auto error = ref::steal(raised.take());
  // What that raises is no news: the first exception of two is raised.
  if (!ref::steal(PyObject_CallFunctionObjArgs(self->undo, PyTuple_GET_ITEM(args, 0), error.get(), nullptr)))
    PyErr_Clear();
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.get())), error.get());
  return nullptr;
}

PyObject* bind(PyObject* object, PyObject* instance, PyObject*) {
  return instance == nullptr ? Py_NewRef(object) : PyMethod_New(object, instance);
}

PyObject* doc(PyObject* object, void*) {
  return PyObject_GetAttrString(self_of(object)->method, "__doc__");
}

PyObject* wrapped(PyObject* object, void*) {
  return Py_NewRef(self_of(object)->method);
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self_of(object)->method);
  Py_VISIT(self_of(object)->undo);
  return 0;
}

int clear(PyObject* object) {
  Py_CLEAR(self_of(object)->method);
  Py_CLEAR(self_of(object)->undo);
  return 0;
}

void dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  clear(object);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyGetSetDef properties[] = {{"__doc__", doc, nullptr, nullptr, nullptr},
                            {"__wrapped__", wrapped, nullptr, nullptr, nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_call, slot(call)},
                       {Py_tp_descr_get, slot(bind)},
                       {Py_tp_dealloc, slot(dealloc)},
                       {Py_tp_traverse, slot(traverse)},
                       {Py_tp_clear, slot(clear)},
                       {Py_tp_getset, properties},
                       {0, nullptr}};

PyType_Spec spec = {
    "pgpoll.core._Surely", sizeof(surely_object), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

PyObject* surely(PyObject*, PyObject* args) {
  PyObject* method = nullptr;
  PyObject* undo = nullptr;
  if (!PyArg_ParseTuple(args, "OO:_surely", &method, &undo)) return nullptr;
  auto* made = self_of(the_type->tp_alloc(the_type, 0));
  if (made == nullptr) return nullptr;
  made->method = Py_NewRef(method);
  made->undo = Py_NewRef(undo);
  return reinterpret_cast<PyObject*>(made);
}

int register_surely() {
  the_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return the_type == nullptr ? -1 : 0;
}

}  // namespace pgpoll::py
