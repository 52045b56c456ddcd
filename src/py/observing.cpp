#include "py/observing.hpp"

#include <time.h>

#include "py/connection.hpp"
#include "py/errors.hpp"
#include "py/result.hpp"

namespace pgpoll::py {
namespace {

double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

ref seconds(double time) {
  return time < 0 ? ref::borrow(Py_None) : ref::steal(PyFloat_FromDouble(time));
}

ref text_or_none(std::string_view text) {
  return text.empty() ? ref::borrow(Py_None) : decoded(text);
}

ref sql_of(PyObject* sql) {
  if (sql == nullptr) return ref::borrow(Py_None);
  return is_prepared(sql) ? ref::steal(PyObject_GetAttrString(sql, "sql")) : ref::borrow(sql);
}

bool is_request(const core::operation& op) {
  using kind = enum core::operation::kind;
  switch (op.kind) {
    case kind::execute:
    case kind::prepare:
    case kind::script:
    case kind::command:
    case kind::batch:
    case kind::copy_in:
    case kind::copy_out:
    case kind::stream:
    case kind::fetch:
      return true;
    default:
      return false;
  }
}

observation* of(const core::operation_ptr& op) {
  return op->owner == nullptr ? nullptr : static_cast<operation_object*>(op->owner)->observed;
}

// Makes the record and puts it behind the others. What fails here is the observer's misfortune, not the request's.
void note(driver_object* driver, const ref& sql, std::string_view statement, const observation& times, std::size_t rows,
          std::uint64_t bytes, PyObject* error) {
  auto& observer = *driver->observer;
  ref values[] = {sql,
                  text_or_none(statement),
                  seconds(times.queued),
                  seconds(times.sent),
                  seconds(times.first_byte),
                  seconds(times.finished),
                  ref::steal(PyLong_FromSize_t(rows)),
                  ref::steal(PyLong_FromUnsignedLongLong(bytes)),
                  ref::borrow(error == nullptr ? Py_None : error)};
  PyObject* given[std::size(values)];
  bool complete = true;
  for (std::size_t i = 0; i < std::size(values); ++i) complete &= (given[i] = values[i].get()) != nullptr;
  auto record =
      complete ? ref::steal(PyObject_Vectorcall(observer.make_record.get(), given, std::size(values), nullptr)) : ref();
  if (!record) return PyErr_WriteUnraisable(observer.on_request.get());
  observer.untold.push_back(std::move(record));
  observer.contexts.push_back(times.context);
}

void note(operation_object* handle, PyObject* error) {
  auto times = std::unique_ptr<observation>(std::exchange(handle->observed, nullptr));
  if (handle->driver == nullptr || handle->driver->observer == nullptr) return;
  const auto& op = *handle->op;
  if (times->finished < 0) times->finished = now();
  if (times->sent < 0 && handle->driver->session->has_left(op)) times->sent = times->finished;
  if (times->first_byte < 0 && op.reply_bytes > 0) times->first_byte = times->finished;
  auto rows = times->rows;
  for (const auto& each : op.results) rows += each.rows.size();
  const bool copies = op.kind == core::operation::kind::copy_in || op.kind == core::operation::kind::copy_out;
  if (copies && !op.results.empty()) rows += static_cast<std::size_t>(rows_of_tag(op.results.back().tag).value_or(0));
  note(handle->driver, sql_of(handle->sql), op.statement ? std::string_view(op.statement->name) : std::string_view(),
       *times, rows, op.reply_bytes, error);
}

ref call(PyObject* callback, PyObject* argument, PyObject* context) {
  if (PyContext_Enter(context) < 0) return {};
  auto outcome = ref::steal(PyObject_CallOneArg(callback, argument));
  auto raised = outcome ? pending_error() : pending_error::fetch();
  PyContext_Exit(context);
  if (raised) raised.restore();
  return outcome;
}

// ---- methods of Connection

driver_object* driver_of(PyObject* object) {
  return &as_connection(object)->base;
}

PyObject* observe_method(PyObject* object, PyObject* args) {
  PyObject* given[3] = {};
  int at_once = 0;
  if (!PyArg_ParseTuple(args, "OOOp:_observe", &given[0], &given[1], &given[2], &at_once)) return nullptr;
  return guarded([&]() -> PyObject* {
    auto* driver = driver_of(object);
    if (driver->observer != nullptr) return raise_interface_error("the connection is observed already");
    driver->observer = new request_observer;
    driver->observer->on_request = ref::borrow(given[0]);
    driver->observer->make_record = ref::borrow(given[1]);
    driver->observer->on_failure = ref::borrow(given[2]);
    driver->observer->at_once = at_once != 0;
    Py_RETURN_NONE;
  });
}

PyObject* report_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* driver = driver_of(object);
    if (driver->observer == nullptr) Py_RETURN_NONE;
    auto held = ref::borrow(object);
    std::vector<ref> finished;  // gathering may run a caller's code, which may take some of them
    for (const auto& op : driver->session->completed())
      if (of(op) != nullptr) finished.push_back(ref::borrow(static_cast<PyObject*>(op->owner)));
    for (const auto& each : finished) note_finished(reinterpret_cast<operation_object*>(each.get()));
    if (!tell(driver)) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* observed_at(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* { return seconds(driver_of(object)->observer != nullptr ? now() : -1).release(); });
}

PyObject* start_observed(PyObject* object, PyObject* args) {
  double queued = 0;
  PyObject* start = nullptr;
  if (!PyArg_ParseTuple(args, "dO:_start_observed", &queued, &start)) return nullptr;
  auto* observer = driver_of(object)->observer;
  if (observer == nullptr) return raise_interface_error("nobody observes");
  auto held = ref::borrow(object);
  observer->queued = queued;
  auto* operation = PyObject_CallNoArgs(start);
  observer->queued = -1;
  return operation;
}

PyObject* note_method(PyObject* object, PyObject* args) {
  observation times;
  PyObject *sql = nullptr, *error = nullptr, *context = nullptr;
  if (!PyArg_ParseTuple(args, "OdOO:_note", &sql, &times.queued, &error, &context)) return nullptr;
  return guarded([&]() -> PyObject* {
    auto* driver = driver_of(object);
    if (driver->observer == nullptr) Py_RETURN_NONE;
    times.finished = now();
    times.context = ref::borrow(context);
    note(driver, sql_of(sql), {}, times, 0, 0, error);
    if (!tell_at_once(driver)) return nullptr;
    Py_RETURN_NONE;
  });
}

}  // namespace

