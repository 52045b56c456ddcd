"""COPY beneath the faces: the poll API's own verbs, their bounds, and the binary format cut and broken everywhere."""

from __future__ import annotations

import select
import struct
from typing import Any

import pytest

import pgpoll
from backend import (
    bind_complete,
    command_complete,
    copy_data,
    copy_done,
    copy_in_response,
    copy_out_response,
    parameter_description,
    parse_complete,
    ready_for_query,
    row_description,
    started,
)
from peers import options
from pgpoll import conninfo, core, errors

HEADER = b"PGCOPY\n\377\r\n\0" + bytes(8)
TRAILER = b"\377\377"


def row(*values: bytes | None) -> bytes:
    fields = [struct.pack("!i", -1) if each is None else struct.pack("!i", len(each)) + each for each in values]
    return struct.pack("!h", len(values)) + b"".join(fields)


ROWS = [(1,), (None,), (-5,)]
DATA = HEADER + b"".join(row(None if i is None else struct.pack("!i", i)) for (i,) in ROWS) + TRAILER


def connected() -> core.Session:
    session = core.Session(options())
    session.start_connect()
    session.receive(started())
    assert session.next_completed() is not None
    session.outbound()
    return session


def copying_out() -> tuple[core.Session, core.Operation[Any], core._RecordDecoder]:
    session = connected()
    operation = session.start_copy_out("copy (select i from t) to stdout (format binary)", "select i from t")
    session.receive(parse_complete() + parameter_description() + row_description("i"))
    session.receive(parse_complete() + bind_complete() + copy_out_response(1, 1))
    return session, operation, core._RecordDecoder(operation)


def decoded(*chunks: bytes, each: bool = True) -> list[Any]:
    """All records; taken after each chunk, or at the end."""
    session, operation, decoder = copying_out()
    records: list[Any] = []
    for chunk in chunks:
        session.receive(copy_data(chunk))
        while each and (taken := decoder.take()):
            records += taken
    session.receive(copy_done() + command_complete("COPY 3") + ready_for_query())
    while taken := decoder.take():
        records += taken
    assert operation.result().rowcount == 3
    decoder.finish()
    assert decoder.count == len(records)
    return records


@pytest.mark.parametrize("each", [True, False])
def test_records_cut_anywhere(each: bool) -> None:
    assert decoded(DATA, each=each) == ROWS
    assert decoded(*(DATA[at : at + 1] for at in range(len(DATA))), each=each) == ROWS
    for at in range(len(DATA)):
        assert decoded(DATA[:at], DATA[at:], each=each) == ROWS, at


def test_a_header_with_an_extension() -> None:
    assert decoded(HEADER[:15] + struct.pack("!i", 3) + b"abc" + DATA[19:]) == ROWS


BROKEN = {
    "another signature": b"PGCOPX" + DATA[6:],
    "text": b"1\n2\n",
    "a flag": HEADER[:11] + struct.pack("!I", 1 << 16) + DATA[15:],
    "a negative extension": HEADER[:15] + struct.pack("!i", -1) + DATA[19:],
    "an endless extension": HEADER[:15] + struct.pack("!i", 2**31 - 1) + DATA[19:],
    "two fields": HEADER + row(b"\0\0\0\1", b"\0\0\0\1"),
    "no fields": HEADER + row(),
    "-2 fields": HEADER + struct.pack("!h", -2),
    "a negative length": HEADER + struct.pack("!hi", 1, -2),
    "data behind the trailer": DATA + b"x",
    "another row behind the trailer": DATA + row(None),
    "a value too short": HEADER + row(b"\0\0\0") + TRAILER,
}


@pytest.mark.parametrize("name", BROKEN)
def test_f50_what_is_no_such_data_raises(name: str) -> None:
    for chunks in ([BROKEN[name]], [BROKEN[name][at : at + 1] for at in range(len(BROKEN[name]))]):
        with pytest.raises(pgpoll.DataError):
            decoded(*chunks)


@pytest.mark.parametrize("size", range(len(DATA)))
def test_f50_data_that_ends_early_raises(size: int) -> None:
    with pytest.raises(pgpoll.DataError, match="trailer"):
        decoded(DATA[:size])


def test_f50_a_row_that_never_ends_takes_no_memory() -> None:
    session, _, decoder = copying_out()
    session.receive(copy_data(HEADER + struct.pack("!hi", 1, 2**31 - 1) + b"x" * 1000))
    assert decoder.take() == []


def test_records_of_what_was_not_described() -> None:
    session = connected()
    operation = session.start_copy_out("copy t to stdout (format binary)")
    session.receive(parse_complete() + bind_complete() + copy_out_response(1, 1) + copy_data(DATA))
    decoder = core._RecordDecoder(operation)
    with pytest.raises(pgpoll.InterfaceError, match="not described"):
        decoder.take()


