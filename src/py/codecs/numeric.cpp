// numeric <-> decimal.Decimal, scale included ("12.3400").
//
// On the wire: Int16 number of digits, weight of the first one, sign, display scale, then base-10000 digits. As in
// the server, digits beyond the display scale are cut off. Besides Decimal an int is taken, and a float as the
// shortest decimal that reads back as the same float.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <vector>

#include "py/codecs/codec.hpp"

namespace pgpoll::py {
namespace {

constexpr std::uint16_t negative = 0x4000;
constexpr std::uint16_t nan = 0xC000;
constexpr std::uint16_t plus_infinity = 0xD000;
constexpr std::uint16_t minus_infinity = 0xF000;
constexpr int highest_scale = 0x3FFF;
constexpr long long most_integer_digits = 131072;

// Floor division by 4, the decimal digits of one digit on the wire.
constexpr long long group_of(long long exponent) {
  return exponent >= 0 ? exponent / 4 : -((3 - exponent) / 4);
}

char* write_group(char* p, unsigned group, int digits = 4) {
  const char all[4] = {static_cast<char>('0' + group / 1000), static_cast<char>('0' + group / 100 % 10),
                       static_cast<char>('0' + group / 10 % 10), static_cast<char>('0' + group % 10)};
  return std::copy(all, all + digits, p);
}

struct wire_numeric {
  const char* digits;
  int count;
  int weight;
  int scale;
  bool minus;

