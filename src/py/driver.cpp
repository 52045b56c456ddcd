#include "py/driver.hpp"

#include <pthread.h>

#include <atomic>
#include <limits>

#include "core/keyword.hpp"
#include "py/awaitable.hpp"
#include "py/batch.hpp"
#include "py/codecs/codecs.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"
#include "py/operation.hpp"

namespace pgpoll::py {
namespace {

std::atomic<unsigned> forks{0};

std::string reason(const core::session& session) {
  const auto why = session.why_ended();
  return why && !why->message.empty() && why->message != "closed" ? ": " + why->message : std::string();
}

// The rules of start_*: the process, then whether the connection still takes requests, then whether it is busy.
bool may_start(const driver_object* driver) {
  if (!check_process(driver)) return false;
  const auto& session = *driver->session;
  if (!session.accepting()) {
    raise_interface_error("the connection is closed" + reason(session));
    return false;
  }
  return true;
}

// The empty query that drains a stray cancellation is nobody's request: who has no handle for it is not made to wait.
std::size_t requests_in_flight(const core::session& session) {
  const auto* head = session.head();
  const bool draining = head != nullptr && head->kind == core::operation::kind::drain;
  return session.in_flight() - (draining ? 1 : 0);
}

// What a transaction needs to begin and to end is not counted against `max_queued`.
bool may_start_request(const driver_object* driver, bool counted = true) {
  if (!may_start(driver)) return false;
  if (!driver->connecting) {
    raise_interface_error("not connected: start_connect() comes first");
    return false;
  }
  auto in_flight = requests_in_flight(*driver->session);
  if (!driver->pipeline && in_flight > 0) {
    raise_error("BusyError", "client is busy");
    return false;
  }
  if (counted && driver->max_queued != 0 && in_flight >= driver->max_queued) {
    raise_error("BusyError", "client is busy: " + std::to_string(in_flight) + " requests are queued");
    return false;
  }
  return true;
}

}  // namespace

bool read_sql(PyObject* sql, std::string_view& out) {
  if (!PyUnicode_Check(sql)) {
    raise_interface_error(std::string("sql must be str, not ") + Py_TYPE(sql)->tp_name);
    return false;
  }
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(sql, &size);
  if (text == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return false;
    PyErr_Clear();
    raise_interface_error("sql has a lone surrogate, which UTF-8 can't express");
    return false;
  }
  out = {text, static_cast<std::size_t>(size)};
  if (out.find('\0') != std::string_view::npos) {
    raise_interface_error("sql has a NUL character");
    return false;
  }
  if (out.size() > wire::max_content) {
    raise_interface_error("sql takes about 1 GiB or more, and the server takes no such message");
    return false;
  }
  return true;
}

namespace {

// What will be the handle of one operation, with its observation where somebody observes.
struct new_handle {
  ref object;
  std::unique_ptr<observation> observed;

