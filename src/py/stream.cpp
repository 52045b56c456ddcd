// Rows in parts: what starts a stream, opens a portal or fetches from it, and the rows that have come of one.
//
// Rows stay raw until they are taken: take_rows() decodes so many, in its caller's context. Where one can't be decoded
// those before it are given first, and then its error, each time.
#include <limits>

#include "py/driver.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"
#include "py/operation.hpp"
#include "py/plan.hpp"

namespace pgpoll::py {

// Rows taken from the core, and those of them that were handed out.
class row_feed {
 public:
  std::size_t left() const { return rows_.size() - at_.taken(); }
  std::size_t number = 0;  // of the next row, among all
  bool decoding = false;   // whose code may do anything: the rows stay until it is over

  void fill(core::row_store rows) {
    rows_ = std::move(rows);
    at_ = core::row_walk(rows_);
  }
  void forget() { fill({}); }
  const char* take() { return at_.take(); }

 private:
  core::row_store rows_;
  core::row_walk at_{rows_};
};

namespace {

driver_object* driver_of(PyObject* object) {
  return reinterpret_cast<driver_object*>(object);
}
operation_object* operation_of(PyObject* object) {
  return reinterpret_cast<operation_object*>(object);
}

row_feed& feed_of(operation_object* handle) {
  if (handle->feed == nullptr) handle->feed = new row_feed();
  return *handle->feed;
}

class decoding {
 public:
  decoding(operation_object* handle, row_feed& feed) : handle_(handle), feed_(feed) { feed_.decoding = true; }
  decoding(const decoding&) = delete;
  ~decoding() {
    feed_.decoding = false;
    if (handle_->feed != &feed_) delete &feed_;  // abandoned meanwhile
  }

 private:
  operation_object* handle_;
  row_feed& feed_;
};

// Decodes the next `count` rows. A list, shorter where one can't be decoded: then `bad_value` is set.
PyObject* decode(operation_object* handle, row_feed& feed, std::size_t count) {
  const auto columns = handle->op->results.front().columns;
  const auto plan = find_plan(columns, false);
  auto list = plan ? new_list(static_cast<Py_ssize_t>(count)) : ref();
  if (!list) return nullptr;
  const decoding during(handle, feed);
  for (std::size_t i = 0; i < count; ++i) {
    const char* message = handle->feed == &feed ? feed.take() : nullptr;
    PyObject* row = message != nullptr ? plan->row(*columns, message, feed.number++) : nullptr;
    if (row != nullptr) {
      PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), row);
      continue;
    }
    if (message == nullptr) return raise_interface_error("the operation was abandoned");
    auto raised = pending_error::fetch();
    handle->bad_value = raised.take();
    if (handle->feed == &feed) feed.forget();
    PyObject* given = finish_list(list);
    if (PyList_SetSlice(given, static_cast<Py_ssize_t>(i), static_cast<Py_ssize_t>(count), nullptr) == 0) return given;
    Py_DECREF(given);
    return nullptr;
  }
  return finish_list(list);
}

PyObject* take_rows(operation_object* handle, std::size_t at_most) {
  auto held = ref::borrow(reinterpret_cast<PyObject*>(handle));
  auto& op = *handle->op;
  if (!op.portal) return raise_interface_error("the operation gives its rows at its end, by result()");
  if (op.abandoned) return raise_interface_error("the operation was abandoned");
  if (!check_process(handle)) return nullptr;
  auto& feed = feed_of(handle);
  if (feed.decoding) return raise_interface_error("its rows are being taken");
  if (feed.left() == 0 && handle->bad_value == nullptr) {
    if (handle->driver != nullptr) {
      feed.fill(handle->driver->session->take_rows(op));
      handle->driver->unflushed = true;  // there may be more to receive now
    } else if (!op.results.empty()) {
      feed.fill(std::exchange(op.results.front().rows, {}));
    }
    if (handle->observed != nullptr) handle->observed->rows += feed.left();
  }
  if (handle->bad_value != nullptr) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(handle->bad_value)), handle->bad_value);
    return nullptr;
  }
  const auto count = std::min(at_most, feed.left());
  if (count == 0) return PyList_New(0);
  auto rows = ref::steal(decode(handle, feed, count));
  if (rows && PyList_GET_SIZE(rows.get()) == 0) return take_rows(handle, at_most);  // the first is bad
  return rows.release();
}

PyObject* take_rows_method(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count > 1) {
    PyErr_SetString(PyExc_TypeError, "take_rows(at_most=None)");
    return nullptr;
  }
  auto at_most = std::numeric_limits<std::size_t>::max();
  if (count == 1 && args[0] != Py_None) at_most = PyLong_AsSize_t(args[0]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return guarded([&] { return take_rows(operation_of(object), at_most); });
}

// A number of rows, from 1 on; 0 with an exception set.
std::uint32_t row_count(PyObject* object, const char* what) {
  const auto value = PyLong_Check(object) ? PyLong_AsLong(object) : 0;
  if (PyErr_Occurred() != nullptr) PyErr_Clear();
  if (value >= 1 && value <= std::numeric_limits<std::int32_t>::max()) return static_cast<std::uint32_t>(value);
  auto shown = ref::steal(PyObject_Repr(object));
  if (shown)
    raise_interface_error(std::string(what) + " must be an int from 1 on, not " + PyUnicode_AsUTF8(shown.get()));
  return 0;
}

