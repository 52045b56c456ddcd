// Registration of Record, Result and Column, and the two functions that tests reach the codecs by.
#include "py/codecs/codec.hpp"
#include "py/codecs/codecs.hpp"
#include "py/plan.hpp"
#include "py/record.hpp"
#include "py/result.hpp"

namespace pgpoll::py {
namespace {

bool type_argument(PyObject* argument, std::uint32_t& oid) {
  const auto number = PyLong_AsUnsignedLong(argument);
  oid = static_cast<std::uint32_t>(number);
  return number != static_cast<unsigned long>(-1) || !PyErr_Occurred();
}

bool two_arguments(Py_ssize_t n) {
  if (n == 2) return true;
  PyErr_SetString(PyExc_TypeError, "two arguments are wanted");
  return false;
}

PyObject* encode_one(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return guarded([&]() -> PyObject* {
    core::statement statement;
    std::uint32_t oid = 0;
    if (!two_arguments(n) || !type_argument(args[0], oid)) return nullptr;
    statement.parameter_types.push_back(oid);
    std::string out;
    if (!encode_arguments(statement, args + 1, 1, out)) return nullptr;
    const std::size_t formats = decodes_binary(oid) ? 4 : 2;
    if (wire::load_int32(out.data() + formats + 2) < 0) return Py_NewRef(Py_None);
    const auto value = formats + 2 + 4;
    return PyBytes_FromStringAndSize(out.data() + value, static_cast<Py_ssize_t>(out.size() - value));
  });
}

PyObject* decode_one(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return guarded([&]() -> PyObject* {
    core::column column;
    if (!two_arguments(n) || !type_argument(args[0], column.type_oid)) return nullptr;
    if (!PyBytes_Check(args[1])) {
      PyErr_SetString(PyExc_TypeError, "bytes are wanted");
      return nullptr;
    }
    column.format = decodes_binary(column.type_oid) ? 1 : 0;
    // A copy of exactly this size: reading past it is seen by a sanitizer.
    const std::vector<char> data(PyBytes_AS_STRING(args[1]), PyBytes_AS_STRING(args[1]) + PyBytes_GET_SIZE(args[1]));
    return decode(column, data.data(), data.size());
  });
}

PyObject* binary(PyObject*, PyObject* argument) {
  std::uint32_t oid = 0;
  return type_argument(argument, oid) ? PyBool_FromLong(decodes_binary(oid)) : nullptr;
}

PyMethodDef functions[] = {
    {"_encode", method(encode_one), METH_FASTCALL,
     "_encode(type_oid, value) -> bytes | None: a parameter as it is sent. Internal, for tests."},
    {"_binary", binary, METH_O, "_binary(type_oid) -> bool: whether such values are exchanged in binary. Internal."},
    {"_decode", method(decode_one), METH_FASTCALL,
     "_decode(type_oid, data: bytes) -> object: a value as it is received. Internal, for tests."},
    {}};

int register_sequences(PyObject* module) {
  auto abc = ref::steal(PyImport_ImportModule("collections.abc"));
  auto sequence = ref::steal(abc ? PyObject_GetAttrString(abc.get(), "Sequence") : nullptr);
  if (!sequence) return -1;
  for (const char* name : {"Record", "Result"}) {
    auto type = ref::steal(PyObject_GetAttrString(module, name));
    auto done = ref::steal(type ? PyObject_CallMethod(sequence.get(), "register", "O", type.get()) : nullptr);
    if (!done) return -1;
  }
  return 0;
}

}  // namespace

int register_types(PyObject* module) {
  if (!prepare_datetime() || register_record(module) < 0 || register_column(module) < 0 ||
      register_result(module) < 0 || PyModule_AddFunctions(module, functions) < 0)
    return -1;
  return register_sequences(module);
}

}  // namespace pgpoll::py