  new_handle(driver_object* driver, PyObject* sql) {
    object = ref::steal(as_object(operation_new(driver, sql)));
    if (object && driver->observer != nullptr && !(observed = observation_new(driver))) object = {};
  }
  operation_object* get() const { return reinterpret_cast<operation_object*>(object.get()); }
  void take(core::operation_ptr op) {
    keep(get(), std::move(op));
    if (observed) observe(get(), std::move(observed));
  }
};

// What every start ends with: `begin` queues the request in the core.
template <class Begin>
PyObject* start(driver_object* driver, PyObject* sql, Begin begin) {
  new_handle handle(driver, sql);
  if (!handle.object) return nullptr;
  if (!driver->unflushed) driver->burst = driver->session->quiet();
  driver->unflushed = true;
  auto op = begin(handle.get());
  if (op->owner != nullptr) return Py_NewRef(static_cast<PyObject*>(op->owner));  // all closers share one operation
  handle.take(std::move(op));
  return handle.object.release();
}

// The same for a request that may begin a block: `begin` gets the preamble.
template <class Begin>
PyObject* start_opening(driver_object* driver, PyObject* sql, Begin begin) {
  auto* ahead = std::exchange(driver->ahead, nullptr);
  if (ahead == nullptr)
    return start(driver, sql, [&](operation_object* handle) { return begin(handle, core::preamble()); });
  const auto count = PyTuple_GET_SIZE(ahead->commands);
  core::preamble first;
  first.outermost = ahead->outermost;
  std::vector<new_handle> handles;
  auto operations = ref::steal(PyList_New(0));
  for (Py_ssize_t i = 0; operations && i < count; ++i) {
    auto* command = PyTuple_GET_ITEM(ahead->commands, i);
    std::string_view text;
    if (!read_sql(command, text)) return nullptr;
    first.add(std::string(text));
    if (!handles.emplace_back(driver, command).object) return nullptr;
    if (PyList_Append(operations.get(), handles.back().object.get()) < 0) return nullptr;
  }
  if (!operations) return nullptr;
  auto* started = start(driver, sql, [&](operation_object* handle) {
    const std::vector commands(first.commands.begin(), first.commands.end());
    for (std::size_t i = 0; i < commands.size(); ++i) handles[i].take(commands[i]);
    try {
      return begin(handle, std::move(first));
    } catch (...) {  // out of memory: they were never queued
      for (const auto& each : commands)
        if (!each->done()) each->state = core::operation::state::cancelled;
      for (auto& each : handles) let_go(each.get());
      throw;
    }
  });
  if (started != nullptr) ahead->operations = std::move(operations);
  return started;
}

template <class Begin>
PyObject* start_text(driver_object* driver, PyObject* sql, Begin begin, bool counted = true) {
  std::string_view text;
  if (!read_sql(sql, text) || !may_start_request(driver, counted)) return nullptr;
  return start_opening(
      driver, sql, [&](operation_object*, core::preamble first) { return begin(std::string(text), std::move(first)); });
}

bool check_arguments(PyObject* arguments) {
  if (PyTuple_Check(arguments)) return true;
  raise_interface_error(std::string("args must be a tuple, not ") + Py_TYPE(arguments)->tp_name);
  return false;
}

bool encode(const core::statement& statement, PyObject* arguments, std::string& out) {
  return encode_arguments(statement, &PyTuple_GET_ITEM(arguments, 0), PyTuple_GET_SIZE(arguments), out);
}

PyObject* start_described(driver_object* driver, PyObject* sql, PyObject* arguments, core::statement_ptr statement,
                          request_begin& how) {
  std::string encoded;
  auto* ahead = std::exchange(driver->ahead, nullptr);  // not for what encoding may start
  if (!encode(*statement, arguments, encoded)) {
    note_refused(driver, sql, *statement);
    return nullptr;
  }
  driver->ahead = ahead;
  if (!may_start_request(driver)) return nullptr;  // encoding may have run a caller's code
  return start_opening(driver, sql, [&](operation_object* handle, core::preamble first) {
    handle->arguments = Py_NewRef(arguments);  // its statement may have to be prepared again
    return how.described(*driver->session, std::move(statement), std::move(encoded), std::move(first));
  });
}

PyObject* start_undescribed(driver_object* driver, PyObject* sql, PyObject* arguments, std::string_view text,
                            request_begin& how) {
  auto context = ref::steal(PyContext_CopyCurrent());
  if (!context) return nullptr;
  return start_opening(driver, sql, [&](operation_object* handle, core::preamble first) {
    handle->arguments = Py_NewRef(arguments);
    handle->context = context.release();
    return how.undescribed(*driver->session, std::string(text), std::move(first));
  });
}

class begin_execute final : public request_begin {
 public:
  core::operation_ptr described(core::session& session, core::statement_ptr statement, std::string arguments,
                                core::preamble first) override {
    return session.start_execute(std::move(statement), std::move(arguments), std::move(first));
  }
  core::operation_ptr undescribed(core::session& session, std::string sql, core::preamble first) override {
    return session.start_execute(std::move(sql), std::move(first));
  }
};

// Encodes one request's arguments in its own context; what that raises becomes its outcome. Where they were encoded
// before, at the start, that context is known by who awaits it.
bool encode_late(operation_object* handle, std::string& out) {
  auto* const item = handle->batch != nullptr ? asked_item(handle) : nullptr;
  auto arguments = ref::borrow(item != nullptr ? item->arguments.get() : handle->arguments);
  auto context = ref::borrow(item != nullptr ? item->context.get() : handle->context);
  const auto statement = handle->batch != nullptr ? handle->op->batch->asking : handle->op->statement;
  if (!arguments || !statement) return false;
  if (!context && handle->waiter != nullptr) context = ref::borrow(handle->waiter->context);
  if (!context) context = ref::steal(PyContext_New());
  if (!context || PyContext_Enter(context.get()) < 0) return false;
  bool encoded = false;
  try {
    encoded = encode(*statement, arguments.get(), out);
  } catch (...) {
    raise_current();
  }
  auto raised = encoded ? pending_error() : pending_error::fetch();
  PyContext_Exit(context.get());
  if (raised) raised.restore();
  return encoded;
}

ref text_of(std::string_view text) {
  return ref::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

}  // namespace

unsigned fork_generation() {
  return forks.load(std::memory_order_relaxed);
}

void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
}

bool check_process(const driver_object* driver) {
  if (driver->generation == fork_generation()) return true;
  raise_interface_error("the connection belongs to the parent process: connect again after fork()");
  return false;
}

PyObject* start_connect(driver_object* driver) {
  if (!may_start(driver)) return nullptr;
  if (driver->connecting) return raise_interface_error("start_connect() was called before");
  auto* started = start(driver, nullptr, [&](operation_object*) { return driver->session->start_connect(); });
  driver->connecting = started != nullptr;
  return started;
}

static PyObject* start_with_text(driver_object* driver, PyObject* sql, PyObject* arguments, std::string_view text,
                                 request_begin& how) {
  if (auto known = driver->session->find_statement(text))
    return start_described(driver, sql, arguments, std::move(known), how);
  return start_undescribed(driver, sql, arguments, text, how);
}

PyObject* start_with_arguments(driver_object* driver, PyObject* sql, PyObject* arguments, request_begin& how) {
  if (!check_arguments(arguments)) return nullptr;
  if (is_prepared(sql)) {
    if (!may_start_request(driver)) return nullptr;
    const auto& prepared = reinterpret_cast<prepared_object*>(sql)->statement;
    if (!driver->session->owns(*prepared))
      return raise_interface_error("the statement was prepared on another connection: prepare it on this one");
    if (!prepared->stale) return start_described(driver, sql, arguments, prepared, how);
    return start_with_text(driver, sql, arguments, prepared->sql, how);
  }
  std::string_view text;
  if (!read_sql(sql, text) || !may_start_request(driver)) return nullptr;
  return start_with_text(driver, sql, arguments, text, how);
}

PyObject* start_without_arguments(driver_object* driver, PyObject* sql, plain_begin begin) {
  if (!may_start_request(driver)) return nullptr;
  return start(driver, sql, [&](operation_object*) { return begin(*driver->session); });
}

PyObject* start_execute(driver_object* driver, PyObject* const* given, Py_ssize_t count) {
  if (count < 1 || count > 3) {
    PyErr_SetString(PyExc_TypeError, "start_execute(sql, args=(), want=RESULT)");
    return nullptr;
  }
  const auto want = count < 3 ? 0 : PyLong_AsLong(given[2]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (want < 0 || want > static_cast<long>(wanted::value))
    return raise_interface_error("want must be RESULT, ROWS, ROW or VALUE, not " + std::to_string(want));
  const auto arguments = count < 2 ? ref::steal(PyTuple_New(0)) : ref::borrow(given[1]);
  begin_execute how;
  auto* started = arguments ? start_with_arguments(driver, given[0], arguments.get(), how) : nullptr;
  if (started != nullptr) reinterpret_cast<operation_object*>(started)->want = static_cast<wanted>(want);
  return started;
}

PyObject* start_prepare(driver_object* driver, PyObject* sql) {
  return start_text(driver, sql, [&](std::string text, core::preamble first) {
    return driver->session->start_prepare(std::move(text), std::move(first));
  });
}

PyObject* start_script(driver_object* driver, PyObject* sql) {
  std::string_view text;
  if (!read_sql(sql, text) || !may_start_request(driver)) return nullptr;
  return start(driver, sql, [&](operation_object*) { return driver->session->start_script(std::string(text)); });
}

PyObject* start_command(driver_object* driver, PyObject* sql) {
  return start_text(
      driver, sql,
      [&](std::string text, core::preamble first) {
        return driver->session->start_command(std::move(text), std::move(first));
      },
      false);
}

PyObject* start_behind(driver_object* driver, PyObject* args) {
  preamble_texts ahead;
  int outermost = 0;
  PyObject* begin = nullptr;
  if (!PyArg_ParseTuple(args, "O!pO:_start_behind", &PyTuple_Type, &ahead.commands, &outermost, &begin)) return nullptr;
  ahead.outermost = outermost != 0;
  driver->ahead = &ahead;
  auto started = ref::steal(PyObject_CallNoArgs(begin));
  driver->ahead = nullptr;
  if (!started) return nullptr;
  if (!ahead.operations) return raise_interface_error("_start_behind() takes what starts one request, no script");
  if (PyList_Append(ahead.operations.get(), started.get()) < 0) return nullptr;
  return ahead.operations.release();
}

PyObject* start_batch(driver_object* driver) {
  if (!may_start_request(driver)) return nullptr;
  auto side = std::make_unique<batch_side>();
  return start(driver, nullptr, [&](operation_object* handle) {
    handle->batch = side.release();
    return driver->session->start_batch();
  });
}

PyObject* start_executemany(driver_object* driver, PyObject* sql) {
  std::string_view text;
  if (!read_sql(sql, text)) return nullptr;
  if (core::verb_of(text) == core::verb::copy)
    return raise_interface_error("COPY can't be executed with many rows: use copy_records() or copy_in()");
  if (!may_start_request(driver)) return nullptr;
  auto side = std::make_unique<batch_side>();
  return start(driver, sql, [&](operation_object* handle) {
    handle->batch = side.release();
    return driver->session->start_executemany(std::string(text));
  });
}

// What is no COPY is refused here, before anything of it is sent: nobody would feed it, or take what it gives.
template <class Begin>
static PyObject* start_copy(driver_object* driver, PyObject* const* given, Py_ssize_t count, const char* verb,
                            Begin begin) {
  if (count < 1 || count > 2) return PyErr_Format(PyExc_TypeError, "%s(sql, query='')", verb);
  std::string_view text;
  std::string_view query;
  if (!read_sql(given[0], text) || (count == 2 && !read_sql(given[1], query))) return nullptr;
  if (core::verb_of(text) != core::verb::copy)
    return raise_interface_error(std::string(verb) + "() takes a COPY statement: sql does not begin with COPY");
  if (!may_start_request(driver)) return nullptr;
  return start(driver, given[0], [&](operation_object*) { return begin(std::string(text), std::string(query)); });
}

PyObject* start_copy_in(driver_object* driver, PyObject* const* given, Py_ssize_t count) {
  return start_copy(driver, given, count, "copy_in", [&](std::string sql, std::string query) {
    return driver->session->start_copy_in(std::move(sql), std::move(query));
  });
}

PyObject* start_copy_out(driver_object* driver, PyObject* const* given, Py_ssize_t count) {
  return start_copy(driver, given, count, "copy_out", [&](std::string sql, std::string query) {
    return driver->session->start_copy_out(std::move(sql), std::move(query));
  });
}

PyObject* start_close(driver_object* driver) {
  if (!check_process(driver)) return nullptr;
  if (driver->session->ended()) return raise_interface_error("the connection is closed" + reason(*driver->session));
  return start(driver, nullptr, [&](operation_object*) { return driver->session->start_close(); });
}

bool encode_described(driver_object* driver) {
  auto& session = *driver->session;
  bool any = false;
  while (auto op = session.next_unencoded()) {
    any = true;
    auto held = ref::borrow(static_cast<PyObject*>(op->owner));
    auto* handle = reinterpret_cast<operation_object*>(held.get());
    std::string encoded;
    bool good = handle != nullptr && encode_late(handle, encoded);
    if (PyErr_Occurred() != nullptr) {
      auto raised = pending_error::fetch();
      auto error = ref::steal(raised.take());
      if (handle != nullptr && handle->error == nullptr) handle->error = error.release();
      if (handle != nullptr && handle->batch != nullptr) handle->batch->encoding_raised = true;
    }
    if (op->done() || op->abandoned) continue;  // what encoding ran may have abandoned it, or closed the connection
    if (good) {
      session.supply(*op, std::move(encoded));
    } else {
      session.refuse(*op);
    }
  }
  return any;
}

ref next_completed(driver_object* driver) {
  while (auto op = driver->session->next_completed()) {
    if (op->owner == nullptr) continue;
    return let_go(static_cast<operation_object*>(op->owner));
  }
  return {};
}

ref next_stirred(driver_object* driver) {
  while (auto op = driver->session->next_stirred())
    if (op->owner != nullptr) return ref::borrow(static_cast<PyObject*>(op->owner));
  return ref::borrow(Py_None);
}

PyObject* unfinished_operations(driver_object* driver) {
  auto list = ref::steal(PyList_New(0));
  for (auto* each = driver->operations; list && each != nullptr; each = each->next) {
    if (!each->kept || each->op->done()) continue;
    if (each->op->kind == core::operation::kind::fetch && each->op->written) continue;
    if (PyList_Append(list.get(), as_object(each)) < 0) return nullptr;
  }
  return list.release();
}

int traverse_driver(driver_object* driver, visitproc visit, void* arg) {
  for (auto* each = driver->operations; each != nullptr; each = each->next)
    if (each->kept) Py_VISIT(as_object(each));
  return traverse_observer(driver, visit, arg);
}

void release_operations(driver_object* driver) {
  while (auto* first = driver->operations) {
    driver->operations = first->next;
    if (first->next != nullptr) first->next->previous = nullptr;
    first->next = nullptr;
    first->driver = nullptr;
    let_go(first);
  }
  drop_observer(driver);
}

void fail_for_drop(driver_object* driver) {
  core::failure why;
  why.kind = core::failure::kind::closed;
  why.message = "closed";
  try {
    driver->session->fail(std::move(why));
  } catch (...) {
    raise_current();
    PyErr_WriteUnraisable(nullptr);
  }
}

PyObject* parameters_dict(const core::session& session) {
  auto out = ref::steal(PyDict_New());
  if (!out) return nullptr;
  for (const auto& [name, value] : session.parameters()) {
    auto key = text_of(name);
    auto text = text_of(value);
    if (!key || !text || PyDict_SetItem(out.get(), key.get(), text.get()) < 0) return nullptr;
  }
  return out.release();
}

PyObject* status_text(const core::session& session) {
  char status = session.transaction_status();
  return PyUnicode_FromStringAndSize(&status, status == '\0' ? 0 : 1);
}

// The one argument of take_notices() and the like: how many at most. False with an exception set.
static bool read_at_most(PyObject* const* args, Py_ssize_t count, const char* usage, std::size_t& left) {
  left = std::numeric_limits<std::size_t>::max();
  if (count > 1) {
    PyErr_SetString(PyExc_TypeError, usage);
  } else if (count == 1 && args[0] != Py_None) {
    left = PyLong_AsSize_t(args[0]);
  }
  return PyErr_Occurred() == nullptr;
}

PyObject* notifications_list(core::session& session, PyObject* const* args, Py_ssize_t count) {
  std::size_t left = 0;
  if (!read_at_most(args, count, "take_notifications(at_most=None)", left)) return nullptr;
  auto out = ref::steal(PyList_New(0));
  if (!out) return nullptr;
  for (; left > 0 && session.has_notifications(); --left) {
    const auto next = *session.next_notification();
    auto channel = text_of(next.channel);
    auto payload = next.lost != 0 ? ref::borrow(Py_None) : text_of(next.payload);
    auto number = ref::steal(next.lost != 0 ? PyLong_FromUnsignedLongLong(next.lost) : PyLong_FromLong(next.pid));
    auto item =
        channel && payload && number ? ref::steal(PyTuple_Pack(3, channel.get(), payload.get(), number.get())) : ref();
    if (!item || PyList_Append(out.get(), item.get()) < 0) return nullptr;
  }
  return out.release();
}

PyObject* notices_list(core::session& session, PyObject* const* args, Py_ssize_t count) {
  std::size_t left = 0;
  if (!read_at_most(args, count, "take_notices(at_most=None)", left)) return nullptr;
  auto out = ref::steal(PyList_New(0));
  if (!out) return nullptr;
  for (; left > 0 && session.has_notices(); --left) {
    auto fields = message_fields(*session.next_notice()->message);
    if (!fields || PyList_Append(out.get(), fields.get()) < 0) return nullptr;
  }
  return out.release();
}

}  // namespace pgpoll::py
