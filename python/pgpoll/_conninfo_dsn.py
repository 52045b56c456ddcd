"""The two forms of a DSN, read exactly as libpq reads them: text in, a dict of libpq's keywords out.

    postgresql://user:password@h1:p1,h2:p2/dbname?keyword=value&...      (or postgres://)
    keyword = value keyword='quoted \\' value' ...

A DSN holds a password, and a malformed one may hold it anywhere, so no message shows a value, and a key is named only
where it cannot be a piece of a password. (The readers' locals hold pieces of it; `conninfo.parse` sees to that.)

On purpose unlike libpq: percent-encoded bytes must be UTF-8, and an '@' that is left over in a URI is refused, because
it means that the user or the password was not percent-encoded and its rest was taken for something else.

Source: PostgreSQL 18 manual, "Connection Strings" (libpq-connstring); where it is silent, libpq's behaviour.
"""

from __future__ import annotations

from pgpoll._conninfo_keywords import KEYWORDS
from pgpoll._error_bases import InterfaceError

URI_PREFIXES = ("postgresql://", "postgres://")
SPACES = " \t\n\v\f\r"
_HEX = frozenset("0123456789abcdefABCDEF")
_ENCODE = "percent-encode '@', '/', '?', '&' and '%' in a user, a password and a value"


def read_dsn(dsn: str) -> dict[str, str]:
    """The keywords that the DSN gives, the last of equals winning; empty values are kept. Raises InterfaceError."""
    if "\0" in dsn:
        raise InterfaceError("the DSN contains a NUL character")
    for prefix in URI_PREFIXES:
        if dsn.startswith(prefix):
            return _read_uri(dsn.removeprefix(prefix))
    return _read_pairs(dsn)


def _store(found: dict[str, str], key: str, value: str, *, name_it: bool) -> None:
    if key == "requiressl":  # obsolete, and libpq still takes it
        key, value = "sslmode", "require" if value.startswith("1") else "prefer"
    if key not in KEYWORDS:
        if name_it and len(key) < 64 and key.isascii() and key.replace(".", "_").isidentifier():
            raise InterfaceError(
                f'the DSN has an unknown key, "{key}" (server settings are given as keyword arguments)'
            )
        raise InterfaceError("the DSN has an unknown key, not shown for it may be part of a password")
    found[key] = value


# --- keyword = value ---------------------------------------------------------------------------------------------


def _read_pairs(dsn: str) -> dict[str, str]:
    found: dict[str, str] = {}
    previous_is_secret = False
    at = _skip_spaces(dsn, 0)
    while at < len(dsn):
        start = at
        while at < len(dsn) and dsn[at] != "=" and dsn[at] not in SPACES:
            at += 1
        key = dsn[start:at]
        at = _skip_spaces(dsn, at)
        if at == len(dsn) or dsn[at] != "=":
            raise InterfaceError('missing "=" in the DSN (it is neither a postgresql:// URI nor a list of key=value)')
        at = _skip_spaces(dsn, at + 1)
        value, at, quoted = _read_value(dsn, at)
        _store(found, key, value, name_it=not previous_is_secret)
        previous_is_secret = not quoted and key in KEYWORDS and KEYWORDS[key].secret
        at = _skip_spaces(dsn, at)
    return found


def _skip_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACES:
        at += 1
    return at


def _read_value(dsn: str, at: int) -> tuple[str, int, bool]:
    """The value that begins at `at`, where it ends, and whether it was quoted."""
    quoted = dsn.startswith("'", at)
    at += quoted
    out: list[str] = []
    while at < len(dsn):
        char = dsn[at]
        at += 1
        if char == "\\":
            out.append(dsn[at : at + 1])
            at += 1
        elif quoted and char == "'":
            return "".join(out), at, True
        elif not quoted and char in SPACES:
            break
        else:
            out.append(char)
    if quoted:
        raise InterfaceError("unterminated quoted value in the DSN")
    return "".join(out), min(at, len(dsn)), False


