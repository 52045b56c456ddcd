// Waiter: the await of one operation, with the part of asyncio.Future that a Task uses.
//
// A Waiter is awaited once, by one task. It is finished when its reply is handed out (wake), or when it is cancelled
// or expires before that; from then on its outcome never changes. cancel() and expire() abandon the operation.
#pragma once

#include "py/operation.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

struct connection_object;

struct waiter_object {
  PyObject_HEAD connection_object* connection;  // owned
  operation_object* operation;                  // owned
  PyObject* callback;                           // the first; the others are in `more`
  PyObject* context;                            // that `callback` runs in
  PyObject* more;                               // list of (callback, context), or null
  PyObject* cancel_message;                     // of cancel(), where cancelled
  PyObject* expired;                            // of expire()
  char blocking;                                // _asyncio_future_blocking
  bool finished;
  bool cancelled;
  bool shielded;
};

int register_waiter(PyObject* module);
inline PyObject* as_object(waiter_object* waiter) {
  return reinterpret_cast<PyObject*>(waiter);
}

PyObject* waiter_new(connection_object* connection, operation_object* operation, bool shielded = false);

// Waiter.cancel(): True where it was not finished.
PyObject* waiter_cancel(waiter_object* waiter, PyObject* message);

// Finishes it and wakes who awaits it. `direct`: the callback of a task may run here and now, in its context. False,
// with an exception set, where that raised or could not be scheduled; it is finished all the same.
bool waiter_wake(waiter_object* waiter, bool direct);

}  // namespace pgpoll::py
