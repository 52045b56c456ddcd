// Session: a core::session for Python without a socket, so that a test can script a dialogue byte by byte.
#pragma once

#include "py/ref.hpp"

namespace pgpoll::py {

int register_session(PyObject* module);

}  // namespace pgpoll::py
