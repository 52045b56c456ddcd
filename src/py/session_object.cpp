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

template <PyObject* (*Start)(driver_object*)>
PyObject* start_plain(PyObject* object, PyObject*) {
  return guarded([&] { return Start(driver_of(object)); });
}

template <PyObject* (*Start)(driver_object*, PyObject*)>
PyObject* start_sql(PyObject* object, PyObject* sql) {
  return guarded([&] { return Start(driver_of(object), sql); });
}

PyObject* start_execute_method(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] { return start_execute(driver_of(object), args, count); });
}

template <PyObject* (*Start)(driver_object*, PyObject* const*, Py_ssize_t)>
PyObject* start_with(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] { return Start(driver_of(object), args, count); });
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

PyObject* next_stirred_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    if (!check_process(driver_of(object))) return nullptr;
    return next_stirred(driver_of(object)).release();
  });
}

PyObject* next_completed_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto operation = next_completed(driver_of(object));
    return operation ? operation.release() : Py_NewRef(Py_None);
  });
}

PyObject* abandoned_head(PyObject* object, void*) {
  return PyLong_FromUnsignedLongLong(session_of(object).abandoned_head());
}

PyObject* cancel_too_old(PyObject* object, PyObject*) {
  session_of(object).cancel_too_old();
  Py_RETURN_NONE;
}

PyObject* cancel_wanted(PyObject* object, PyObject*) {
  return PyLong_FromLong(static_cast<long>(session_of(object).cancel_wanted()));
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

PyObject* take_notices(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] { return notices_list(session_of(object), args, count); });
}

PyObject* keep_notifications(PyObject* object, PyObject* keep) {
  const int kept = PyObject_IsTrue(keep);
  if (kept < 0) return nullptr;
  session_of(object).keep_notifications(kept == 1);
  Py_RETURN_NONE;
}

PyObject* take_notifications(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] { return notifications_list(session_of(object), args, count); });
}

PyObject* backend_key(PyObject* object, void*) {
  const auto& key = session_of(object).key();
  if (!key) Py_RETURN_NONE;
  return Py_BuildValue("(iy#)", key->pid, key->secret.data(), static_cast<Py_ssize_t>(key->secret.size()));
}
PyObject* transaction_status(PyObject* object, void*) {
  return status_text(session_of(object));
}
PyObject* parameters(PyObject* object, void*) {
  return guarded([&] { return parameters_dict(session_of(object)); });
}
PyObject* ended(PyObject* object, void*) {
  return PyBool_FromLong(session_of(object).ended());
}
PyObject* in_flight(PyObject* object, void*) {
  return PyLong_FromSize_t(session_of(object).in_flight());
}
PyObject* quiet(PyObject* object, void*) {
  return PyBool_FromLong(session_of(object).quiet());
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

PyMethodDef methods[] = {
    {"start_connect", start_plain<start_connect>, METH_NOARGS, nullptr},
    {"start_execute", method(start_execute_method), METH_FASTCALL, nullptr},
    {"start_prepare", start_sql<start_prepare>, METH_O, nullptr},
    {"start_script", start_sql<start_script>, METH_O, nullptr},
    {"start_command", start_sql<start_command>, METH_O, nullptr},
    {"_start_behind", start_sql<start_behind>, METH_VARARGS,
     "_start_behind(commands, outermost, start): a block begins."},
    {"start_batch", start_plain<start_batch>, METH_NOARGS, nullptr},
    {"start_executemany", start_sql<start_executemany>, METH_O, nullptr},
    {"start_copy_in", method(start_with<start_copy_in>), METH_FASTCALL, nullptr},
    {"start_copy_out", method(start_with<start_copy_out>), METH_FASTCALL, nullptr},
    {"start_close", start_plain<start_close>, METH_NOARGS, nullptr},
    {"receive", receive, METH_VARARGS, "Takes bytes of the server, and pumps."},
    {"eof", eof, METH_NOARGS, "The server has closed its side."},
    {"outbound", outbound, METH_NOARGS, "Takes all the bytes for the server."},
    {"pump", pump, METH_NOARGS, "Makes all the progress that is possible."},
    {"next_completed", next_completed_method, METH_NOARGS, "The oldest finished operation not yet taken, or None."},
    {"next_stirred", next_stirred_method, METH_NOARGS, "The next channel that has stirred, or None."},
    {"cancel_too_old", cancel_too_old, METH_NOARGS, "A CancelRequest of ours can't strike any more."},
    {"cancel_wanted", cancel_wanted, METH_NOARGS, "NONE, NOW or GRACE."},
    {"cancel_started", cancel_started, METH_NOARGS, "A CancelRequest is under way."},
    {"cancel_ended", cancel_ended, METH_NOARGS, "Its socket has reached its end."},
    {"fail", fail, METH_VARARGS, "fail(message): the connection is lost."},
    {"take_notices", method(take_notices), METH_FASTCALL, "The oldest notices not yet taken: dicts by field code."},
    {"keep_notifications", keep_notifications, METH_O, "Whether notifications are kept until they are taken."},
    {"take_notifications", method(take_notifications), METH_FASTCALL, "The oldest not yet taken."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef properties[] = {
    {"backend_key", backend_key, nullptr, "(pid, secret), or None.", nullptr},
    {"transaction_status", transaction_status, nullptr, "'I', 'T' or 'E'; '' before the first ReadyForQuery.", nullptr},
    {"parameters", parameters, nullptr, "A copy of what ParameterStatus has told.", nullptr},
    {"ended", ended, nullptr, "Lost or closed.", nullptr},
    {"abandoned_head", abandoned_head, nullptr, "The number of the abandoned request that runs; 0 for none.", nullptr},
    {"in_flight", in_flight, nullptr, "Requests started and not finished.", nullptr},
    {"quiet", quiet, nullptr, "Nothing in flight and nothing to send.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_new, slot(make)},
                       {Py_tp_dealloc, slot(dealloc)},
                       {Py_tp_traverse, slot(traverse)},
                       {Py_tp_clear, slot(clear)},
                       {Py_tp_methods, nullptr},  // register_session() has them
                       {Py_tp_getset, properties},
                       {Py_tp_doc, const_cast<char*>("The conversation without a socket; every request pipelines.")},
                       {0, nullptr}};

PyType_Spec spec = {"pgpoll.core.Session", sizeof(session_object), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

int register_session(PyObject* module) {
  static std::vector<PyMethodDef> all;
  for (const auto* table : {methods, stream_methods})
    for (const auto* each = table; each->ml_name != nullptr; ++each) all.push_back(*each);
  all.push_back({});
  for (auto& each : slots)
    if (each.slot == Py_tp_methods) each.pfunc = all.data();
  auto* type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type == nullptr ? -1 : PyModule_AddType(module, type);
}

}  // namespace pgpoll::py
