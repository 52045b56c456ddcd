// What an observer of a connection's requests is told (D17): when each was queued, sent, answered and finished, what
// came back, and how it ended.
//
// Where nobody observes a driver has no request_observer, an Operation no observation, and no clock is read. Else the
// clock is read when a request starts, once for each poll() and flush(), and where a request ends otherwise. A record
// is made when its outcome is known (`note`), and waits until it can be handed over (`tell`): at once where a loop
// drives, for then the callback's requests are other tasks'; else when the sync face's verb lets go of the connection.
#pragma once

#include <deque>
#include <vector>

#include "py/operation.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

// Of one request, while its record has not been made. Times are time.monotonic()'s; negative: not yet.
struct observation {
  double queued = -1;
  double sent = -1;
  double first_byte = -1;
  double finished = -1;
  std::size_t rows = 0;  // those that were gathered
  ref context;           // of whoever asked, at that time
};

struct request_observer {
  ref on_request;
  ref make_record;  // (sql, statement, queued, sent, first_byte, finished, rows, bytes, error)
  ref on_failure;   // gets what on_request has raised; what it raises itself is raised by whatever was called
  bool at_once = false;
  double queued = -1;        // of the request that starts now, where it has waited in a line; negative: now
  std::deque<ref> unsent;    // Operations of which no byte has left, in the order in which they will
  std::deque<ref> untold;    // records,
  std::deque<ref> contexts;  // and where each is to be told
};

// Before a request is queued; null with an exception set. The Operation owns it from observe() on.
std::unique_ptr<observation> observation_new(driver_object* driver);
void observe(operation_object* handle, std::unique_ptr<observation> begun);

// After a poll(), a flush() and whatever else may end requests: notes the time where it matters.
void note_times(driver_object* driver);
inline void stamp(driver_object* driver) {
  if (driver->observer != nullptr) note_times(driver);
}

// The outcome is known: of one that is finished; of one that is given up (`error`: what its caller gets, may be null);
// of an execute whose arguments were refused, with that exception set, which it stays. Nothing for one that was noted.
void note_finished(operation_object* handle);
void note_given_up(operation_object* handle, PyObject* error);
void note_refused(driver_object* driver, PyObject* sql, const core::statement& statement);

// Hands over what was noted. False with an exception set.
bool tell(driver_object* driver);
inline bool tell_at_once(driver_object* driver) {
  return driver->observer == nullptr || !driver->observer->at_once || tell(driver);
}
inline bool report(driver_object* driver, operation_object* handle) {
  if (handle->observed != nullptr) note_finished(handle);
  return tell_at_once(driver);
}

int traverse_observer(driver_object* driver, visitproc visit, void* arg);
void drop_observer(driver_object* driver);

extern PyMethodDef observing_methods[];  // of Connection: _observe, _report, _observed_at, _start_observed, _note

}  // namespace pgpoll::py
