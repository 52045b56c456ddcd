"""From the parameters host, hostaddr and port to the places to try. No name is looked up here.

Sources: PostgreSQL 18 manual, "Parameter Key Words" (libpq-paramkeywords: host, hostaddr, port) and "Specifying
Multiple Hosts" (libpq-multiple-hosts). The default is looked for instead of built in: packagers differ about the
socket's folder.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pgpoll._conninfo_dsn import SPACES
from pgpoll._conninfo_keywords import DEFAULT_PORT
from pgpoll._error_bases import InterfaceError

SOCKET_FOLDERS = ("/var/run/postgresql", "/tmp")  # anybody can make a socket in /tmp, so it is the second
SOCKET_PATH_MAX = 107  # bytes, of sockaddr_un without its terminator


class Address(NamedTuple):
    """One place to try."""

    host: str
    """The host as it was given: a label for messages."""
    literal: str | None
    """An IP literal, the path of a Unix socket's file, "@..." for an abstract one; None for a name not looked up."""
    port: int

    @property
    def local(self) -> bool:
        """A Unix socket, or a loopback address."""
        where = self.literal or ""
        return where.startswith(("/", "@", "127.")) or where == "::1"


def addresses(values: dict[str, str]) -> tuple[Address, ...]:
    """The places that the parameters host, hostaddr and port mean, names without a literal. Raises InterfaceError."""
    hosts = values["host"].split(",") if values.get("host") else []
    literals = values["hostaddr"].split(",") if values.get("hostaddr") else []
    if hosts and literals and len(hosts) != len(literals):
        raise InterfaceError(f"{len(hosts)} hosts for {len(literals)} hostaddr values")
    count = len(hosts) or len(literals) or 1
    ports = [_port(text) for text in values.get("port", "").split(",")]
    if len(ports) == 1:
        ports *= count
    if len(ports) != count:
        raise InterfaceError(f"{len(ports)} ports for {count} hosts")
    hosts = hosts or [""] * count
    literals = literals or [""] * count
    return tuple(map(_address, hosts, literals, ports))


def _address(host: str, literal: str, port: int) -> Address:
    if literal:
        if not _is_ip(literal):
            raise InterfaceError("hostaddr must be an IPv4 or IPv6 address; names go into host")
        return Address(host or literal, literal, port)
    host = host or _default_host(port)
    if host.startswith(("/", "@")):
        path = f"{host}/.s.PGSQL.{port}"
        if len(path.encode()) > SOCKET_PATH_MAX:
            raise InterfaceError(f"the path of the Unix socket is longer than {SOCKET_PATH_MAX} bytes")
        return Address(host, path, port)
    return Address(host, host if _is_ip(host) else None, port)


def _default_host(port: int) -> str:
    """The first folder that has a server's socket, else localhost."""
    import stat

    for folder in SOCKET_FOLDERS:
        try:
            mode = os.stat(f"{folder}/.s.PGSQL.{port}").st_mode
        except OSError:
            continue
        if stat.S_ISSOCK(mode):
            return folder
    return "localhost"


def _is_ip(text: str) -> bool:
    import socket

    family, bare = (socket.AF_INET6, text.partition("%")[0]) if ":" in text else (socket.AF_INET, text)
    try:
        socket.inet_pton(family, bare)
    except (OSError, UnicodeError):
        return False
    return True


def _port(text: str) -> int:
    text = text.strip(SPACES)
    if not text:
        return DEFAULT_PORT
    digits = text.removeprefix("+").lstrip("0")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise InterfaceError("port must be a whole number from 1 to 65535")
    return int(digits)