  unsigned group(long long weight_of_group) const {
    const auto i = weight - weight_of_group;
    return i >= 0 && i < count ? wire::load_uint16(digits + 2 * i) : 0;
  }
};

PyObject* decimal_text(const wire_numeric& number) {
  const unsigned first = number.weight >= 0 ? number.group(number.weight) : 0;
  const int first_size = first >= 1000 ? 4 : first >= 100 ? 3 : first >= 10 ? 2 : 1;
  const int integer_size = number.weight >= 0 ? first_size + 4 * number.weight : 1;
  const int size = (number.minus ? 1 : 0) + integer_size + (number.scale > 0 ? 1 + number.scale : 0);
  PyObject* text = PyUnicode_New(size, 127);
  if (text == nullptr) return nullptr;
  char* p = static_cast<char*>(PyUnicode_DATA(text));
  char* const begin = p;
  if (number.minus) *p++ = '-';
  unsigned rest = first;
  for (int i = first_size - 1; i >= 0; --i, rest /= 10) p[i] = static_cast<char>('0' + rest % 10);
  p += first_size;
  for (int weight = number.weight - 1; weight >= 0; --weight) p = write_group(p, number.group(weight));
  if (number.scale > 0) *p++ = '.';
  for (int left = number.scale, weight = -1; left > 0; left -= 4, --weight)
    p = write_group(p, number.group(weight), std::min(left, 4));
  // A numeric has no minus zero, whatever digits past its scale a server may send; a leading zero changes nothing.
  if (number.minus && std::none_of(begin, p, [](char c) { return c >= '1' && c <= '9'; })) *begin = '0';
  return text;
}

// Values that have no digits; made once.
PyObject* special(PyObject*& cache, const char* text) {
  if (cache == nullptr) {
    auto* kind = decimal_class();
    if (kind == nullptr) return nullptr;
    cache = PyObject_CallFunction(kind, "s", text);
  }
  return Py_XNewRef(cache);
}

bool write_special(encoder& out, std::uint16_t sign) {
  return out.uint16(0) && out.uint16(0) && out.uint16(sign) && out.uint16(0);
}

// What str() of a Decimal and repr() of a float give: -123.45E+6, sNaN, Infinity.
bool write_decimal(encoder& out, std::string_view text) {
  const bool minus = text.starts_with('-');
  if (minus) text.remove_prefix(1);
  if (text.starts_with("NaN") || text.starts_with("sNaN")) return write_special(out, nan);
  if (text.starts_with("Inf")) return write_special(out, minus ? minus_infinity : plus_infinity);

  long long exponent = 0;  // of the last digit
  if (const auto e = text.find_first_of("eE"); e != std::string_view::npos) {
    exponent = std::strtoll(text.data() + e + 1, nullptr, 10);
    text = text.substr(0, e);
  }
  const auto point = text.find('.');
  auto digits = static_cast<long long>(text.size());
  if (point != std::string_view::npos) exponent -= --digits - static_cast<long long>(point);
  if (exponent < -highest_scale) return out.refuse("numeric holds 16383 digits after the point");
  const auto scale = static_cast<std::uint16_t>(exponent < 0 ? -exponent : 0);

  const auto first = text.find_first_not_of("0.");
  if (first == std::string_view::npos) return out.uint16(0) && out.uint16(0) && out.uint16(0) && out.uint16(scale);
  const auto last = text.find_last_not_of("0.");
  const auto exponent_at = [&](std::size_t at) {  // of the digit at this place of the text
    const auto after = static_cast<long long>(text.size() - 1 - at);
    return exponent + after - (point != std::string_view::npos && at < point ? 1 : 0);
  };
  const auto highest = exponent_at(first);
  if (highest >= most_integer_digits) return out.refuse("numeric holds 131072 digits before the point");
  const auto weight = group_of(highest);
  std::vector<std::uint16_t> groups(static_cast<std::size_t>(weight - group_of(exponent_at(last)) + 1));
  constexpr std::uint16_t powers[] = {1, 10, 100, 1000};
  for (auto at = first; at <= last; ++at) {
    if (at == point) continue;
    const auto here = exponent_at(at);
    const auto group = group_of(here);
    auto& target = groups[static_cast<std::size_t>(weight - group)];
    target = static_cast<std::uint16_t>(target + (text[at] - '0') * powers[here - 4 * group]);
  }
  out.uint16(static_cast<std::uint16_t>(groups.size()));
  out.int16(static_cast<std::int16_t>(weight));
  out.uint16(minus ? negative : 0);
  out.uint16(scale);
  for (const auto group : groups) out.uint16(group);
  return true;
}

bool write_int(encoder& out, PyObject* value) {
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (overflow == 0) {
    if (number == -1 && PyErr_Occurred()) return false;
    char text[24];
    const int size = std::snprintf(text, sizeof text, "%lld", number);
    return write_decimal(out, {text, static_cast<std::size_t>(size)});
  }
  // str() of a large int is limited and slow, Decimal's is not.
  auto bits = ref::steal(PyObject_CallMethod(value, "bit_length", nullptr));
  if (!bits) return false;
  const long long size = PyLong_AsLongLong(bits.get());
  if (size < 0 || size > most_integer_digits * 4)
    return !PyErr_Occurred() && out.refuse("numeric holds 131072 digits before the point");
  auto decimal = ref::steal(PyObject_CallOneArg(decimal_class(), value));
  auto text = ref::steal(decimal ? PyObject_Str(decimal.get()) : nullptr);
  Py_ssize_t length = 0;
  const char* data = text ? PyUnicode_AsUTF8AndSize(text.get(), &length) : nullptr;
  return data != nullptr && write_decimal(out, {data, static_cast<std::size_t>(length)});
}

bool write_float(encoder& out, double number) {
  if (std::isnan(number)) return write_special(out, nan);
  if (std::isinf(number)) return write_special(out, number < 0 ? minus_infinity : plus_infinity);
  char* text = PyOS_double_to_string(number, 'r', 0, 0, nullptr);
  if (text == nullptr) return PyErr_NoMemory() != nullptr;
  const bool written = write_decimal(out, text);
  PyMem_Free(text);
  return written;
}

}  // namespace

PyObject* decimal_class() {
  static PyObject* cache = nullptr;
  return imported(cache, "decimal", "Decimal");
}

int is_decimal(PyObject* value) {
  auto* kind = decimal_class();
  return kind == nullptr ? -1 : PyObject_TypeCheck(value, reinterpret_cast<PyTypeObject*>(kind)) ? 1 : 0;
}

PyObject* decode_numeric(const char* data, std::size_t size, const codec&) {
  if (size < 8) return bad_value("%zu bytes, but a value of type numeric has at least 8", size);
  const auto sign = wire::load_uint16(data + 4);
  wire_numeric number{data + 8, wire::load_uint16(data), wire::load_int16(data + 2), wire::load_uint16(data + 6),
                      sign == negative};
  if (size != 8 + 2 * static_cast<std::size_t>(number.count))
    return bad_value("a numeric of %d digits in %zu bytes", number.count, size);
  static PyObject* specials[3];
  if (sign == nan) return special(specials[0], "NaN");
  if (sign == plus_infinity) return special(specials[1], "Infinity");
  if (sign == minus_infinity) return special(specials[2], "-Infinity");
  if (sign != 0 && sign != negative) return bad_value("a numeric of sign 0x%x", static_cast<unsigned>(sign));
  if (number.scale > highest_scale) return bad_value("a numeric of scale %d", number.scale);
  for (int i = 0; i < number.count; ++i)
    if (const unsigned digit = wire::load_uint16(number.digits + 2 * i); digit > 9999)
      return bad_value("a numeric with the digit %u", digit);
  if (number.count == 0) number.weight = 0;
  auto* kind = decimal_class();
  auto text = ref::steal(kind == nullptr ? nullptr : decimal_text(number));
  return text ? PyObject_CallOneArg(kind, text.get()) : nullptr;
}

bool encode_numeric(encoder& out, PyObject* value, const codec&) {
  if (PyBool_Check(value)) return out.refuse("a bool is not a number");
  if (PyFloat_Check(value)) return write_float(out, PyFloat_AS_DOUBLE(value));
  if (PyIndex_Check(value)) {
    auto number = ref::steal(PyNumber_Index(value));
    return number && write_int(out, number.get());
  }
  const int decimal = is_decimal(value);
  if (decimal < 0) return false;
  if (decimal == 0) return out.refuse("pass a decimal.Decimal or an int");
  // Decimal's own str(): a subclass may show itself in another way.
  auto text = ref::steal(reinterpret_cast<PyTypeObject*>(decimal_class())->tp_str(value));
  Py_ssize_t size = 0;
  const char* data = text ? PyUnicode_AsUTF8AndSize(text.get(), &size) : nullptr;
  return data != nullptr && write_decimal(out, {data, static_cast<std::size_t>(size)});
}

}  // namespace pgpoll::py
