#include "py/awaitable.hpp"

#include <structmember.h>

#include <cstddef>

#include "py/connection.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"

namespace pgpoll::py {
namespace {

PyTypeObject* the_waiter_type = nullptr;

waiter_object* self_of(PyObject* object) {
  return reinterpret_cast<waiter_object*>(object);
}

bool is_task(const loop_side& side, PyObject* object) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(side.task_types); ++i)
    if (PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(side.task_types, i)))) return true;
  return false;
}

// The wake-up that a task registers is a bound method of it, in C (a builtin) or in Python.
bool belongs_to_task(const loop_side& side, PyObject* callback) {
  if (PyCFunction_Check(callback)) {
    auto* owner = PyCFunction_GET_SELF(callback);
    return owner != nullptr && is_task(side, owner);
  }
  return PyMethod_Check(callback) && is_task(side, PyMethod_GET_SELF(callback));
}

// Runs the task's step here; false where it raised.
bool step(waiter_object* self, PyObject* callback, PyObject* context) {
  if (PyContext_Enter(context) < 0) return false;
  auto outcome = ref::steal(PyObject_CallOneArg(callback, as_object(self)));
  auto raised = outcome ? pending_error() : pending_error::fetch();
  bool left = PyContext_Exit(context) == 0;
  if (raised) raised.restore();
  return outcome && left;
}

bool schedule_all(waiter_object* self) {
  auto callback = ref::steal(std::exchange(self->callback, nullptr));
  auto context = ref::steal(std::exchange(self->context, nullptr));
  auto more = ref::steal(std::exchange(self->more, nullptr));
  if (callback && !call_soon(self->connection, callback.get(), as_object(self), context.get())) return false;
  for (Py_ssize_t i = 0; more && i < PyList_GET_SIZE(more.get()); ++i) {
    auto* pair = PyList_GET_ITEM(more.get(), i);
    if (!call_soon(self->connection, PyTuple_GET_ITEM(pair, 0), as_object(self), PyTuple_GET_ITEM(pair, 1)))
      return false;
  }
  return true;
}

// From here on the outcome is fixed. The operation lets go of it, so the caller holds a reference.
void finish(waiter_object* self) {
  self->finished = true;
  if (self->operation->waiter == self) Py_CLEAR(self->operation->waiter);
}

ref cancelled_error(waiter_object* self) {
  auto* kind = self->connection->side.cancelled_error;
  const bool bare = self->cancel_message == nullptr || self->cancel_message == Py_None;
  return ref::steal(bare ? PyObject_CallNoArgs(kind) : PyObject_CallOneArg(kind, self->cancel_message));
}

// Ends the interest in the operation before its reply was handed out; the wake comes from the loop.
bool give_up(waiter_object* self) {
  auto held = ref::borrow(as_object(self));
  finish(self);
  if (self->shielded) return schedule_all(self);
  auto connection = ref::borrow(as_object(self->connection));
  auto error = ref::borrow(self->expired);
  if (!error && self->operation->observed != nullptr && !(error = cancelled_error(self))) PyErr_Clear();
  abandon(self->operation, error.get());
  return schedule_all(self) && give_notice(self->connection) && tell_at_once(&self->connection->base);
}

PyObject* raise_cancelled(waiter_object* self) {
  if (auto error = cancelled_error(self)) PyErr_SetObject(self->connection->side.cancelled_error, error.get());
  return nullptr;
}

PyObject* outcome(waiter_object* self) {
  if (!self->finished) return raise_interface_error("the request is not finished");
  if (self->cancelled) return raise_cancelled(self);
  if (self->expired != nullptr) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(self->expired)), self->expired);
    return nullptr;
  }
  if (self->shielded) Py_RETURN_NONE;
  return guarded([&] { return operation_result(self->operation); });
}

PySendResult am_send(PyObject* object, PyObject*, PyObject** out) {
  auto* self = self_of(object);
  if (!self->finished && self->operation->op->done()) {  // before anybody awaited it
    if (!self->shielded) take(self->operation);
    finish(self);
    if (!self->shielded && !guarded([&] { return report(&self->connection->base, self->operation); }, false)) {
      *out = nullptr;
      return PYGEN_ERROR;
    }
  }
  if (self->finished) {
    *out = outcome(self);
    return *out != nullptr ? PYGEN_RETURN : PYGEN_ERROR;
  }
  if (self->blocking || self->callback != nullptr) {
    *out = nullptr;
    PyErr_SetString(PyExc_RuntimeError, "a request is awaited once, by one task");
    return PYGEN_ERROR;
  }
  self->blocking = 1;
  *out = Py_NewRef(object);
  return PYGEN_NEXT;
}

