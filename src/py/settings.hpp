// conninfo.Options as the core and net want them.
#pragma once

#include <vector>

#include "core/session.hpp"
#include "net/client.hpp"
#include "py/ref.hpp"

namespace pgpoll::py {

// False with an exception set.
bool read_settings(PyObject* options, core::settings& out);
bool read_addresses(PyObject* options, std::vector<net::address>& out);  // InterfaceError for a name left unresolved
bool read_lookup_failures(PyObject* options, std::string& out);
bool read_tcp_options(PyObject* options, net::tcp_options& out);

}  // namespace pgpoll::py
