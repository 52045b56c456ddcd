// bool, int2, int4, int8, oid, float4, float8.
//
// Integers take an int, whatever has __index__, and a float or Decimal of integral value. Floats take a float, and
// an int or Decimal that is exact; a float rounds to float4, as that is what the type is for. A bool is no number.
#include <cmath>
#include <limits>

#include "py/codecs/codec.hpp"

namespace pgpoll::py {
namespace {

constexpr const char* out_of_range = "out of range";
constexpr const char* not_exact = "its value has no exact representation there";
constexpr const char* no_bool = "a bool is not a number";

// What an integer type takes besides int, as a new int; null with a reason or an exception.
PyObject* integral(encoder& out, PyObject* value) {
  if (PyIndex_Check(value)) return PyNumber_Index(value);
  if (PyFloat_Check(value)) {
    const double number = PyFloat_AS_DOUBLE(value);
    if (std::isfinite(number) && std::trunc(number) == number) return PyLong_FromDouble(number);
    out.refuse(not_exact);
    return nullptr;
  }
  const int decimal = is_decimal(value);
  if (decimal <= 0) {
    if (decimal == 0) out.refuse("pass an int");
    return nullptr;
  }
  // int() of 1E+999999 would take forever: look at the magnitude first.
  auto adjusted = ref::steal(PyObject_CallMethod(value, "adjusted", nullptr));
  if (!adjusted) return nullptr;
  const long magnitude = PyLong_AsLong(adjusted.get());
  if (magnitude == -1 && PyErr_Occurred()) return nullptr;
  auto finite = ref::steal(PyObject_CallMethod(value, "is_finite", nullptr));
  if (!finite) return nullptr;
  if (finite.get() != Py_True || magnitude > 20) {
    out.refuse(out_of_range);
    return nullptr;
  }
  auto whole = ref::steal(magnitude < 0 ? PyLong_FromLong(0) : PyNumber_Long(value));
  if (!whole) return nullptr;
  const int same = PyObject_RichCompareBool(value, whole.get(), Py_EQ);
  if (same == 0) out.refuse(not_exact);
  return same == 1 ? whole.release() : nullptr;
}

bool integer(encoder& out, PyObject* value, long long least, long long most, long long& number) {
#if PY_VERSION_HEX >= 0x030C0000
  if (PyLong_CheckExact(value) && PyUnstable_Long_IsCompact(reinterpret_cast<PyLongObject*>(value))) {
    number = PyUnstable_Long_CompactValue(reinterpret_cast<PyLongObject*>(value));
    return (number >= least && number <= most) || out.refuse(out_of_range);
  }
#endif
  ref made;
  if (!PyLong_CheckExact(value)) {
    if (PyBool_Check(value)) return out.refuse(no_bool);
    if (!PyLong_Check(value)) {
      made = ref::steal(integral(out, value));
      if (!made) return false;
      value = made.get();
    }
  }
  int overflow = 0;
  number = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (overflow != 0 || number < least || number > most) return out.refuse(out_of_range);
  return number != -1 || !PyErr_Occurred();
}

template <class Int>
bool encode_integer(encoder& out, PyObject* value, Int& number) {
  long long wide = 0;
  if (!integer(out, value, std::numeric_limits<Int>::min(), std::numeric_limits<Int>::max(), wide)) return false;
  number = static_cast<Int>(wide);
  return true;
}

// `exact`: the caller gave a number that float8 holds but that must survive a narrower type as well.
bool floating(encoder& out, PyObject* value, double& number, bool& exact) {
  exact = false;
  if (PyFloat_Check(value)) {
    number = PyFloat_AS_DOUBLE(value);
    return true;
  }
  exact = true;
  if (PyBool_Check(value)) return out.refuse(no_bool);
  const bool index = PyIndex_Check(value) != 0;
  const int decimal = index ? 0 : is_decimal(value);
  if (decimal < 0) return false;
  if (!index && decimal == 0) return out.refuse("pass a float");
  auto given = index ? ref::steal(PyNumber_Index(value)) : ref::borrow(value);
  if (!given) return false;
  auto converted = ref::steal(PyNumber_Float(given.get()));
  if (!converted) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError) && !PyErr_ExceptionMatches(PyExc_ValueError)) return false;
    PyErr_Clear();  // too large an int, or a signalling NaN
    return out.refuse(not_exact);
  }
  number = PyFloat_AS_DOUBLE(converted.get());
  if (std::isnan(number)) return true;
  const int same = PyObject_RichCompareBool(given.get(), converted.get(), Py_EQ);
  return same == 1 || (same == 0 && out.refuse(not_exact));
}

}  // namespace

