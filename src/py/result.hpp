// One statement's result for Python: a lazy sequence of Record over the rows as they came off the wire.
//
// A row is decoded when it is touched and not kept. What a description means for decoding (names, decoders, columns)
// is worked out once for each core::row_description and found again by its address.
#pragma once

#include <optional>
#include <string_view>

#include "py/ref.hpp"

#include "core/result.hpp"

namespace pgpoll::py {

// New reference; null with an exception set. `text_only`: of the simple protocol, every value is str or None.
PyObject* result_new(core::raw_result&& raw, bool text_only = false);

// The tuple of Column for a description; () for none. New reference; null with an exception set.
PyObject* columns_new(const core::columns_ptr& columns, bool text_only = false);

// The number of rows that a command tag ends with.
std::optional<long long> rows_of_tag(std::string_view tag);

int register_result(PyObject* module);

}  // namespace pgpoll::py
