// The methods and properties that Connection and Session have in common.
#include "py/driver.hpp"

namespace pgpoll::py {
namespace {

driver_object* driver_of(PyObject* object) {
  return reinterpret_cast<driver_object*>(object);
}
core::session& session_of(PyObject* object) {
  return *driver_of(object)->session;
}

template <PyObject* (*Start)(driver_object*)>
PyObject* start_plain(PyObject* object, PyObject*) {
  return guarded([&] { return Start(driver_of(object)); });
}

template <PyObject* (*Start)(driver_object*, PyObject*)>
PyObject* start_sql(PyObject* object, PyObject* sql) {
  return guarded([&] { return Start(driver_of(object), sql); });
}

template <PyObject* (*Start)(driver_object*, PyObject* const*, Py_ssize_t)>
PyObject* start_with(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] { return Start(driver_of(object), args, count); });
}

PyObject* next_completed_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    if (!check_process(driver_of(object))) return nullptr;
    auto operation = next_completed(driver_of(object));
    return operation ? operation.release() : Py_NewRef(Py_None);
  });
}

PyObject* next_stirred_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    if (!check_process(driver_of(object))) return nullptr;
    return next_stirred(driver_of(object)).release();
  });
}

PyObject* cancel_too_old(PyObject* object, PyObject*) {
  session_of(object).cancel_too_old();
  Py_RETURN_NONE;
}

PyObject* cancel_wanted(PyObject* object, PyObject*) {
  return PyLong_FromLong(static_cast<long>(session_of(object).cancel_wanted()));
}

PyObject* take_notices(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] { return notices_list(session_of(object), args, count); });
}

PyObject* keep_notifications(PyObject* object, PyObject* keep) {
  const int kept = PyObject_IsTrue(keep);
  if (kept < 0) return nullptr;
  session_of(object).keep_notifications(kept == 1);
  Py_RETURN_NONE;
}

PyObject* take_notifications(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] { return notifications_list(session_of(object), args, count); });
}

PyObject* abandoned_head(PyObject* object, void*) {
  return PyLong_FromUnsignedLongLong(session_of(object).abandoned_head());
}
PyObject* in_flight(PyObject* object, void*) {
  return PyLong_FromSize_t(session_of(object).in_flight());
}
PyObject* quiet(PyObject* object, void*) {
  return PyBool_FromLong(session_of(object).quiet());
}
PyObject* transaction_status(PyObject* object, void*) {
  return status_text(session_of(object));
}

}  // namespace

PyMethodDef driver_methods[] = {
    {"start_execute", method(start_with<start_execute>), METH_FASTCALL, "One statement with its arguments: a Result."},
    {"start_prepare", start_sql<start_prepare>, METH_O, "Parses and describes: a PreparedStatement."},
    {"start_script", start_sql<start_script>, METH_O, "Several statements, simple protocol: a list of Results."},
    {"start_command", start_sql<start_command>, METH_O, "One statement without arguments or rows: its tag."},
    {"_start_behind", start_sql<start_behind>, METH_VARARGS,
     "_start_behind(commands, outermost, start): a block begins."},
    {"start_batch", start_plain<start_batch>, METH_NOARGS, "Many items under one Sync: add() and end() them."},
    {"start_executemany", start_sql<start_executemany>, METH_O,
     "One statement for many rows: feed_rows() and end() it."},
    {"start_copy_in", method(start_with<start_copy_in>), METH_FASTCALL, "COPY FROM STDIN, to be fed."},
    {"start_copy_out", method(start_with<start_copy_out>), METH_FASTCALL, "COPY TO STDOUT, to be taken from."},
    {"start_close", start_plain<start_close>, METH_NOARGS, "Serves what was accepted, then ends the connection."},
    {"next_completed", next_completed_method, METH_NOARGS, "The oldest finished operation not yet taken, or None."},
    {"next_stirred", next_stirred_method, METH_NOARGS, "The next channel that has stirred, or None."},
    {"cancel_too_old", cancel_too_old, METH_NOARGS, "A CancelRequest of ours can't strike any more."},
    {"cancel_wanted", cancel_wanted, METH_NOARGS, "NONE, NOW or GRACE, after each abandon() and poll()."},
    {"take_notices", method(take_notices), METH_FASTCALL, "The oldest notices not yet taken: dicts by field code."},
    {"keep_notifications", keep_notifications, METH_O, "Whether notifications are kept until they are taken."},
    {"take_notifications", method(take_notifications), METH_FASTCALL, "The oldest not yet taken."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef driver_properties[] = {
    {"abandoned_head", abandoned_head, nullptr, "The number of the abandoned request that runs; 0 for none.", nullptr},
    {"in_flight", in_flight, nullptr, "Requests started and not finished; abandoned ones until drained.", nullptr},
    {"quiet", quiet, nullptr, "Nothing in flight and nothing to send.", nullptr},
    {"transaction_status", transaction_status, nullptr, "'I', 'T' or 'E'; '' before the first ReadyForQuery.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

}  // namespace pgpoll::py
