"""What to connect to: libpq's DSN, keyword arguments and the PG* environment, made into one `Options`.

For each parameter the first of these that has it wins: keyword argument, DSN, environment variable, default. A keyword
argument that libpq does not know becomes a server setting (`search_path="app"`, `statement_timeout=5000`); in a DSN an
unknown key is refused, as libpq does. libpq's parameters that pgpoll does not serve yet are refused, not ignored.

Names are looked up outside the core. `resolve()` does it with `socket.getaddrinfo`, blocking; a program with a resolver
of its own does `parse()`, looks up each of `unresolved(options)`, and gives the answers to `with_addresses()`. IP
literals and Unix sockets never reach a resolver.

Every mistake is an InterfaceError, and nothing here shows a password, not even a piece of a malformed DSN.

Sources: PostgreSQL 18 manual, "Connection Strings" (libpq-connstring), "Parameter Key Words" (libpq-paramkeywords),
"Environment Variables" (libpq-envars), "Start-up" (protocol-flow-start-up).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pgpoll._conninfo_addresses import Address, addresses
from pgpoll._conninfo_dsn import SPACES, read_dsn
from pgpoll._conninfo_keywords import ENVIRONMENT_SETTINGS, KEYWORDS, Secret, refuse_unserved
from pgpoll._conninfo_saslprep import saslprep
from pgpoll._error_bases import InterfaceError, OperationalError

__all__ = ["Address", "Options", "Secret", "parse", "resolve", "saslprep", "unresolved", "with_addresses"]

OWN_KEYWORDS = ("statement_cache_size", "max_pipeline", "max_queued")
MAX_PIPELINE = 1000


class Options(NamedTuple):
    """Everything a Connection needs. Immutable; `_replace(...)` gives a changed copy."""

    addresses: tuple[Address, ...]
    """Tried in this order, until one accepts."""
    user: str
    password: Secret | None
    """As it was given: for cleartext and md5."""
    scram_password: Secret | None
    """After SASLprep."""
    startup_parameters: tuple[tuple[str, str], ...]
    """The StartupMessage's parameters, user and database first."""
    statement_cache_size: int = 100
    """Prepared statements kept, of at most 4 MiB of text; 0 keeps none: for poolers in transaction mode."""
    max_pipeline: int = MAX_PIPELINE
    """Requests on the wire without their answers; 1 never pipelines."""
    max_queued: int | None = None
    """Requests in flight, queued, and waiting for a transaction; one more raises BusyError. None has no limit."""
    connect_timeout: float | None = None
    """Seconds for connecting, all addresses together; None has no limit."""
    keepalives: bool = True
    """Whether the kernel asks a silent peer (TCP only) whether it is still there: the next three say when."""
    keepalives_idle: int = 15
    """Seconds of silence before the first question; 0 is the system's own value, here and in the next two."""
    keepalives_interval: int = 5
    """Seconds between questions."""
    keepalives_count: int = 3
    """Questions without an answer that end the connection."""
    tcp_user_timeout: int = 30_000
    """Milliseconds (TCP only) that what was sent may stay unacknowledged; 0 is the system's own value. Off while more
    than 32 KiB are on their way: the kernel would not tell a server that is busy from one that is gone."""
    lookup_failures: tuple[str, ...] = ()
    """Why names among several hosts have no address, one message each; empty as long as nothing failed."""

    @property
    def database(self) -> str:
        return dict(self.startup_parameters)["database"]

    @property
    def cleartext_allowed(self) -> bool:
        """Whether a password may be sent as it is: every address is a Unix socket or loopback."""
        return all(address.local for address in self.addresses)

    def __repr__(self) -> str:
        where = ",".join(f"{address.literal or address.host}:{address.port}" for address in self.addresses)
        settings = ",".join(name for name, _ in self.startup_parameters[2:])
        return f"<pgpoll.conninfo.Options user={self.user!r} database={self.database!r} at={where} settings={settings}>"


