"""A program: what the child of a fork gets of a stream, a COPY, a batch, a listener that is open, and its parent keeps.

    python tests/forked.py DSN asyncio|uvloop|sync

It ends with 0 where each step in the child raises InterfaceError that speaks of the fork, at once, and ends are quiet;
and where the parent then gets all of it, on a connection that is of use.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pgpoll
from pgpoll import sync

ROWS = 5000
SERIES = f"select generate_series(1, {ROWS}) as i"
SECONDS = 10


def child_of(*steps: Callable[[], object], ends: tuple[Callable[[], object], ...] = ()) -> None:
    """Forks: in the child every one of `steps` is refused, and none of `ends` raises. Waits for it."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        code = 1
        try:
            for step in steps:
                try:
                    given = step()
                except pgpoll.InterfaceError as error:
                    if "fork" in str(error):
                        continue
                    raise
                raise AssertionError(f"nothing was raised, but {given!r} given")
            for end in ends:
                end()
            gc.collect()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing of the child may come back
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child: {status}"


def forking_rows(conn: Any, plain: Callable[[], object]) -> Iterator[tuple[int]]:
    """Of an executemany; one of them after a child was forked."""
    for n in range(ROWS):
        if n == 100:
            operation = conn._driver.blocks.stack[-1].operation
            assert operation is not None
            child_of(plain, operation.end, partial(operation.feed_rows, iter([(1,)])))
        yield (n,)


def stepped(coroutine: Any) -> object:
    """Its first step, without a loop."""
    try:
        waited = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    return waited


def awaited(make: Callable[[], Any]) -> Callable[[], object]:
    return lambda: stepped(make())


class Asynchronous:
    """Of the asyncio face."""

    def __init__(self, conn: pgpoll.Connection, other: pgpoll.Connection) -> None:
        self.conn = conn
        self.other = other
        self.plain = awaited(lambda: conn.execute("select 1"))

    async def stream(self, prefetch: int | None = 100, count: int = ROWS) -> None:
        rows = self.conn.stream("select generate_series(1, $1::int4) as i", count, prefetch=prefetch)
        lists = rows.batches()
        seen = [row.i for row in await anext(lists)]
        seen.append((await anext(rows)).i)
        refused = awaited(lists.__anext__), self.plain
        child_of(lambda: list(rows._chunk) and self.plain(), *refused, ends=(awaited(rows.aclose),))
        seen += [row.i async for row in rows]
        assert seen == list(range(1, count + 1))

    async def stream_without_a_limit(self) -> None:
        await self.stream(None, 300_000)

    async def stream_in_a_transaction(self) -> None:
        async with self.conn.transaction():
            await self.stream()

    async def rows_at_hand(self) -> None:
        """What has come and nobody has taken: the credit for more would leave."""
        rows = self.conn.stream(SERIES, prefetch=10)
        assert (await anext(rows)).i == 1
        await asyncio.sleep(0.1)
        child_of(lambda: [stepped(rows.__anext__()) for _ in range(20)], self.plain)
        assert [row.i async for row in rows] == list(range(2, ROWS + 1))

    async def copy_in(self) -> None:
        async def source() -> AsyncIterator[bytes]:
            for n in range(ROWS):
                if n == 100:
                    operation = self.conn._driver.blocks.stack[-1].operation
                    assert operation is not None
                    child_of(self.plain, partial(operation.feed, b"1\n"), operation.finish_feed)
                yield b"1\n"

        assert (await self.conn.copy_in("copy forked from stdin", source())).rowcount == ROWS

    async def copy_out(self) -> None:
        async with self.conn.copy_out(f"copy ({SERIES}) to stdout") as chunks:
            data = await anext(chunks)
            child_of(awaited(chunks.__anext__), self.plain, ends=(awaited(chunks.aclose),))
            data += b"".join([chunk async for chunk in chunks])
        assert data.splitlines() == [str(n).encode() for n in range(1, ROWS + 1)]

    async def copy_out_records(self) -> None:
        records = self.conn.copy_out_records(SERIES)
        seen = [(await anext(records)).i]
        seen += [row.i for row in records._ready]
        child_of(awaited(records.__anext__), self.plain, ends=(awaited(records.aclose),))
        seen += [row.i async for row in records]
        assert seen == list(range(1, ROWS + 1))

    async def batch(self) -> None:
        async with self.conn.batch() as batch:
            item = batch.fetchval("select 4")
            left = awaited(lambda: batch.__aexit__(None, None, None))
            child_of(lambda: batch.fetchval("select 5"), self.plain, left)
        child_of(item.result)
        assert await item == 4

    async def executemany(self) -> None:
        assert (
            await self.conn.executemany("insert into forked values ($1)", forking_rows(self.conn, self.plain))
        ).rowcount == ROWS

    async def transaction(self) -> None:
        async with self.conn.transaction() as tx:
            await tx.execute("insert into forked values (1)")
            child_of(
                awaited(lambda: tx.execute("select 1")),
                awaited(tx.commit),
                awaited(tx.rollback),
                awaited(lambda: tx.__aexit__(None, None, None)),
                ends=(awaited(lambda: tx.__aexit__(KeyboardInterrupt, KeyboardInterrupt(), None)),),
            )
        assert await self.conn.fetchval("select count(*) from forked") == 1

    async def listener(self) -> None:
        async with self.conn.listen("forked") as notifications:
            for payload in ("one", "two"):
                await self.other.execute("select pg_notify('forked', $1)", payload)
            assert (await anext(notifications)).payload == "one"
            ends = (awaited(lambda: notifications.__aexit__(None, None, None)),)
            child_of(awaited(notifications.next), awaited(lambda: notifications.next(timeout=0)), self.plain, ends=ends)
            assert (await anext(notifications)).payload == "two"
            await self.other.execute("select pg_notify('forked', 'three')")
            assert (await anext(notifications)).payload == "three"

    async def a_request_runs(self) -> None:
        running = asyncio.create_task(self.conn.fetchval("select 5 from pg_sleep(0.3)"))
        await asyncio.sleep(0.05)
        child_of(self.plain, awaited(self.conn.cancel), awaited(self.conn.close), ends=(self.conn.terminate,))
        assert await running == 5


