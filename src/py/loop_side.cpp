// The event loop's side of a Connection: replies are handed out, requests sent by the rule D4, and the loop is told
// what it has to watch. Knows no loop: its functions came with _attach().
//
// One poll() for each readiness event. A task may be stepped right here, under the conditions of waiter_wake() and
// steps_allowed(); a step may do anything: start requests (they leave together at the end), terminate, drop handles.
#include "py/awaitable.hpp"
#include "py/connection.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"
#include "py/operation.hpp"

namespace pgpoll::py {
namespace {

// Keeps the first exception of several; the others are reported, for only one can be raised.
class first_error {
 public:
  void keep() {
    if (PyErr_Occurred() == nullptr) return;
    if (kept_) {
      PyErr_WriteUnraisable(nullptr);
    } else {
      kept_ = pending_error::fetch();
    }
  }
  bool raise() {  // true where there is none
    if (!kept_) return true;
    kept_.restore();
    return false;
  }

 private:
  pending_error kept_;
};

// Whether tasks may be stepped by this callback: no task is running, and the loop doesn't watch slow callbacks.
bool steps_allowed(const loop_side& side) {
  auto task = ref::steal(PyObject_CallOneArg(side.current_task, side.loop));
  if (!task || task.get() != Py_None) return false;
  static PyObject* name = PyUnicode_InternFromString("get_debug");
  auto debug = ref::steal(PyObject_CallMethodNoArgs(side.loop, name));
  return debug && PyObject_IsTrue(debug.get()) == 0;
}

void call(const ref& callback, first_error& error) {
  if (callback && !ref::steal(PyObject_CallNoArgs(callback.get()))) error.keep();
}

// Its face is told; it looks when it goes on.
void stir(operation_object* operation, first_error& error) {
  call(ref::borrow(operation->on_stir), error);
}

// The same for the last time, before whoever awaits it goes on.
void stir_at_last(operation_object* operation, first_error& error) {
  call(ref::steal(std::exchange(operation->on_stir, nullptr)), error);
}

void hand_out(connection_object* self, bool direct, first_error& error) {
  bool asked = false;
  for (auto next = next_stirred(&self->base); next.get() != Py_None; next = next_stirred(&self->base))
    stir(reinterpret_cast<operation_object*>(next.get()), error);
  while (auto handle = next_completed(&self->base)) {
    auto* operation = reinterpret_cast<operation_object*>(handle.get());
    if (!report(&self->base, operation)) error.keep();
    stir_at_last(operation, error);
    auto* waiter = operation->waiter;
    if (waiter == nullptr) continue;
    // Who awaits it wants its result alone. While a task is stepped here, what it ran must not be pinned.
    if (operation->op->kind == core::operation::kind::execute) operation->op->statement = nullptr;
    if (direct && !std::exchange(asked, true)) {
      direct = steps_allowed(self->side);
      error.keep();
    }
    if (waiter_wake(waiter, direct)) continue;
    direct = false;  // after SystemExit and the like the others are left to the loop
    error.keep();
  }
}

class handing_out {
 public:
  explicit handing_out(loop_side& side) : side_(side) { side_.handing_out = true; }
  handing_out(const handing_out&) = delete;
  ~handing_out() { side_.handing_out = false; }

 private:
  loop_side& side_;
};

// What a task sees of it is the request's own error, so this one says which loop is meant.
PyObject* wrong_loop(const loop_side& side, PyObject* running) {
  auto text = ref::steal(PyUnicode_FromFormat("the connection belongs to %R, not to the running loop %R", side.loop,
                                              running == nullptr ? Py_None : running));
  auto* kind = text ? error_class("InterfaceError") : nullptr;
  if (kind != nullptr) PyErr_SetObject(kind, text.get());
  return nullptr;
}

PyObject* attach(PyObject* object, PyObject* args, PyObject* names) {
  static const char* keywords[] = {"loop",      "call_soon",  "current_task",    "get_running_loop", "task_types",
                                   "on_change", "on_notices", "cancelled_error", "level_triggered",  nullptr};
  auto& side = as_connection(object)->side;
  PyObject* given[8] = {};
  int level_triggered = 1;
  if (!PyArg_ParseTupleAndKeywords(args, names, "OOOOO!OOO|p:_attach", const_cast<char**>(keywords), &given[0],
                                   &given[1], &given[2], &given[3], &PyTuple_Type, &given[4], &given[5], &given[6],
                                   &given[7], &level_triggered))
    return nullptr;
  if (side.loop != nullptr) return raise_interface_error("the connection is attached to a loop already");
  auto context = ref::steal(PyContext_New());
  if (!context) return nullptr;
  side.loop = Py_NewRef(given[0]);
  side.call_soon = Py_NewRef(given[1]);
  side.current_task = Py_NewRef(given[2]);
  side.get_running_loop = Py_NewRef(given[3]);
  side.task_types = Py_NewRef(given[4]);
  side.on_change = Py_NewRef(given[5]);
  side.on_notices = Py_NewRef(given[6]);
  side.cancelled_error = Py_NewRef(given[7]);
  side.context = context.release();
  side.fd = -1;
  if (level_triggered == 0) as_connection(object)->client->read_everything();
  Py_RETURN_NONE;
}

PyObject* execute(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    auto* self = as_connection(object);
    if (!check_loop(self)) return nullptr;
    auto handle = ref::steal(start_execute(&self->base, args, count));
    if (!handle) return nullptr;
    auto* operation = reinterpret_cast<operation_object*>(handle.get());
    auto waiter = ref::steal(waiter_new(self, operation));
    if (waiter && flush_soon(self)) return waiter.release();
    auto raised = pending_error::fetch();
    abandon(operation);
    raised.restore();
    return nullptr;
  });
}

