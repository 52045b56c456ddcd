// Values of PostgreSQL's types to Python objects and back; one table by type OID (codecs.cpp).
//
//   decodes_binary(oid)        the types asked for in binary; all others come as text and are str
//   decode(column, data, n)    one field; null with pgpoll.errors.DataError set where the bytes are not such a value
//   encode_arguments(...)      Bind's parameter section; false with a Python exception set, `out` as it was
//   type_name(oid)             "int4", "int4[]"; the OID in digits where the type is not built in
//
// Every decoder checks each length and count before it reads or allocates. Everything here needs the GIL.
// Encoding may run a caller's code (__index__, tzinfo, ...): never call it from inside the core.
#pragma once

#include "py/ref.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/result.hpp"

namespace pgpoll::py {

bool decodes_binary(std::uint32_t type_oid);

PyObject* decode(const core::column& column, const char* data, std::size_t size);

// Appends Int16 number of format codes, the codes, Int16 number of values, and each value's Int32 length and bytes.
// Raises InterfaceError (wrong number of arguments, too many, too large) or DataError (a value that its parameter
// cannot take; names the parameter and both types, never the value). `args` must stay alive and unchanged.
bool encode_arguments(const core::statement& statement, PyObject* const* args, Py_ssize_t n, std::string& out);

// Valid until the next call in the same thread.
const char* type_name(std::uint32_t type_oid);

// Record, Result and Column, and for pickle and the tests _record, _encode and _decode.
int register_types(PyObject* module);

}  // namespace pgpoll::py
