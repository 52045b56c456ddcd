"""faults.md 2.4, rows 71 and 72: streams that are left, and consumers that are slow.

PGPOLL_STREAM_ROWS: how many rows the memory tests stream (default 200,000, of some combinations; 10,000,000 shows what
is promised, of all of them, in some minutes). The slow consumer takes 1/100 of the server's pace, and as many rows as
that allows in PGPOLL_STREAM_SECONDS (default 1).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import os
import time
import urllib.parse
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import pgpoll
import streaming
from pgpoll import core, errors
from sanity import Sanity, run_delay

ROWS = int(os.environ.get("PGPOLL_STREAM_ROWS", "200000"))
SECONDS = float(os.environ.get("PGPOLL_STREAM_SECONDS", "1"))
SOME = [("tcp", "async", 1000), ("unix", "async", None), ("tcp", "sync", None), ("unix", "sync", 1000)]
EVERY = list(itertools.product(("tcp", "unix"), ("async", "sync"), (1000, None)))
SERIES = "select i, repeat('x', 100) from (select generate_series(1, 10000000) as i) as t"

Stream = pgpoll.Stream[core.Record]


async def broken(stream: Stream) -> None:
    async for row in stream:
        if row.i == 5:
            break


async def closed(stream: Stream) -> None:
    await anext(stream)
    await stream.aclose()


async def left(stream: Stream) -> None:
    async with stream as rows:
        await anext(rows)


async def left_by_an_error(stream: Stream) -> None:
    with contextlib.suppress(KeyError):
        async with stream as rows:
            await anext(rows)
            raise KeyError


async def left_before_its_first_row(stream: Stream) -> None:
    async with stream:
        pass


async def generate(stream: Stream) -> Any:
    async for row in stream:
        yield row


async def left_by_a_generator(stream: Stream) -> None:
    """One that is never closed by hand: the loop closes it, in a task of its own."""
    blocks = stream._verbs._driver.blocks
    await anext(generate(stream))
    del stream
    async with asyncio.timeout(0.1):
        while any(block.channel for block in blocks.stack):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def dropped(stream: Stream) -> None:
    await anext(stream)


async def batches_dropped(stream: Stream) -> None:
    await anext(stream.batches())


async def cancelled(stream: Stream) -> None:
    async def consume() -> None:
        async for _ in stream:
            await asyncio.sleep(0.01)

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


WAYS = [
    broken,
    closed,
    left,
    left_by_an_error,
    left_before_its_first_row,
    left_by_a_generator,
    dropped,
    batches_dropped,
    cancelled,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefetch", [10, 1000, None])
async def test_f71_left_early(
    assert_sane: Sanity, way: Callable[[Stream], Awaitable[None]], prefetch: int | None
) -> None:
    """The portal is closed, and the connection of use, within 100 ms; nothing is said."""
    conn = await assert_sane.connect()
    took = []
    for _ in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await way(conn.stream(SERIES, prefetch=prefetch))
            gc.collect()
        delay, began = run_delay(), time.monotonic()
        await assert_sane.ask(conn)
        took.append(time.monotonic() - began - (run_delay() - delay))
    assert min(took) < 0.1, took  # who serves the CancelRequest needs a processor, too


@pytest.mark.parametrize("way", WAYS)
async def test_f71_left_early_in_a_transaction(assert_sane: Sanity, way: Callable[[Stream], Awaitable[None]]) -> None:
    """The transaction goes on; only a step that was cancelled, while the server ran, makes it fail."""
    conn = await assert_sane.connect()
    for prefetch in (10, 1000):
        async with conn.transaction() as tx:
            await conn.execute("create temp table kept on commit drop as select 7 as i")
            await way(conn.stream(SERIES, prefetch=prefetch))
            gc.collect()
            with assert_sane.at_once():
                await assert_sane.ask(conn)
            async with asyncio.timeout(1):  # a generator is closed by the loop, in its own time
                while await conn.fetchval("select count(*) from pg_cursors where name <> ''"):
                    pass
            assert await tx.fetchval("select i from kept") == 7
        assert conn.transaction_status == "I"


async def test_f71_without_a_limit_in_a_transaction(assert_sane: Sanity) -> None:
    """What runs on is cancelled at the server, and the transaction is lost by that: a savepoint around it helps."""
    conn = await assert_sane.connect()
    async with conn.transaction():
        await conn.execute("create temp table kept on commit drop as select 7 as i")
        with contextlib.suppress(errors.InFailedSqlTransaction):
            async with conn.transaction():
                await broken(conn.stream(SERIES, prefetch=None))
        with assert_sane.at_once():
            assert await conn.fetchval("select i from kept") == 7


async def test_f71_nothing_is_cancelled_where_nothing_runs(assert_sane: Sanity) -> None:
    """A stream that is left while it waits for credit costs no CancelRequest."""
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    for inside in (False, True):
        async with conn.transaction() if inside else contextlib.nullcontext():
            for _ in range(20):
                stream = conn.stream("select i from generate_series(1, 1000) as t(i)", prefetch=10)
                for _ in range(4):
                    await anext(stream)
                await stream.aclose()
            await assert_sane.ask(conn)
    assert proxy.cancels == 0


async def test_f72_others_while_the_consumer_is_slow(assert_sane: Sanity) -> None:
    """Strangers wait for the stream's end, or for as long as they like; the owner's own requests are refused."""
    conn = await assert_sane.connect()
    stranger = None
    async for row in conn.stream("select i from generate_series(1, 100) as t(i)", prefetch=10):
        if row.i == 1:
            stranger = asyncio.create_task(assert_sane.ask(conn), context=contextvars.Context())
            with assert_sane.raises(pgpoll.QueryTimeout):
                await asyncio.create_task(conn.fetchval("select 1", timeout=0.02), context=contextvars.Context())
        if row.i == 50:
            with assert_sane.raises(pgpoll.InterfaceError, match="a stream is open here"):
                await conn.fetchval("select 1")
            with assert_sane.raises(pgpoll.InterfaceError, match="a stream is open here"):
                await asyncio.create_task(conn.fetchval("select 1"))
            assert stranger is not None
            assert not stranger.done()
        await asyncio.sleep(0.0002)
    assert stranger is not None
    await stranger


def through(transport: str, dsn: str) -> str:
    if transport == "tcp":
        return dsn
    with pgpoll.sync.connect(dsn) as conn:
        directory = conn.fetchval("show unix_socket_directories").split(",")[0].strip()
    url = urllib.parse.urlsplit(dsn)
    return f"postgresql://{url.username}@{url.path}?host={directory}&port={url.port or 5432}"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("transport", "face", "prefetch"), EVERY if ROWS >= 1_000_000 else SOME)
def test_f72_memory(dsn: str, transport: str, face: str, prefetch: int | None) -> None:
    """Streaming millions of rows holds no more than the window, however fast the consumer."""
    where = through(transport, dsn)
    answer = streaming.measured(where, face, prefetch, ROWS, 0, 600)
    assert answer["rows"] == ROWS
    print(f"\n{face}, prefetch={prefetch}: {answer}")
    assert answer["peak"] < 32 << 20
    pace = answer["rows"] / answer["seconds"]
    pause = 100 * 100 / pace  # the consumer's pace is 1/100 of it
    rows = max(1000, int(pace / 100 * SECONDS))
    answer = streaming.measured(where, face, prefetch, rows, pause, 600)
    assert answer["rows"] == rows
    print(f"{face}, prefetch={prefetch}, {pause:.4f} s after each 100 rows: {answer}")
    assert answer["peak"] < 32 << 20
