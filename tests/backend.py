"""The server's role in a dialogue: builders of backend messages, and a reader of frontend ones.

    data = authentication_ok() + parameter_status("TimeZone", "UTC") + ready_for_query()
    reader = FrontendReader()
    reader.feed(session.outbound())
    for message in reader:  # FrontendMessage(name="Parse", fields={"statement": "", "query": "select 1", "types": []})
        ...

Each builder returns one whole message as bytes and checks nothing, so that a test can build what no server would
send; `message(kind, body)` builds anything. Formats: PostgreSQL manual, "Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

INT4, TEXT, INT8, BOOL = 23, 25, 20, 16  # type OIDs of pg_type


def message(kind: bytes, body: bytes = b"", *, length: int | None = None) -> bytes:
    """One backend message; `length` overrides the length field (a lie)."""
    return kind + struct.pack("!I", len(body) + 4 if length is None else length) + body


def cstring(text: str | bytes) -> bytes:
    return (text.encode() if isinstance(text, str) else text) + b"\0"


def int4(value: int) -> bytes:
    """An int4 in binary format."""
    return struct.pack("!i", value)


# Start-up.


def authentication(code: int, data: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", code) + data)


def authentication_ok() -> bytes:
    return authentication(0)


def cleartext() -> bytes:
    return authentication(3)


def md5(salt: bytes = b"salt") -> bytes:
    return authentication(5, salt)


def sasl(*mechanisms: str) -> bytes:
    return authentication(10, b"".join(map(cstring, mechanisms or ("SCRAM-SHA-256",))) + b"\0")


def sasl_continue(data: bytes) -> bytes:
    return authentication(11, data)


def sasl_final(data: bytes) -> bytes:
    return authentication(12, data)


def parameter_status(name: str | bytes, value: str | bytes) -> bytes:
    return message(b"S", cstring(name) + cstring(value))


def backend_key_data(pid: int = 4711, secret: bytes = b"\x01\x02\x03\x04") -> bytes:
    return message(b"K", struct.pack("!i", pid) + secret)


def negotiate_protocol_version(minor: int = 0, *options: str) -> bytes:
    return message(b"v", struct.pack("!ii", minor, len(options)) + b"".join(map(cstring, options)))


def ready_for_query(status: str = "I") -> bytes:
    return message(b"Z", status.encode())


def started(status: str = "I") -> bytes:
    """All that a trusting server says between the StartupMessage and the first request."""
    return (
        authentication_ok()
        + parameter_status("server_version", "18.0")
        + parameter_status("client_encoding", "UTF8")
        + backend_key_data()
        + ready_for_query(status)
    )


# Queries.


def parse_complete() -> bytes:
    return message(b"1")


def bind_complete() -> bytes:
    return message(b"2")


def close_complete() -> bytes:
    return message(b"3")


def no_data() -> bytes:
    return message(b"n")


def empty_query() -> bytes:
    return message(b"I")


def portal_suspended() -> bytes:
    return message(b"s")


def parameter_description(*oids: int) -> bytes:
    return message(b"t", struct.pack(f"!H{len(oids)}I", len(oids), *oids))


def column(name: str | bytes, oid: int = INT4, size: int = 4, typmod: int = -1, code: int = 0) -> bytes:
    """One field of a RowDescription."""
    return cstring(name) + struct.pack("!IhIhih", 0, 0, oid, size, typmod, code)


def row_description(*columns: bytes | str) -> bytes:
    """A RowDescription; a column that is given by its name alone is an int4."""
    fields = [column(each) if isinstance(each, str) else each for each in columns]
    return message(b"T", struct.pack("!H", len(fields)) + b"".join(fields))


def data_row(*values: bytes | None) -> bytes:
    body = struct.pack("!H", len(values))
    for value in values:
        body += struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value
    return message(b"D", body)


def command_complete(tag: str | bytes) -> bytes:
    return message(b"C", cstring(tag))


def selected(*numbers: int) -> bytes:
    """DataRows of one int4 each, and their CommandComplete."""
    return b"".join(data_row(int4(number)) for number in numbers) + command_complete(f"SELECT {len(numbers)}")


def described(*columns: bytes | str, parameters: tuple[int, ...] = ()) -> bytes:
    """The answer to Parse and Describe of a statement; NoData where there are no columns."""
    return parse_complete() + parameter_description(*parameters) + (row_description(*columns) if columns else no_data())


def fields_of_error(code: str, text: str, severity: str, fields: dict[str, str]) -> bytes:
    everything = {"S": severity, "V": severity, "C": code, "M": text, **fields}
    return b"".join(key.encode() + cstring(value) for key, value in everything.items()) + b"\0"


def error_response(
    code: str = "22012", text: str = "division by zero", severity: str = "ERROR", **fields: str
) -> bytes:
    """An ErrorResponse; keywords are further fields by their letters (D="detail", H="hint", P="7")."""
    return message(b"E", fields_of_error(code, text, severity, fields))


def fatal(code: str = "57P01", text: str = "terminating connection due to administrator command") -> bytes:
    return error_response(code, text, "FATAL")


def notice(text: str = "take note", code: str = "00000", severity: str = "NOTICE", **fields: str) -> bytes:
    return message(b"N", fields_of_error(code, text, severity, fields))


def notification(channel: str = "events", payload: str = "", pid: int = 4711) -> bytes:
    return message(b"A", struct.pack("!i", pid) + cstring(channel) + cstring(payload))


# COPY.


def copy_response(kind: bytes, columns: int, code: int) -> bytes:
    return message(kind, struct.pack(f"!bH{columns}h", code, columns, *[code] * columns))


def copy_in_response(columns: int = 1, code: int = 0) -> bytes:
    return copy_response(b"G", columns, code)


def copy_out_response(columns: int = 1, code: int = 0) -> bytes:
    return copy_response(b"H", columns, code)


def copy_both_response(columns: int = 0, code: int = 0) -> bytes:
    return copy_response(b"W", columns, code)


def copy_data(data: bytes = b"1\n") -> bytes:
    return message(b"d", data)


def copy_done() -> bytes:
    return message(b"c")


# The frontend's messages.


@dataclass(frozen=True)
class FrontendMessage:
    """One message of the client: its name in the manual, and its fields."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]