PyObject* iternext(PyObject* object) {
  PyObject* value = nullptr;
  if (am_send(object, Py_None, &value) != PYGEN_RETURN) return value;
  auto held = ref::steal(value);
  // An exception or a tuple as the value would be taken apart by PyErr_SetObject.
  auto stop = ref::steal(PyObject_CallOneArg(PyExc_StopIteration, value));
  if (stop) PyErr_SetObject(PyExc_StopIteration, stop.get());
  return nullptr;
}

PyObject* send(PyObject* object, PyObject*) {
  return iternext(object);
}

PyObject* close(PyObject* object, PyObject*) {
  auto* self = self_of(object);
  if (!self->finished && !guarded([&] { return give_up(self); }, false)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* get_loop(PyObject* object, PyObject*) {
  return Py_NewRef(self_of(object)->connection->side.loop);
}

bool add_callback(waiter_object* self, PyObject* callback, PyObject* context) {
  auto held = context == nullptr || context == Py_None ? ref::steal(PyContext_CopyCurrent()) : ref::borrow(context);
  if (!held) return false;
  if (self->finished) return call_soon(self->connection, callback, as_object(self), held.get());
  if (self->callback == nullptr) {
    self->callback = Py_NewRef(callback);
    self->context = held.release();
    return true;
  }
  if (self->more == nullptr && (self->more = PyList_New(0)) == nullptr) return false;
  auto pair = ref::steal(PyTuple_Pack(2, callback, held.get()));
  return pair && PyList_Append(self->more, pair.get()) == 0;
}

PyObject* add_done_callback(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  Py_ssize_t keywords = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  if (count != 1 || keywords > 1 ||
      (keywords == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "context") != 0)) {
    PyErr_SetString(PyExc_TypeError, "add_done_callback(fn, *, context=None)");
    return nullptr;
  }
  if (!guarded([&] { return add_callback(self_of(object), args[0], keywords == 1 ? args[1] : nullptr); }, false))
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* remove_done_callback(PyObject* object, PyObject* callback) {
  auto* self = self_of(object);
  Py_ssize_t removed = 0;
  for (Py_ssize_t i = self->more == nullptr ? 0 : PyList_GET_SIZE(self->more); i-- > 0;) {
    int same = PyObject_RichCompareBool(PyTuple_GET_ITEM(PyList_GET_ITEM(self->more, i), 0), callback, Py_EQ);
    if (same < 0 || (same == 1 && PySequence_DelItem(self->more, i) < 0)) return nullptr;
    removed += same;
  }
  if (self->callback != nullptr) {
    int same = PyObject_RichCompareBool(self->callback, callback, Py_EQ);
    if (same < 0) return nullptr;
    if (same == 1) {
      Py_CLEAR(self->callback);
      Py_CLEAR(self->context);
      ++removed;
    }
  }
  return PyLong_FromSsize_t(removed);
}

PyObject* done(PyObject* object, PyObject*) {
  return PyBool_FromLong(self_of(object)->finished);
}
PyObject* cancelled(PyObject* object, PyObject*) {
  return PyBool_FromLong(self_of(object)->cancelled);
}
PyObject* result(PyObject* object, PyObject*) {
  return outcome(self_of(object));
}

PyObject* exception(PyObject* object, PyObject*) {
  auto* self = self_of(object);
  if (!self->finished || self->cancelled) return outcome(self);
  if (auto value = ref::steal(outcome(self))) Py_RETURN_NONE;
  auto raised = pending_error::fetch();
  return raised.take();
}

PyObject* cancel(PyObject* object, PyObject* args, PyObject* names) {
  static const char* keywords[] = {"msg", nullptr};
  PyObject* message = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, names, "|O:cancel", const_cast<char**>(keywords), &message)) return nullptr;
  return guarded([&] { return waiter_cancel(self_of(object), message); });
}

