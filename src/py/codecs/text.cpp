// text, varchar, bpchar, name, unknown, "char"; and, as text, every type that is not in the table.
//
// Only str is taken for a text type. For a type that the driver does not know also what has one text that says it
// all: an Enum of such a value, int, float, Decimal, UUID, dates and times, ipaddress objects.
#include <cstring>

#include "py/codecs/codec.hpp"

namespace pgpoll::py {
namespace {

constexpr std::uint64_t lowest_bits = 0x0101010101010101;
constexpr std::uint64_t highest_bits = 0x8080808080808080;

// Whether all bytes are 1 to 127; a "no" may be wrong about what follows a zero, and is looked at again.
bool plain_ascii(const char* data, std::size_t size) {
  const auto has_other = [](std::uint64_t word) { return (((word - lowest_bits) | word) & highest_bits) != 0; };
  std::uint64_t word = 0;
  for (; size >= 8; data += 8, size -= 8) {
    std::memcpy(&word, data, 8);
    if (has_other(word)) return false;
  }
  if (size == 0) return true;
  word = lowest_bits;
  std::memcpy(&word, data, size);
  return !has_other(word);
}

bool encode_utf8(encoder& out, const char* data, std::size_t size) {
  if (std::memchr(data, 0, size) != nullptr) return out.refuse("it contains a NUL character");
  return out.bytes(data, size);
}

bool refuse_unicode(encoder& out) {
  if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return false;
  PyErr_Clear();
  return out.refuse("it contains a lone surrogate");
}

constexpr Py_ssize_t large = 1 << 16;

// Which types' str() is taken for a type that the driver does not know.
bool has_plain_text(PyObject* value) {
  if (PyBool_Check(value)) return false;
  if (PyLong_Check(value) || PyFloat_Check(value)) return true;
  auto module = ref::steal(PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(value)), "__module__"));
  if (!module) {
    PyErr_Clear();
    return false;
  }
  if (!PyUnicode_Check(module.get())) return false;
  for (const char* name : {"ipaddress", "decimal", "uuid"})
    if (PyUnicode_CompareWithASCIIString(module.get(), name) == 0) return true;
  if (PyUnicode_CompareWithASCIIString(module.get(), "datetime") != 0) return false;
  const char* name = Py_TYPE(value)->tp_name;  // a timedelta's str() is no interval
  return std::strcmp(name, "datetime.date") == 0 || std::strcmp(name, "datetime.datetime") == 0 ||
         std::strcmp(name, "datetime.time") == 0;
}

int is_enum(PyObject* value) {
  static PyObject* cache = nullptr;
  auto* kind = imported(cache, "enum", "Enum");
  return kind == nullptr ? -1 : PyObject_IsInstance(value, kind);
}

}  // namespace

PyObject* decode_text(const char* data, std::size_t size, const codec&) {
  // One character comes from CPython's own cache; two and more are copied as they are where they are ASCII.
  if (size > 1 && plain_ascii(data, size)) {
    PyObject* made = PyUnicode_New(static_cast<Py_ssize_t>(size), 127);
    if (made != nullptr) std::memcpy(PyUnicode_DATA(made), data, size);
    return made;
  }
  if (size != 0 && std::memchr(data, 0, size) != nullptr) return bad_value("text with a NUL character");
  PyObject* made = PyUnicode_DecodeUTF8(data, static_cast<Py_ssize_t>(size), nullptr);
  return made != nullptr ? made : bad_value_because("text that is not UTF-8");
}

bool encode_text(encoder& out, PyObject* value, const codec&) {
  if (!PyUnicode_Check(value)) return out.refuse("pass a str");
  if (PyUnicode_IS_COMPACT_ASCII(value))
    return encode_utf8(out, static_cast<const char*>(PyUnicode_DATA(value)),
                       static_cast<std::size_t>(PyUnicode_GET_LENGTH(value)));
  Py_ssize_t size = 0;
  if (PyUnicode_IS_ASCII(value) || PyUnicode_GET_LENGTH(value) < large) {
    const char* data = PyUnicode_AsUTF8AndSize(value, &size);
    return data == nullptr ? refuse_unicode(out) : encode_utf8(out, data, static_cast<std::size_t>(size));
  }
  // AsUTF8AndSize would keep the encoded copy as long as the str lives.
  auto bytes = ref::steal(PyUnicode_AsUTF8String(value));
  if (!bytes) return refuse_unicode(out);
  return encode_utf8(out, PyBytes_AS_STRING(bytes.get()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get())));
}

bool encode_as_text(encoder& out, PyObject* value, const codec& self) {
  if (PyUnicode_CheckExact(value)) return encode_text(out, value, self);
  const int enumeration = is_enum(value);
  if (enumeration < 0) return false;
  if (enumeration == 1) {
    auto inner = ref::steal(PyObject_GetAttrString(value, "value"));
    if (!inner) return false;
    const int nested = is_enum(inner.get());
    if (nested < 0) return false;
    return nested == 1 ? out.refuse("an Enum of an Enum") : encode_as_text(out, inner.get(), self);
  }
  if (PyUnicode_Check(value)) return encode_text(out, value, self);
  if (!has_plain_text(value)) return out.refuse("this type is exchanged as text: pass a str");
  auto text = ref::steal(PyObject_Str(value));
  return text && encode_text(out, text.get(), self);
}

// "char" is one byte: '' is the zero byte, and one beyond ASCII is written \ooo, as the server does.
PyObject* decode_char(const char* data, std::size_t size, const codec& self) {
  if (size != 1) return wrong_size(self, size, 1);
  const auto byte = static_cast<unsigned char>(*data);
  if (byte == 0) return PyUnicode_New(0, 0);
  if (byte < 0x80) return PyUnicode_FromOrdinal(byte);
  const char octal[4] = {'\\', static_cast<char>('0' + (byte >> 6)), static_cast<char>('0' + (byte >> 3 & 7)),
                         static_cast<char>('0' + (byte & 7))};
  return PyUnicode_FromStringAndSize(octal, 4);
}

bool encode_char(encoder& out, PyObject* value, const codec&) {
  if (!PyUnicode_Check(value)) return out.refuse("pass a str");
  if (!PyUnicode_IS_ASCII(value)) return out.refuse("\"char\" holds one ASCII character");
  const auto size = PyUnicode_GET_LENGTH(value);
  const auto* text = PyUnicode_1BYTE_DATA(value);
  if (size == 0) return out.uint8(0);
  if (size == 1) return *text == 0 ? out.refuse("it contains a NUL character") : out.uint8(*text);
  const auto digit = [&](int i, int most) { return text[i] >= '0' && text[i] <= '0' + most; };
  if (size == 4 && *text == '\\' && digit(1, 3) && digit(2, 7) && digit(3, 7))
    return out.uint8(static_cast<std::uint8_t>((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0')));
  return out.refuse("\"char\" holds one character");
}

}  // namespace pgpoll::py