PyObject* new_waiter(PyObject* object, PyObject* operation, bool shielded) {
  return guarded([&]() -> PyObject* {
    auto* self = as_connection(object);
    if (!check_loop(self)) return nullptr;
    if (!PyObject_TypeCheck(operation, operation_type()))
      return raise_interface_error(std::string("_waiter() takes an Operation, not ") + Py_TYPE(operation)->tp_name);
    return waiter_new(self, reinterpret_cast<operation_object*>(operation), shielded);
  });
}

PyObject* waiter(PyObject* object, PyObject* operation) {
  return new_waiter(object, operation, false);
}

PyObject* shielded_waiter(PyObject* object, PyObject* operation) {
  return new_waiter(object, operation, true);
}

// Asked before each verb: cheaper than to ask the operating system, and asyncio, in Python.
PyObject* runs_here(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = as_connection(object);
    return PyBool_FromLong(self->base.generation == fork_generation() && runs_in_loop(self));
  });
}

// The next turn of the loop goes on reading, whether or not it says that there is something.
bool read_on(connection_object* self) {
  auto unread = ref::steal(PyObject_GetAttrString(as_object(self), "_on_unread"));
  self->side.read_on_pending = unread && call_soon(self, unread.get(), nullptr, self->side.context);
  return self->side.read_on_pending;
}

PyObject* on_event(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto held = ref::borrow(object);
    auto* self = as_connection(object);
    first_error error;
    int flags = 0;
    if (!advance(self, flags)) error.keep();
    if (!settle(self, true)) error.keep();
    if (self->client->unread() && !self->side.read_on_pending && !read_on(self)) error.keep();
    if (!error.raise()) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* on_unread(PyObject* object, PyObject*) {
  as_connection(object)->side.read_on_pending = false;
  return on_event(object, nullptr);
}

// Once in each turn of the loop: what one brings is taken before the next.
PyObject* on_readable(PyObject* object, PyObject*) {
  if (as_connection(object)->side.read_on_pending) Py_RETURN_NONE;
  return on_event(object, nullptr);
}

PyObject* flush_due(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = as_connection(object);
    self->side.flush_pending = false;
    self->base.unflushed = true;
    if (self->base.generation == fork_generation() && !settle(self, false)) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* flush_soon_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    if (!flush_soon(as_connection(object))) return nullptr;
    Py_RETURN_NONE;
  });
}

}  // namespace

bool check_loop(connection_object* self) {
  const auto& side = self->side;
  if (side.loop == nullptr) {
    raise_interface_error("the connection is attached to no loop");
    return false;
  }
  auto running = ref::steal(PyObject_CallNoArgs(side.get_running_loop));
  if (running.get() == side.loop) return true;
  if (!running && !PyErr_ExceptionMatches(PyExc_RuntimeError)) return false;
  PyErr_Clear();
  if (check_process(&self->base)) wrong_loop(side, running.get());  // in the child of a fork no loop runs, for asyncio
  return false;
}

bool runs_in_loop(connection_object* self) {
  if (self->side.loop == nullptr) return false;
  auto running = ref::steal(PyObject_CallNoArgs(self->side.get_running_loop));
  if (!running) PyErr_Clear();  // none runs in this thread
  return running.get() == self->side.loop;
}

bool call_soon(connection_object* self, PyObject* callback, PyObject* argument, PyObject* context) {
  static PyObject* names = Py_BuildValue("(s)", "context");
  PyObject* given[4] = {nullptr, callback, argument != nullptr ? argument : context, context};
  std::size_t count = argument != nullptr ? 2 : 1;
  if (ref::steal(PyObject_Vectorcall(self->side.call_soon, given + 1, count | PY_VECTORCALL_ARGUMENTS_OFFSET, names)))
    return true;
  // Nobody can be woken where the loop is closed, and that is not the caller's fault.
  auto raised = pending_error::fetch();
  auto closed = ref::steal(PyObject_CallMethod(self->side.loop, "is_closed", nullptr));
  if (closed && PyObject_IsTrue(closed.get()) == 1) return true;
  PyErr_Clear();
  raised.restore();
  return false;
}

