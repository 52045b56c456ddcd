// What moves a Connection: poll(), flush(), the blocking wait of the sync face, and its ends.
#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

#include "py/connection.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"
#include "py/operation.hpp"

namespace pgpoll::py {
namespace {

// Sends and pumps until no request waits for its arguments.
void encode_and_pump(connection_object* self) {
  while (encode_described(&self->base)) {
    self->client->session().pump();
    self->client->flush();
  }
}

// Memory ran out within the core: what it was doing can't be gone on with, so everything ends.
void fail_for_memory(connection_object* self) {
  core::failure why;
  why.message = "out of memory";
  self->client->session().fail(std::move(why));
}

bool may_advance(const connection_object* self) {
  if (!check_process(&self->base)) return false;
  if (self->base.advancing) {
    raise_interface_error("poll() inside poll()");
    return false;
  }
  if (self->base.connecting || self->base.session->ended()) return true;
  raise_interface_error("not connected: start_connect() comes first");
  return false;
}

// Monotonic seconds: wait() has to know what is left of its time when the socket wakes it early.
double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

timespec to_timespec(double seconds) {
  double whole = std::floor(std::clamp(seconds, 0.0, 1e9));
  double rest = std::clamp((seconds - whole) * 1e9, 0.0, 999'999'999.0);
  timespec out{};
  out.tv_sec = static_cast<time_t>(whole);
  out.tv_nsec = static_cast<long>(rest);
  return out;
}

// Counts the threads within wait(): what they watch is closed by the last one that leaves.
class waiting_thread {
 public:
  explicit waiting_thread(connection_object* self) : self_(self) { ++self_->waiting; }
  waiting_thread(const waiting_thread&) = delete;
  ~waiting_thread() {
    if (--self_->waiting == 0 && std::exchange(self_->close_later, false)) self_->client->close_fd();
  }

 private:
  connection_object* self_;
};

// 1: ready, 0: time is up or interrupted, -1: exception set.
int wait_for_socket(connection_object* self, int flags, double seconds) {
  pollfd watched{};
  watched.fd = self->client->fileno();
  watched.events =
      static_cast<short>(((flags & net::wait_read) != 0 ? POLLIN : 0) | ((flags & net::wait_write) != 0 ? POLLOUT : 0));
  auto limit = to_timespec(seconds);
  int count = 0;
  int error = 0;
  {
    waiting_thread within(self);
    Py_BEGIN_ALLOW_THREADS count = ppoll(&watched, 1, &limit, nullptr);
    error = errno;
    Py_END_ALLOW_THREADS
  }
  if (count >= 0) return count;
  if (error == EINTR) return PyErr_CheckSignals() < 0 ? -1 : 0;
  errno = error;
  PyErr_SetFromErrno(PyExc_OSError);
  return -1;
}

}  // namespace

bool advance(connection_object* self, int& flags) {
  if (!may_advance(self)) return false;
  auto held = ref::borrow(as_object(self));
  self->base.unflushed = self->base.burst = false;
  try {
    advance_guard within(&self->base);
    flags = self->client->poll();
    encode_and_pump(self);
    if (const auto* head = self->base.session->head(); head != nullptr && head->owner != nullptr)
      gather(static_cast<operation_object*>(head->owner));
    stamp(&self->base);
    flags = self->client->flags();
    return true;
  } catch (const std::bad_alloc&) {
    fail_for_memory(self);
    PyErr_NoMemory();
    return false;
  }
}

bool flush(connection_object* self, int& flags) {
  if (!check_process(&self->base)) return false;
  auto held = ref::borrow(as_object(self));
  self->base.unflushed = self->base.burst = false;
  try {
    if (self->base.advancing) {  // from a caller's code within poll(), which goes on with the rest
      flags = self->client->flush();
      stamp(&self->base);
      return true;
    }
    advance_guard within(&self->base);
    if (self->base.session->wants_pump()) self->base.session->pump();
    self->client->flush();
    encode_and_pump(self);
    stamp(&self->base);
    flags = self->client->flags() & net::wait_write;
    return true;
  } catch (const std::bad_alloc&) {
    fail_for_memory(self);
    PyErr_NoMemory();
    return false;
  }
}

void close_fd(connection_object* self) {
  if (self->waiting == 0) {
    self->client->close_fd();
  } else if (self->base.generation == fork_generation()) {
    self->client->terminate();  // wakes them
    self->close_later = true;
  }
}

void terminate(connection_object* self, std::string why) {
  if (self->base.generation == fork_generation()) {
    self->client->terminate(std::move(why));
    stamp(&self->base);
  } else {
    self->client->close_fd();
  }
}

PyObject* wait_for(connection_object* self, PyObject* object, double seconds) {
  if (!PyObject_TypeCheck(object, operation_type()))
    return raise_interface_error(std::string("wait() takes an Operation, not ") + Py_TYPE(object)->tp_name);
  auto held = ref::borrow(object);
  const auto& op = *reinterpret_cast<operation_object*>(object)->op;
  const auto& session = *self->base.session;
  const auto told = session.notices_kept() + session.notifications_kept();
  double deadline = 0;
  for (bool first = true; !op.done() && !op.stirred; first = false) {
    int flags = 0;
    if (!advance(self, flags)) return nullptr;
    if (op.done() || op.stirred || (flags & (net::wait_read | net::wait_write)) == 0) break;
    if (session.notices_kept() + session.notifications_kept() != told) break;  // the face hands them over
    double left = seconds;
    if (first) {
      deadline = now() + seconds;
    } else if ((left = deadline - now()) <= 0) {
      break;
    }
    if (wait_for_socket(self, flags, left) < 0) return nullptr;
  }
  return PyBool_FromLong(op.done() || op.stirred);
}

}  // namespace pgpoll::py
