// _Mutex: the lock of a connection for blocking callers. A signal handler may raise after any instruction of Python
// code, also between taking a lock and the `try` that gives it back; not within a function of C. So this takes it,
// gives it back, lends it out and waits for a change each in one such function, and remembers who has left by an
// exception.
#include "py/mutex.hpp"

#include <algorithm>
#include <cmath>
#include <ctime>

namespace pgpoll::py {
namespace {

PyTypeObject* the_mutex_type = nullptr;
PyTypeObject* the_hold_type = nullptr;

// A thread that waits without the mutex, on its stack.
struct waiter {
  PyThread_type_lock woken;
  PyObject* what;  // borrowed; what it waits for
  waiter* next;
};

struct mutex_object {
  PyObject_HEAD PyThread_type_lock lock;
  unsigned long owner;
  unsigned depth;  // 0: nobody's
  bool disturbed;
  bool mended;  // by who has it
  waiter* waiters;
};

struct hold_object {
  PyObject_HEAD mutex_object* mutex;  // owned
  double seconds;                     // negative: without a limit
  bool held;
};

mutex_object* mutex_of(PyObject* object) {
  return reinterpret_cast<mutex_object*>(object);
}
hold_object* hold_of(PyObject* object) {
  return reinterpret_cast<hold_object*>(object);
}
PyObject* as_object(mutex_object* self) {
  return reinterpret_cast<PyObject*>(self);
}

double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

long long microseconds(double seconds) {
  return seconds < 0 ? -1 : static_cast<long long>(std::ceil(std::min(seconds, 1e9) * 1e6));
}

bool owned(const mutex_object* self) {
  return self->depth > 0 && self->owner == PyThread_get_thread_ident();
}

// Takes a lock without the GIL. -1: a signal handler has raised; 0: the time is up; 1: taken.
int take_lock(PyThread_type_lock lock, double seconds, bool interruptible) {
  if (PyThread_acquire_lock_timed(lock, 0, 0) == PY_LOCK_ACQUIRED) return 1;
  const double deadline = now() + seconds;
  for (double left = seconds;; left = std::max(0.0, deadline - now())) {
    PyLockStatus status = PY_LOCK_FAILURE;
    Py_BEGIN_ALLOW_THREADS status =
        PyThread_acquire_lock_timed(lock, microseconds(seconds < 0 ? -1 : left), interruptible ? 1 : 0);
    Py_END_ALLOW_THREADS if (status != PY_LOCK_INTR) return status == PY_LOCK_ACQUIRED ? 1 : 0;
    if (PyErr_CheckSignals() < 0) return -1;
  }
}

// As take_lock(), and again by who has it.
int acquire(mutex_object* self, double seconds) {
  if (!owned(self)) {
    const int taken = take_lock(self->lock, seconds, true);
    if (taken <= 0) return taken;
    self->owner = PyThread_get_thread_ident();
    self->mended = false;
  }
  ++self->depth;
  return 1;
}

void give_up(mutex_object* self) {
  self->owner = 0;
  self->depth = 0;
  PyThread_release_lock(self->lock);
}

bool release(mutex_object* self, bool raised) {
  if (!owned(self)) {
    PyErr_SetString(PyExc_RuntimeError, "the mutex is not this thread's");
    return false;
  }
  if (self->depth > 1) {
    --self->depth;
    return true;
  }
  if (raised && !self->mended) self->disturbed = true;
  give_up(self);
  return true;
}

// Gives it up while it lives, however often this thread has taken it; no signal keeps it from being taken again.
class elsewhere {
 public:
  elsewhere(mutex_object* self, waiter& place) : self_(self), place_(&place), depth_(self->depth) {
    place.next = self->waiters;
    self->waiters = &place;
    give_up(self);
  }
  elsewhere(const elsewhere&) = delete;
  ~elsewhere() {
    auto raised = pending_error::fetch();
    take_lock(self_->lock, -1, false);
    self_->owner = PyThread_get_thread_ident();
    self_->depth = depth_;
    self_->mended = false;
    auto** each = &self_->waiters;
    while (*each != place_) each = &(*each)->next;
    *each = place_->next;
    if (raised) raised.restore();
  }

