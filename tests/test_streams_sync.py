"""Row streaming on a real server, the blocking face; and the poll API's part of it."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import pgpoll
from peers import drive, wait
from pgpoll import conninfo, core, errors, sync

SERIES = "select i from (select generate_series(1, $1::int4) as i) as t"


@pytest.fixture
def conn(dsn: str) -> Iterator[sync.Connection]:
    with sync.connect(dsn) as connection:
        yield connection


def cursors(conn: sync.Connection) -> list[str]:
    return [row.name for row in conn.fetch("select name from pg_cursors where name <> ''")]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefetch", [None, 1, 2, 7, 1000])
def test_every_row_once_and_in_order(conn: sync.Connection, prefetch: int | None, inside: bool) -> None:
    for count in (0, 1, 2, 3, 250):
        with conn.transaction() if inside else contextlib.nullcontext():
            stream = conn.stream(SERIES, count, prefetch=prefetch)
            assert [row.i for row in stream] == list(range(1, count + 1))
            assert stream.rowcount == count
            assert list(stream) == []
            batches = list(conn.stream(SERIES, count, prefetch=prefetch).batches())
            assert [row.i for batch in batches for row in batch] == list(range(1, count + 1))
            assert all(0 < len(batch) <= (prefetch or count) for batch in batches)
            assert conn.fetchval("select $1::int4", count) == count
            assert not inside or cursors(conn) == []


def test_columns_and_statements(conn: sync.Connection) -> None:
    with conn.prepare("select $1::int4 as n").stream(4) as rows:
        assert rows.columns is not None
        assert [each.name for each in rows.columns] == ["n"]
        assert [row.n for row in rows] == [4]
    with pytest.raises(pgpoll.InterfaceError, match="prefetch must be"):
        next(conn.stream("select 1", prefetch=0))


def test_own_requests(conn: sync.Connection) -> None:
    with conn.stream(SERIES, 1000, prefetch=10) as rows:
        assert next(rows).i == 1
        with pytest.raises(pgpoll.InterfaceError, match="a stream is open here"):
            conn.execute("select 1")
    assert conn.fetchval("select 1") == 1
    with conn.transaction() as tx:
        for row in tx.stream(SERIES, 100, prefetch=10):
            assert conn.fetchval("select $1::int4", row.i) == row.i
        with pytest.raises(ZeroDivisionError), conn.transaction():
            inner = conn.stream(SERIES, 100, prefetch=2)
            assert next(inner).i == 1
            raise ZeroDivisionError
        with pytest.raises(pgpoll.InterfaceError, match="rolled back"):
            list(inner)
        assert list(inner) == []
        assert conn.transaction_status == "T"


def test_another_thread_waits_for_its_end(conn: sync.Connection) -> None:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(conn.fetchval("select 7")))
    with conn.stream(SERIES, 1000, prefetch=10) as rows:
        assert next(rows).i == 1
        thread.start()
        time.sleep(0.05)
        assert answers == []
        assert sum(row.i for row in rows) == 500_499
    thread.join(5)
    assert answers == [7]


@pytest.mark.parametrize("kind", ["stream", "copy_out_records", "copy_out"])
def test_the_thread_that_consumes_it_owns_it(conn: sync.Connection, kind: str) -> None:
    """Begun by another: its own requests raise, where they would wait for their own thread; the other's wait."""
    query = "select repeat('x', 1000) from generate_series(1, 20000)"
    rows: Any = getattr(conn, kind)(f"copy ({query}) to stdout" if kind == "copy_out" else query)
    begun = threading.Thread(target=next, args=(rows,))
    begun.start()
    begun.join()
    for _ in range(5000):
        next(rows)
        if conn._driver.blocks.stack[0].owner is threading.current_thread():
            break
    with pytest.raises(pgpoll.InterfaceError, match="is open here"):
        conn.execute("select 1", timeout=2)
    told: list[Any] = []
    other = threading.Thread(target=lambda: told.append(conn.fetchval("select 7", timeout=5)))
    other.start()
    rows.close()
    other.join()
    assert told == [7]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefetch", [10, None])
def test_left_early(conn: sync.Connection, prefetch: int | None, inside: bool) -> None:
    """f71: by break, by close(), by the collector, by an exception; the connection is clean within 100 ms."""

    took: dict[str, float] = {}

    def stream() -> sync.Stream[core.Record]:
        return conn.stream(SERIES, 10_000_000, prefetch=prefetch)

    def broken() -> None:
        for row in stream():
            if row.i == 5:
                break

    def closed() -> None:
        rows = stream()
        assert next(rows).i == 1
        rows.close()
        rows.close()
        assert list(rows) == []

    def collected() -> None:
        holder: list[Any] = [stream()]
        holder.append(holder)
        assert next(holder[0]).i == 1
        del holder
        gc.collect()

    def raised() -> None:
        with contextlib.suppress(KeyError), stream() as rows:
            assert next(rows).i == 1
            raise KeyError

    for way in (broken, closed, collected, raised) * 3:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tx = conn.transaction() if inside else None
            if tx is not None:
                tx.start()
            way()
            began = time.monotonic()
            if inside and prefetch is None:  # what ran on was cancelled at the server
                with contextlib.suppress(errors.InFailedSqlTransaction):
                    assert conn.fetchval("select 7") == 7
            else:
                assert conn.fetchval("select 7") == 7
            took[way.__name__] = min(took.get(way.__name__, 1), time.monotonic() - began)
            if tx is not None:
                assert conn.transaction_status == "T" or prefetch is None
                tx.rollback()
    assert max(took.values()) < 0.1, took  # each, at its best: who serves the CancelRequest needs a processor, too


