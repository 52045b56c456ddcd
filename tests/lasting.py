"""What a bad network is asked for besides single queries: streams, COPY on both sides, executemany, LISTEN.

Each brings its token. Rows are complete and in order, or there is an error; what was written is all there or nothing,
which `settle` finds out once no backend is left; notifications come in order, none twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pgpoll
from sanity import Sanity


class SourceFailed(Exception):
    pass


class Lasting:
    def __init__(self, sane: Sanity, dice: random.Random) -> None:
        self.sane = sane
        self.dice = dice
        self.table = f"lasting_{os.getpid()}_{sane.token()}"
        self.written: dict[int, tuple[int, bool | None]] = {}  # by token: how many rows, and whether they must be there
        self.kinds: list[Callable[[pgpoll.Connection, int], Any]] = [
            self.stream,
            self.stream_within,
            self.copy_out,
            self.copy_in,
            self.copy_records,
            self.insert_many,
            self.listen,
        ]

    def record_size(self) -> int:
        """Bytes of memory that what was written is kept in: more in every second."""
        each = next(iter(self.written.items()), None)
        return sys.getsizeof(self.written) + (len(self.written) * sum(map(sys.getsizeof, each)) if each else 0)

    async def begin(self) -> None:
        async with pgpoll.connect(self.sane.dsn) as conn:
            await conn.execute(f"create unlogged table {self.table} (token int8, place int4)")

    async def request(self, conn: pgpoll.Connection, token: int) -> None:
        kind = self.dice.choice(self.kinds)
        async with asyncio.timeout(self.dice.choice([0.005, 0.03, 2, 2, 2])):
            await kind(conn, token)

    def count(self) -> int:
        return self.dice.choice([0, 1, 2, 20, 60])

    # What is read.

    async def stream(self, conn: pgpoll.Connection, token: int) -> None:
        count = self.count()
        last = self.dice.randrange(count + 1) if self.dice.random() < 0.3 else None
        prefetch = self.dice.choice([1, 5, 1000, None])
        await self.read(conn.stream(self.series(), token, count, prefetch=prefetch), token, count, last)

    async def stream_within(self, conn: pgpoll.Connection, token: int) -> None:
        """Other requests go in between, but not where there is no limit."""
        count, prefetch = self.count(), self.dice.choice([1, 5, 1000])
        async with conn.transaction() as tx:
            other = tx if self.dice.random() < 0.5 else None
            await self.read(tx.stream(self.series(), token, count, prefetch=prefetch), token, count, None, other)

    async def read(
        self, stream: Any, token: int, count: int, last: int | None, other: pgpoll.Transaction | None = None
    ) -> None:
        came = 0
        async with stream as rows:
            async for row in rows:
                assert tuple(row) == (token, came), "another row, or in another order"
                came += 1
                if came == last:
                    return
                if other is not None and came % 7 == 1:
                    assert await other.fetchval("select $1::int8", token) == token
        assert came == count, "the stream was not complete, and did not say so"

    @staticmethod
    def series() -> str:
        return "select $1::int8, i from generate_series(0, $2::int4 - 1) as i"

    async def copy_out(self, conn: pgpoll.Connection, token: int) -> None:
        count = self.count()
        sql = f"copy (select {token}, i from generate_series(0, {count - 1}) as i) to stdout"
        came = b"".join([piece async for piece in conn.copy_out(sql)])
        assert came == b"".join(b"%d\t%d\n" % (token, place) for place in range(count))

    # What is written.

    async def write(self, token: int, count: int, writing: Any) -> None:
        """Told as done: it must be there. The source's own error, or the server's: it must not. Else it may."""
        self.written[token] = count, None
        try:
            await writing
        except SourceFailed:
            self.written[token] = count, False
            return
        except pgpoll.Error as error:
            self.sane.examine(error)
            if not isinstance(error, pgpoll.OperationalError):
                self.written[token] = count, False
            raise
        self.written[token] = count, True

    def fails_at(self, count: int) -> int | None:
        return self.dice.randrange(count + 1) if self.dice.random() < 0.2 else None

    async def rows(self, token: int, count: int) -> AsyncIterator[tuple[int, int]]:
        fails = self.fails_at(count)
        for place in range(count):
            if place == fails:
                raise SourceFailed
            if self.dice.random() < 0.1:
                await asyncio.sleep(0)
            yield token, place
        if fails == count:
            raise SourceFailed

    async def copy_in(self, conn: pgpoll.Connection, token: int) -> None:
        async def pieces(count: int) -> AsyncIterator[bytes]:
            async for each in self.rows(token, count):
                yield b"%d\t%d\n" % each

        count = self.count()
        await self.write(token, count, conn.copy_in(f"copy {self.table} from stdin", pieces(count)))

    async def copy_records(self, conn: pgpoll.Connection, token: int) -> None:
        count = self.count()
        await self.write(token, count, conn.copy_records(self.table, self.rows(token, count)))

    async def insert_many(self, conn: pgpoll.Connection, token: int) -> None:
        count = self.count()
        sql = f"insert into {self.table} values ($1, $2)"
        await self.write(token, count, conn.executemany(sql, self.rows(token, count)))

    # What is heard.

    async def listen(self, conn: pgpoll.Connection, token: int) -> None:
        """Others do on the same connection; what this one hears is its own, all of it."""
        channel, count = f"lasting {token}", self.dice.choice([1, 2, 20])
        async with conn.listen(channel) as heard:
            for place in range(count):
                await conn.execute("select pg_notify($1, $2)", channel, str(place))
            for place in range(count):
                each = await anext(heard)
                assert (each.channel, each.payload) == (channel, str(place)), "lost, twice, or in another order"

    # The end.

    async def settle(self) -> None:
        """All or nothing: of what each token has written, once nobody is left who could still write."""
        async with pgpoll.connect(self.sane.dsn) as conn:
            mine = "select count(*) from pg_stat_activity where application_name = $1"
            async with asyncio.timeout(10):
                while await conn.fetchval(mine, self.sane.name):  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.02)
            sql = f"select token, count(*), count(distinct place), max(place) from {self.table} group by token"
            found = {row[0]: (row[1], row[2], row[3]) for row in await conn.fetch(sql)}
            await conn.execute(f"drop table {self.table}")
        for token, (count, lasts) in self.written.items():
            whole = (count, count, count - 1) if count else None
            there = found.pop(token, None)
            assert there in (None, whole), f"{token}: {there} of {count} rows"
            assert lasts is not True or there == whole, f"{token} was told as done, and is not"
            assert lasts is not False or there is None, f"{token} was told to have failed, and stands"
        assert not found, f"rows of nobody: {found}"
