"""faults.md row 74: a thousand tasks on one connection, requests of every kind in random order, each with its token.

PGPOLL_TOKENS: how many tokens (default 10,000); PGPOLL_FIRST_SEED: the seed. One wrong answer ends the test.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable

import pytest

import pgpoll
from pgpoll import errors
from sanity import Sanity

TOKENS = int(os.environ.get("PGPOLL_TOKENS", "10000"))
SEED = int(os.environ.get("PGPOLL_FIRST_SEED", "0"))
TASKS = 1000


class Oracle:
    """Makes tokens, and counts the answers."""

    def __init__(self, conn: pgpoll.Connection, seed: int) -> None:
        self.conn = conn
        self.dice = random.Random(seed)
        self.last = 0
        self.right = 0
        self.cancelled = 0

    def token(self) -> int:
        self.last += 1
        return self.last

    def compare(self, token: int, answer: object) -> None:
        assert answer == token, f"{token} was answered by {answer!r}"
        self.right += 1

    async def cached(self) -> None:
        token = self.token()
        self.compare(token, await self.conn.fetchval("select $1::int8", token))

    async def new_statement(self) -> None:
        token = self.token()
        self.compare(token, await self.conn.fetchval(f"select {token}::int8"))

    async def evicting(self) -> None:
        token = self.token()
        self.compare(token, await self.conn.fetchval(f"select $1::int8 + {token % 300} - {token % 300}", token))

    async def simple(self) -> None:
        token = self.token()
        results = await self.conn.executescript(f"select 'no'; select {token}")
        self.compare(token, int(results[1][0][0] or 0))

    async def rows(self) -> None:
        token = self.token()
        rows = await self.conn.fetch("select i, $1::int8 from generate_series(1, 20) as t(i)", token)
        assert [row[0] for row in rows] == list(range(1, 21))
        assert {row[1] for row in rows} == {token}
        self.compare(token, rows[19][1])

    async def an_error(self) -> None:
        token = self.token()
        with pytest.raises(errors.InvalidTextRepresentation) as caught:
            await self.conn.execute("select $1::text::int4", f"token {token}.")
        self.compare(token, int(str(caught.value).split("token ")[1].split(".")[0]))

    async def an_error_amid_rows(self) -> None:
        token = self.token()
        with pytest.raises(errors.DivisionByZero):
            await self.conn.execute("select $1::int8 / (10 - i) from generate_series(1, 20) as t(i)", token)
        self.right += 1

    async def a_bad_argument(self) -> None:
        with pytest.raises(pgpoll.DataError, match=r"\$1"):
            await self.conn.execute("select $1::int8", "no number")

    async def a_notice(self) -> None:
        token = self.token()
        result = await self.conn.executescript(f"do $$ begin raise notice '{token}'; end $$; select {token}")
        self.compare(token, int(result[1][0][0] or 0))

    async def a_notification(self) -> None:
        token = self.token()
        self.compare(token, await self.conn.fetchval("select $1::int8 from pg_notify('tokens', $1::int8::text)", token))

    async def cancelled_at_random(self) -> None:
        token = self.token()
        task = asyncio.create_task(self.conn.fetchval("select $1::int8", token))
        for _ in range(self.dice.randrange(4)):
            await asyncio.sleep(0)
        if task.cancel():
            self.cancelled += 1
        try:
            self.compare(token, await task)
        except asyncio.CancelledError:
            assert task.cancelled()

    async def run(self, until: int) -> None:
        kinds = [
            *(self.cached, self.cached, self.cached, self.cached, self.rows, self.new_statement, self.evicting),
            *(self.simple, self.an_error, self.an_error_amid_rows, self.a_bad_argument, self.a_notice),
            *(self.a_notification, self.cancelled_at_random),
        ]
        while self.last < until:
            await self.dice.choice(kinds)()


@pytest.mark.timeout(7200)
async def test_f74_attribution(assert_sane: Sanity, record_property: Callable[[str, object], None]) -> None:
    conn = await assert_sane.connect()
    assert_sane.blocking_allowed = True  # a thousand tasks' turns are work of the test's own
    await conn.execute("set client_min_messages = notice")
    await conn.execute("listen tokens")
    oracle = Oracle(conn, SEED)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(oracle.run(TOKENS))
    assert oracle.right >= TOKENS * 0.9
    assert oracle.cancelled > 0
    record_property("tokens", oracle.last)
    print(f"{oracle.last} tokens, {oracle.cancelled} cancelled, {time.monotonic() - began:.1f} s")
    await conn.execute("unlisten tokens")
