"""Prepared statements: explain(), and what the server keeps: the cache's bounds and live handles, no more."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import pgpoll
from pgpoll import errors, sync

SIZE = 5
KEPT = "select count(*)::int4 from pg_prepared_statements where name like 'pgpoll%' and statement <> $1::text"


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[pgpoll.Connection]:
    async with pgpoll.connect(dsn, statement_cache_size=SIZE) as connection:
        yield connection


async def kept(conn: pgpoll.Connection) -> int:
    """The statements that the server keeps for it, by the simple protocol."""
    (result,) = await conn.executescript("select count(*) from pg_prepared_statements")
    return int(result[0][0])


async def test_live_handles_come_on_top(conn: pgpoll.Connection) -> None:
    handles = [await conn.prepare(f"select {i}, 'handle'") for i in range(20)]
    assert await kept(conn) == 20
    for i in range(20):
        assert await conn.fetchval(f"select {i}") == i
        assert await kept(conn) <= SIZE + 20
    assert [await each.fetchval() for each in handles] == list(range(20))
    for left in range(19, -1, -1):
        del handles[-1]
        await conn.fetchval("select 19")  # known: Close rides with it, in one flight
        assert await kept(conn) <= SIZE + left
    assert await kept(conn) == SIZE


async def test_dropped_handles_cost_no_round_trip(conn: pgpoll.Connection) -> None:
    await conn.fetchval("select 1")
    handles = [await conn.prepare(f"select {i}, 'handle'") for i in range(20)]
    handles.clear()
    assert await asyncio.gather(*(conn.fetchval("select 1") for _ in range(10))) == [1] * 10
    assert await kept(conn) == SIZE


async def test_a_pipeline_beyond_the_cache(conn: pgpoll.Connection) -> None:
    """What requests on their way hold is closed when they are done."""
    assert await asyncio.gather(*(conn.fetchval(f"select {i}") for i in range(50))) == list(range(50))
    await conn.fetchval("select 49")
    assert await kept(conn) <= SIZE


@pytest.mark.parametrize("size", [1, SIZE])
async def test_at_random(dsn: str, size: int) -> None:
    """Handles made, used, dropped, in any order, within transactions that fail too: always in bounds, always right."""
    dice = random.Random(7)
    handles: dict[int, Any] = {}
    async with pgpoll.connect(dsn, statement_cache_size=size) as conn:
        for _ in range(400):
            i = dice.randrange(30)
            match dice.randrange(5):
                case 0:
                    handles[i] = await conn.prepare(f"select {i}")
                case 1:
                    handles.pop(i, None)
                case 2 if i in handles:
                    assert await handles[i].fetchval() == i
                case 3:
                    with pytest.raises(errors.DivisionByZero):
                        async with conn.transaction():
                            await conn.fetchval(f"select {i} / 0")
                case _:
                    assert await conn.fetchval(f"select {i}") == i
            await conn.fetchval("select 0")
            assert await kept(conn) <= size + len(handles)
        handles.clear()
        await conn.fetchval("select 0")
        assert await kept(conn) <= size


async def test_bytes_are_bounded_too(dsn: str) -> None:
    long = "x" * 1_000_000
    async with pgpoll.connect(dsn) as conn:
        handles = [await conn.prepare(f"select '{long}{i}'") for i in range(8)]
        assert await kept(conn) == 8
        handles.clear()
        await conn.fetchval("select 1")
        await conn.fetchval("select 1")
        assert await kept(conn) <= 5


async def test_without_a_cache_nothing_is_kept(dsn: str) -> None:
    async with pgpoll.connect(dsn, statement_cache_size=0) as conn:
        handle = await conn.prepare("select $1::int4")
        assert await handle.fetchval(7) == 7
        assert await kept(conn) == 0


async def test_a_handle_whose_statement_was_dropped(conn: pgpoll.Connection) -> None:
    """What its text is prepared as anew is not closed with it: the name is the same."""
    handle = await conn.prepare("select 1 as one")
    await conn.execute("deallocate all")
    assert await conn.fetchval("select 1 as one") == 1
    del handle
    gc.collect()
    for _ in range(3):
        assert await conn.fetchval("select 1 as one") == 1


async def test_a_handle_outlives_its_connection(dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        handle = await conn.prepare("select 1")
    with pytest.raises(pgpoll.InterfaceError, match="clos"):
        await handle.fetchval()


# -- explain


async def test_explain(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table t (i int4)")
    insert = await conn.prepare("insert into t select generate_series(1, $1::int4)")
    (plan,) = await insert.explain(3)
    assert plan["Plan"]["Operation"] == "Insert"
    assert "Output" in str(plan), "VERBOSE"
    assert "Execution Time" not in plan
    (plan,) = await insert.explain(3, analyze=True)
    assert plan["Execution Time"] >= 0
    assert conn.transaction_status == "I"
    assert await conn.fetchval("select count(*) from t") == 0, "rolled back"
    async with conn.transaction():
        await insert.execute(2)
        await insert.explain(3, analyze=True)
        assert await conn.fetchval("select count(*) from t") == 2, "to a savepoint"
        inside = await conn.prepare("select 1 from t where i = $1")
        (plan,) = await inside.explain(1)
    assert await conn.fetchval("select count(*) from t") == 2


async def test_explain_fails(conn: pgpoll.Connection) -> None:
    divide = await conn.prepare("select 1 / $1::int4")
    with pytest.raises(pgpoll.DataError):
        await divide.explain("x")
    with pytest.raises(errors.DivisionByZero):
        await divide.explain(0, analyze=True)
    with pytest.raises(pgpoll.QueryTimeout):
        await (await conn.prepare("select pg_sleep(20)")).explain(analyze=True, timeout=0.05)
    with pytest.raises(errors.SyntaxError):
        await (await conn.prepare("show search_path")).explain()
    assert conn.transaction_status == "I"
    assert await conn.fetchval("select 1") == 1


def test_explain_sync(dsn: str) -> None:
    with sync.connect(dsn) as conn:
        conn.execute("create temp table t (i int4)")
        insert = conn.prepare("insert into t values ($1)")
        (plan,) = insert.explain(3)
        assert plan["Plan"]["Operation"] == "Insert"
        (plan,) = insert.explain(3, analyze=True)
        assert plan["Execution Time"] >= 0
        assert conn.fetchval("select count(*) from t") == 0
        with conn.transaction():
            insert.execute(2)
            insert.explain(3, analyze=True)
        assert conn.fetchval("select count(*) from t") == 1