// Tells the loop what to watch where that has changed, and of every wish to cancel. The child of a fork shares the
// parent's epoll.
static bool tell_loop(connection_object* self) {
  if (self->base.generation != fork_generation()) return true;
  auto& side = self->side;
  int flags = self->client->flags();
  int watched = flags & (net::wait_write | net::closed);
  const bool open = (flags & net::closed) == 0 && self->base.session->reads();
  if (open && (flags & (net::wait_read | net::ready | net::idle)) != 0) watched |= net::wait_read;
  int fd = self->client->fileno();
  bool wish = self->client->session().cancel_wanted() != core::cancel_wish::none;
  if (watched == side.watched && (fd == side.fd || (watched & net::closed) != 0) && !wish) return true;
  side.watched = watched;
  side.fd = fd;
  auto number = ref::steal(PyLong_FromLong(watched));
  return number && ref::steal(PyObject_CallOneArg(side.on_change, number.get()));
}

bool settle(connection_object* self, bool direct) {
  auto& side = self->side;
  if (side.loop == nullptr || side.handing_out) return true;
  auto held = ref::borrow(as_object(self));
  first_error error;
  {
    handing_out during(side);
    const bool told = self->base.session->has_notices() || self->base.session->has_notifications();
    if (told && !ref::steal(PyObject_CallNoArgs(side.on_notices))) error.keep();
    hand_out(self, direct, error);
    if (!tell_at_once(&self->base)) error.keep();
    if (self->base.unflushed) {
      int flags = 0;
      if (!flush(self, flags)) error.keep();
      hand_out(self, false, error);  // arguments that could not be encoded
    }
  }
  if (side.loop != nullptr && !tell_loop(self)) error.keep();
  return error.raise();
}

bool schedule_flush(connection_object* self) {
  auto& side = self->side;
  if (side.loop == nullptr || side.handing_out || side.flush_pending) return true;
  auto flush = ref::steal(PyObject_GetAttrString(as_object(self), "_flush_due"));
  if (!flush || !call_soon(self, flush.get(), nullptr, side.context)) return false;
  side.flush_pending = true;
  return true;
}

bool flush_soon(connection_object* self) {
  const auto& side = self->side;
  if (side.handing_out || side.flush_pending) return true;
  if (self->base.burst && self->base.unflushed) return settle(self, false);
  return schedule_flush(self);
}

bool give_notice(connection_object* self) {
  if (self->side.loop == nullptr || self->side.handing_out) return true;
  auto held = ref::borrow(as_object(self));
  return schedule_flush(self) && tell_loop(self);
}

int traverse_side(connection_object* self, visitproc visit, void* arg) {
  auto& side = self->side;
  Py_VISIT(side.loop);
  Py_VISIT(side.call_soon);
  Py_VISIT(side.current_task);
  Py_VISIT(side.get_running_loop);
  Py_VISIT(side.task_types);
  Py_VISIT(side.on_change);
  Py_VISIT(side.on_notices);
  Py_VISIT(side.cancelled_error);
  Py_VISIT(side.context);
  return 0;
}

void clear_side(connection_object* self) {
  auto& side = self->side;
  Py_CLEAR(side.loop);
  Py_CLEAR(side.call_soon);
  Py_CLEAR(side.current_task);
  Py_CLEAR(side.get_running_loop);
  Py_CLEAR(side.task_types);
  Py_CLEAR(side.on_change);
  Py_CLEAR(side.on_notices);
  Py_CLEAR(side.cancelled_error);
  Py_CLEAR(side.context);
}

PyMethodDef loop_methods[] = {
    {"_attach", method(attach), METH_VARARGS | METH_KEYWORDS, "What the loop hands in; once."},
    {"_execute", method(execute), METH_FASTCALL, "start_execute(), sent by the rule D4; the Waiter of it."},
    {"_waiter", waiter, METH_O, "The Waiter of an Operation that was started here."},
    {"_shielded_waiter", shielded_waiter, METH_O, "One whose end ends nothing else, and that gives None."},
    {"_runs_here", runs_here, METH_NOARGS, "Whether the running loop is the connection's, and the process its own."},
    {"_on_readable", on_readable, METH_NOARGS, "For add_reader()."},
    {"_on_unread", on_unread, METH_NOARGS, "Goes on reading."},
    {"_on_writable", on_event, METH_NOARGS, "For add_writer()."},
    {"_flush_due", flush_due, METH_NOARGS, "The flush of this turn of the loop."},
    {"_flush_soon", flush_soon_method, METH_NOARGS, "Sends what was started, by the rule D4."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace pgpoll::py
