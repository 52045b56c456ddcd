"""A finalizer may run anywhere within the driver's own code: what it lets go of is seen to where nobody is within."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pgpoll
from pgpoll import sync

FILES = {"_blocks.py", "_cancelling.py", "_commands.py", "_expiry.py", "_flows.py", "_loop.py", "_threads.py"}


class Loop:
    """What only the cyclic collector frees."""

    def __init__(self, content: object) -> None:
        self.content, self.itself = content, self


class Collector:
    """Collects garbage at line number `at` that this thread runs of FILES."""

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        path = Path(frame.f_code.co_filename)
        return self.line if path.name in FILES and path.parent.name == "pgpoll" else None

    def line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                gc.collect()
        return self.line


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # so that collecting is quick
    gc.disable()
    trace = sys.gettrace()
    yield
    sys.settrace(trace)
    gc.enable()
    gc.unfreeze()


async def owned(conn: pgpoll.Connection) -> None:
    rows = conn.stream("select generate_series(1, 100)", prefetch=2)
    await anext(rows)
    Loop(rows)


async def entered(conn: pgpoll.Connection) -> None:
    async with conn.transaction():
        await conn.execute("select 1")


async def test_anywhere_in_a_loop(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    at, lines = 1, 1
    while at <= lines:
        await asyncio.create_task(owned(conn))
        stranger = Collector(at)
        sys.settrace(stranger)
        waiting = asyncio.create_task(entered(conn))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sys.settrace(None)
        lines = stranger.lines
        gc.collect()
        async with asyncio.timeout(5):
            await waiting
        assert await conn.fetchval("select 1") == 1
        at += 1
    assert lines > 30
    await conn.close()


def heard(conn: sync.Connection) -> None:
    listener = conn.listen("finalizers")
    listener.__enter__()
    Loop(listener)


def used(conn: sync.Connection, number: int) -> None:
    conn.executemany(f"select $1::int4 + {number}", [(1,), (2,)])
    conn.execute("select 1", timeout=5)


def test_anywhere_in_a_thread(dsn: str) -> None:
    with sync.connect(dsn) as conn:
        at, lines = 1, 1
        while at <= lines:
            heard(conn)
            owner = Collector(at)
            sys.settrace(owner)
            used(conn, at)
            sys.settrace(None)
            lines = owner.lines
            gc.collect()
            assert conn.fetchval("select count(*) from pg_listening_channels()") == 0
            at += 1
        assert lines > 100


def test_what_was_dropped_while_another_thread_drives_is_seen_to_at_the_end(dsn: str) -> None:
    with sync.connect(dsn) as conn:
        heard(conn)
        driver = threading.Thread(target=conn.execute, args=("select pg_sleep(0.2)",))
        driver.start()
        while not conn._core.in_flight:
            pass
        gc.collect()
        driver.join()
        assert not conn._driver._apart
        assert conn.fetchval("select count(*) from pg_listening_channels()") == 0


def left_behind(conn: sync.Connection) -> None:
    """One of each that has a finalizer, within a cycle."""
    heard(conn)
    with conn.transaction():
        batch = conn.batch()
        batch.__enter__()
        batch.execute("select 1")
        Loop(batch)
        del batch
        gc.collect()
    rows = conn.stream("select generate_series(1, 100)", prefetch=2)
    next(rows)
    Loop(rows)
    del rows
    gc.collect()
    copy = conn.copy_out("copy (select generate_series(1, 100)) to stdout")
    next(copy)
    Loop(copy)
    del copy
    gc.collect()
    tx = conn.transaction()
    tx.start()
    tx.execute("select 1")
    Loop(tx)


def test_with_a_collection_at_every_allocation(dsn: str) -> None:
    """The youngest generation is collected whenever anything is made: also within the mutex, and in other threads."""
    failures: list[BaseException] = []

    def stranger(conn: sync.Connection) -> None:
        try:
            for number in range(40):
                assert conn.fetchval("select $1::int4", number, timeout=20) == number
        except BaseException as error:  # noqa: BLE001 - the main thread's to raise
            failures.append(error)

    with sync.connect(dsn) as conn, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the transaction
        before = gc.get_threshold()
        gc.set_threshold(1, 1000, 1000)
        gc.enable()
        try:
            threads = [threading.Thread(target=stranger, args=(conn,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(10):
                left_behind(conn)
                gc.collect()
            for thread in threads:
                thread.join()
        finally:
            gc.disable()
            gc.set_threshold(*before)
        assert not failures
        gc.collect()
        assert conn.fetchval("select 1") == 1
        assert conn.fetchval("select count(*) from pg_listening_channels()") == 0
        assert conn.transaction_status == "I"
        assert not conn._driver.blocks.stack
