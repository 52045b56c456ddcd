#include "py/errors.hpp"

namespace pgpoll::py {
namespace {

ref from_errors(const char* name) {
  auto module = ref::steal(PyImport_ImportModule("pgpoll.errors"));
  if (!module) return {};
  return ref::steal(PyObject_GetAttrString(module.get(), name));
}

// Several statements in one Parse: the server's words don't say what to do here.
constexpr std::string_view script_hint = "use executescript() for several statements";

bool is_script_in_execute(const core::server_message& message, const core::operation& op) {
  using kind = enum core::operation::kind;
  return (op.kind == kind::execute || op.kind == kind::prepare || op.kind == kind::batch || op.portal) &&
         message.field('C') == "42601" && message.field('R') == "exec_parse_message";
}

ref server_error(const core::server_message& message, const core::operation& op) {
  auto fields = message_fields(message);
  if (!fields) return {};
  if (is_script_in_execute(message, op)) {
    std::string hint(message.field('H'));
    if (!hint.empty()) hint += "; ";
    hint += script_hint;
    auto text = decoded(hint);
    if (!text || PyDict_SetItemString(fields.get(), "H", text.get()) < 0) return {};
  }
  auto make = from_errors("make_server_error");
  return make ? ref::steal(PyObject_CallOneArg(make.get(), fields.get())) : ref();
}

const char* class_name(enum core::failure::kind kind) {
  switch (kind) {
    case core::failure::kind::authentication:
    case core::failure::kind::server:
      return "OperationalError";
    case core::failure::kind::protocol:
      return "ProtocolError";
    case core::failure::kind::lost:
    case core::failure::kind::closed:
      return "ConnectionLost";
    case core::failure::kind::misuse:
    case core::failure::kind::refused:
      break;
  }
  return "InterfaceError";
}

ref plain_error(const core::failure& why) {
  auto* kind = error_class(class_name(why.kind));
  auto text = decoded(why.message);
  return kind != nullptr && text ? ref::steal(PyObject_CallOneArg(kind, text.get())) : ref();
}

}  // namespace

ref decoded(std::string_view text) {
  return ref::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

PyObject* error_class(const char* name) {
  // pgpoll.errors is kept by sys.modules, and a module keeps its classes.
  auto found = from_errors(name);
  return found.get();
}

PyObject* raise_error(const char* name, const std::string& message) {
  auto* kind = error_class(name);
  auto text = decoded(message);
  if (kind != nullptr && text) PyErr_SetObject(kind, text.get());
  return nullptr;
}

ref message_fields(const core::server_message& message) {
  auto fields = ref::steal(PyDict_New());
  if (!fields) return {};
  for (const auto& [code, value] : message.fields) {
    auto key = ref::steal(PyUnicode_FromOrdinal(static_cast<unsigned char>(code)));
    auto text = decoded(value);
    // The first of a kind counts. Not PyDict_SetDefault(): out of memory, 3.13's corrupts the dictionary.
    const int known = key && text ? PyDict_Contains(fields.get(), key.get()) : -1;
    if (known < 0 || (known == 0 && PyDict_SetItem(fields.get(), key.get(), text.get()) < 0)) return {};
  }
  return fields;
}

ref make_error(const core::failure& why, const core::operation& op) {
  auto error = why.server ? server_error(*why.server, op) : plain_error(why);
  if (!error) return {};
  if (PyObject_SetAttrString(error.get(), "safe_to_retry", op.written ? Py_False : Py_True) < 0) return {};
  if (why.cause) {
    auto cause = make_error(*why.cause, op);
    if (!cause) return {};
    PyException_SetCause(error.get(), cause.release());
  }
  return error;
}

}  // namespace pgpoll::py
