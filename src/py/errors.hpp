// Errors of the extension: the classes live in pgpoll.errors and are looked up when first needed.
#pragma once

#include "core/result.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

// A borrowed class of pgpoll.errors; null with an exception set where it can't be had.
PyObject* error_class(const char* name);

// Raises pgpoll.errors.<name>(message); returns null, so that a caller can return it.
PyObject* raise_error(const char* name, const std::string& message);
inline PyObject* raise_interface_error(const std::string& message) {
  return raise_error("InterfaceError", message);
}

// The exception that tells `why`, with its cause and with safe_to_retry; null with another one set.
ref make_error(const core::failure& why, const core::operation& op);

// ErrorResponse or NoticeResponse as a dict: field code -> text.
ref message_fields(const core::server_message& message);

// Text from the server that may not be UTF-8.
ref decoded(std::string_view text);

}  // namespace pgpoll::py