def test_errors(conn: sync.Connection) -> None:
    sql = "select 100 / (i - 10) as x, i from (select generate_series(1, $1::int4) as i) as t"
    for prefetch in (None, 3, 1000):
        for inside in (False, True):
            tx = conn.transaction()
            if inside:
                tx.start()
            with conn.stream(sql, 100, prefetch=prefetch) as stream:
                with pytest.raises(errors.DivisionByZero):
                    list(stream)
                assert list(stream) == []
            assert stream.rowcount == 9
            if inside:
                tx.rollback()
        with pytest.raises(pgpoll.DataError, match=r"\$1"):
            next(conn.stream(sql, "x", prefetch=prefetch))
        stream = conn.stream(
            "select i, pg_sleep(20) from generate_series(1, 5) as t(i)", prefetch=prefetch, timeout=0.05
        )
        with pytest.raises(pgpoll.QueryTimeout):
            next(stream)
        assert list(stream) == []
        assert conn.fetchval("select 1", timeout=2) == 1


def test_interrupted(conn: sync.Connection) -> None:
    stream = conn.stream("select i, pg_sleep(20) from generate_series(1, 100) as t(i)")
    timer = threading.Timer(0.05, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    timer.join()
    assert list(stream) == []
    assert conn.fetchval("select 1", timeout=2) == 1


# The poll API.


@pytest.fixture
def bare(dsn: str) -> Iterator[core.Connection]:
    connection = core.Connection(conninfo.resolve(dsn))
    drive(connection, connection.start_connect())
    yield connection
    connection.terminate()
    connection.close_fd()


@pytest.mark.parametrize("credit", [1, 10, None])
def test_poll_api(bare: core.Connection, credit: int | None) -> None:
    operation = bare.start_stream(SERIES, (1000,), credit)
    seen = []
    with pytest.raises(pgpoll.BusyError):
        bare.start_execute("select 1")
    while (rows := operation.take_rows()) or not operation.done():
        assert len(rows) <= (credit or 1000)
        seen += [row.i for row in rows]
        if rows and credit is not None:
            operation.grant(len(rows))
        elif not rows:
            state = bare.poll()
            assert state & core.READY or state & core.WAIT_READ
            if not state & core.READY:
                wait(bare, state)
    assert seen == list(range(1, 1001))
    assert operation.result() == f"SELECT {0 if credit else 1000}"  # of the last Execute
    assert bare.poll() == core.IDLE


def test_poll_says_nothing_while_a_stream_is_full(bare: core.Connection) -> None:
    """Without a limit about 1 MiB is held, and the socket is left alone (D8)."""
    operation = bare.start_stream("select repeat('x', 1000) from generate_series(1, 20000)", (), None)
    held = 0
    total = 0
    while not operation.done() or total < 20_000:
        state = bare.poll()
        while state not in (0, core.READY) and not operation.done():
            wait(bare, state)
            state = bare.poll()
        assert state == core.READY or operation.done()
        assert bare.next_stirred() is operation or operation.done()
        assert operation.done() or bare.poll() == 0
        rows = operation.take_rows()
        held = max(held, len(rows))
        total += len(rows)
    assert total == 20_000
    assert 1000 < held < 1200
    assert operation.take_rows() == []
    assert operation.result() == "SELECT 20000"


def test_wrong_use(bare: core.Connection) -> None:
    for credit in (0, -1, 1.5, "x", 2**31):
        with pytest.raises(pgpoll.InterfaceError, match="credit must be"):
            bare.start_stream("select 1", (), credit)  # type: ignore[arg-type]
    operation = bare.start_stream("select 1", (), None)
    with pytest.raises(pgpoll.InterfaceError, match="takes credit"):
        operation.grant(1)
    operation.abandon()
    with pytest.raises(pgpoll.InterfaceError, match="abandoned"):
        operation.take_rows()
    while (state := bare.poll()) != core.IDLE:
        wait(bare, state)
    plain = bare.start_execute("select 1")
    for wrong in (plain.take_rows, lambda: plain.grant(1)):
        with pytest.raises(pgpoll.InterfaceError):
            wrong()
    assert bare.wait(plain, 5.0)
