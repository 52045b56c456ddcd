"""What streams, COPY, batches and retries are called with wrongly: a clear error, and nothing has happened."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import pgpoll
from pgpoll import sync

TIMEOUTS = ["1", b"1", True, float("nan"), object(), 1j]

COPY = "copy wrong (a) from stdin"
INSERT = "insert into wrong values ($1)"


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table wrong (a int4)")
    return conn


@pytest.fixture
def blocking(blocking: sync.Connection) -> sync.Connection:
    blocking.execute("create temp table wrong (a int4)")
    return blocking


CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.copy_in(COPY, b"1\n", on_progress=1), "on_progress must be callable or None, not int"),
    (lambda c: c.copy_records("wrong", [(1,)], on_progress=1), "on_progress must be callable"),
    (lambda c: c.executemany(INSERT, [(1,)], on_progress=1), "on_progress must be callable"),
    (lambda c: c.copy_out("copy wrong to stdout", io.BytesIO(), on_progress=1), "on_progress must be callable"),
    (lambda c: c.copy_out("copy wrong to stdout", io.StringIO()), "StringIO takes str, and COPY's data is bytes"),
    (lambda c: c.copy_records(None, [(1,)], schema="wrong"), "table must be a str, not NoneType"),
    (lambda c: c.copy_records("wrong", [(1,)], schema=1), "schema must be a str, not int"),
    (lambda c: c.copy_records("wr\0ng", [(1,)]), "has a NUL character"),
    (lambda c: c.copy_records("wrong", [(1,)], columns=1), "columns must be a sequence of names, not int"),
    (lambda c: c.run_transaction(1), "run_transaction takes a function, not int"),
]


@pytest.mark.parametrize(("call", "message"), CALLS)
async def test_refused(conn: pgpoll.Connection, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(pgpoll.InterfaceError, match=message):
        await call(conn)
    assert await conn.fetchval("select count(*) from wrong") == 0


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_refused_blocking(blocking: sync.Connection, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(pgpoll.InterfaceError, match=message):
        call(blocking)
    assert blocking.fetchval("select count(*) from wrong") == 0


TIMED: list[Callable[[Any, Any], Any]] = [
    lambda c, t: c.execute(INSERT, 1, timeout=t),
    lambda c, t: c.executemany(INSERT, [(1,)], timeout=t),
    lambda c, t: c.copy_in(COPY, b"1\n", timeout=t),
    lambda c, t: c.executescript("insert into wrong values (1)", timeout=t),
]


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("call", TIMED)
async def test_timeouts(conn: pgpoll.Connection, call: Callable[[Any, Any], Any], timeout: Any) -> None:
    """Refused before anything is sent: an INSERT whose call raised must not have happened."""
    with pytest.raises(pgpoll.InterfaceError, match="timeout must be a number of seconds or None"):
        await call(conn, timeout)
    assert await conn.fetchval("select count(*) from wrong") == 0
    listener = conn.listen("wrong")
    with pytest.raises(pgpoll.InterfaceError, match="timeout must be a number"):
        await listener.next(timeout=timeout)


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("call", TIMED)
def test_timeouts_blocking(blocking: sync.Connection, call: Callable[[Any, Any], Any], timeout: Any) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="timeout must be a number of seconds or None"):
        call(blocking, timeout)
    assert blocking.fetchval("select count(*) from wrong") == 0
    with pytest.raises(pgpoll.InterfaceError, match="timeout must be a number"):
        blocking.listen("wrong").next(timeout=timeout)


@pytest.mark.parametrize("timeout", [1e300, float("inf"), 10**10])
async def test_timeouts_without_end(conn: pgpoll.Connection, dsn: str, timeout: float) -> None:
    assert await conn.fetchval("select 1", timeout=timeout) == 1
    assert [row[0] async for row in conn.stream("select 1", timeout=timeout)] == [1]
    with sync.connect(dsn) as blocking:
        assert blocking.fetchval("select 1", timeout=timeout) == 1
        assert [row[0] for row in blocking.stream("select 1", timeout=timeout)] == [1]


async def test_copy_out_records_of_a_copy_with_options(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.InterfaceError, match=r"without options; copy_out\(\) takes any"):
        await anext(conn.copy_out_records("copy wrong to stdout (format csv)"))


async def test_run_transaction_of_the_other_kind(conn: pgpoll.Connection, blocking: sync.Connection) -> None:
    """A function that is not async, and one that is: what it has done is rolled back, and it says so."""
    with pytest.raises(pgpoll.InterfaceError, match="takes an async function: this one gave int"):
        await conn.run_transaction(lambda tx: 1)  # type: ignore[arg-type, return-value]

    async def body(tx: Any) -> None:
        raise AssertionError

    with pytest.raises(pgpoll.InterfaceError, match=r"async function: use pgpoll\.connect"):
        blocking.run_transaction(body)  # type: ignore[unused-coroutine]
    assert conn.transaction_status == blocking.transaction_status == "I"


def test_asynchronous_sources_blocking(blocking: sync.Connection) -> None:
    async def source() -> AsyncIterator[Any]:
        yield (1,)

    rows: Any = source()
    calls: list[Callable[[], Any]] = [
        lambda: blocking.executemany(INSERT, rows),
        lambda: blocking.copy_records("wrong", source()),
        lambda: blocking.copy_in(COPY, source()),
    ]
    for call in calls:
        with pytest.raises(pgpoll.InterfaceError, match=r"asynchronous .* can't be iterated here: use pgpoll\.connect"):
            call()
    assert blocking.fetchval("select count(*) from wrong") == 0
