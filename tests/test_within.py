"""D18: who is inside of a stream, a COPY, a batch is told so at once; it would wait for itself."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

import pgpoll
from pgpoll import core, sync

SERIES = "select i from (select generate_series(1, $1::int4) as i) as t"
OUT = "copy (select generate_series(1, 1000000)) to stdout"

Body = Callable[[], Awaitable[None]]


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table within (a int4)")
    return conn


class Away(Exception):
    """The way out of a block."""


async def source(body: Body, item: Any) -> AsyncIterator[Any]:
    """What a COPY or an executemany reads, and the body within."""
    yield item
    await body()
    yield item


# The channels, with `body` run inside of each.


async def in_stream(conn: pgpoll.Connection, body: Body) -> None:
    async with conn.stream(SERIES, 100, prefetch=10) as rows:
        await body()
        async for row in rows:
            if row.i in (1, 50):
                await body()


async def in_bare_stream(conn: pgpoll.Connection, body: Body) -> None:
    async for row in conn.stream(SERIES, 100, prefetch=10):
        if row.i in (1, 50):
            await body()


async def in_batches_of_a_stream(conn: pgpoll.Connection, body: Body) -> None:
    async for _ in conn.stream(SERIES, 1000, prefetch=50).batches():
        await body()
        break


async def in_stream_within_a_transaction(conn: pgpoll.Connection, body: Body) -> None:
    with contextlib.suppress(Away):  # for its end makes that fail
        async with conn.transaction():
            async for row in conn.stream(SERIES, 1_000_000, prefetch=None):
                assert row.i == 1
                await body()
                break
            raise Away


async def in_copy_out(conn: pgpoll.Connection, body: Body) -> None:
    async with conn.copy_out(OUT) as chunks:
        async for _ in chunks:
            await body()
            break


async def in_bare_copy_out(conn: pgpoll.Connection, body: Body) -> None:
    async for _ in conn.copy_out(OUT):
        await body()
        break


async def in_copy_out_records(conn: pgpoll.Connection, body: Body) -> None:
    async for _ in conn.copy_out_records("select generate_series(1, 1000000)"):
        await body()
        break


async def in_copy_in(conn: pgpoll.Connection, body: Body) -> None:
    await conn.copy_in("copy within from stdin", source(body, b"1\n"))


async def in_copy_records(conn: pgpoll.Connection, body: Body) -> None:
    await conn.copy_records("within", source(body, (1,)))


async def in_batch(conn: pgpoll.Connection, body: Body) -> None:
    async with conn.batch() as batch:
        batch.execute("insert into within values (1)")
        await body()


async def in_executemany(conn: pgpoll.Connection, body: Body) -> None:
    await conn.executemany("insert into within values ($1)", source(body, (1,)))


CHANNELS = [
    *(in_stream, in_bare_stream, in_batches_of_a_stream, in_stream_within_a_transaction, in_copy_out, in_bare_copy_out),
    *(in_copy_out_records, in_copy_in, in_copy_records, in_batch, in_executemany),
]


# What is asked of the connection there.


async def iterated(iterator: Any) -> None:
    async for _ in iterator:
        pass


async def entered(manager: Any) -> None:
    async with manager:
        pass


REQUESTS: dict[str, Callable[[pgpoll.Connection], Awaitable[Any]]] = {
    "execute": lambda conn: conn.execute("select 1"),
    "fetchval": lambda conn: conn.fetchval("select 1", timeout=60),
    "executescript": lambda conn: conn.executescript("select 1"),
    "prepare": lambda conn: conn.prepare("select 1"),
    "executemany": lambda conn: conn.executemany("insert into within values ($1)", [(1,)]),
    "batch": lambda conn: entered(conn.batch()),
    "stream": lambda conn: iterated(conn.stream("select 1")),
    "copy_in": lambda conn: conn.copy_in("copy within from stdin", b""),
    "copy_records": lambda conn: conn.copy_records("within", []),
    "copy_out": lambda conn: iterated(conn.copy_out("copy within to stdout")),
    "copy_out_records": lambda conn: iterated(conn.copy_out_records("table within")),
    "transaction": lambda conn: entered(conn.transaction()),
    "start": lambda conn: conn.transaction().start(),
    "run_transaction": lambda conn: conn.run_transaction(lambda tx: tx.execute("select 1")),
    "commit_prepared": lambda conn: conn.commit_prepared("none"),
    "listen": lambda conn: entered(conn.listen("within")),
}

SAYS = r"(stream|COPY|batch) is open here|inside of the (stream|COPY|batch|transaction) entered at"


@pytest.mark.parametrize("channel", CHANNELS)
async def test_of_ones_own(conn: pgpoll.Connection, channel: Any) -> None:
    """By its own task, and by tasks that this makes and waits for, in either way."""
    asked = 0

    async def body() -> None:
        nonlocal asked
        for name, request in REQUESTS.items():
            with pytest.raises(pgpoll.InterfaceError, match=SAYS):
                await request(conn)
            with pytest.raises(pgpoll.InterfaceError, match=SAYS):
                await asyncio.create_task(request(conn))  # type: ignore[arg-type]
            told = await asyncio.gather(request(conn), request(conn), return_exceptions=True)
            assert [type(each) for each in told] == [pgpoll.InterfaceError] * 2, name
            asked += 1
        with pytest.raises(pgpoll.InterfaceError, match="waiting for a notification inside of the"):
            await notifications.next(timeout=10)

    async with asyncio.timeout(20), conn.listen("within") as notifications:
        await channel(conn, body)
    assert asked >= len(REQUESTS)
    assert await asyncio.create_task(conn.fetchval("select 7")) == 7  # the ended channel counts for nothing
    assert await conn.fetchval("select 8") == 8


@pytest.mark.parametrize("channel", CHANNELS)
async def test_strangers_wait(conn: pgpoll.Connection, channel: Any) -> None:
    """Also tasks that were made before it began, by whom it was made."""
    go = asyncio.Event()

    async def stranger() -> Any:
        await go.wait()
        return await conn.fetchval("select 5")

    waiting = [asyncio.create_task(stranger()), asyncio.create_task(stranger(), context=contextvars.Context())]

    async def body() -> None:
        go.set()
        await asyncio.sleep(0.01)
        assert not any(each.done() for each in waiting)

    async with asyncio.timeout(20):
        await channel(conn, body)
        assert await asyncio.gather(*waiting) == [5, 5]


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_child_that_outlives_it(conn: pgpoll.Connection, channel: Any) -> None:
    """Its context still carries what has ended: it counts for nothing, also while another one of its kind is open."""
    children: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def child() -> Any:
        await over.wait()
        return await conn.fetchval("select 6")

    async def first() -> None:
        children.append(asyncio.create_task(child()))

    async def second() -> None:
        over.set()
        await asyncio.sleep(0.01)
        assert not any(each.done() for each in children)

    async with asyncio.timeout(20):
        await channel(conn, first)
        await channel(conn, second)
        assert set(await asyncio.gather(*children)) == {6}


@pytest.mark.parametrize("channel", CHANNELS)
async def test_of_two_connections(conn: pgpoll.Connection, dsn: str, channel: Any) -> None:
    """One inside of the other: each is refused what is its own."""
    async with pgpoll.connect(dsn) as other:
        await other.execute("create temp table within (a int4)")

        async def innermost() -> None:
            for each in (conn, other):
                with pytest.raises(pgpoll.InterfaceError, match=SAYS):
                    await asyncio.create_task(each.execute("select 1"))

        async def between() -> None:
            assert await asyncio.create_task(other.fetchval("select 3")) == 3
            await channel(other, innermost)
            with pytest.raises(pgpoll.InterfaceError, match=SAYS):
                await asyncio.create_task(conn.execute("select 1"))

        async with asyncio.timeout(20):
            await channel(conn, between)


def operations() -> int:
    """Of the whole process."""
    gc.collect()
    return sum(isinstance(each, core.Operation) for each in gc.get_objects())


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_context_pins_nothing(dsn: str, channel: Any) -> None:
    """Neither the connection nor what it had to give, however long a child's context lasts."""
    kept: list[contextvars.Context] = []

    async def body() -> None:
        kept.append(contextvars.copy_context())

    conn = await pgpoll.connect(dsn)
    await conn.execute("create temp table within (a int4)")
    before = operations()
    await channel(conn, body)
    kept.append(contextvars.copy_context())
    await conn.execute("select 1")
    assert operations() == before
    await conn.close()
    driver = weakref.ref(conn._driver)
    del conn
    gc.collect()
    assert driver() is None
    assert kept


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_long_wait_names_its_owner(
    conn: pgpoll.Connection, channel: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgpoll._loop.PATIENCE_SECONDS", 0.02)
    go = asyncio.Event()

    async def stranger() -> None:
        await go.wait()
        await conn.execute("select 1")

    async def body() -> None:
        go.set()
        await asyncio.sleep(0.2)

    waiting = asyncio.create_task(stranger())
    async with asyncio.timeout(20):
        await asyncio.create_task(channel(conn, body), name="the owner")
        await waiting
    assert re.search(
        r"1 request\(s\) have waited .* for the (stream|COPY|batch) entered at .*test_within.py:\d+, "
        "owned by task 'the owner', which is open",
        caplog.records[0].getMessage(),
    )


async def test_cancel_is_its_owners(conn: pgpoll.Connection) -> None:
    """Of what runs within a stream; also by a task that was made inside of it."""
    sql = "select i, pg_sleep(0.01) from generate_series(1, 100000) as t(i)"
    for inside in (False, True):
        rows = conn.stream(sql, prefetch=10)
        await anext(rows)
        with pytest.raises(pgpoll.InterfaceError, match=r"part of the stream entered at .*_within.py:\d+: end that"):
            await asyncio.create_task(conn.cancel(), context=contextvars.Context())
        with pytest.raises(pgpoll.errors.QueryCanceled):
            while True:
                await (asyncio.create_task(conn.cancel()) if inside else conn.cancel())
                await anext(rows)
    assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize(("prefetch", "count"), [(10, 2000), (None, 200_000)])
async def test_a_stream_that_changes_hands(conn: pgpoll.Connection, prefetch: int | None, count: int) -> None:
    """It is whoever consumes it that would wait for itself."""
    handed: asyncio.Queue[Any] = asyncio.Queue()

    async def consumer() -> int:
        rows, seen = await handed.get(), 0
        async for _ in rows:
            seen += 1
            if seen == 50:
                with pytest.raises(pgpoll.InterfaceError, match="a stream is open here"):
                    await conn.execute("select 1")
        return seen

    async with asyncio.timeout(20):
        task = asyncio.create_task(consumer())
        async with conn.stream(SERIES, count, prefetch=prefetch) as rows:
            handed.put_nowait(rows)
            assert await task == count


async def test_started_by_a_task_that_has_ended(conn: pgpoll.Connection) -> None:
    """As by asyncio.wait_for() of Python 3.11: it is its maker's then, as if that had started it; others wait."""
    tx = conn.transaction()
    await asyncio.create_task(tx.start())
    stranger = contextvars.Context().run(asyncio.create_task, conn.fetchval("select 7"))
    await conn.execute("insert into within values (1)", timeout=2)
    async with conn.transaction():
        await conn.execute("insert into within values (2)", timeout=2)
    assert not stranger.done()
    await tx.rollback()
    assert await asyncio.wait_for(stranger, 2) == 7
    assert await conn.fetchval("select count(*) from within") == 0


@pytest.mark.parametrize("inside", [False, True])
async def test_the_end_of_a_block_ends_a_stream_of_ones_own(conn: pgpoll.Connection, inside: bool) -> None:
    """Also where a task asks for it that the stream's owner waits for."""
    async with asyncio.timeout(20):
        async with conn.transaction() as tx:
            rows = conn.stream(SERIES, 1_000_000, prefetch=None)
            assert (await anext(rows)).i == 1
            await (asyncio.create_task(tx.rollback()) if inside else tx.rollback())
            with pytest.raises(pgpoll.InterfaceError, match=r"the stream was opened in the transaction .* has ended"):
                async for _ in rows:
                    pass
        assert conn.transaction_status == "I"


# -- the blocking face


def feeding(body: Callable[[], None], item: Any) -> Iterator[Any]:
    yield item
    body()
    yield item


def in_blocking_stream(conn: sync.Connection, body: Callable[[], None]) -> None:
    for _ in conn.stream(SERIES, 100, prefetch=10):
        body()
        break


def in_blocking_copy_out(conn: sync.Connection, body: Callable[[], None]) -> None:
    with conn.copy_out(OUT) as chunks:
        for _ in chunks:
            body()
            break


def in_blocking_copy_in(conn: sync.Connection, body: Callable[[], None]) -> None:
    conn.copy_in("copy within from stdin", feeding(body, b"1\n"))


def in_blocking_copy_records(conn: sync.Connection, body: Callable[[], None]) -> None:
    conn.copy_records("within", feeding(body, (1,)))


def in_blocking_batch(conn: sync.Connection, body: Callable[[], None]) -> None:
    with conn.batch() as batch:
        batch.execute("insert into within values (1)")
        body()


def in_blocking_executemany(conn: sync.Connection, body: Callable[[], None]) -> None:
    conn.executemany("insert into within values ($1)", feeding(body, (1,)))


def blocking_entered(manager: Any) -> None:
    with manager:
        pass


BLOCKING: list[Callable[[sync.Connection], Any]] = [
    lambda conn: conn.execute("select 1"),
    lambda conn: conn.fetchval("select 1", timeout=60),
    lambda conn: conn.executescript("select 1"),
    lambda conn: conn.prepare("select 1"),
    lambda conn: conn.executemany("insert into within values ($1)", [(1,)]),
    lambda conn: blocking_entered(conn.batch()),
    lambda conn: list(conn.stream("select 1")),
    lambda conn: conn.copy_in("copy within from stdin", b""),
    lambda conn: conn.copy_records("within", []),
    lambda conn: list(conn.copy_out("copy within to stdout")),
    lambda conn: list(conn.copy_out_records("table within")),
    lambda conn: blocking_entered(conn.transaction()),
    lambda conn: conn.transaction().start(),
    lambda conn: conn.run_transaction(lambda tx: tx.execute("select 1")),
    lambda conn: conn.commit_prepared("none"),
    lambda conn: blocking_entered(conn.listen("within")),
]


@pytest.mark.parametrize(
    "channel",
    [
        *(in_blocking_stream, in_blocking_copy_out, in_blocking_copy_in, in_blocking_copy_records, in_blocking_batch),
        in_blocking_executemany,
    ],
)
def test_of_ones_own_blocking(
    dsn: str, channel: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgpoll._threads.PATIENCE_SECONDS", 0.02)
    asked = 0
    with sync.connect(dsn) as conn, conn.listen("within") as notifications:
        conn.execute("create temp table within (a int4)")

        def stranger() -> None:
            assert conn.fetchval("select 9") == 9

        def body() -> None:
            nonlocal asked
            for request in BLOCKING:
                with pytest.raises(pgpoll.InterfaceError, match=SAYS):
                    request(conn)
                asked += 1
            with pytest.raises(pgpoll.InterfaceError, match="waiting for a notification inside of the"):
                notifications.next(timeout=10)
            waiting.start()
            until = time.monotonic() + 10
            while not caplog.records and time.monotonic() < until:
                time.sleep(0.01)

        waiting = threading.Thread(target=stranger)
        channel(conn, body)
        waiting.join(10)
        assert not waiting.is_alive()
        assert conn.fetchval("select 8") == 8
    assert asked == len(BLOCKING)
    assert re.search(r"the (stream|COPY|batch) .*, owned by thread 'MainThread', which", caplog.records[0].getMessage())