 private:
  mutex_object* self_;
  waiter* place_;
  unsigned depth_;
};

bool check_owned(const mutex_object* self) {
  if (owned(self)) return true;
  PyErr_SetString(PyExc_RuntimeError, "the mutex is not this thread's");
  return false;
}

// -- methods

PyObject* enter(PyObject* object, PyObject*) {
  if (acquire(mutex_of(object), -1) < 0) return nullptr;
  return Py_NewRef(object);
}

PyObject* leave(PyObject* object, PyObject* const* given, Py_ssize_t count) {
  if (!release(mutex_of(object), count > 0 && given[0] != Py_None)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* held(PyObject* object, PyObject* argument) {
  const double seconds = argument == Py_None ? -1 : PyFloat_AsDouble(argument);
  if (PyErr_Occurred() != nullptr) return nullptr;
  auto* made = hold_of(the_hold_type->tp_alloc(the_hold_type, 0));
  if (made == nullptr) return nullptr;
  made->mutex = mutex_of(Py_NewRef(object));
  made->seconds = argument == Py_None ? -1 : std::max(0.0, seconds);
  return reinterpret_cast<PyObject*>(made);
}

PyObject* enter_hold(PyObject* object, PyObject*) {
  auto* self = hold_of(object);
  if (self->held) {
    PyErr_SetString(PyExc_RuntimeError, "it is held already");
    return nullptr;
  }
  const int taken = acquire(self->mutex, self->seconds);
  if (taken < 0) return nullptr;
  self->held = taken > 0;
  return PyBool_FromLong(taken);
}

PyObject* leave_hold(PyObject* object, PyObject* const* given, Py_ssize_t count) {
  auto* self = hold_of(object);
  if (std::exchange(self->held, false) && !release(self->mutex, count > 0 && given[0] != Py_None)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* wait(PyObject* object, PyObject* const* given, Py_ssize_t count) {
  auto* self = mutex_of(object);
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "wait(seconds, what)");
    return nullptr;
  }
  const double seconds = PyFloat_AsDouble(given[0]);
  if (PyErr_Occurred() != nullptr || !check_owned(self)) return nullptr;
  waiter place{PyThread_allocate_lock(), given[1], nullptr};
  if (place.woken == nullptr) return PyErr_NoMemory();
  PyThread_acquire_lock(place.woken, NOWAIT_LOCK);
  int woken = 0;
  {
    elsewhere now_here(self, place);
    woken = take_lock(place.woken, std::max(0.0, seconds), true);
  }
  if (woken > 0) PyThread_release_lock(place.woken);
  PyThread_free_lock(place.woken);
  if (woken < 0) return nullptr;
  Py_RETURN_NONE;
}

PyObject* notify_all(PyObject* object, PyObject*) {
  for (auto* each = mutex_of(object)->waiters; each != nullptr; each = each->next) {
    if (each->woken == nullptr) continue;
    PyThread_acquire_lock(each->woken, NOWAIT_LOCK);  // it may be told twice
    PyThread_release_lock(each->woken);
  }
  Py_RETURN_NONE;
}

PyObject* outside(PyObject* object, PyObject* const* given, Py_ssize_t count) {
  auto* self = mutex_of(object);
  if (count < 2) {
    PyErr_SetString(PyExc_TypeError, "outside(what, function, *args)");
    return nullptr;
  }
  if (!check_owned(self)) return nullptr;
  waiter place{nullptr, given[0], nullptr};
  elsewhere now_here(self, place);
  return PyObject_Vectorcall(given[1], given + 2, static_cast<std::size_t>(count - 2), nullptr);
}

PyObject* owned_method(PyObject* object, PyObject*) {
  return PyBool_FromLong(owned(mutex_of(object)));
}

PyObject* waiting(PyObject* object, void*) {
  Py_ssize_t count = 0;
  for (auto* each = mutex_of(object)->waiters; each != nullptr; each = each->next) count += each->woken != nullptr;
  return PyLong_FromSsize_t(count);
}

PyObject* awaited(PyObject* object, void*) {
  auto list = ref::steal(PyList_New(0));
  for (auto* each = mutex_of(object)->waiters; list && each != nullptr; each = each->next)
    if (PyList_Append(list.get(), each->what) < 0) return nullptr;
  return list.release();
}

PyObject* depth(PyObject* object, void*) {
  return PyLong_FromUnsignedLong(mutex_of(object)->depth);
}

PyObject* disturbed(PyObject* object, void*) {
  return PyBool_FromLong(mutex_of(object)->disturbed);
}

int set_disturbed(PyObject* object, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth < 0) return -1;
  mutex_of(object)->disturbed = truth != 0;
  return 0;
}

PyObject* mended(PyObject* object, void*) {
  return PyBool_FromLong(mutex_of(object)->mended);
}

int set_mended(PyObject* object, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth < 0) return -1;
  mutex_of(object)->mended = truth != 0;
  return 0;
}

PyObject* make(PyTypeObject* type, PyObject*, PyObject*) {
  auto* lock = PyThread_allocate_lock();
  if (lock == nullptr) return PyErr_NoMemory();
  auto* made = mutex_of(type->tp_alloc(type, 0));
  if (made == nullptr) {
    PyThread_free_lock(lock);
    return nullptr;
  }
  made->lock = lock;
  return as_object(made);
}

void dealloc_mutex(PyObject* object) {
  auto* self = mutex_of(object);
  if (self->depth > 0) PyThread_release_lock(self->lock);
  PyThread_free_lock(self->lock);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

void dealloc_hold(PyObject* object) {
  auto* self = hold_of(object);
  Py_CLEAR(self->mutex);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef mutex_methods[] = {
    {"__enter__", enter, METH_NOARGS, nullptr},
    {"__exit__", method(leave), METH_FASTCALL, nullptr},
    {"held", held, METH_O, "A context manager: whether it could be taken within so many seconds; None has no limit."},
    {"wait", method(wait), METH_FASTCALL, "wait(seconds, what): without it, until notify_all() or for so long."},
    {"notify_all", notify_all, METH_NOARGS, "Wakes all that wait()."},
    {"outside", method(outside), METH_FASTCALL,
     "outside(what, function, *args): its result, called without the mutex."},
    {"owned", owned_method, METH_NOARGS, "Whether this thread has it."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef mutex_properties[] = {
    {"waiting", waiting, nullptr, "How many threads wait().", nullptr},
    {"awaited", awaited, nullptr, "What those wait for that have given it up for a while.", nullptr},
    {"depth", depth, nullptr, "How often who has it has taken it.", nullptr},
    {"disturbed", disturbed, set_disturbed, "Whether somebody has given it back by an exception.", nullptr},
    {"mended", mended, set_mended, "Whether who has it has seen to that already.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot mutex_slots[] = {{Py_tp_new, slot(make)},
                             {Py_tp_dealloc, slot(dealloc_mutex)},
                             {Py_tp_methods, mutex_methods},
                             {Py_tp_getset, mutex_properties},
                             {Py_tp_doc, const_cast<char*>("A reentrant lock that signals find taken, or not.")},
                             {0, nullptr}};

PyType_Spec mutex_spec = {"pgpoll.core._Mutex", sizeof(mutex_object), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                          mutex_slots};

PyMethodDef hold_methods[] = {{"__enter__", enter_hold, METH_NOARGS, nullptr},
                              {"__exit__", method(leave_hold), METH_FASTCALL, nullptr},
                              {nullptr, nullptr, 0, nullptr}};

PyType_Slot hold_slots[] = {{Py_tp_dealloc, slot(dealloc_hold)}, {Py_tp_methods, hold_methods}, {0, nullptr}};

PyType_Spec hold_spec = {"pgpoll.core._Held", sizeof(hold_object), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, hold_slots};

}  // namespace

int register_mutex(PyObject* module) {
  the_mutex_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&mutex_spec));
  the_hold_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&hold_spec));
  if (the_mutex_type == nullptr || the_hold_type == nullptr) return -1;
  return PyModule_AddType(module, the_mutex_type);
}

}  // namespace pgpoll::py
