// What the files of this folder share: a type's codec, the encoder it writes to, and the ways to fail.
//
// A decoder returns a new reference, or null with an exception set: raise it with bad_value(). Whoever knows row and
// column adds them (plan.cpp). An encoder appends the value's bytes without its length and returns true; or it
// returns false after `out.refuse(why)`, or with a Python exception set that the caller's own code raised.
#pragma once

#include "py/ref.hpp"

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "wire/bytes.hpp"
#include "wire/frontend.hpp"

namespace pgpoll::py {

struct codec;

// Values as they are written, for Bind or COPY. The server takes no message of 1 GiB or more.
//
// It writes at the end of a string that is made longer in steps, and cut to what was written when it goes: what is
// written for each of millions of values is a comparison and a copy.
class encoder {
 public:
  static constexpr std::size_t limit = wire::max_content;

  explicit encoder(std::string& out) : out_(out), end_(out.size()) {}
  encoder(const encoder&) = delete;
  ~encoder() { out_.resize(end_); }

  bool uint8(std::uint8_t value) {
    *write(1) = static_cast<char>(value);
    return true;
  }
  bool uint16(std::uint16_t value) {
    char* p = write(2);
    p[0] = static_cast<char>(value >> 8);
    p[1] = static_cast<char>(value);
    return true;
  }
  bool uint32(std::uint32_t value) {
    store_uint32(write(4), value);
    return true;
  }
  bool uint64(std::uint64_t value) {
    char* p = write(8);
    store_uint32(p, static_cast<std::uint32_t>(value >> 32));
    store_uint32(p + 4, static_cast<std::uint32_t>(value));
    return true;
  }
  bool int16(std::int16_t value) { return uint16(static_cast<std::uint16_t>(value)); }
  bool int32(std::int32_t value) { return uint32(static_cast<std::uint32_t>(value)); }
  bool int64(std::int64_t value) { return uint64(static_cast<std::uint64_t>(value)); }
  bool bytes(const char* data, std::size_t size) {
    if (!room(size)) return false;
    if (size != 0) std::memcpy(write(size), data, size);
    return true;
  }

  // Whether `size` more bytes fit; raises InterfaceError where they don't. Ask before copying.
  bool room(std::size_t size) { return (size <= limit && end_ <= limit - size) || too_large(); }
  // `size` bytes to be filled in by the caller at once, or null.
  char* reserve(std::size_t size) { return room(size) ? write(size) : nullptr; }

  // One value with its length before it; None is NULL. Sets `null_seen` for it.
  bool value(PyObject* value, const codec& type);
  bool null_seen = false;

  // The value does not fit its type; `why` is a literal that ends "... does not take a value of type T: ".
  bool refuse(const char* why) {
    reason_ = why;
    return false;
  }
  const char* reason() const { return reason_; }

  std::size_t size() const { return end_; }
  void truncate(std::size_t size) { end_ = size; }
  void patch_uint32(std::size_t at, std::uint32_t value) { store_uint32(out_.data() + at, value); }

 private:
  static void store_uint32(char* p, std::uint32_t value) {
    p[0] = static_cast<char>(value >> 24);
    p[1] = static_cast<char>(value >> 16);
    p[2] = static_cast<char>(value >> 8);
    p[3] = static_cast<char>(value);
  }
  char* write(std::size_t size) {
    if (out_.size() - end_ < size) grow(size);
    char* p = out_.data() + end_;
    end_ += size;
    return p;
  }
  void grow(std::size_t size);
  bool too_large();

