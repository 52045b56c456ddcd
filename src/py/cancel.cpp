// Cancel: a CancelRequest on a socket of its own. Its Connection writes no other request until it has reached its end,
// which it tells by itself: the peer's end of stream, a failure, close_fd() or deallocation.
#include "py/connection.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"
#include "py/trace.hpp"

namespace pgpoll::py {
namespace {

PyTypeObject* the_cancel_type = nullptr;

struct cancel_object {
  PyObject_HEAD net::client* client;
  connection_object* connection;  // owned
  bool ended;
  bool delivered;  // the server has closed the socket after the request
};

cancel_object* self_of(PyObject* object) {
  return reinterpret_cast<cancel_object*>(object);
}

// False with an exception set, where the loop could not be told.
bool end(cancel_object* self) {
  if (std::exchange(self->ended, true)) return true;
  auto* connection = self->connection;
  if (--connection->cancels != 0 || connection->base.generation != fork_generation()) return true;
  if (connection->client->session().ended()) return true;
  connection->client->session().cancel_ended();
  connection->client->session().pump();  // the request's end may have come before the socket's
  stamp(&connection->base);
  connection->base.unflushed = true;
  return give_notice(connection);
}

PyObject* poll(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!check_process(&self->connection->base)) return nullptr;
    int flags = self->client->poll();
    // Nobody takes its one operation: the end is told by done().
    while (auto op = self->client->session().next_completed())
      if (op->state == core::operation::state::succeeded) self->delivered = true;
    if (self->client->session().ended()) {
      flags = net::closed;
      if (!end(self)) return nullptr;
    }
    return PyLong_FromLong(flags & ~net::ready);
  });
}

PyObject* done(PyObject* object, PyObject*) {
  return PyBool_FromLong(self_of(object)->ended);
}
PyObject* delivered(PyObject* object, PyObject*) {
  return PyBool_FromLong(self_of(object)->delivered);
}
PyObject* fileno_method(PyObject* object, PyObject*) {
  return PyLong_FromLong(self_of(object)->client->fileno());
}

PyObject* close_fd_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    self->client->close_fd();
    if (!end(self)) return nullptr;
    Py_RETURN_NONE;
  });
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(as_object(self_of(object)->connection));
  return 0;
}

void finalize(PyObject* object) {
  auto* self = self_of(object);
  auto raised = pending_error::fetch();
  self->client->close_fd();
  if (!guarded([&] { return end(self); }, false)) PyErr_WriteUnraisable(object);
  raised.restore();
}

void dealloc(PyObject* object) {
  if (PyObject_CallFinalizerFromDealloc(object) < 0) return;
  auto* self = self_of(object);
  PyObject_GC_UnTrack(object);
  Py_CLEAR(self->connection);
  delete self->client;
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"fileno", fileno_method, METH_NOARGS, "The socket; -1 without one."},
    {"poll", poll, METH_NOARGS, "As Connection.poll(): WAIT_READ, WAIT_WRITE; CLOSED at its end."},
    {"done", done, METH_NOARGS, "Whether the socket has reached its end."},
    {"delivered", delivered, METH_NOARGS, "Whether it ended because the server has taken it."},
    {"close_fd", close_fd_method, METH_NOARGS, "Gives up and closes the socket; unregister it first."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {{Py_tp_dealloc, slot(dealloc)},
                       {Py_tp_finalize, slot(finalize)},
                       {Py_tp_traverse, slot(traverse)},
                       {Py_tp_methods, methods},
                       {Py_tp_doc, const_cast<char*>("A CancelRequest under way.")},
                       {0, nullptr}};

PyType_Spec spec = {
    "pgpoll.core.Cancel", sizeof(cancel_object), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

PyObject* start_cancel(connection_object* self) {
  if (!check_process(&self->base)) return nullptr;
  auto& session = self->client->session();
  if (session.ended()) return raise_interface_error("the connection is closed");
  const auto* peer = self->client->peer();
  if (peer == nullptr || !session.key()) return raise_interface_error("the server has given no key to cancel with");
  auto client = std::make_unique<net::client>(core::settings{}, std::vector<net::address>{*peer}, self->client->tcp());
  client->session().start_cancel(*session.key());
  client->start();
  if (!trace_if_asked(*client)) PyErr_WriteUnraisable(as_object(self));  // it matters more that it is sent
  auto* cancel = reinterpret_cast<cancel_object*>(the_cancel_type->tp_alloc(the_cancel_type, 0));
  if (cancel == nullptr) return nullptr;
  cancel->client = client.release();
  cancel->connection = self;
  Py_INCREF(as_object(self));
  if (self->cancels++ == 0) session.cancel_started();
  return reinterpret_cast<PyObject*>(cancel);
}

int register_cancel(PyObject* module) {
  the_cancel_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return the_cancel_type == nullptr ? -1 : PyModule_AddType(module, the_cancel_type);
}

}  // namespace pgpoll::py