PyObject* decode_bool(const char* data, std::size_t size, const codec& self) {
  if (size != 1) return wrong_size(self, size, 1);
  return Py_NewRef(*data != 0 ? Py_True : Py_False);
}

PyObject* decode_int2(const char* data, std::size_t size, const codec& self) {
  if (size != 2) return wrong_size(self, size, 2);
  return PyLong_FromLong(wire::load_int16(data));
}

PyObject* decode_int4(const char* data, std::size_t size, const codec& self) {
  if (size != 4) return wrong_size(self, size, 4);
  return PyLong_FromLong(wire::load_int32(data));
}

PyObject* decode_int8(const char* data, std::size_t size, const codec& self) {
  if (size != 8) return wrong_size(self, size, 8);
  return PyLong_FromLongLong(load_int64(data));
}

PyObject* decode_oid(const char* data, std::size_t size, const codec& self) {
  if (size != 4) return wrong_size(self, size, 4);
  return PyLong_FromUnsignedLong(wire::load_uint32(data));
}

PyObject* decode_float4(const char* data, std::size_t size, const codec& self) {
  if (size != 4) return wrong_size(self, size, 4);
  return PyFloat_FromDouble(static_cast<double>(std::bit_cast<float>(wire::load_uint32(data))));
}

PyObject* decode_float8(const char* data, std::size_t size, const codec& self) {
  if (size != 8) return wrong_size(self, size, 8);
  return PyFloat_FromDouble(std::bit_cast<double>(load_uint64(data)));
}

bool encode_bool(encoder& out, PyObject* value, const codec&) {
  if (!PyBool_Check(value)) return out.refuse("pass True or False");
  return out.uint8(value == Py_True ? 1 : 0);
}

bool encode_int2(encoder& out, PyObject* value, const codec&) {
  std::int16_t number = 0;
  return encode_integer(out, value, number) && out.int16(number);
}

bool encode_int4(encoder& out, PyObject* value, const codec&) {
  std::int32_t number = 0;
  return encode_integer(out, value, number) && out.int32(number);
}

bool encode_int8(encoder& out, PyObject* value, const codec&) {
  std::int64_t number = 0;
  return encode_integer(out, value, number) && out.int64(number);
}

bool encode_oid(encoder& out, PyObject* value, const codec&) {
  std::uint32_t number = 0;
  return encode_integer(out, value, number) && out.uint32(number);
}

bool encode_float4(encoder& out, PyObject* value, const codec&) {
  double number = 0;
  bool exact = false;
  if (!floating(out, value, number, exact)) return false;
  // Beyond float's range the conversion itself would be undefined.
  if (std::isfinite(number) && std::fabs(number) > static_cast<double>(std::numeric_limits<float>::max()))
    return out.refuse(out_of_range);
  const auto narrow = static_cast<float>(number);
  if (number != 0 && narrow == 0) return out.refuse("too small for float4");
  if (exact && !std::isnan(number) && static_cast<double>(narrow) != number) return out.refuse(not_exact);
  return out.uint32(std::bit_cast<std::uint32_t>(narrow));
}

bool encode_float8(encoder& out, PyObject* value, const codec&) {
  double number = 0;
  bool exact = false;
  return floating(out, value, number, exact) && out.uint64(std::bit_cast<std::uint64_t>(number));
}

}  // namespace pgpoll::py
