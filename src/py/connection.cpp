#include "py/connection.hpp"

#include <vector>

#include "py/codecs/codecs.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"
#include "py/operation.hpp"
#include "py/settings.hpp"
#include "py/trace.hpp"

namespace pgpoll::py {
namespace {

PyTypeObject* the_connection_type = nullptr;

driver_object* driver_of(PyObject* object) {
  return &as_connection(object)->base;
}
const core::session& session_of(PyObject* object) {
  return *driver_of(object)->session;
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject* names) {
  static const char* keywords[] = {"options", "pipeline", "max_queued", nullptr};
  PyObject* options = nullptr;
  int pipeline = 0;
  Py_ssize_t max_queued = 0;
  if (!PyArg_ParseTupleAndKeywords(args, names, "O|$pn:Connection", const_cast<char**>(keywords), &options, &pipeline,
                                   &max_queued))
    return nullptr;
  return guarded([&]() -> PyObject* {
    core::settings settings;
    std::vector<net::address> addresses;
    net::tcp_options tcp;
    std::string reasons;
    if (!read_settings(options, settings) || !read_addresses(options, addresses) || !read_tcp_options(options, tcp) ||
        !read_lookup_failures(options, reasons))
      return nullptr;
    auto client = std::make_unique<net::client>(std::move(settings), std::move(addresses), tcp, std::move(reasons));
    if (!trace_if_asked(*client)) return nullptr;
    auto* self = reinterpret_cast<connection_object*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    self->client = client.release();
    self->base.session = &self->client->session();
    self->base.pipeline = pipeline != 0;
    self->base.max_queued = max_queued > 0 ? static_cast<std::size_t>(max_queued) : 0;
    self->base.generation = fork_generation();
    return as_object(self);
  });
}

PyObject* start_connect_method(PyObject* object, PyObject*) {
  return guarded([&] {
    auto* operation = start_connect(driver_of(object));
    if (operation != nullptr) as_connection(object)->client->start();
    return operation;
  });
}

PyObject* start_cancel_method(PyObject* object, PyObject*) {
  return guarded([&] { return start_cancel(as_connection(object)); });
}

PyObject* poll(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    int flags = 0;
    return advance(as_connection(object), flags) ? PyLong_FromLong(flags) : nullptr;
  });
}

PyObject* flush_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    int flags = 0;
    return flush(as_connection(object), flags) ? PyLong_FromLong(flags) : nullptr;
  });
}

PyObject* fileno_method(PyObject* object, PyObject*) {
  return PyLong_FromLong(as_connection(object)->client->fileno());
}

PyObject* close_fd_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    close_fd(as_connection(object));
    Py_RETURN_NONE;
  });
}

PyObject* terminate_method(PyObject* object, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const char* why = "closed";
    if (PyArg_ParseTuple(args, "|s:terminate", &why) == 0) return nullptr;
    auto* self = as_connection(object);
    auto held = ref::borrow(object);
    terminate(self, why);
    // Elsewhere than in the loop nothing of the loop may be called: it learns from its reader.
    if (runs_in_loop(self) && !settle(self, false)) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* wait(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "wait(operation, seconds)");
    return nullptr;
  }
  double seconds = PyFloat_AsDouble(args[1]);
  if (seconds == -1.0 && PyErr_Occurred() != nullptr) return nullptr;
  return guarded([&] { return wait_for(as_connection(object), args[0], seconds); });
}

PyObject* backend_pid(PyObject* object, void*) {
  const auto& key = session_of(object).key();
  return PyLong_FromLong(key ? key->pid : 0);
}
PyObject* server_parameters(PyObject* object, void*) {
  return guarded([&] { return parameters_dict(session_of(object)); });
}
PyObject* closed(PyObject* object, void*) {
  return PyBool_FromLong(session_of(object).ended());
}
PyObject* why_closed(PyObject* object, void*) {
  const auto& why = session_of(object).why_ended();
  if (!why) Py_RETURN_NONE;
  return guarded([&] { return make_error(*why, core::operation{}).release(); });
}
PyObject* notices_dropped(PyObject* object, void*) {
  return PyLong_FromUnsignedLongLong(session_of(object).notices_dropped());
}
PyObject* news(PyObject* object, void*) {
  const auto& session = session_of(object);
  return PyBool_FromLong(driver_of(object)->observer != nullptr || session.has_notices() ||
                         session.has_notifications());
}
PyObject* repr(PyObject* object) {
  auto* self = as_connection(object);
  const auto& session = self->client->session();
  const char* state = session.ended() ? "closed" : session.open() ? "connected" : "not connected";
  return PyUnicode_FromFormat("<pgpoll.core.Connection %s pid=%d fd=%d at %p>", state,
                              session.key() ? static_cast<int>(session.key()->pid) : 0, self->client->fileno(), object);
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  if (int stop = traverse_driver(driver_of(object), visit, arg)) return stop;
  return traverse_side(as_connection(object), visit, arg);
}