PyObject* expire(PyObject* object, PyObject* error) {
  auto* self = self_of(object);
  if (!PyExceptionInstance_Check(error)) {
    PyErr_SetString(PyExc_TypeError, "expire() takes an exception");
    return nullptr;
  }
  if (self->finished) Py_RETURN_FALSE;
  self->expired = Py_NewRef(error);
  if (!guarded([&] { return give_up(self); }, false)) return nullptr;
  Py_RETURN_TRUE;
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  auto* self = self_of(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(as_object(self->connection));
  Py_VISIT(as_object(self->operation));
  Py_VISIT(self->callback);
  Py_VISIT(self->context);
  Py_VISIT(self->more);
  Py_VISIT(self->cancel_message);
  Py_VISIT(self->expired);
  return 0;
}

// The connection and the operation stay until deallocation: every method relies on them.
int clear(PyObject* object) {
  auto* self = self_of(object);
  Py_CLEAR(self->callback);
  Py_CLEAR(self->context);
  Py_CLEAR(self->more);
  Py_CLEAR(self->cancel_message);
  Py_CLEAR(self->expired);
  return 0;
}

void dealloc(PyObject* object) {
  auto* self = self_of(object);
  PyObject_GC_UnTrack(object);
  clear(object);
  Py_CLEAR(self->operation);
  Py_CLEAR(self->connection);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"send", send, METH_O, nullptr},
    {"close", close, METH_NOARGS, "Abandons the request."},
    {"get_loop", get_loop, METH_NOARGS, nullptr},
    {"add_done_callback", method(add_done_callback), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"remove_done_callback", remove_done_callback, METH_O, nullptr},
    {"done", done, METH_NOARGS, nullptr},
    {"cancelled", cancelled, METH_NOARGS, nullptr},
    {"result", result, METH_NOARGS, nullptr},
    {"exception", exception, METH_NOARGS, nullptr},
    {"cancel", method(cancel), METH_VARARGS | METH_KEYWORDS,
     "Abandons the request; False once its reply was handed out."},
    {"expire", expire, METH_O, "Abandons the request; who awaits it gets this exception. False once it is finished."},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef members[] = {{"_asyncio_future_blocking", T_BOOL, offsetof(waiter_object, blocking), 0, nullptr},
                         {nullptr, 0, 0, 0, nullptr}};

PyType_Slot slots[] = {{Py_tp_dealloc, slot(dealloc)},   {Py_tp_traverse, slot(traverse)},
                       {Py_tp_clear, slot(clear)},       {Py_tp_methods, methods},
                       {Py_tp_members, members},         {Py_tp_iter, slot(PyObject_SelfIter)},
                       {Py_tp_iternext, slot(iternext)}, {Py_am_await, slot(PyObject_SelfIter)},
                       {Py_am_send, slot(am_send)},      {0, nullptr}};

PyType_Spec spec = {
    "pgpoll.core.Waiter", sizeof(waiter_object), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

PyObject* waiter_new(connection_object* connection, operation_object* operation, bool shielded) {
  if (operation->waiter != nullptr) return raise_interface_error("the request is awaited already");
  auto* self = reinterpret_cast<waiter_object*>(the_waiter_type->tp_alloc(the_waiter_type, 0));
  if (self == nullptr) return nullptr;
  self->shielded = shielded;
  self->connection = connection;
  Py_INCREF(as_object(connection));
  self->operation = operation;
  Py_INCREF(as_object(operation));
  if (!operation->op->done()) {
    operation->waiter = self;
    Py_INCREF(as_object(self));
  }
  return as_object(self);
}

PyObject* waiter_cancel(waiter_object* self, PyObject* message) {
  if (self->finished) Py_RETURN_FALSE;
  self->cancelled = true;
  Py_XSETREF(self->cancel_message, Py_NewRef(message));
  if (!give_up(self)) return nullptr;
  Py_RETURN_TRUE;
}

bool waiter_wake(waiter_object* self, bool direct) {
  if (self->finished) return true;
  auto held = ref::borrow(as_object(self));
  finish(self);
  if (self->callback == nullptr) return true;
  if (!direct || self->more != nullptr || !belongs_to_task(self->connection->side, self->callback))
    return schedule_all(self);
  auto callback = ref::steal(std::exchange(self->callback, nullptr));
  auto context = ref::steal(std::exchange(self->context, nullptr));
  return step(self, callback.get(), context.get());
}

int register_waiter(PyObject* module) {
  the_waiter_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return the_waiter_type == nullptr ? -1 : PyModule_AddType(module, the_waiter_type);
}

}  // namespace pgpoll::py
