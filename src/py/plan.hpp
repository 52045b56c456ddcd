// What a row description means for decoding: names, one decoder a column, Column objects. Worked out once for each
// core::row_description and found again by its address.
#pragma once

#include "py/ref.hpp"

#include <memory>
#include <vector>

#include "core/result.hpp"
#include "py/codecs/codec.hpp"
#include "py/record.hpp"

namespace pgpoll::py {

struct decode_plan {
  struct step {
    decode_function decode;
    const codec* type;
  };

  record_descriptor* descriptor = nullptr;
  PyObject* columns = nullptr;  // tuple of Column; made when first asked for
  std::vector<step> steps;

  decode_plan() = default;
  decode_plan(const decode_plan&) = delete;
  ~decode_plan() {
    Py_XDECREF(descriptor);
    Py_XDECREF(columns);
  }

  // One row ('D' message) as a Record; null with an exception set, which names row and column.
  PyObject* row(const core::row_description& description, const char* message, std::size_t index) const;
  // All the rows, at the end of a list that nobody else knows; makes it where it is null.
  bool append(const core::row_description& description, const core::row_store& rows, ref& list) const;
  // Its first value only.
  PyObject* first_value(const core::row_description& description, const char* message, std::size_t index) const;
};

// A list that the collector does not see, for it need not walk it again and again while it grows; finish_list() hands
// it out.
ref new_list(Py_ssize_t size);
PyObject* finish_list(ref& list);

using plan_ptr = std::shared_ptr<decode_plan>;

// Null with an exception set; `columns` is not null.
plan_ptr find_plan(const core::columns_ptr& columns, bool text_only);

// The plan's tuple of Column: new reference, null with an exception set.
PyObject* plan_columns(decode_plan& plan, const core::row_description& description);

int register_column(PyObject* module);

}  // namespace pgpoll::py
