#include "py/session_object.hpp"

#include <cstring>
#include <vector>

#include "py/driver.hpp"
#include "py/errors.hpp"
#include "py/operation.hpp"
#include "py/settings.hpp"

namespace pgpoll::py {
namespace {

struct session_object {
  driver_object base;
};

driver_object* driver_of(PyObject* object) {
  return &reinterpret_cast<session_object*>(object)->base;
}
core::session& session_of(PyObject* object) {
  return *driver_of(object)->session;
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject* names) {
  static const char* keywords[] = {"options", nullptr};
  PyObject* options = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, names, "O:Session", const_cast<char**>(keywords), &options)) return nullptr;
  return guarded([&]() -> PyObject* {
    core::settings settings;
    if (!read_settings(options, settings)) return nullptr;
    auto session = std::make_unique<core::session>(std::move(settings));
    auto* self = type->tp_alloc(type, 0);
    if (self == nullptr) return nullptr;
    driver_of(self)->session = session.release();
    driver_of(self)->pipeline = true;
    driver_of(self)->generation = fork_generation();
    return self;
  });
}

// Pumps, and encodes what is described, until nothing moves any more.
PyObject* advance(PyObject* object) {
  auto* driver = driver_of(object);
  auto held = ref::borrow(object);
  if (driver->advancing) return raise_interface_error("pump() inside pump()");
  advance_guard within(driver);
  driver->session->pump();
  while (encode_described(driver)) driver->session->pump();
  Py_RETURN_NONE;
}

PyObject* start_connect_method(PyObject* object, PyObject*) {
  return guarded([&] { return start_connect(driver_of(object)); });
}

PyObject* receive(PyObject* object, PyObject* args) {
  Py_buffer bytes;
  if (!PyArg_ParseTuple(args, "y*:receive", &bytes)) return nullptr;
  auto* out = guarded([&]() -> PyObject* {
    if (driver_of(object)->advancing) return raise_interface_error("receive() inside pump()");
    auto size = static_cast<std::size_t>(bytes.len);
    if (size != 0) {
      std::memcpy(session_of(object).prepare(size).data(), bytes.buf, size);
      session_of(object).commit(size);
    }
    return advance(object);
  });
  PyBuffer_Release(&bytes);
  return out;
}

PyObject* eof(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    session_of(object).eof();
    return advance(object);
  });
}

PyObject* pump(PyObject* object, PyObject*) {
  return guarded([&] { return advance(object); });
}

PyObject* outbound(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto bytes = session_of(object).outbound();
    auto out = ref::steal(PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size())));
    if (!out) return nullptr;
    session_of(object).sent(bytes.size());
    driver_of(object)->unflushed = driver_of(object)->burst = false;
    return out.release();
  });
}

PyObject* cancel_started(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    session_of(object).cancel_started();
    Py_RETURN_NONE;
  });
}

PyObject* cancel_ended(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    session_of(object).cancel_ended();
    return advance(object);
  });
}

PyObject* fail(PyObject* object, PyObject* args) {
  const char* message = nullptr;
  if (!PyArg_ParseTuple(args, "s:fail", &message)) return nullptr;
  return guarded([&]() -> PyObject* {
    core::failure why;
    why.message = message;
    session_of(object).fail(std::move(why));
    Py_RETURN_NONE;
  });
}

PyObject* backend_key(PyObject* object, void*) {
  const auto& key = session_of(object).key();
  if (!key) Py_RETURN_NONE;
  return Py_BuildValue("(iy#)", key->pid, key->secret.data(), static_cast<Py_ssize_t>(key->secret.size()));
}
PyObject* parameters(PyObject* object, void*) {
  return guarded([&] { return parameters_dict(session_of(object)); });
}
PyObject* ended(PyObject* object, void*) {
  return PyBool_FromLong(session_of(object).ended());
}
int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  return traverse_driver(driver_of(object), visit, arg);
}

int clear(PyObject* object) {
  release_operations(driver_of(object));
  return 0;
}

void dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  if (!session_of(object).ended()) fail_for_drop(driver_of(object));
  clear(object);
  delete driver_of(object)->session;
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef methods[] = {{"start_connect", start_connect_method, METH_NOARGS, nullptr},
                         {"receive", receive, METH_VARARGS, "Takes bytes of the server, and pumps."},
                         {"eof", eof, METH_NOARGS, "The server has closed its side."},
                         {"outbound", outbound, METH_NOARGS, "Takes all the bytes for the server."},
                         {"pump", pump, METH_NOARGS, "Makes all the progress that is possible."},
                         {"cancel_started", cancel_started, METH_NOARGS, "A CancelRequest is under way."},
                         {"cancel_ended", cancel_ended, METH_NOARGS, "Its socket has reached its end."},
                         {"fail", fail, METH_VARARGS, "fail(message): the connection is lost."},
                         {nullptr, nullptr, 0, nullptr}};

PyGetSetDef properties[] = {{"backend_key", backend_key, nullptr, "(pid, secret), or None.", nullptr},
                            {"parameters", parameters, nullptr, "A copy of what ParameterStatus has told.", nullptr},
                            {"ended", ended, nullptr, "Lost or closed.", nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};

}  // namespace

int register_session(PyObject* module) {
  static auto all_methods = joined({methods, driver_methods, stream_methods});
  static auto all_properties = joined({properties, driver_properties});
  PyType_Slot slots[] = {{Py_tp_new, slot(make)},
                         {Py_tp_dealloc, slot(dealloc)},
                         {Py_tp_traverse, slot(traverse)},
                         {Py_tp_clear, slot(clear)},
                         {Py_tp_methods, all_methods.data()},
                         {Py_tp_getset, all_properties.data()},
                         {Py_tp_doc, const_cast<char*>("The conversation without a socket; every request pipelines.")},
                         {0, nullptr}};
  PyType_Spec spec = {"pgpoll.core.Session", sizeof(session_object), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};
  auto* type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type == nullptr ? -1 : PyModule_AddType(module, type);
}

}  // namespace pgpoll::py
