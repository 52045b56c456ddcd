// json and jsonb as Python objects, by the standard library's json. A str is a JSON string; pgpoll.RawJson passes its
// text as it is. NaN and the infinities are no JSON and are refused. None is NULL; JSON's null is RawJson("null").
#include "py/codecs/codec.hpp"

namespace pgpoll::py {
namespace {

// json.JSONDecoder's decode(text), and its scan_once(text, position), which is what decode() calls between two searches
// for white space, and half the cost for a small document.
struct json_decoder {
  PyObject* decode = nullptr;
  PyObject* scan_once = nullptr;
  PyObject* zero = nullptr;
};

const json_decoder* find_json_decoder() {
  static json_decoder found;
  if (found.decode != nullptr) return &found;
  auto module = ref::steal(PyImport_ImportModule("json"));
  auto decoder = ref::steal(module ? PyObject_CallMethod(module.get(), "JSONDecoder", nullptr) : nullptr);
  auto decode = ref::steal(decoder ? PyObject_GetAttrString(decoder.get(), "decode") : nullptr);
  auto scan_once = ref::steal(decode ? PyObject_GetAttrString(decoder.get(), "scan_once") : nullptr);
  auto zero = ref::steal(scan_once ? PyLong_FromLong(0) : nullptr);
  if (!zero) return nullptr;
  found = {decode.release(), scan_once.release(), zero.release()};
  return &found;
}

// The text's value where it is JSON without white space around it; else null, without an exception.
PyObject* scan(const json_decoder& decoder, PyObject* text) {
  PyObject* const args[] = {text, decoder.zero};
  auto pair = ref::steal(PyObject_Vectorcall(decoder.scan_once, args, 2, nullptr));
  if (pair && PyTuple_CheckExact(pair.get()) && PyTuple_GET_SIZE(pair.get()) == 2 &&
      PyLong_AsSsize_t(PyTuple_GET_ITEM(pair.get(), 1)) == PyUnicode_GET_LENGTH(text))
    return Py_NewRef(PyTuple_GET_ITEM(pair.get(), 0));
  // decode() raises what is wrong, but for what nobody may swallow.
  if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear();
  return nullptr;
}

PyObject* json_encode() {
  static PyObject* cache = nullptr;
  if (cache == nullptr) {
    auto module = ref::steal(PyImport_ImportModule("json"));
    auto kind = ref::steal(module ? PyObject_GetAttrString(module.get(), "JSONEncoder") : nullptr);
    auto none = ref::steal(PyTuple_New(0));
    auto options = ref::steal(
        Py_BuildValue("{s:O,s:O,s:(ss)}", "ensure_ascii", Py_False, "allow_nan", Py_False, "separators", ",", ":"));
    if (!kind || !none || !options) return nullptr;
    auto encoder = ref::steal(PyObject_Call(kind.get(), none.get(), options.get()));
    if (encoder) cache = PyObject_GetAttrString(encoder.get(), "encode");
  }
  return cache;
}

PyObject* raw_json_class() {
  static PyObject* cache = nullptr;
  return imported(cache, "pgpoll._values", "RawJson");
}

}  // namespace

PyObject* decode_json(const char* data, std::size_t size, const codec& self) {
  const auto* decoder = find_json_decoder();
  auto text = ref::steal(decoder == nullptr ? nullptr : decode_text(data, size, self));
  if (!text) return nullptr;
  PyObject* made = scan(*decoder, text.get());
  if (made == nullptr && !PyErr_Occurred()) made = PyObject_CallOneArg(decoder->decode, text.get());
  return made != nullptr ? made : bad_value_because("not JSON that Python can hold");
}

PyObject* decode_jsonb(const char* data, std::size_t size, const codec& self) {
  if (size == 0) return bad_value("an empty jsonb");
  if (*data != 1) return bad_value("a jsonb of version %d", static_cast<int>(static_cast<unsigned char>(*data)));
  return decode_json(data + 1, size - 1, self);
}

bool encode_json(encoder& out, PyObject* value, const codec& self) {
  auto* raw = raw_json_class();
  const int is_raw = raw == nullptr ? -1 : PyObject_IsInstance(value, raw);
  if (is_raw < 0) return false;
  auto* encode = is_raw == 1 ? nullptr : json_encode();
  if (is_raw == 0 && encode == nullptr) return false;
  auto text = ref::steal(is_raw == 1 ? PyObject_GetAttrString(value, "text") : PyObject_CallOneArg(encode, value));
  return text && encode_text(out, text.get(), self);
}

bool encode_jsonb(encoder& out, PyObject* value, const codec& self) {
  return out.uint8(1) && encode_json(out, value, self);
}

}  // namespace pgpoll::py
