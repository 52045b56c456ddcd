// Bind's parameter section: which formats, each value with its length, and what a refusal says.
#include <algorithm>

#include "py/codecs/codec.hpp"
#include "py/codecs/codecs.hpp"
#include "py/errors.hpp"

namespace pgpoll::py {
namespace {

constexpr Py_ssize_t most_parameters = 65'535;

std::string plural(std::size_t n, const char* noun) {
  return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
}

// Where one tuple or list was passed, as other drivers take them all.
std::string one_for_all(PyObject* const* args, Py_ssize_t n) {
  if (n != 1 || (!PyTuple_Check(args[0]) && !PyList_Check(args[0]))) return {};
  return std::string("; parameters are *args, and one ") + Py_TYPE(args[0])->tp_name + " was passed";
}

bool wrong_count(std::size_t wanted, PyObject* const* args, Py_ssize_t n) {
  std::string text = "the statement has " + plural(wanted, "parameter");
  if (wanted == 1) text += " ($1)";
  if (wanted == 2) text += " ($1, $2)";
  if (wanted > 2) text += " ($1 to $" + std::to_string(wanted) + ")";
  text += " but " + plural(static_cast<std::size_t>(n), "argument") + (n == 1 ? " was given" : " were given");
  raise_interface_error(text + one_for_all(args, n));
  return false;
}

void write_formats(encoder& out, const std::vector<std::uint32_t>& types) {
  std::size_t binary = 0;
  for (const auto oid : types) binary += decodes_binary(oid) ? 1 : 0;
  if (binary == 0) {
    out.uint16(0);
  } else if (binary == types.size()) {
    out.uint32(0x00010001);
  } else {
    out.uint16(static_cast<std::uint16_t>(types.size()));
    for (const auto oid : types) out.uint16(decodes_binary(oid) ? 1 : 0);
  }
}

}  // namespace

void explain_refusal(const encoder& out, const std::string& what, PyObject* value, const std::string& hint) {
  auto pending = pending_error::fetch();
  auto cause = ref::steal(pending ? pending.take() : nullptr);
  if (cause) {
    auto* own = error_class("Error");
    const int keep = own == nullptr ? -1 : PyObject_IsInstance(cause.get(), own);
    if (keep < 0) return;
    // Not an Exception: KeyboardInterrupt, SystemExit. MemoryError says nothing about the value.
    if (keep == 1 || !PyObject_TypeCheck(cause.get(), reinterpret_cast<PyTypeObject*>(PyExc_Exception)) ||
        PyErr_GivenExceptionMatches(cause.get(), PyExc_MemoryError)) {
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(cause.get())), cause.get());
      return;
    }
  }
  auto* kind = error_class("DataError");
  if (kind == nullptr) return;
  std::string text = what + " does not take this value of type " + Py_TYPE(value)->tp_name;
  if (cause)
    text += std::string(": encoding it raised ") + Py_TYPE(cause.get())->tp_name;
  else if (out.reason() != nullptr)
    text += std::string(": ") + out.reason();
  text += hint;
  auto message = decoded(text);
  auto error = ref::steal(message ? PyObject_CallOneArg(kind, message.get()) : nullptr);
  if (!error) return;
  if (cause) PyException_SetCause(error.get(), cause.release());
  PyErr_SetObject(kind, error.get());
}

bool encoder::too_large() {
  raise_interface_error(
      "the parameters take about 1 GiB or more, and the server takes no such message; use COPY or large objects");
  return false;
}

// What it already has it takes in steps, for all of it is written twice.
void encoder::grow(std::size_t size) {
  constexpr std::size_t least = 64;
  constexpr std::size_t most = 4096;
  out_.resize(end_ + size + std::clamp(end_, least, most));
}

bool encode_arguments(const core::statement& statement, PyObject* const* args, Py_ssize_t n, std::string& out) {
  const auto& types = statement.parameter_types;
  if (n > most_parameters) {
    raise_interface_error("a statement takes at most 65535 parameters; pass arrays (unnest) or use COPY");
    return false;
  }
  if (static_cast<std::size_t>(n) != types.size()) return wrong_count(types.size(), args, n);
  const auto start = out.size();
  const auto encode = [&] {
    encoder to(out);
    write_formats(to, types);
    to.uint16(static_cast<std::uint16_t>(n));
    for (std::size_t i = 0; i < types.size(); ++i) {
      const auto* type = find_codec(types[i]);
      if (to.value(args[i], type != nullptr ? *type : text_codec)) continue;
      const bool takes_lists = type != nullptr && type->element != nullptr;
      explain_refusal(to, "parameter $" + std::to_string(i + 1) + " (" + type_name(types[i]) + ")", args[i],
                      takes_lists ? std::string() : one_for_all(args, n));
      return false;
    }
    return true;
  };
  const bool encoded = guarded(encode, false);
  if (!encoded) out.resize(start);
  return encoded;
}

}  // namespace pgpoll::py