class BodyReader:
    """Takes a frontend message's body apart; a short or a long body fails the test."""

    def __init__(self, body: bytes) -> None:
        self.rest = body

    def take(self, size: int) -> bytes:
        assert size <= len(self.rest), f"the message lacks {size - len(self.rest)} bytes"
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def text(self) -> str:
        end = self.rest.index(b"\0")
        return self.take(end + 1)[:-1].decode()

    def number(self, code: str) -> int:
        return int(struct.unpack("!" + code, self.take(struct.calcsize("!" + code)))[0])

    def numbers(self, code: str) -> list[int]:
        return [self.number(code) for _ in range(self.number("H"))]

    def value(self) -> bytes | None:
        size = self.number("i")
        return None if size == -1 else self.take(size)

    def values(self) -> list[bytes | None]:
        return [self.value() for _ in range(self.number("H"))]


def decode_typed(kind: bytes, body: BodyReader) -> FrontendMessage:
    match kind:
        case b"P":
            return FrontendMessage(
                "Parse", {"statement": body.text(), "query": body.text(), "types": body.numbers("I")}
            )
        case b"B":
            fields = {"portal": body.text(), "statement": body.text(), "parameter_formats": body.numbers("h")}
            return FrontendMessage("Bind", fields | {"parameters": body.values(), "result_formats": body.numbers("h")})
        case b"D" | b"C":
            name = "Describe" if kind == b"D" else "Close"
            return FrontendMessage(name, {"target": body.take(1).decode(), "name": body.text()})
        case b"E":
            return FrontendMessage("Execute", {"portal": body.text(), "limit": body.number("i")})
        case b"Q":
            return FrontendMessage("Query", {"query": body.text()})
        case b"p":  # PasswordMessage, SASLInitialResponse or SASLResponse: only the server's own state tells which
            return FrontendMessage("PasswordMessage", {"data": body.take(len(body.rest))})
        case b"d":
            return FrontendMessage("CopyData", {"data": body.take(len(body.rest))})
        case b"f":
            return FrontendMessage("CopyFail", {"message": body.text()})
    bare = {b"S": "Sync", b"H": "Flush", b"X": "Terminate", b"c": "CopyDone"}
    assert kind in bare, f"no frontend message has the type {kind!r}"
    return FrontendMessage(bare[kind])


def decode_untyped(body: BodyReader) -> FrontendMessage:
    match body.number("i"):
        case 80877102:
            return FrontendMessage("CancelRequest", {"pid": body.number("i"), "key": body.take(len(body.rest))})
        case 80877103:
            return FrontendMessage("SSLRequest")
        case version:
            pairs = {}
            while body.rest != b"\0":
                name = body.text()
                pairs[name] = body.text()
            body.take(1)
            return FrontendMessage("StartupMessage", {"version": version, "parameters": pairs})


class FrontendReader:
    """Frames what a client sends. The first message has no type byte; SSLRequest keeps the next one so."""

    def __init__(self, *, begun: bool = False) -> None:
        self.begun = begun
        self.buffer = b""

    def feed(self, data: bytes) -> None:
        self.buffer += data

    def __iter__(self) -> Iterator[FrontendMessage]:
        while (found := self.next_message()) is not None:
            yield found

    def next_message(self) -> FrontendMessage | None:
        start = 1 if self.begun else 0
        if len(self.buffer) < start + 4:
            return None
        (length,) = struct.unpack_from("!I", self.buffer, start)
        assert 4 <= length < 1 << 30, f"a client's message claims {length} bytes"
        if len(self.buffer) < start + length:
            return None
        kind, body = self.buffer[:start], BodyReader(self.buffer[start + 4 : start + length])
        self.buffer = self.buffer[start + length :]
        found = decode_typed(kind, body) if self.begun else decode_untyped(body)
        assert not body.rest, f"{len(body.rest)} bytes too many in {found}"
        self.begun = found.name != "SSLRequest"
        return found
