// COPY for Python: what an Operation of it does besides, and the binary format's encoder and decoder of records.
#pragma once

#include "py/ref.hpp"

namespace pgpoll::py {

struct operation_object;

extern PyMethodDef copy_methods[];  // of Operation
extern PyGetSetDef copy_properties[];

std::string take_copied(operation_object* operation);  // what has come of start_copy_out()

// The binary format's signature, flags and extension; and what stands in place of a field count at the end.
inline constexpr std::string_view copy_header("PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0", 19);
inline constexpr std::string_view copy_trailer("\377\377", 2);

int register_record_encoder(PyObject* module);
int register_record_decoder(PyObject* module);

}  // namespace pgpoll::py
