// An owned reference to a Python object, and the little that makes the C API safe to use from C++.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pgpoll::py {

// Owns one reference. Everything here needs the GIL.
class ref {
 public:
  ref() = default;
  static ref steal(PyObject* object) { return ref(object); }
  static ref borrow(PyObject* object) { return ref(Py_XNewRef(object)); }
  ref(const ref& other) : object_(Py_XNewRef(other.object_)) {}
  ref(ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  ref& operator=(ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~ref() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  explicit ref(PyObject* object) : object_(object) {}
  PyObject* object_ = nullptr;
};

// The pending Python exception, set aside while code runs that must not see it. (PyErr_GetRaisedException is 3.12's.)
class pending_error {
 public:
  pending_error() = default;
  static pending_error fetch() {
    pending_error out;
    PyErr_Fetch(&out.type_, &out.value_, &out.traceback_);
    return out;
  }
  pending_error(pending_error&& other) noexcept
      : type_(std::exchange(other.type_, nullptr)),
        value_(std::exchange(other.value_, nullptr)),
        traceback_(std::exchange(other.traceback_, nullptr)) {}
  pending_error& operator=(pending_error&& other) noexcept {
    std::swap(type_, other.type_);
    std::swap(value_, other.value_);
    std::swap(traceback_, other.traceback_);
    return *this;
  }
  pending_error(const pending_error&) = delete;
  ~pending_error() {
    Py_XDECREF(type_);
    Py_XDECREF(value_);
    Py_XDECREF(traceback_);
  }

  explicit operator bool() const { return type_ != nullptr; }
  void restore() {
    PyErr_Restore(std::exchange(type_, nullptr), std::exchange(value_, nullptr), std::exchange(traceback_, nullptr));
  }
  // The exception as one object with its traceback, as `except ... as error` gives it.
  PyObject* take() {
    PyErr_NormalizeException(&type_, &value_, &traceback_);
    if (traceback_ != nullptr) PyException_SetTraceback(value_, traceback_);
    Py_CLEAR(type_);
    Py_CLEAR(traceback_);
    return std::exchange(value_, nullptr);
  }

 private:
  PyObject* type_ = nullptr;
  PyObject* value_ = nullptr;
  PyObject* traceback_ = nullptr;
};

// Turns the C++ exception in flight into a Python one; for the boundary's catch (...).
inline void raise_current() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, "unknown C++ exception");
  }
}

// The boundary: `body` may throw; the caller sees `failed` with a Python exception set.
template <class Body, class Value>
Value guarded(Body&& body, Value failed) {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    raise_current();
    return failed;
  }
}
template <class Body>
PyObject* guarded(Body&& body) {
  return guarded(std::forward<Body>(body), static_cast<PyObject*>(nullptr));
}

// Function pointers as the C API's tables want them.
template <class Function>
void* slot(Function* function) {
  return reinterpret_cast<void*>(function);
}
template <class Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// Tables of methods, or of properties, made one.
inline bool is_end(const PyMethodDef& entry) {
  return entry.ml_name == nullptr;
}
inline bool is_end(const PyGetSetDef& entry) {
  return entry.name == nullptr;
}
template <class Entry>
std::vector<Entry> joined(std::initializer_list<const Entry*> tables) {
  std::vector<Entry> all;
  for (const auto* table : tables)
    for (const auto* each = table; !is_end(*each); ++each) all.push_back(*each);
  all.push_back({});
  return all;
}

}  // namespace pgpoll::py