PyObject* grant_method(PyObject* object, PyObject* rows) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    auto& op = *self->op;
    const auto count = row_count(rows, "rows");
    if (count == 0 || !check_process(self)) return nullptr;
    if (op.kind != core::operation::kind::stream || !op.portal->limited)
      return raise_interface_error("only a stream with a row limit takes credit");
    if (self->driver != nullptr && !op.done()) {
      self->driver->session->grant(op, count);
      self->driver->unflushed = true;
    }
    Py_RETURN_NONE;
  });
}

PyObject* spare_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    if (self->op->portal) self->op->portal->spared = true;
    abandon(self);
    Py_RETURN_NONE;
  });
}

PyObject* columns(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    const auto& results = operation_of(object)->op->results;
    if (results.empty()) Py_RETURN_NONE;
    const auto described = results.front().columns;
    if (!described) return PyTuple_New(0);
    const auto plan = find_plan(described, false);
    return plan ? plan_columns(*plan, *described) : nullptr;
  });
}

class begin_stream final : public request_begin {
 public:
  explicit begin_stream(std::uint32_t credit) : credit_(credit) {}
  core::operation_ptr described(core::session& session, core::statement_ptr statement, std::string arguments,
                                core::preamble) override {
    return session.start_stream(std::move(statement), std::move(arguments), credit_);
  }
  core::operation_ptr undescribed(core::session& session, std::string sql, core::preamble) override {
    return session.start_stream(std::move(sql), credit_);
  }

 private:
  std::uint32_t credit_;
};

class begin_open final : public request_begin {
 public:
  begin_open(std::string portal, std::uint32_t limit) : portal_(std::move(portal)), limit_(limit) {}
  core::operation_ptr described(core::session& session, core::statement_ptr statement, std::string arguments,
                                core::preamble) override {
    return session.start_open(std::move(statement), std::move(arguments), portal_, limit_);
  }
  core::operation_ptr undescribed(core::session& session, std::string sql, core::preamble) override {
    return session.start_open(std::move(sql), portal_, limit_);
  }

 private:
  std::string portal_;
  std::uint32_t limit_;
};

// BEGIN does not ride in front of rows that come in parts.
bool stands_alone(PyObject* object) {
  if (driver_of(object)->ahead == nullptr) return true;
  raise_interface_error("_start_behind() takes what starts one request, no stream");
  return false;
}

PyObject* start_stream(PyObject* object, PyObject* args) {
  PyObject *sql = nullptr, *arguments = nullptr, *credit = nullptr;
  if (!PyArg_ParseTuple(args, "OOO:start_stream", &sql, &arguments, &credit)) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto rows = credit == Py_None ? 0 : row_count(credit, "credit");
    if (rows == 0 && credit != Py_None) return nullptr;
    if (!stands_alone(object)) return nullptr;
    begin_stream how(rows);
    return start_with_arguments(driver_of(object), sql, arguments, how);
  });
}

PyObject* start_open(PyObject* object, PyObject* args) {
  PyObject *sql = nullptr, *arguments = nullptr, *limit = nullptr;
  const char* portal = nullptr;
  if (!PyArg_ParseTuple(args, "OOsO:_start_open", &sql, &arguments, &portal, &limit)) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto rows = row_count(limit, "limit");
    if (rows == 0) return nullptr;
    if (!stands_alone(object)) return nullptr;
    begin_open how(portal, rows);
    return start_with_arguments(driver_of(object), sql, arguments, how);
  });
}

PyObject* start_fetch(PyObject* object, PyObject* args) {
  PyObject *opened = nullptr, *limit = nullptr;
  Py_ssize_t number = 0;
  if (!PyArg_ParseTuple(args, "O!On:_start_fetch", operation_type(), &opened, &limit, &number)) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto& before = *operation_of(opened)->op;
    if (!before.portal || before.results.empty()) return raise_interface_error("no portal was opened");
    const auto rows = row_count(limit, "limit");
    if (rows == 0) return nullptr;
    auto* started = start_without_arguments(driver_of(object), operation_of(opened)->sql,
                                            [&](core::session& session) { return session.start_fetch(before, rows); });
    if (started != nullptr) feed_of(operation_of(started)).number = static_cast<std::size_t>(number);
    return started;
  });
}

PyObject* close_portal(PyObject* object, PyObject* args) {
  const char* portal = nullptr;
  if (!PyArg_ParseTuple(args, "s:_close_portal", &portal)) return nullptr;
  return guarded([&]() -> PyObject* {
    auto* driver = driver_of(object);
    if (!check_process(driver)) return nullptr;
    driver->session->close_portal(portal);
    driver->unflushed = true;
    Py_RETURN_NONE;
  });
}

}  // namespace

void forget_rows(operation_object* handle) {
  auto* feed = std::exchange(handle->feed, nullptr);
  if (feed != nullptr && !feed->decoding) delete feed;
}

PyMethodDef row_methods[] = {
    {"take_rows", method(take_rows_method), METH_FASTCALL,
     "take_rows(at_most=None): the next rows that have come of a stream, a list of Record; [] where none has."},
    {"grant", grant_method, METH_O, "grant(rows): so many more may come of a stream."},
    {"_spare", spare_method, METH_NOARGS, "abandon(), and never cancel it at the server for that."},
    {"_columns", columns, METH_NOARGS, "Of a stream: the columns once they are known, else None."},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef stream_methods[] = {
    {"start_stream", start_stream, METH_VARARGS, "One statement whose rows are taken as they come."},
    {"_start_open", start_open, METH_VARARGS, "_start_open(sql, args, portal, limit): whether there may be more rows."},
    {"_start_fetch", start_fetch, METH_VARARGS,
     "_start_fetch(opened, limit, number): as _start_open(), of its portal."},
    {"_close_portal", close_portal, METH_VARARGS, "_close_portal(portal); nobody is told."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace pgpoll::py
