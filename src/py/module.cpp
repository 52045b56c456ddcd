// pgpoll.core: the extension module. Its contract for Python is python/pgpoll/core.pyi.
#include "net/client.hpp"
#include "py/awaitable.hpp"
#include "py/codecs/codecs.hpp"
#include "py/connection.hpp"
#include "py/copying.hpp"
#include "py/mutex.hpp"
#include "py/operation.hpp"
#include "py/session_object.hpp"
#include "py/trace.hpp"

namespace {

using namespace pgpoll;

PyMethodDef functions[] = {{"_trace", py::trace_of, METH_VARARGS, nullptr},
                           {"_surely", py::surely, METH_VARARGS, "A method that is undone where it raises."},
                           {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "pgpoll.core",
                          "PostgreSQL on a nonblocking poll API; whoever owns the event loop drives it.",
                          -1,
                          functions,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

bool add_constants(PyObject* module) {
  const std::pair<const char*, int> constants[] = {{"WAIT_READ", net::wait_read},
                                                   {"WAIT_WRITE", net::wait_write},
                                                   {"READY", net::ready},
                                                   {"IDLE", net::idle},
                                                   {"CLOSED", net::closed},
                                                   {"NONE", 0},
                                                   {"NOW", 1},
                                                   {"GRACE", 2},
                                                   {"RESULT", 0},
                                                   {"ROWS", 1},
                                                   {"ROW", 2},
                                                   {"VALUE", 3}};
  for (const auto& [name, value] : constants)
    if (PyModule_AddIntConstant(module, name, value) < 0) return false;
  return true;
}

bool add_errors(PyObject* module) {
  auto errors = py::ref::steal(PyImport_ImportModule("pgpoll.errors"));
  if (!errors) return false;
  for (const char* name : {"BusyError", "InterfaceError"}) {
    auto kind = py::ref::steal(PyObject_GetAttrString(errors.get(), name));
    if (!kind || PyModule_AddObjectRef(module, name, kind.get()) < 0) return false;
  }
  return true;
}

}  // namespace

PyMODINIT_FUNC PyInit_core() {
  auto module = py::ref::steal(PyModule_Create(&definition));
  if (!module) return nullptr;
  py::watch_forks();
  if (!add_constants(module.get()) || !add_errors(module.get()) || py::register_types(module.get()) < 0 ||
      py::register_operation(module.get()) < 0 || py::register_record_encoder(module.get()) < 0 ||
      py::register_record_decoder(module.get()) < 0 || py::register_prepared(module.get()) < 0 ||
      py::register_waiter(module.get()) < 0 || py::register_connection(module.get()) < 0 ||
      py::register_cancel(module.get()) < 0 || py::register_mutex(module.get()) < 0 || py::register_surely() < 0 ||
      py::register_session(module.get()) < 0)
    return nullptr;
  return module.release();
}
