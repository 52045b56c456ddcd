// Operation, the caller's handle of one request, and PreparedStatement.
#pragma once

#include "core/result.hpp"
#include "py/driver.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

class row_feed;
struct waiter_object;
struct observation;
struct batch_side;

// What Operation.result() gives for an execute. All but `result` are decoded as they arrive, while the server goes on.
enum class wanted : char { result, rows, row, value };

struct operation_object {
  PyObject_HEAD core::operation_ptr op;
  driver_object* driver;  // borrowed; null once it is gone
  operation_object* next;
  operation_object* previous;
  PyObject* sql;        // str or PreparedStatement
  PyObject* arguments;  // kept until the description has come,
  PyObject* context;    // with the context that they are encoded in
  PyObject* gathered;   // of what is wanted, so far: the list, the row or the value; null where none came
  PyObject* bad_value;  // the error of the first that could not be decoded
  PyObject* result;     // cached
  PyObject* error;      // cached; or what encoding raised
  PyObject* on_stir;    // called when a channel has stirred, or an operation without a waiter is done
  waiter_object* waiter;
  row_feed* feed;         // owned; rows of a stream or a fetch that were taken from the core; null where there are none
  batch_side* batch;      // owned; of a batch
  observation* observed;  // owned; null where nobody observes, or its record was made
  wanted want;
  bool kept;  // the driver holds a reference: in flight, or finished and not taken
};

struct prepared_object {
  PyObject_HEAD core::statement_ptr statement;
};

// Of operations that give their rows in parts (stream.cpp).
void forget_rows(operation_object* handle);
extern PyMethodDef row_methods[];     // take_rows, grant
extern PyMethodDef stream_methods[];  // start_stream and the like: of a driver

int register_operation(PyObject* module);
int register_prepared(PyObject* module);
PyTypeObject* operation_type();
bool is_prepared(PyObject* object);
PyObject* prepared_new(core::statement_ptr statement);

inline PyObject* as_object(operation_object* handle) {
  return reinterpret_cast<PyObject*>(handle);
}

// False, with InterfaceError set, in the child of a fork.
bool check_process(const operation_object* handle);

// A handle of `driver` without an operation yet; keep() gives it one and lets the driver keep it.
operation_object* operation_new(driver_object* driver, PyObject* sql);
void keep(operation_object* handle, core::operation_ptr op);

// The driver's reference, which the caller takes over; empty if there is none.
ref let_go(operation_object* handle);
void take(operation_object* handle);  // strikes it from the finished ones, if it is among them
void forget_arguments(operation_object* handle);

// Interest ends: the driver lets go of it. No effect on a finished one that was taken. `error` is what its caller gets
// instead, for an observer; null: the exception that is being handled, if any.
void abandon(operation_object* handle, PyObject* error = nullptr);

// Decodes what has come of the rows that it wants, and frees their bytes.
void gather(operation_object* handle);

// The error of one that has failed, made once; borrowed, null with an exception set.
PyObject* outcome_error(operation_object* handle);

// Operation.result(): takes it.
PyObject* operation_result(operation_object* handle);

}  // namespace pgpoll::py
