"""Behind PgBouncer, which hands the backends round: rows 22, 66 and 67 of what may go wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

import pgpoll
from pgbouncer import PgBouncer
from server import Server


@pytest.fixture(scope="module")
def transaction_mode(server: Server) -> Iterator[str]:
    """Two backends for everybody, and another one for each transaction."""
    with PgBouncer(server.dsn, pool_mode="transaction", default_pool_size="2", server_round_robin="1") as pooler:
        yield pooler.dsn


@pytest.fixture(scope="module")
def session_mode(server: Server) -> Iterator[str]:
    with PgBouncer(server.dsn, pool_mode="session", default_pool_size="20") as pooler:
        yield pooler.dsn


async def work(conn: pgpoll.Connection, name: int) -> None:
    for i in range(40):
        token = name * 1000 + i
        assert await conn.fetchval("select $1::int4", token) == token
        assert await conn.fetchval(f"select {i % 7} + $1::int4", token) == token + i % 7
        if i % 10 == 0:
            async with conn.transaction():
                assert await conn.fetchval("select $1::int8", token) == token


async def test_f22_transaction_mode_without_names(transaction_mode: str) -> None:
    """statement_cache_size=0 is what it takes: nothing on a backend has a name."""
    connections = [await pgpoll.connect(transaction_mode, statement_cache_size=0) for _ in range(4)]
    await asyncio.gather(*(work(conn, i) for i, conn in enumerate(connections)))
    many = (conn.fetchval("select $1::int4", i) for i in range(200) for conn in connections)
    assert await asyncio.gather(*many) == [i for i in range(200) for _ in connections]
    for conn in connections:
        await conn.close()


async def test_f22_a_backend_that_does_not_know_our_statement(transaction_mode: str) -> None:
    """With names, what is missing is prepared again, and what is there already is closed first: nobody notices."""
    connections = [await pgpoll.connect(transaction_mode) for _ in range(4)]
    for i in range(30):
        for conn in connections:
            assert await conn.fetchval("select $1::int4", i) == i
    for conn in connections:
        await conn.close()


@pytest.mark.parametrize("mode", ["transaction_mode", "session_mode"])
async def test_f67_cancelled_through_the_pooler(request: pytest.FixtureRequest, mode: str) -> None:
    async with pgpoll.connect(request.getfixturevalue(mode), statement_cache_size=0) as conn:
        for i in range(5):
            started = time.monotonic()
            with pytest.raises(pgpoll.QueryTimeout):
                await conn.execute("select pg_sleep(30)", timeout=0.05)
            assert await conn.fetchval("select $1::int4", i) == i
            assert time.monotonic() - started < 5


async def test_session_mode_is_like_the_server(session_mode: str) -> None:
    async with pgpoll.connect(session_mode) as conn, pgpoll.connect(session_mode, max_pipeline=1) as one_by_one:
        await asyncio.gather(work(conn, 1), work(one_by_one, 2))
        many = (conn.fetchval("select $1::int4", i) for i in range(500))
        assert await asyncio.gather(*many) == list(range(500))
