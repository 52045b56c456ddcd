"""faults.md 2.2 and S4 to S6, S19: what no honest server sends. Bytes end in an outcome or a pgpoll error, at once."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from backend import (
    INT4,
    TEXT,
    bind_complete,
    column,
    command_complete,
    data_row,
    described,
    error_response,
    int4,
    message,
    notice,
    notification,
    parameter_description,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.execute import ONE, knows
from hostile import assert_protocol_error, connecting, executing, parsed, resident
from pgpoll import errors
from script import Run, Script, play

SHORT = b"RK23C1nIsZc"  # types that can't be long
LONG = b"DTtdEN"


# Framing.


@pytest.mark.parametrize("length", [0, 1, 2, 3, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF])
@pytest.mark.parametrize("kind", [bytes([each]) for each in SHORT + LONG])
def test_f25_length_that_cannot_be(kind: bytes, length: int) -> None:
    """At once: the header is enough."""
    run = executing()
    run.deliver(message(kind, length=length))
    assert_protocol_error(run)


@pytest.mark.parametrize("kind", [bytes([each]) for each in SHORT])
def test_f27_length_too_long_for_its_type(kind: bytes) -> None:
    run = executing()
    run.deliver(message(kind, length=30_001))
    assert_protocol_error(run)


@pytest.mark.parametrize("kind", [b"D", b"E", b"N", b"d"])
def test_f26_memory_follows_what_came_not_what_was_said(kind: bytes) -> None:
    run = executing()
    before = resident()
    run.deliver(message(kind, bytes(1000), length=(1 << 30) - 100))
    for _ in range(16):
        run.deliver(bytes(65536))
    assert resident() - before < 8 << 20
    assert not run.client.ended
    run.client.eof()
    run.client.pump()
    run.assert_ended()


@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_f28_truncated_frame_then_fin(size: int) -> None:
    run = executing()
    run.deliver(data_row(int4(1))[:size])
    run.client.eof()
    run.client.pump()
    assert isinstance(run.error("a"), errors.ConnectionLost)
    assert not isinstance(run.error("a"), errors.ProtocolError)


@pytest.mark.parametrize("kind", [b"\x21", b"\x00", b"\xff"])
@pytest.mark.parametrize("when", [connecting, parsed, executing, lambda: executing(data_row(int4(1)))])
def test_f33_unknown_type(when: Callable[[], Run], kind: bytes) -> None:
    run = when()
    run.deliver(message(kind, b"whatever"))
    assert_protocol_error(run, f"0x{kind[0]:02x}")


# Rows and their description.

ROWS = {
    "a field of -2": struct.pack("!Hi", 1, -2),
    "a field of -2**31": struct.pack("!Hi", 1, -(2**31)),
    "a field beyond the message": struct.pack("!Hi", 1, 5) + b"four",
    "a field of 2 GiB": struct.pack("!Hi", 1, 0x7FFFFFFF) + b"four",
    "trailing bytes": struct.pack("!Hi", 1, 4) + b"four!",
    "half a length": struct.pack("!H", 1) + b"\0\0",
    "half a count": b"\0",
    "no count": b"",
    "f30 fewer fields": struct.pack("!H", 0),
    "f30 more fields": struct.pack("!HiIiI", 2, 4, 1, 4, 2),
    "f30 65,535 fields": struct.pack("!H", 65535),
}


@pytest.mark.parametrize("body", ROWS.values(), ids=ROWS)
def test_f29_malformed_row(body: bytes) -> None:
    """Rows before it were right; still nobody gets a part of a result."""
    run = executing(data_row(int4(1)))
    run.deliver(message(b"D", body))
    assert_protocol_error(run, "DataRow")


def test_f30_rows_without_a_description() -> None:
    run = play(Script().connect())
    run.start("a", "execute", "update t set x = 1")
    run.read(3)
    run.deliver(described())
    run.read(3)
    run.deliver(bind_complete() + data_row(int4(1)))
    assert_protocol_error(run, "DataRow")


DESCRIPTIONS = {
    "65,535 columns, short": struct.pack("!H", 65535) + column("x"),
    "a name without its end": struct.pack("!H", 1) + b"name",
    "half a column": struct.pack("!H", 1) + column("x")[:-3],
    "trailing bytes": struct.pack("!H", 1) + column("x") + b"!",
    "no count": b"",
    "a format nobody asked for": struct.pack("!H", 1) + column("x", code=7),
}


@pytest.mark.parametrize("body", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_f31_malformed_row_description(body: bytes) -> None:
    run = parsed()
    run.deliver(parameter_description(INT4) + message(b"T", body))
    assert_protocol_error(run, "RowDescription")


def test_f31_duplicate_row_description() -> None:
    run = executing(data_row(int4(1)), row_description("one"))
    assert_protocol_error(run, "RowDescription")


def test_f31_as_many_columns_as_a_table_has() -> None:
    names = [f"c{i}" for i in range(1664)]
    run = play(Script().connect())
    run.start("a", "execute", "select *")
    run.read(3)
    run.deliver(described(*names))
    run.read(3)
    run.deliver(bind_complete() + data_row(*[int4(i) for i in range(1664)]) + command_complete("SELECT 1"))
    run.deliver(ready_for_query())
    assert run.outcome("a").value[0] == [tuple(range(1664))]


PARAMETERS = {
    "65,535, short": struct.pack("!H", 65535) + b"\0\0\0\x17",
    "trailing bytes": struct.pack("!HI", 1, 23) + b"!",
    "no count": b"",
}


@pytest.mark.parametrize("body", PARAMETERS.values(), ids=PARAMETERS)
def test_f44_malformed_parameter_description(body: bytes) -> None:
    run = parsed()
    run.deliver(message(b"t", body))
    assert_protocol_error(run, "ParameterDescription")


# Errors and notices.

ERRORS = {
    "empty": b"",
    "only its end": b"\0",
    "no terminator": b"SERROR\0C22012\0Mdivision by zero\0",
    "a field without its end": b"SERROR\0C22012\0Mdivision by zero",
    "unknown fields": b"SERROR\0C22012\0Mdivision by zero\0?what\0\x01one\0\xffff\0\0",
    "twice": b"SERROR\0C22012\0C22013\0Mfirst\0Msecond\0\0",
    "no SQLSTATE": b"SERROR\0Mdivision by zero\0\0",
    "no text": b"SERROR\0C22012\0\0",
    "invalid UTF-8": b"SERROR\0C22012\0M\xff\xfe\x80\0\0",
    "a number that is none": b"SERROR\0C22012\0Mx\0Pmany\0p\0L" + b"9" * 400 + b"\0\0",
    "a SQLSTATE that is none": b"SERROR\0Ca very long code\0Mx\0\0",
}


@pytest.mark.parametrize("body", ERRORS.values(), ids=ERRORS)
def test_f35_odd_error(body: bytes) -> None:
    """Tolerated where it is framed: the request fails, its neighbour does not."""
    run = executing(message(b"E", body), ready_for_query())
    run.deliver(bind_complete() + selected(2) + ready_for_query())
    error = run.error("a")
    assert isinstance(error, errors.DatabaseError)
    assert not isinstance(error, errors.ProtocolError)
    str(error), repr(error)
    assert run.outcome("b").value[0] == [(2,)]


def test_f35_long_text_is_cut() -> None:
    run = executing(error_response("22012", "x" * (4 << 20)), ready_for_query())
    assert len(str(run.error("a"))) <= 64 * 1024 + 1024


def test_f36_an_error_belongs_to_exactly_one() -> None:
    run = executing(data_row(int4(1)), error_response(), ready_for_query())
    run.deliver(bind_complete() + selected(2) + ready_for_query())
    assert isinstance(run.error("a"), errors.DivisionByZero)
    assert run.outcome("b").value[0] == [(2,)]


def test_f36_two_fatals() -> None:
    run = executing(error_response("57P01", "first", "FATAL"), error_response("57P02", "second", "FATAL"))
    assert isinstance(run.error("a"), errors.AdminShutdown)
    assert isinstance(run.error("b").__cause__, errors.AdminShutdown)
    run.assert_ended()


def test_f36_an_error_while_idle_closes_with_its_reason() -> None:
    run = play(knows())
    run.deliver(error_response("57P05", "idle-session timeout", "FATAL"))
    run.assert_ended()
    with pytest.raises(errors.InterfaceError, match="idle-session timeout"):
        run.client.start_execute(ONE)


def test_f37_a_flood_of_notices_is_bounded() -> None:
    run = executing()
    before = resident()
    block = notice("n" * 100) * 1000
    for _ in range(200):
        run.deliver(block)
    assert resident() - before < 16 << 20
    run.deliver(selected(1) + ready_for_query())
    assert run.outcome("a").kind == "gives"


def test_f38_a_flood_of_notifications_is_bounded() -> None:
    run = executing()
    before = resident()
    block = notification("channel", "p" * 100) * 1000
    for _ in range(200):
        run.deliver(block)
    assert resident() - before < 16 << 20
    run.deliver(selected(1) + ready_for_query())
    assert run.outcome("a").kind == "gives"


# How a request ends.


@pytest.mark.parametrize("body", [b"", b"SELECT 1", b"SELECT 1\0more"])
def test_f42_malformed_command_complete(body: bytes) -> None:
    assert_protocol_error(executing(message(b"C", body)), "CommandComplete")


@pytest.mark.parametrize(
    "tag", [b"", b"INSERT 99999999999999999999", b"SELECT -1", b"SELECT", b"UPDATE x", b"\xff\xfe"]
)
def test_f42_odd_tag(tag: bytes) -> None:
    run = executing(command_complete(tag), ready_for_query())
    assert run.operations["a"].result().rowcount is None


@pytest.mark.parametrize("body", [b"", b"?", b"i", b"\0", b"II"])
def test_f43_malformed_ready_for_query(body: bytes) -> None:
    assert_protocol_error(executing(command_complete("SELECT 0"), message(b"Z", body)), "ReadyForQuery")


def test_f43_the_servers_status_wins() -> None:
    run = executing(selected(1), ready_for_query("E"))
    assert run.outcome("a").kind == "gives"
    assert run.client.transaction_status == "E"


@pytest.mark.parametrize("value", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"ok\xc3"])
def test_f45_invalid_utf8_in_a_value(value: bytes) -> None:
    """DataError at the touch of that row; the connection and the other rows are well."""
    run = play(Script().connect())
    run.start("a", "execute", "select t")
    run.read(3)
    run.deliver(described(column("t", TEXT, -1)))
    run.read(3)
    run.deliver(bind_complete() + data_row(b"good") + data_row(value) + data_row(b"too"))
    run.deliver(command_complete("SELECT 3") + ready_for_query())
    result = run.operations["a"].result()
    assert (result[0][0], result[2][0]) == ("good", "too")
    with pytest.raises(errors.DataError):
        result[1][0]
    assert not run.client.ended


def test_f45_invalid_utf8_in_a_column_name() -> None:
    run = play(Script().connect())
    run.start("a", "execute", "select t")
    run.read(3)
    run.deliver(described(column(b"\xff\xfe")))
    run.read(3)
    run.deliver(bind_complete() + selected(1) + ready_for_query())
    result = run.operations["a"].result()
    assert result[0][0] == 1
    assert isinstance(result.columns[0].name, str)
    assert not run.client.ended


def test_close_complete_that_nobody_asked_for_is_no_answer_to_the_next() -> None:
    run = executing(selected(1), ready_for_query(), message(b"3"))
    assert run.outcome("a").kind == "gives"
    assert isinstance(run.error("b"), errors.ProtocolError)


def test_names_with_a_nul_never_leave() -> None:
    """f53."""
    run = play(knows())
    for verb in ("execute", "prepare", "script", "command"):
        with pytest.raises(errors.InterfaceError):
            getattr(run.client, f"start_{verb}")("select 1\0; drop table t")
    assert not run.client.outbound()
