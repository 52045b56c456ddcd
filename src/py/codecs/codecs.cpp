#include "py/codecs/codecs.hpp"

#include <array>
#include <cstdarg>

#include "py/codecs/codec.hpp"
#include "py/errors.hpp"

namespace pgpoll::py {

const codec text_codec{25, "text", decode_text, encode_as_text, true, nullptr};

namespace {

struct entry {
  codec type;
  std::uint32_t array_oid;
  const char* array_name;
};

// OIDs as pg_type.dat has them; they never change.
constexpr entry entries[] = {
    {{16, "bool", decode_bool, encode_bool, true, nullptr}, 1000, "bool[]"},
    {{17, "bytea", decode_bytea, encode_bytea, true, nullptr}, 1001, "bytea[]"},
    {{18, "char", decode_char, encode_char, true, nullptr}, 1002, "char[]"},
    {{19, "name", decode_text, encode_text, true, nullptr}, 1003, "name[]"},
    {{20, "int8", decode_int8, encode_int8, true, nullptr}, 1016, "int8[]"},
    {{21, "int2", decode_int2, encode_int2, true, nullptr}, 1005, "int2[]"},
    {{23, "int4", decode_int4, encode_int4, true, nullptr}, 1007, "int4[]"},
    {{25, "text", decode_text, encode_text, true, nullptr}, 1009, "text[]"},
    {{26, "oid", decode_oid, encode_oid, true, nullptr}, 1028, "oid[]"},
    {{114, "json", decode_json, encode_json, false, nullptr}, 199, "json[]"},
    {{700, "float4", decode_float4, encode_float4, true, nullptr}, 1021, "float4[]"},
    {{701, "float8", decode_float8, encode_float8, true, nullptr}, 1022, "float8[]"},
    {{705, "unknown", decode_text, encode_text, true, nullptr}, 0, nullptr},
    {{1042, "bpchar", decode_text, encode_text, true, nullptr}, 1014, "bpchar[]"},
    {{1043, "varchar", decode_text, encode_text, true, nullptr}, 1015, "varchar[]"},
    {{1082, "date", decode_date, encode_date, true, nullptr}, 1182, "date[]"},
    {{1083, "time", decode_time, encode_time, true, nullptr}, 1183, "time[]"},
    {{1114, "timestamp", decode_timestamp, encode_timestamp, true, nullptr}, 1115, "timestamp[]"},
    {{1184, "timestamptz", decode_timestamptz, encode_timestamptz, true, nullptr}, 1185, "timestamptz[]"},
    {{1186, "interval", decode_interval, encode_interval, true, nullptr}, 1187, "interval[]"},
    {{1266, "timetz", decode_timetz, encode_timetz, true, nullptr}, 1270, "timetz[]"},
    {{1700, "numeric", decode_numeric, encode_numeric, true, nullptr}, 1231, "numeric[]"},
    {{2950, "uuid", decode_uuid, encode_uuid, true, nullptr}, 2951, "uuid[]"},
    {{3802, "jsonb", decode_jsonb, encode_jsonb, false, nullptr}, 3807, "jsonb[]"},
};

constexpr std::size_t count = std::size(entries);
constexpr std::uint32_t highest_oid = 3807;

constexpr auto array_codecs = [] {
  std::array<codec, count> made{};
  for (std::size_t i = 0; i < count; ++i)
    made[i] = {entries[i].array_oid, entries[i].array_name, decode_array, encode_array, false, &entries[i].type};
  return made;
}();

// By OID: 0 none, 1 + i entries[i], 1 + count + i its array.
constexpr auto places = [] {
  std::array<std::uint8_t, highest_oid + 1> made{};
  for (std::size_t i = 0; i < count; ++i) {
    made[entries[i].type.oid] = static_cast<std::uint8_t>(1 + i);
    if (entries[i].array_oid != 0) made[entries[i].array_oid] = static_cast<std::uint8_t>(1 + count + i);
  }
  return made;
}();

}  // namespace

const codec* find_codec(std::uint32_t type_oid) {
  if (type_oid > highest_oid) return nullptr;
  const std::size_t place = places[type_oid];
  if (place == 0) return nullptr;
  return place <= count ? &entries[place - 1].type : &array_codecs[place - 1 - count];
}

bool decodes_binary(std::uint32_t type_oid) {
  return find_codec(type_oid) != nullptr;
}

PyObject* decode(const core::column& column, const char* data, std::size_t size) {
  if (column.format == 0) return decode_text(data, size, text_codec);
  const auto* type = find_codec(column.type_oid);
  if (type == nullptr)
    return bad_value("a binary value of type %s, which was not asked for", type_name(column.type_oid));
  return type->decode(data, size, *type);
}

bool is_json(const codec& type) {
  return type.oid == 114 || type.oid == 3802;
}

PyObject* bad_value(const char* format, ...) {
  auto* kind = error_class("DataError");
  if (kind == nullptr) return nullptr;
  va_list args;
  va_start(args, format);
  PyErr_FormatV(kind, format, args);
  va_end(args);
  return nullptr;
}

PyObject* bad_value_because(const char* what) {
  if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError)) return nullptr;
  auto pending = pending_error::fetch();
  auto cause = ref::steal(pending.take());
  auto* kind = error_class("DataError");
  auto message = ref::steal(kind != nullptr ? PyUnicode_FromFormat("%s: %S", what, cause.get()) : nullptr);
  auto error = ref::steal(message ? PyObject_CallOneArg(kind, message.get()) : nullptr);
  if (!error) return nullptr;
  PyException_SetCause(error.get(), cause.release());
  PyErr_SetObject(kind, error.get());
  return nullptr;
}

PyObject* wrong_size(const codec& type, std::size_t size, std::size_t expected) {
  return bad_value("%zu bytes, but a value of type %s has %zu", size, type.name, expected);
}

PyObject* imported(PyObject*& cache, const char* module, const char* name) {
  if (cache == nullptr) {
    auto found = ref::steal(PyImport_ImportModule(module));
    if (!found) return nullptr;
    cache = PyObject_GetAttrString(found.get(), name);
  }
  return cache;
}

}  // namespace pgpoll::py