def parse(dsn: str | None = None, /, **params: Any) -> Options:
    """The Options, names not looked up yet.

    `dsn` is `postgresql://...` or `key=value ...`. `params` are libpq's keywords (`database` is `dbname`), pgpoll's own
    `statement_cache_size` (100), `max_pipeline` (1000), `max_queued` (None: no limit) and `connect_timeout` (seconds;
    None or 0: no limit), and server settings of type str, bool or int; None is as if not given. Raises InterfaceError.

    Other than libpq, a peer that has vanished is noticed in 30 s by default: `keepalives_idle` is 15 (seconds),
    `keepalives_interval` 5, `keepalives_count` 3 and `tcp_user_timeout` 30000 (milliseconds), all for TCP only.
    """
    dsn = _hide(dsn, params)
    try:
        return _parse(dsn, params)
    except InterfaceError as error:
        message = str(error)
    # Raised again from here: the frames below have pieces of the DSN in their locals, which some tracebacks show.
    raise InterfaceError(message)


def _hide(dsn: str | None, params: dict[str, Any]) -> str | None:
    for name, value in params.items():
        if name in KEYWORDS and KEYWORDS[name].secret and isinstance(value, str):
            params[name] = Secret(value)
    return Secret(dsn) if isinstance(dsn, str) else dsn


def _parse(dsn: str | None, params: dict[str, Any]) -> Options:
    if dsn is not None and not isinstance(dsn, str):
        raise InterfaceError(f"the DSN must be a str, not {type(dsn).__name__}")
    if "ssl" in params:
        raise InterfaceError("ssl is no connection parameter: use sslmode")
    values = {} if dsn is None else {name: _text(name, value) for name, value in read_dsn(str.__str__(dsn)).items()}
    own = {name: params[name] for name in OWN_KEYWORDS if name in params}
    values |= _known_keywords(params)
    _add_environment(values)
    refuse_unserved(values)
    user = values.get("user") or _operating_system_user()
    password = values.get("password")
    return Options(
        addresses=addresses(values),
        user=user,
        password=Secret(password) if password else None,
        scram_password=Secret(saslprep(password)) if password else None,
        startup_parameters=_startup_parameters(user, values, _settings(params)),
        statement_cache_size=_count("statement_cache_size", own.get("statement_cache_size"), 0, 100),
        max_pipeline=_count("max_pipeline", own.get("max_pipeline"), 1, MAX_PIPELINE),
        max_queued=_count("max_queued", own["max_queued"], 1, 1) if own.get("max_queued") is not None else None,
        connect_timeout=_seconds(values.get("connect_timeout")),
        keepalives=_number(values, "keepalives", 1) != 0,
        keepalives_idle=_number(values, "keepalives_idle", 15),
        keepalives_interval=_number(values, "keepalives_interval", 5),
        keepalives_count=_number(values, "keepalives_count", 3),
        tcp_user_timeout=_number(values, "tcp_user_timeout", 30_000),
    )


def resolve(dsn: str | None = None, /, **params: Any) -> Options:
    """`parse()`, and every name looked up with the blocking `socket.getaddrinfo`.

    Raises InterfaceError, and OperationalError where no host has an address.
    """
    dsn = _hide(dsn, params)
    options = parse(dsn, **params)
    names = unresolved(options)
    if not names:
        return options
    import socket

    found: dict[str, Sequence[Any] | Exception] = {}
    for name in names:
        try:
            found[name] = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            found[name] = error
    return with_addresses(options, found)


def unresolved(options: Options) -> tuple[str, ...]:
    """The host names that have no address yet, each once, in order."""
    return tuple(dict.fromkeys(address.host for address in options.addresses if address.literal is None))


def with_addresses(options: Options, found: Mapping[str, Sequence[Any] | Exception]) -> Options:
    """The Options with each name of `unresolved(options)` replaced by its addresses.

    `found` has for each name what getaddrinfo gave for it, or the exception that it raised (OSError, UnicodeError). As
    with libpq, a name without an address is passed over while another host has one. Raises OperationalError where
    there is none at all, naming each host and its reason.
    """
    out: list[Address] = []
    failures: dict[str, str] = {}
    for address in options.addresses:
        if address.literal is not None:
            out.append(address)
            continue
        answer = found[address.host]
        if isinstance(answer, Exception) or not answer:
            failures[address.host] = _lookup_failure(address.host, answer)
            continue
        out.extend(address._replace(literal=_literal_of(info[4])) for info in answer)
    messages = (*options.lookup_failures, *failures.values())
    if not out:
        error = OperationalError("; ".join(messages))
        error.safe_to_retry = True
        raise error
    return options._replace(addresses=tuple(dict.fromkeys(out)), lookup_failures=messages)


def _literal_of(sockaddr: Sequence[Any]) -> str:
    literal = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == 4 else 0
    return f"{literal}%{scope}" if scope and "%" not in literal else literal


