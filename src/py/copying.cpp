// What an Operation of a COPY does besides: it is fed, and taken from.
#include "py/copying.hpp"

#include <cstdint>
#include <string>

#include "core/session.hpp"
#include "py/errors.hpp"
#include "py/operation.hpp"

namespace pgpoll::py {
namespace {

using kind = enum core::operation::kind;
using feeding = enum core::operation::feeding;

operation_object* operation_of(PyObject* object) {
  return reinterpret_cast<operation_object*>(object);
}

bool is_copy(const core::operation& op, kind wanted) {
  if (op.kind == wanted) return true;
  raise_interface_error(wanted == kind::copy_in ? "only an operation of start_copy_in() is fed"
                                                : "only an operation of start_copy_out() has data to take");
  return false;
}

// Whether it may be fed, or ended, now; with the exception set where not.
bool may_feed(operation_object* self) {
  const auto& op = *self->op;
  if (!is_copy(op, kind::copy_in) || !check_process(self)) return false;
  if (op.feeding == feeding::not_begun && !op.done()) {
    raise_interface_error("COPY has not begun: it is fed when it has stirred");
    return false;
  }
  if (op.feeding != feeding::ended) return true;
  raise_interface_error("COPY has been ended");
  return false;
}

// Whoever feeds has looked, also where the server takes nothing any more.
core::session* session_of(operation_object* self) {
  if (self->driver == nullptr) return nullptr;
  self->driver->session->look(*self->op);
  if (!self->op->feeds()) return nullptr;
  self->driver->unflushed = true;
  return self->driver->session;
}

PyObject* feed(PyObject* object, PyObject* data) {
  auto* self = operation_of(object);
  Py_buffer bytes;
  if (!may_feed(self) || PyObject_GetBuffer(data, &bytes, PyBUF_SIMPLE) < 0) return nullptr;
  auto* answer = guarded([&] {
    auto* session = session_of(self);
    const std::string_view all(static_cast<const char*>(bytes.buf), static_cast<std::size_t>(bytes.len));
    return PyBool_FromLong(session != nullptr && session->feed(*self->op, all));
  });
  PyBuffer_Release(&bytes);
  return answer;
}

PyObject* finish_feed(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    if (!may_feed(self)) return nullptr;
    if (auto* session = session_of(self)) session->finish_feed(*self->op);
    Py_RETURN_NONE;
  });
}

PyObject* fail_feed(PyObject* object, PyObject* reason) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(reason, &size);
    if (text == nullptr || !may_feed(self)) return nullptr;
    const std::string_view all(text, static_cast<std::size_t>(size));
    constexpr std::size_t longest = 1000;
    if (auto* session = session_of(self))
      session->fail_feed(*self->op, all.substr(0, std::min(all.find('\0'), longest)));
    Py_RETURN_NONE;
  });
}

PyObject* take_data(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    if (!is_copy(*self->op, kind::copy_out) || !check_process(self)) return nullptr;
    const auto data = take_copied(self);
    return PyBytes_FromStringAndSize(data.data(), static_cast<Py_ssize_t>(data.size()));
  });
}

PyObject* feeds(PyObject* object, void*) {
  const auto& op = *operation_of(object)->op;
  return PyBool_FromLong(op.feeds() && !op.crowded);
}

PyObject* stopped(PyObject* object, void*) {
  const auto& op = *operation_of(object)->op;
  return PyBool_FromLong(op.feeding == feeding::stopped || (op.done() && op.feeding != feeding::ended));
}

PyObject* copied(PyObject* object, void*) {
  return PyLong_FromUnsignedLongLong(operation_of(object)->op->copied);
}

}  // namespace

std::string take_copied(operation_object* self) {
  return self->driver != nullptr ? self->driver->session->take_data(*self->op) : std::exchange(self->op->data, {});
}

PyMethodDef copy_methods[] = {
    {"feed", feed, METH_O,
     "Data for COPY FROM STDIN. False: no more before it has stirred, for the socket is full; or the server has ended\n"
     "the COPY, see `stopped`."},
    {"finish_feed", finish_feed, METH_NOARGS, "All data has been fed: CopyDone."},
    {"fail_feed", fail_feed, METH_O, "fail_feed(reason): CopyFail; its result will raise the server's QueryCanceled."},
    {"take_data", take_data, METH_NOARGS, "What has come of COPY TO STDOUT: bytes; b'' where nothing has."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef copy_properties[] = {
    {"feeds", feeds, nullptr, "COPY FROM STDIN: whether data may be fed now.", nullptr},
    {"stopped", stopped, nullptr, "COPY FROM STDIN: the server has ended it, or never began it.", nullptr},
    {"copied", copied, nullptr, "Bytes of COPY data that were fed, or have come.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

}  // namespace pgpoll::py
