// What a signal handler's exception finds done, or not begun: for blocking callers.
#pragma once

#include "py/ref.hpp"

namespace pgpoll::py {

int register_mutex(PyObject* module);  // _Mutex: the lock of a connection
int register_surely();
PyObject* surely(PyObject* module, PyObject* args);  // _surely(method, undo)

}  // namespace pgpoll::py