def test_a_consumer_that_does_not_take_stops_the_reading() -> None:
    """D8: about 1 MiB is held; the operation is full, and says so by poll()'s 0."""
    session = connected()
    operation = session.start_copy_out("copy t to stdout")
    session.receive(parse_complete() + bind_complete() + copy_out_response())
    for _ in range(40):
        session.receive(copy_data(b"x" * 30_000))
    assert session.next_stirred() is operation
    assert session.next_stirred() is None
    assert len(operation.take_data()) == 1_200_000
    assert operation.copied == 1_200_000
    assert operation.take_data() == b""


def test_feeding_has_a_bound_and_stirs_below_it() -> None:
    session = connected()
    operation = session.start_copy_in("copy t from stdin")
    with pytest.raises(pgpoll.InterfaceError, match="has not begun"):
        operation.feed(b"1\n")
    assert not operation.feeds
    session.outbound()
    session.receive(parse_complete() + bind_complete() + copy_in_response())
    assert session.next_stirred() is operation
    assert operation.feeds
    fed = 0
    while operation.feed(b"x" * 60_000):
        fed += 1
    assert 3 <= fed <= 10
    assert not operation.feeds
    assert session.next_stirred() is None
    session.outbound()
    assert operation.feeds
    assert session.next_stirred() is operation
    assert operation.feed(b"")
    assert operation.feed(memoryview(b"1\n"))
    with pytest.raises(TypeError):
        operation.feed("1\n")
    operation.finish_feed()
    for method, args in ((operation.feed, (b"x",)), (operation.finish_feed, ()), (operation.fail_feed, ("why",))):
        with pytest.raises(pgpoll.InterfaceError, match="has been ended"):
            method(*args)
    session.receive(command_complete("COPY 1") + ready_for_query())
    assert operation.result().tag == "COPY 1"


def test_a_large_chunk_becomes_several_messages() -> None:
    session = connected()
    operation = session.start_copy_in("copy t from stdin")
    session.outbound()
    session.receive(parse_complete() + bind_complete() + copy_in_response())
    assert not operation.feed(b"x" * 2_500_000)
    sent = session.outbound()
    assert [sent[at : at + 1] for at in (0, 1_048_581, 2_097_162)] == [b"d"] * 3
    assert len(sent) == 2_500_000 + 15


def test_what_is_no_copy() -> None:
    session = connected()
    for start in (session.start_copy_in, session.start_copy_out):
        with pytest.raises(pgpoll.InterfaceError, match="does not begin with COPY"):
            start("select 1")
        with pytest.raises(pgpoll.InterfaceError, match="NUL"):
            start("copy t from stdin\0")
    operation = session.start_execute("select 1")
    with pytest.raises(pgpoll.InterfaceError, match="start_copy_in"):
        operation.feed(b"")
    with pytest.raises(pgpoll.InterfaceError, match="start_copy_out"):
        operation.take_data()
    with pytest.raises(pgpoll.InterfaceError, match="start_copy_out"):
        core._RecordDecoder(operation)


def test_a_lost_connection_ends_it() -> None:
    session = connected()
    operation = session.start_copy_in("copy t from stdin")
    session.receive(parse_complete() + bind_complete() + copy_in_response())
    session.fail("connection reset by peer")
    assert operation.stopped
    assert not operation.feed(b"1\n")
    with pytest.raises(errors.ConnectionLost):
        operation.result()
    session, operation, decoder = copying_out()
    session.receive(copy_data(DATA[:-2]))
    session.fail("connection reset by peer")
    del session
    assert decoder.take() == ROWS
    with pytest.raises(errors.ConnectionLost):
        operation.result()


def test_on_the_poll_api(dsn: str) -> None:
    """As a loop of one's own does it."""
    conn = core.Connection(conninfo.resolve(dsn))

    def drive(operation: core.Operation[Any]) -> core.Operation[Any]:
        while not (operation.done() or operation.stirred):
            state = conn.poll()
            if not (operation.done() or operation.stirred):
                fd = [conn.fileno()]
                select.select(fd if state & core.WAIT_READ else [], fd if state & core.WAIT_WRITE else [], [])
        return operation

    drive(conn.start_connect()).result()
    drive(conn.start_execute("create temp table t (i int4)")).result()
    operation = drive(conn.start_copy_in("copy t from stdin"))
    for n in range(500):
        if not operation.feed(b"".join(b"%d\n" % i for i in range(1000 * n, 1000 * n + 1000))):
            drive(operation)
            assert operation.feeds
    operation.finish_feed()
    assert drive(operation).result().rowcount == 500_000
    operation = drive(conn.start_copy_out("copy t to stdout"))
    size = largest = 0
    while True:
        data = operation.take_data()
        size, largest = size + data.count(b"\n"), max(largest, len(data))
        if not data and drive(operation).done() and not operation.stirred:
            break
    assert size == 500_000
    assert largest < 2 << 20
    assert operation.result().tag == "COPY 500000"
    drive(conn.start_close())
    conn.close_fd()
