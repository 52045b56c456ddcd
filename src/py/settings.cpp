#include "py/settings.hpp"

#include <algorithm>
#include <limits>

#include "py/codecs/codecs.hpp"
#include "py/errors.hpp"

namespace pgpoll::py {
namespace {

bool read_text(PyObject* object, std::string& out) {
  if (!PyUnicode_Check(object)) {
    PyErr_Format(PyExc_TypeError, "options: str expected, not %s", Py_TYPE(object)->tp_name);
    return false;
  }
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object, &size);
  if (text == nullptr) return false;
  out.assign(text, static_cast<std::size_t>(size));
  if (out.find('\0') == std::string::npos) return true;
  raise_interface_error("options: a NUL character in a value");
  return false;
}

bool read_attribute(PyObject* options, const char* name, std::string& out) {
  auto value = ref::steal(PyObject_GetAttrString(options, name));
  return value && read_text(value.get(), out);
}

bool read_optional(PyObject* options, const char* name, std::optional<std::string>& out) {
  auto value = ref::steal(PyObject_GetAttrString(options, name));
  return value && (value.get() == Py_None || read_text(value.get(), out.emplace()));
}

bool read_size(PyObject* options, const char* name, std::size_t& out) {
  auto value = ref::steal(PyObject_GetAttrString(options, name));
  if (!value) return false;
  out = PyLong_AsSize_t(value.get());
  return PyErr_Occurred() == nullptr;
}

bool read_int(PyObject* options, const char* name, int& out) {
  auto value = ref::steal(PyObject_GetAttrString(options, name));
  if (!value) return false;
  const long number = PyLong_AsLong(value.get());
  if (PyErr_Occurred() != nullptr) return false;
  out = static_cast<int>(std::clamp(number, 0L, long{std::numeric_limits<int>::max()}));
  return true;
}

bool read_startup_parameters(PyObject* options, core::settings& out) {
  auto value = ref::steal(PyObject_GetAttrString(options, "startup_parameters"));
  auto pairs = value ? ref::steal(PySequence_Fast(value.get(), "options.startup_parameters")) : ref();
  if (!pairs) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(pairs.get()); ++i) {
    auto* pair = PySequence_Fast_GET_ITEM(pairs.get(), i);
    PyObject* name = nullptr;
    PyObject* text = nullptr;
    auto& last = out.startup_parameters.emplace_back();
    if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "OO", &name, &text)) {
      if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_TypeError, "options.startup_parameters: pairs expected");
      return false;
    }
    if (!read_text(name, last.first) || !read_text(text, last.second)) return false;
  }
  return true;
}

bool read_address(PyObject* item, net::address& out) {
  PyObject* host = nullptr;
  PyObject* literal = nullptr;
  unsigned short port = 0;
  if (!PyTuple_Check(item)) {
    PyErr_SetString(PyExc_TypeError, "options.addresses: (host, literal, port) expected");
    return false;
  }
  if (!PyArg_ParseTuple(item, "OOH", &host, &literal, &port) || !read_text(host, out.host)) return false;
  out.port = port;
  if (literal != Py_None) return read_text(literal, out.literal);
  raise_interface_error("the host name \"" + out.host + "\" has not been looked up: use conninfo.resolve()");
  return false;
}

}  // namespace

bool read_settings(PyObject* options, core::settings& out) {
  auto cleartext = ref::steal(PyObject_GetAttrString(options, "cleartext_allowed"));
  int allowed = cleartext ? PyObject_IsTrue(cleartext.get()) : -1;
  if (allowed < 0) return false;
  out.cleartext_allowed = allowed == 1;
  out.decodes_binary = decodes_binary;
  return read_startup_parameters(options, out) && read_attribute(options, "user", out.user) &&
         read_optional(options, "password", out.password) &&
         read_optional(options, "scram_password", out.scram_password) &&
         read_size(options, "statement_cache_size", out.statement_cache_size) &&
         read_size(options, "max_pipeline", out.max_pipeline);
}

bool read_addresses(PyObject* options, std::vector<net::address>& out) {
  auto value = ref::steal(PyObject_GetAttrString(options, "addresses"));
  auto items = value ? ref::steal(PySequence_Fast(value.get(), "options.addresses")) : ref();
  if (!items) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.get()); ++i)
    if (!read_address(PySequence_Fast_GET_ITEM(items.get(), i), out.emplace_back())) return false;
  return true;
}

bool read_lookup_failures(PyObject* options, std::string& out) {
  auto value = ref::steal(PyObject_GetAttrString(options, "lookup_failures"));
  auto items = value ? ref::steal(PySequence_Fast(value.get(), "options.lookup_failures")) : ref();
  if (!items) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.get()); ++i) {
    std::string one;
    if (!read_text(PySequence_Fast_GET_ITEM(items.get(), i), one)) return false;
    out += (out.empty() ? "" : "; ") + one;
  }
  return true;
}

bool read_tcp_options(PyObject* options, net::tcp_options& out) {
  int keepalives = 0;
  if (!read_int(options, "keepalives", keepalives)) return false;
  out.keepalives = keepalives != 0;
  return read_int(options, "keepalives_idle", out.keepalives_idle) &&
         read_int(options, "keepalives_interval", out.keepalives_interval) &&
         read_int(options, "keepalives_count", out.keepalives_count) &&
         read_int(options, "tcp_user_timeout", out.user_timeout);
}

}  // namespace pgpoll::py