int clear(PyObject* object) {
  clear_side(as_connection(object));
  release_operations(driver_of(object));
  return 0;
}

// Dropped: Terminate leaves, the socket is closed, and whoever forgot close() is told. In the child of a fork nothing
// is sent on what is the parent's socket.
void finalize(PyObject* object) {
  auto* self = as_connection(object);
  auto raised = pending_error::fetch();
  guarded(
      [&] {
        if (self->base.generation == fork_generation()) {
          if (self->client->session().open() && PyErr_ResourceWarning(object, 1, "unclosed %R", object) < 0)
            PyErr_WriteUnraisable(object);
          self->client->terminate();
        }
        self->client->close_fd();
        return true;
      },
      false);
  if (PyErr_Occurred() != nullptr) PyErr_WriteUnraisable(object);
  raised.restore();
}

void dealloc(PyObject* object) {
  auto* self = as_connection(object);
  if (PyObject_CallFinalizerFromDealloc(object) < 0) return;
  PyObject_GC_UnTrack(object);
  clear(object);
  delete self->client;
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* unfinished(PyObject* object, PyObject*) {
  return unfinished_operations(driver_of(object));
}

PyMethodDef methods[] = {
    {"start_connect", start_connect_method, METH_NOARGS, "Connects, at the next poll() on; once."},
    {"start_cancel", start_cancel_method, METH_NOARGS, "A CancelRequest on its own socket: a Cancel."},
    {"poll", poll, METH_NOARGS, "All the progress that can be made without blocking: flags."},
    {"flush", flush_method, METH_NOARGS, "Sends what it can, reads nothing: WAIT_WRITE or 0."},
    {"fileno", fileno_method, METH_NOARGS, "The socket; -1 without one."},
    {"close_fd", close_fd_method, METH_NOARGS, "Closes the socket now; unregister it first."},
    {"terminate", terminate_method, METH_VARARGS,
     "terminate(why): ends everything now; the socket stays open until close_fd()."},
    {"_unfinished", unfinished, METH_NOARGS, "The Operations in flight that somebody should want."},
    {"wait", method(wait), METH_FASTCALL, "wait(operation, seconds): polls until it is done; False when time is up."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef properties[] = {
    {"backend_pid", backend_pid, nullptr, "0 before it is known.", nullptr},
    {"server_parameters", server_parameters, nullptr, "A copy of what ParameterStatus has told.", nullptr},
    {"closed", closed, nullptr, "Lost or closed.", nullptr},
    {"why_closed", why_closed, nullptr, "The error that ended it, made anew; None while it is open.", nullptr},
    {"notices_dropped", notices_dropped, nullptr, "How many, because nobody took those before.", nullptr},
    {"_news", news, nullptr, "Whether notices or notifications wait to be taken, or somebody observes.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

}  // namespace

PyTypeObject* connection_type() {
  return the_connection_type;
}

int register_connection(PyObject* module) {
  static auto all_methods = joined({methods, driver_methods, loop_methods, stream_methods, observing_methods});
  static auto all_properties = joined({properties, driver_properties});
  PyType_Slot slots[] = {{Py_tp_new, slot(make)},
                         {Py_tp_dealloc, slot(dealloc)},
                         {Py_tp_finalize, slot(finalize)},
                         {Py_tp_traverse, slot(traverse)},
                         {Py_tp_clear, slot(clear)},
                         {Py_tp_repr, slot(repr)},
                         {Py_tp_methods, all_methods.data()},
                         {Py_tp_getset, all_properties.data()},
                         {Py_tp_doc, const_cast<char*>("One connection on the poll API; see core.pyi.")},
                         {0, nullptr}};
  PyType_Spec spec = {"pgpoll.core.Connection", sizeof(connection_object), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};
  the_connection_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return the_connection_type == nullptr ? -1 : PyModule_AddType(module, the_connection_type);
}

}  // namespace pgpoll::py
