// Connection: a net::client, the Operations in flight on it, and what an event loop handed in.
#pragma once

#include <memory>

#include "net/client.hpp"
#include "py/driver.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

// What _attach() was given, and what the loop was told last.
struct loop_side {
  PyObject* loop;
  PyObject* call_soon;
  PyObject* current_task;
  PyObject* get_running_loop;
  PyObject* task_types;
  PyObject* on_change;
  PyObject* on_notices;
  PyObject* cancelled_error;
  PyObject* context;  // empty: what the loop calls carries nobody's variables
  int fd;             // told last
  int watched;        // told last: WAIT_READ, WAIT_WRITE and CLOSED
  bool handing_out;
  bool flush_pending;
  bool read_on_pending;
};

struct connection_object {
  driver_object base;
  net::client* client;
  loop_side side;
  unsigned waiting;  // threads within wait()
  unsigned cancels;  // Cancels that have not reached their end
  bool close_later;  // close_fd() was called while a thread waited
};

inline connection_object* as_connection(PyObject* object) {
  return reinterpret_cast<connection_object*>(object);
}
inline PyObject* as_object(connection_object* connection) {
  return reinterpret_cast<PyObject*>(connection);
}

int register_connection(PyObject* module);
int register_cancel(PyObject* module);
PyTypeObject* connection_type();

// One poll() of the client, arguments encoded: design.md section 1. False with an exception set.
bool advance(connection_object* self, int& flags);
// Sends what it can, reads nothing. False with an exception set.
bool flush(connection_object* self, int& flags);
void close_fd(connection_object* self);
void terminate(connection_object* self, std::string why);

PyObject* start_cancel(connection_object* self);
PyObject* wait_for(connection_object* self, PyObject* operation, double seconds);

// The loop's side (loop_side.cpp). False, or null, with an exception set.
bool settle(connection_object* self, bool direct);  // hands out, flushes, tells the loop what changed
bool flush_soon(connection_object* self);           // the sending rule (D4) after a request was started
bool schedule_flush(connection_object* self);       // one call_soon for each turn
bool give_notice(connection_object* self);          // after something was abandoned: a flush, and the loop is told
bool check_loop(connection_object* self);           // the running loop is ours, else InterfaceError
bool runs_in_loop(connection_object* self);         // the same, raising nothing
bool call_soon(connection_object* self, PyObject* callback, PyObject* argument, PyObject* context);
int traverse_side(connection_object* self, visitproc visit, void* arg);
void clear_side(connection_object* self);
extern PyMethodDef loop_methods[];  // _attach, _execute, _waiter, _on_readable ...

}  // namespace pgpoll::py
