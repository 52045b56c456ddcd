// What Connection and Session have in common: requests are started, their arguments encoded and their Operations kept.
//
// A driver keeps every Operation that is in flight, or finished and not taken, alive; core::operation::owner points
// at it. An Operation knows its driver until the driver goes. User code runs in exactly two places here: encoding
// (encode_arguments) and building an error or a result; both are outside the core and may re-enter the driver.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "core/session.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

struct operation_object;
struct request_observer;

// What begins a block, in front of the next request that is started: set by start_behind(), taken by that request.
struct preamble_texts {
  PyObject* commands = nullptr;  // tuple of str, borrowed
  bool outermost = false;
  ref operations;  // list: their Operations, once it has been taken
};

struct driver_object {
  PyObject_HEAD core::session* session;  // owned by the object that this is the head of
  operation_object* operations;          // all that live, newest first
  request_observer* observer;            // owned; null where nobody observes
  preamble_texts* ahead;                 // borrowed; null as a rule
  std::size_t max_queued;                // 0: no bound
  unsigned generation;                   // of this process, see fork_generation()
  bool pipeline;                         // else one request at a time
  bool advancing;                        // within poll(): the core is pumped or arguments are encoded
  bool connecting;                       // start_connect() was called
  bool burst;                            // all that is in flight was started since the last flush (D4: sent at once)
  bool unflushed;                        // something was started or abandoned since the last flush
};

// Changes in the child of a fork: connections made before belong to the parent.
unsigned fork_generation();
void watch_forks();

// False, with InterfaceError set, in the child of a fork.
bool check_process(const driver_object* driver);

// What a request that has arguments begins with in the core: its description and they, or its text alone.
class request_begin {
 public:
  virtual core::operation_ptr described(core::session& session, core::statement_ptr statement, std::string arguments,
                                        core::preamble first) = 0;
  virtual core::operation_ptr undescribed(core::session& session, std::string sql, core::preamble first) = 0;

 protected:
  ~request_begin() = default;
};

// Starts it. `sql` is a str or a PreparedStatement, `arguments` a tuple. New reference; null with an exception set.
PyObject* start_with_arguments(driver_object* driver, PyObject* sql, PyObject* arguments, request_begin& begin);

// Starts what has none, `sql` being what it is called.
using plain_begin = const std::function<core::operation_ptr(core::session&)>&;
PyObject* start_without_arguments(driver_object* driver, PyObject* sql, plain_begin begin);

// Requests. New references to Operations; null with an exception set, nothing queued.
PyObject* start_connect(driver_object* driver);
PyObject* start_execute(driver_object* driver, PyObject* const* given,
                        Py_ssize_t count);  // sql, args = (), want = RESULT
PyObject* start_prepare(driver_object* driver, PyObject* sql);
PyObject* start_script(driver_object* driver, PyObject* sql);
PyObject* start_command(driver_object* driver, PyObject* sql);
PyObject* start_batch(driver_object* driver);
PyObject* start_executemany(driver_object* driver, PyObject* sql);
PyObject* start_copy_in(driver_object* driver, PyObject* const* given, Py_ssize_t count);   // sql, query = ""
PyObject* start_copy_out(driver_object* driver, PyObject* const* given, Py_ssize_t count);  // sql, query = ""
PyObject* start_close(driver_object* driver);

// _start_behind(commands, outermost, start): what start() starts, with `commands` in front of it under its Sync; a list
// of their Operations and then its own.
PyObject* start_behind(driver_object* driver, PyObject* args);

// The text of a statement as the wire takes it. What can't be sent is the caller's mistake; false with an exception.
bool read_sql(PyObject* sql, std::string_view& out);

// Encodes the arguments of every request whose description has come; true if there was one (pump again).
bool encode_described(driver_object* driver);

// The oldest finished Operation not yet taken, taken now; null, no exception, where there is none.
ref next_completed(driver_object* driver);

// The next channel that has stirred; None where there is none.
ref next_stirred(driver_object* driver);

// Those that are in flight and that the driver keeps, newest first; not a portal's rows that were asked for: what was
// written of those runs to its end whoever wants it.
PyObject* unfinished_operations(driver_object* driver);

// What the Python types share.
extern PyMethodDef driver_methods[];
extern PyGetSetDef driver_properties[];
int traverse_driver(driver_object* driver, visitproc visit, void* arg);
void release_operations(driver_object* driver);  // lets go of all its Operations
void fail_for_drop(driver_object* driver);       // the driver is dropped: every operation ends
PyObject* parameters_dict(const core::session& session);
PyObject* status_text(const core::session& session);
PyObject* notices_list(core::session& session, PyObject* const* args, Py_ssize_t count);        // at most so many
PyObject* notifications_list(core::session& session, PyObject* const* args, Py_ssize_t count);  // likewise

// True while it lives; only one at a time for each driver.
class advance_guard {
 public:
  explicit advance_guard(driver_object* driver) : driver_(driver) { driver_->advancing = true; }
  advance_guard(const advance_guard&) = delete;
  ~advance_guard() { driver_->advancing = false; }

 private:
  driver_object* driver_;
};

}  // namespace pgpoll::py
