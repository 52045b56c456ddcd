// PGPOLL_TRACE=path in the environment: every message of every connection made from then on is written there, one line
// each, in the format of libpq's PQtrace (wire/trace.hpp). Where it is not set a connection has no tap, and nothing is
// paid for.
#pragma once

#include "net/client.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

// False with InterfaceError set: the file can't be opened.
bool trace_if_asked(net::client& client);

// _trace(chunks, show_values): the lines of [("F" or "B", bytes), ...] as one str; for tests.
PyObject* trace_of(PyObject* module, PyObject* args);

}  // namespace pgpoll::py
