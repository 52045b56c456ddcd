// bytea and uuid.
#include <cstring>

#include "py/codecs/codec.hpp"

namespace pgpoll::py {
namespace {

// uuid.UUID keeps its 128 bits in the slot `int` and refuses to be assigned to; going through the slots'
// descriptors saves its constructor, which is most of the cost.
struct uuid_class {
  PyTypeObject* type = nullptr;
  PyObject* int_slot = nullptr;
  PyObject* safe_slot = nullptr;
  PyObject* unknown = nullptr;  // SafeUUID.unknown
};

const uuid_class* find_uuid_class() {
  static uuid_class found;
  if (found.type != nullptr) return &found;
  auto module = ref::steal(PyImport_ImportModule("uuid"));
  if (!module) return nullptr;
  auto type = ref::steal(PyObject_GetAttrString(module.get(), "UUID"));
  auto safe = ref::steal(PyObject_GetAttrString(module.get(), "SafeUUID"));
  if (!type || !safe) return nullptr;
  auto int_slot = ref::steal(PyObject_GetAttrString(type.get(), "int"));
  auto safe_slot = ref::steal(PyObject_GetAttrString(type.get(), "is_safe"));
  auto unknown = ref::steal(PyObject_GetAttrString(safe.get(), "unknown"));
  if (!int_slot || !safe_slot || !unknown) return nullptr;
  if (!PyType_Check(type.get()) || Py_TYPE(int_slot.get())->tp_descr_set == nullptr ||
      Py_TYPE(safe_slot.get())->tp_descr_set == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "uuid.UUID has no slots");
    return nullptr;
  }
  found.int_slot = int_slot.release();
  found.safe_slot = safe_slot.release();
  found.unknown = unknown.release();
  found.type = reinterpret_cast<PyTypeObject*>(type.release());
  return &found;
}

PyObject* int_from_bytes(const char* data) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
#if PY_VERSION_HEX >= 0x030D0000
  return PyLong_FromUnsignedNativeBytes(bytes, 16, Py_ASNATIVEBYTES_BIG_ENDIAN);
#else
  return _PyLong_FromByteArray(bytes, 16, 0, 0);
#endif
}

bool int_to_bytes(PyObject* number, unsigned char* bytes) {
#if PY_VERSION_HEX >= 0x030D0000
  const auto needed = PyLong_AsNativeBytes(
      number, bytes, 16,
      Py_ASNATIVEBYTES_BIG_ENDIAN | Py_ASNATIVEBYTES_UNSIGNED_BUFFER | Py_ASNATIVEBYTES_REJECT_NEGATIVE);
  if (needed <= 16) return needed >= 0;
  PyErr_SetString(PyExc_OverflowError, "a UUID has 128 bits");
  return false;
#else
  return _PyLong_AsByteArray(reinterpret_cast<PyLongObject*>(number), bytes, 16, 0, 0) == 0;
#endif
}

// As the server reads a uuid: 32 hexadecimal digits, hyphens between, maybe in braces.
bool parse_uuid(PyObject* text, unsigned char* bytes) {
  if (!PyUnicode_IS_ASCII(text)) return false;
  const auto* p = PyUnicode_1BYTE_DATA(text);
  const auto* end = p + PyUnicode_GET_LENGTH(text);
  if (end - p >= 2 && *p == '{' && end[-1] == '}') {
    ++p;
    --end;
  }
  int digits = 0;
  std::memset(bytes, 0, 16);
  for (; p < end; ++p) {
    if (*p == '-' && digits > 0 && digits % 4 == 0 && p[-1] != '-' && digits < 32) continue;
    const auto letter = static_cast<unsigned char>(*p | 0x20);
    unsigned digit = 0;
    if (*p >= '0' && *p <= '9')
      digit = static_cast<unsigned>(*p - '0');
    else if (letter >= 'a' && letter <= 'f')
      digit = static_cast<unsigned>(letter - 'a' + 10);
    else
      return false;
    if (digits == 32) return false;
    bytes[digits / 2] = static_cast<unsigned char>(bytes[digits / 2] << 4 | digit);
    ++digits;
  }
  return digits == 32;
}

}  // namespace

PyObject* decode_bytea(const char* data, std::size_t size, const codec&) {
  return PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(size));
}

bool encode_bytea(encoder& out, PyObject* value, const codec&) {
  if (PyBytes_Check(value))
    return out.bytes(PyBytes_AS_STRING(value), static_cast<std::size_t>(PyBytes_GET_SIZE(value)));
  if (!PyByteArray_Check(value) && !PyMemoryView_Check(value)) return out.refuse("pass bytes");
  Py_buffer view;
  if (PyObject_GetBuffer(value, &view, PyBUF_FULL_RO) < 0) return false;
  char* room = out.reserve(static_cast<std::size_t>(view.len));
  const bool copied = room != nullptr && PyBuffer_ToContiguous(room, &view, view.len, 'C') == 0;
  PyBuffer_Release(&view);
  return copied;
}

PyObject* decode_uuid(const char* data, std::size_t size, const codec& self) {
  if (size != 16) return wrong_size(self, size, 16);
  const auto* uuid = find_uuid_class();
  if (uuid == nullptr) return nullptr;
  auto number = ref::steal(int_from_bytes(data));
  if (!number) return nullptr;
  auto made = ref::steal(uuid->type->tp_alloc(uuid->type, 0));
  if (!made || Py_TYPE(uuid->int_slot)->tp_descr_set(uuid->int_slot, made.get(), number.get()) < 0 ||
      Py_TYPE(uuid->safe_slot)->tp_descr_set(uuid->safe_slot, made.get(), uuid->unknown) < 0)
    return nullptr;
  return made.release();
}

bool encode_uuid(encoder& out, PyObject* value, const codec&) {
  unsigned char bytes[16];
  if (PyUnicode_Check(value)) {
    if (!parse_uuid(value, bytes)) return out.refuse("not the text of a UUID");
    return out.bytes(reinterpret_cast<const char*>(bytes), 16);
  }
  const auto* uuid = find_uuid_class();
  if (uuid == nullptr) return false;
  if (!PyObject_TypeCheck(value, uuid->type)) return out.refuse("pass a uuid.UUID or its text");
  auto number = ref::steal(PyObject_GetAttrString(value, "int"));
  if (!number) return false;
  if (!PyLong_Check(number.get())) return out.refuse("its .int is no int");
  return int_to_bytes(number.get(), bytes) && out.bytes(reinterpret_cast<const char*>(bytes), 16);
}

}  // namespace pgpoll::py