  std::string& out_;
  std::size_t end_;
  const char* reason_ = nullptr;
};

using decode_function = PyObject* (*)(const char* data, std::size_t size, const codec& self);
using encode_function = bool (*)(encoder& out, PyObject* value, const codec& self);

struct codec {
  std::uint32_t oid;
  const char* name;
  decode_function decode;
  encode_function encode;
  bool atomic;           // its Python values refer to no container
  const codec* element;  // of an array, else null
};

inline bool encoder::value(PyObject* value, const codec& type) {
  if (value == Py_None) {
    null_seen = true;
    return int32(-1) && room(0);
  }
  const auto at = end_;
  write(4);
  if (!type.encode(*this, value, type) || !room(0)) return false;
  patch_uint32(at, static_cast<std::uint32_t>(end_ - at - 4));
  return true;
}

// The codec of a type that is exchanged in binary, or null.
const codec* find_codec(std::uint32_t type_oid);
// For everything else: text.
extern const codec text_codec;

// Raises DataError with PyUnicode_FromFormat's `format`; returns null.
PyObject* bad_value(const char* format, ...);
// Makes of the pending exception a DataError "<what>: <its text>" that has it as its cause; KeyboardInterrupt,
// MemoryError and the like stay. Returns null.
PyObject* bad_value_because(const char* what);
PyObject* wrong_size(const codec& type, std::size_t size, std::size_t expected);

// What a value's refusal became: DataError that begins with `what` ("parameter $1 (int4)"), with the exception of the
// caller's own code as its cause.
void explain_refusal(const encoder& out, const std::string& what, PyObject* value, const std::string& hint = {});

// An attribute of a module, imported when first asked for and kept in `cache`. Borrowed; null with an exception set.
PyObject* imported(PyObject*& cache, const char* module, const char* name);
// decimal.Decimal, borrowed. Whether `value` is one: 1, 0, or -1 with an exception set.
PyObject* decimal_class();
int is_decimal(PyObject* value);
// json (and RawJson) values are whole: a list among them is no dimension of an array.
bool is_json(const codec& type);
// Loads the datetime module; false with an exception set.
bool prepare_datetime();

inline std::uint64_t load_uint64(const char* p) {
  return std::uint64_t{wire::load_uint32(p)} << 32 | wire::load_uint32(p + 4);
}
inline std::int64_t load_int64(const char* p) {
  return static_cast<std::int64_t>(load_uint64(p));
}

PyObject* decode_bool(const char*, std::size_t, const codec&);
PyObject* decode_int2(const char*, std::size_t, const codec&);
PyObject* decode_int4(const char*, std::size_t, const codec&);
PyObject* decode_int8(const char*, std::size_t, const codec&);
PyObject* decode_oid(const char*, std::size_t, const codec&);
PyObject* decode_float4(const char*, std::size_t, const codec&);
PyObject* decode_float8(const char*, std::size_t, const codec&);
PyObject* decode_numeric(const char*, std::size_t, const codec&);
PyObject* decode_text(const char*, std::size_t, const codec&);
PyObject* decode_char(const char*, std::size_t, const codec&);
PyObject* decode_bytea(const char*, std::size_t, const codec&);
PyObject* decode_uuid(const char*, std::size_t, const codec&);
PyObject* decode_json(const char*, std::size_t, const codec&);
PyObject* decode_jsonb(const char*, std::size_t, const codec&);
PyObject* decode_date(const char*, std::size_t, const codec&);
PyObject* decode_time(const char*, std::size_t, const codec&);
PyObject* decode_timetz(const char*, std::size_t, const codec&);
PyObject* decode_timestamp(const char*, std::size_t, const codec&);
PyObject* decode_timestamptz(const char*, std::size_t, const codec&);
PyObject* decode_interval(const char*, std::size_t, const codec&);
PyObject* decode_array(const char*, std::size_t, const codec&);

bool encode_bool(encoder&, PyObject*, const codec&);
bool encode_int2(encoder&, PyObject*, const codec&);
bool encode_int4(encoder&, PyObject*, const codec&);
bool encode_int8(encoder&, PyObject*, const codec&);
bool encode_oid(encoder&, PyObject*, const codec&);
bool encode_float4(encoder&, PyObject*, const codec&);
bool encode_float8(encoder&, PyObject*, const codec&);
bool encode_numeric(encoder&, PyObject*, const codec&);
bool encode_text(encoder&, PyObject*, const codec&);
bool encode_char(encoder&, PyObject*, const codec&);
bool encode_as_text(encoder&, PyObject*, const codec&);  // of types that are not in the table
bool encode_bytea(encoder&, PyObject*, const codec&);
bool encode_uuid(encoder&, PyObject*, const codec&);
bool encode_json(encoder&, PyObject*, const codec&);
bool encode_jsonb(encoder&, PyObject*, const codec&);
bool encode_date(encoder&, PyObject*, const codec&);
bool encode_time(encoder&, PyObject*, const codec&);
bool encode_timetz(encoder&, PyObject*, const codec&);
bool encode_timestamp(encoder&, PyObject*, const codec&);
bool encode_timestamptz(encoder&, PyObject*, const codec&);
bool encode_interval(encoder&, PyObject*, const codec&);
bool encode_array(encoder&, PyObject*, const codec&);

}  // namespace pgpoll::py