std::unique_ptr<observation> observation_new(driver_object* driver) {
  auto begun = std::make_unique<observation>();
  begun->context = ref::steal(PyContext_CopyCurrent());
  if (!begun->context) return nullptr;
  const auto queued = driver->observer->queued;
  begun->queued = queued < 0 ? now() : queued;
  return begun;
}

void observe(operation_object* handle, std::unique_ptr<observation> begun) {
  if (!is_request(*handle->op)) return;
  if (!handle->op->done()) handle->driver->observer->unsent.push_back(ref::borrow(as_object(handle)));
  handle->observed = begun.release();
}

void note_times(driver_object* driver) {
  auto& unsent = driver->observer->unsent;
  const auto& session = *driver->session;
  const auto time = now();
  while (!unsent.empty()) {
    auto* handle = reinterpret_cast<operation_object*>(unsent.front().get());
    const auto& op = *handle->op;
    const bool left = session.has_left(op);
    if (!left && !op.done()) break;
    if (left && handle->observed != nullptr) handle->observed->sent = time;
    auto let_go = std::move(unsent.front());
    unsent.pop_front();
  }
  if (const auto* head = session.head(); head != nullptr && head->owner != nullptr && head->reply_bytes > 0) {
    auto* times = static_cast<operation_object*>(head->owner)->observed;
    if (times != nullptr && times->first_byte < 0) times->first_byte = time;
  }
  for (const auto& op : session.completed())
    if (auto* times = of(op); times != nullptr && times->finished < 0) times->finished = time;
}

void note_finished(operation_object* handle) {
  if (handle->observed == nullptr) return;
  auto held = ref::borrow(as_object(handle));
  PyObject* error = nullptr;
  if (handle->op->state == core::operation::state::failed || handle->error != nullptr) {
    error = outcome_error(handle);
    if (error == nullptr) PyErr_WriteUnraisable(as_object(handle));
  } else {
    gather(handle);  // what can't be decoded is the outcome of who wants rows
    error = handle->bad_value;
  }
  if (handle->observed != nullptr) note(handle, error);
}

void note_given_up(operation_object* handle, PyObject* error) {
  if (handle->observed != nullptr) note(handle, error);
}

void note_refused(driver_object* driver, PyObject* sql, const core::statement& statement) {
  if (driver->observer == nullptr || driver->observer->queued >= 0) return;  // the line's maker notes it there
  auto raised = pending_error::fetch();
  auto error = ref::steal(raised.take());
  if (auto times = observation_new(driver)) {
    times->finished = times->queued;
    note(driver, sql_of(sql), statement.name, *times, 0, 0, error.get());
    if (!tell_at_once(driver)) return;
  }
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.get())), error.get());
}

bool tell(driver_object* driver) {
  auto held = ref::borrow(reinterpret_cast<PyObject*>(driver));
  while (driver->observer != nullptr && !driver->observer->untold.empty()) {
    auto& observer = *driver->observer;
    auto record = std::move(observer.untold.front());
    auto context = std::move(observer.contexts.front());
    observer.untold.pop_front();
    observer.contexts.pop_front();
    const auto on_request = observer.on_request;
    const auto on_failure = observer.on_failure;
    if (call(on_request.get(), record.get(), context.get())) continue;
    auto raised = pending_error::fetch();
    auto error = ref::steal(raised.take());
    if (!ref::steal(PyObject_CallOneArg(on_failure.get(), error.get()))) return false;
  }
  return true;
}

int traverse_observer(driver_object* driver, visitproc visit, void* arg) {
  auto* observer = driver->observer;
  if (observer == nullptr) return 0;
  Py_VISIT(observer->on_request.get());
  Py_VISIT(observer->make_record.get());
  Py_VISIT(observer->on_failure.get());
  for (const auto* each : {&observer->unsent, &observer->untold, &observer->contexts})
    for (const auto& object : *each) Py_VISIT(object.get());
  return 0;
}

void drop_observer(driver_object* driver) {
  delete std::exchange(driver->observer, nullptr);
}

PyMethodDef observing_methods[] = {
    {"_observe", observe_method, METH_VARARGS, "_observe(on_request, make_record, on_failure, at_once); once."},
    {"_report", report_method, METH_NOARGS, "Hands over the records of what has ended."},
    {"_observed_at", observed_at, METH_NOARGS, "The time where somebody observes, else None."},
    {"_start_observed", start_observed, METH_VARARGS, "_start_observed(queued, start): start(), queued at that time."},
    {"_note", note_method, METH_VARARGS, "_note(sql, queued, error, context): a request that never started."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace pgpoll::py