# --- URI ---------------------------------------------------------------------------------------------------------


def _read_uri(rest: str) -> dict[str, str]:
    found: dict[str, str] = {}
    credentials, at_sign, after = rest.partition("@")
    has_credentials = bool(at_sign) and "/" not in credentials
    if has_credentials:
        rest = after
        user, _, password = credentials.partition(":")
        if user:
            found["user"] = _decode(user, "user")
        if password:
            found["password"] = _decode(password, "password")
    hosts, ports, rest = _read_hosts(rest)
    if "@" in hosts or "@" in ports:
        raise InterfaceError(f"a second '@' before the host in the DSN: {_ENCODE}")
    if hosts:
        found["host"] = _decode(hosts, "host")
    if ports:
        found["port"] = _decode(ports, "port")
    if rest and rest[0] != "?":
        dbname, question_mark, query = rest[1:].partition("?")
        if "@" in dbname and ports and not has_credentials:
            raise InterfaceError(f"an '@' after the first '/' of the DSN: {_ENCODE}")
        if dbname:
            found["dbname"] = _decode(dbname, "dbname")
        rest = question_mark + query
    _read_query(rest[1:], found)
    return found


def _read_hosts(rest: str) -> tuple[str, str, str]:
    """Comma-separated hosts, ports of the same number of commas ('' where there is none at all), and what follows."""
    hosts: list[str] = []
    ports: list[str] = []
    while True:
        if rest.startswith("["):
            host, bracket, rest = rest[1:].partition("]")
            if not bracket:
                raise InterfaceError('missing "]" after the IPv6 address in the DSN')
            if not host:
                raise InterfaceError("empty IPv6 address in the DSN")
            if rest and rest[0] not in ":/?,":
                raise InterfaceError('unexpected character after "]" in the DSN')
        else:
            host, rest = _split_before(rest, ":/?,")
        port = ""
        if rest.startswith(":"):
            port, rest = _split_before(rest[1:], "/?,")
        hosts.append(host)
        ports.append(port)
        if not rest.startswith(","):
            return ",".join(hosts), ",".join(ports), rest
        rest = rest[1:]


def _split_before(text: str, stops: str) -> tuple[str, str]:
    at = 0
    while at < len(text) and text[at] not in stops:
        at += 1
    return text[:at], text[at:]


def _read_query(query: str, found: dict[str, str]) -> None:
    name_it = "@" not in query
    parts = query.split("&")
    if not parts[-1]:
        parts.pop()  # no query, or an '&' at its end
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise InterfaceError(f'missing "=" in a query parameter of the DSN: {_ENCODE}')
        if "=" in value:
            raise InterfaceError("extra \"=\" in a query parameter of the DSN: percent-encode '=' in a value")
        key = _decode(key, "a query parameter's name")
        value = _decode(value, "a query parameter")
        if (key, value) == ("ssl", "true"):  # as JDBC writes it
            key, value = "sslmode", "require"
        _store(found, key, value, name_it=name_it)
        name_it = "@" not in query and not KEYWORDS[key].secret if key in KEYWORDS else True


def _decode(text: str, what: str) -> str:
    """Percent-decoding; '+' is itself. Spaces around are dropped, those inside refused, as libpq does."""
    text = text.strip(" ")
    if " " in text:
        raise InterfaceError(f"unexpected space in the DSN ({what}): write it as %20")
    first, *encoded = text.split("%")
    raw = bytearray(first.encode("utf-8", "surrogatepass"))
    for piece in encoded:
        if len(piece) < 2 or piece[0] not in _HEX or piece[1] not in _HEX:
            raise InterfaceError(f"invalid percent-encoding in the DSN ({what}): write '%' as %25")
        byte = int(piece[:2], 16)
        if byte == 0:
            raise InterfaceError(f"%00 in the DSN ({what})")
        raw.append(byte)
        raw += piece[2:].encode("utf-8", "surrogatepass")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InterfaceError(f"the DSN ({what}) is not UTF-8") from None