class Blocking:
    """Of the blocking face."""

    def __init__(self, conn: sync.Connection, other: sync.Connection) -> None:
        self.conn = conn
        self.other = other
        self.plain: Callable[[], object] = lambda: conn.execute("select 1")

    def stream(self, prefetch: int | None = 100, count: int = ROWS) -> None:
        rows = self.conn.stream("select generate_series(1, $1::int4) as i", count, prefetch=prefetch)
        lists = rows.batches()
        seen = [row.i for row in next(lists)]
        seen.append(next(rows).i)
        child_of(lambda: list(rows._chunk) and self.plain(), lists.__next__, self.plain, ends=(rows.close,))
        seen += [row.i for row in rows]
        assert seen == list(range(1, count + 1))

    def stream_without_a_limit(self) -> None:
        self.stream(None, 300_000)

    def stream_in_a_transaction(self) -> None:
        with self.conn.transaction():
            self.stream()

    def rows_at_hand(self) -> None:
        rows = self.conn.stream(SERIES, prefetch=10)
        assert next(rows).i == 1
        child_of(lambda: [next(rows) for _ in range(20)], self.plain)
        assert [row.i for row in rows] == list(range(2, ROWS + 1))

    def copy_in(self) -> None:
        def source() -> Iterator[bytes]:
            for n in range(ROWS):
                if n == 100:
                    operation = self.conn._driver.blocks.stack[-1].operation
                    assert operation is not None
                    child_of(self.plain, partial(operation.feed, b"1\n"), operation.finish_feed)
                yield b"1\n"

        assert self.conn.copy_in("copy forked from stdin", source()).rowcount == ROWS

    def copy_out(self) -> None:
        with self.conn.copy_out(f"copy ({SERIES}) to stdout") as chunks:
            data = next(chunks)
            child_of(chunks.__next__, self.plain, ends=(chunks.close,))
            data += b"".join(chunks)
        assert data.splitlines() == [str(n).encode() for n in range(1, ROWS + 1)]

    def copy_out_records(self) -> None:
        records = self.conn.copy_out_records(SERIES)
        seen = [next(records).i]
        seen += [row.i for row in records._ready]
        child_of(records.__next__, self.plain, ends=(records.close,))
        seen += [row.i for row in records]
        assert seen == list(range(1, ROWS + 1))

    def batch(self) -> None:
        with self.conn.batch() as batch:
            item = batch.fetchval("select 4")
            child_of(lambda: batch.fetchval("select 5"), self.plain, lambda: batch.__exit__(None, None, None))
        child_of(item.result)
        assert item.result() == 4

    def executemany(self) -> None:
        assert (
            self.conn.executemany("insert into forked values ($1)", forking_rows(self.conn, self.plain)).rowcount
            == ROWS
        )

    def transaction(self) -> None:
        with self.conn.transaction() as tx:
            tx.execute("insert into forked values (1)")
            child_of(
                lambda: tx.execute("select 1"),
                tx.commit,
                tx.rollback,
                lambda: tx.__exit__(None, None, None),
                ends=(lambda: tx.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None),),
            )
        assert self.conn.fetchval("select count(*) from forked") == 1

    def listener(self) -> None:
        with self.conn.listen("forked") as notifications:
            for payload in ("one", "two"):
                self.other.execute("select pg_notify('forked', $1)", payload)
            assert next(notifications).payload == "one"
            ends = (lambda: notifications.__exit__(None, None, None),)
            child_of(notifications.next, lambda: notifications.next(timeout=0), self.plain, ends=ends)
            assert next(notifications).payload == "two"
            self.other.execute("select pg_notify('forked', 'three')")
            assert next(notifications).payload == "three"

    def a_request_runs(self) -> None:
        """In another thread, which has the mutex: in the child nobody ever gives that back."""
        given: list[Any] = []
        running = threading.Thread(target=lambda: given.append(self.conn.fetchval("select 5 from pg_sleep(0.5)")))
        running.start()
        while not self.conn._core.in_flight:
            pass
        child_of(
            self.plain,
            lambda: self.conn.fetchval("select 1", timeout=1),
            lambda: next(self.conn.stream("select 1")),
            lambda: self.conn.copy_in("copy forked from stdin", b""),
            lambda: self.conn.transaction().__enter__(),
            self.conn.batch().__enter__,
            self.conn.cancel,
            self.conn.close,
            ends=(self.conn.terminate,),
        )
        running.join()
        assert given == [5]

    def a_thread_owns_it(self) -> None:
        """Its transaction is waited for; in the child it never ends."""
        entered, leave = threading.Event(), threading.Event()

        def owner() -> None:
            with self.conn.transaction() as tx:
                tx.execute("select 1")
                entered.set()
                leave.wait()

        running = threading.Thread(target=owner)
        running.start()
        entered.wait()
        child_of(self.plain, lambda: self.conn.executescript("select 1"), lambda: list(self.conn.stream("select 1")))
        leave.set()
        running.join()


async def main(dsn: str) -> None:
    for kind in [name for name in vars(Asynchronous) if not name.startswith("_")]:
        print(kind)
        async with pgpoll.connect(dsn) as conn, pgpoll.connect(dsn) as other:
            await conn.execute("create temp table forked (i int4)")
            await getattr(Asynchronous(conn, other), kind)()
            assert await conn.fetchval("select 7") == 7


def blocking_main(dsn: str) -> None:
    for kind in [name for name in vars(Blocking) if not name.startswith("_")]:
        print(kind)
        with sync.connect(dsn) as conn, sync.connect(dsn) as other:
            conn.execute("create temp table forked (i int4)")
            getattr(Blocking(conn, other), kind)()
            assert conn.fetchval("select 7") == 7


if __name__ == "__main__":
    where, face = sys.argv[1:]
    signal.alarm(5 * SECONDS)
    if face == "sync":
        blocking_main(where)
    elif face == "uvloop":
        import uvloop

        uvloop.run(main(where))
    else:
        asyncio.run(main(where))