def _lookup_failure(host: str, answer: Sequence[Any] | Exception) -> str:
    if isinstance(answer, OSError):
        reason = answer.strerror or str(answer)
    elif isinstance(answer, Exception):
        reason = "not a host name"
    else:
        reason = "it has none"
    return f'could not find an address of host "{host}": {reason}'


# --- Reading ------------------------------------------------------------------------------------------------------


def _known_keywords(params: dict[str, Any]) -> dict[str, str]:
    found = {name: _text(name, value) for name, value in params.items() if name in KEYWORDS and value is not None}
    if params.get("database") is not None:
        database = _text("dbname", params["database"])
        if found.setdefault("dbname", database) != database:
            raise InterfaceError("database and dbname are two names for one parameter, and differ")
    return found


def _settings(params: dict[str, Any]) -> dict[str, str]:
    """The keyword arguments that are left: server settings."""
    found = {}
    for name, value in params.items():
        if name in KEYWORDS or name in OWN_KEYWORDS or name == "database" or value is None:
            continue
        if not _text("a server setting's name", name):
            raise InterfaceError("a server setting's name is empty")
        if name.lower() == "client_encoding" or name.startswith("_pq_."):
            raise InterfaceError(f"{name} cannot be set: the driver itself speaks of it with the server")
        found[name] = _text(name, value)
    return found


def _text(name: str, value: object) -> str:
    """A parameter's value as the text that libpq would be given."""
    if isinstance(value, str):
        if "\0" in value:
            raise InterfaceError(f"{name} contains a NUL character")
        if not _is_utf8(value):
            raise InterfaceError(f"{name} cannot be encoded in UTF-8")
        return value
    known = name in KEYWORDS
    if isinstance(value, bool) and not known:
        return "on" if value else "off"
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**64:
            raise InterfaceError(f"{name} is out of range")
        return str(value)
    if isinstance(value, float) and name == "connect_timeout":
        return repr(value)
    accepted = "str or int" if known else "str, bool or int"
    raise InterfaceError(f"{name} must be {accepted}, not {type(value).__name__}")


def _is_utf8(text: str) -> bool:
    try:
        str.encode(text)
    except UnicodeEncodeError:
        return False
    return True


def _add_environment(values: dict[str, str]) -> None:
    for name, keyword in KEYWORDS.items():
        if name not in values and keyword.environment is not None and keyword.environment in os.environ:
            values[name] = _text(f"environment variable {keyword.environment}", os.environ[keyword.environment])
    if "sslmode" not in values and os.environ.get("PGREQUIRESSL", "").startswith("1"):
        values["sslmode"] = "require"


def _operating_system_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        pass
    raise InterfaceError(f"no user was given, and the operating system has no name for user ID {os.geteuid()}")


def _startup_parameters(user: str, values: dict[str, str], settings: dict[str, str]) -> tuple[tuple[str, str], ...]:
    out = {
        "user": user,
        "database": values.get("dbname") or user,
        "client_encoding": "UTF8",
        "application_name": values.get("application_name") or values.get("fallback_application_name", ""),
        "options": values.get("options", ""),
    }
    for variable, name in ENVIRONMENT_SETTINGS.items():
        value = os.environ.get(variable, "")
        if value.lower() != "default" and name not in map(str.lower, settings):
            out[name] = _text(f"environment variable {variable}", value)
    return (*((name, value) for name, value in out.items() if value), *settings.items())


def _count(name: str, value: object, least: int, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise InterfaceError(f"{name} must be an int, at least {least}")
    return value


def _number(values: dict[str, str], name: str, default: int) -> int:
    """As libpq reads an integer: of C's int, negative as 0."""
    text = values.get(name)
    if not text:
        return default
    digits = text.strip(SPACES)
    plain = digits.removeprefix(digits[:1] if digits[:1] in ("+", "-") else "")
    if not (plain.isascii() and plain.isdigit()) or len(plain) > 10 or not -(2**31) <= int(digits) < 2**31:
        raise InterfaceError(f"{name} must be an integer")
    return max(0, int(digits))


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text.strip(SPACES))
    except ValueError:
        seconds = float("nan")
    if seconds != seconds or "_" in text:
        raise InterfaceError("connect_timeout must be a number of seconds")
    return seconds if 0 < seconds < float("inf") else None
