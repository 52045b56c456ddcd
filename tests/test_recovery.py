"""D6 and D15 with a real server: a query that nobody awaits holds nobody up, and what the server dropped comes back."""

from __future__ import annotations

import asyncio
import time

import pytest

import pgpoll
from pgpoll import errors

# -- D6


async def test_f65_an_abandoned_query_with_others_behind_it(conn: pgpoll.Connection) -> None:
    """They wait for a second, not for half a minute; each gets its own answer."""
    await conn.execute("select pg_sleep(0)")
    started = time.monotonic()
    long = asyncio.create_task(conn.execute("select pg_sleep(30)"))
    behind = [asyncio.create_task(conn.fetchval("select $1::int4", i)) for i in range(20)]
    await asyncio.sleep(0.05)
    long.cancel()
    assert await asyncio.gather(*behind) == list(range(20))
    assert time.monotonic() - started < 3
    assert await conn.fetchval("select 7") == 7


async def test_grace_is_enough(conn: pgpoll.Connection) -> None:
    """A query that ends within its second is not cancelled, and neither is anybody else."""
    await conn.execute("select pg_sleep(0)")
    long = asyncio.create_task(conn.execute("select pg_sleep(0.4)"))
    behind = [asyncio.create_task(conn.fetchval("select $1::int4", i)) for i in range(5)]
    await asyncio.sleep(0.05)
    long.cancel()
    assert await asyncio.gather(*behind) == list(range(5))
    for i in range(30):
        await asyncio.sleep(0.04)
        assert await conn.fetchval("select $1::int4", i) == i


async def test_one_after_another_is_abandoned(conn: pgpoll.Connection) -> None:
    """Each head has a grace of its own; nothing is lost."""
    await conn.execute("select pg_sleep(0)")
    long = [asyncio.create_task(conn.execute(f"select pg_sleep({20 + i})")) for i in range(3)]
    last = asyncio.create_task(conn.fetchval("select 8"))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    for each in long:
        each.cancel()
    assert await last == 8
    assert time.monotonic() - started < 6


async def test_f66_a_cancel_request_that_comes_too_early(conn: pgpoll.Connection) -> None:
    """The backend reads it before the query and forgets it: another is sent after the grace."""
    for _ in range(10):
        task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
        await asyncio.sleep(0)
        task.cancel()
        started = time.monotonic()
        assert await conn.fetchval("select 5") == 5
        assert time.monotonic() - started < 4


async def test_a_strangers_cancel_is_no_reason_to_run_again(conn: pgpoll.Connection, other: pgpoll.Connection) -> None:
    task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.1)
    await other.execute("select pg_cancel_backend($1)", conn.backend_pid)
    with pytest.raises(errors.QueryCanceled):
        await task


def test_blocking_another_cancel_after_the_grace(dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as conn:
        for _ in range(5):
            started = time.monotonic()
            with pytest.raises(pgpoll.QueryTimeout):
                conn.execute("select pg_sleep(20)", timeout=0.0005)
            assert conn.fetchval("select 5") == 5
            assert time.monotonic() - started < 4


# -- D15


async def test_f75_a_cached_plan_changes(conn: pgpoll.Connection, other: pgpoll.Connection) -> None:
    await other.execute("drop table if exists changing")
    await other.execute("create table changing (a int4, b text)")
    try:
        await conn.execute("insert into changing values (1, 'x')")
        assert tuple(await conn.fetchrow("select * from changing where a = $1", 1) or ()) == (1, "x")
        await other.execute("alter table changing add c int4 default 5")
        assert tuple(await conn.fetchrow("select * from changing where a = $1", 1) or ()) == (1, "x", 5)
        await other.execute("alter table changing alter a type int8")
        assert tuple(await conn.fetchrow("select * from changing where a = $1", 1) or ()) == (1, "x", 5)
        assert await conn.fetchrow("select * from changing where a = $1", 2**40 + 1) is None
        statement = await conn.prepare("select * from changing where a = $1")
        await other.execute("alter table changing drop c")
        rows = await asyncio.gather(*(statement.fetchrow(1) for _ in range(20)))
        assert [tuple(row) for row in rows if row is not None] == [(1, "x")] * 20
        await other.execute("alter table changing alter b type varchar")
        with pytest.raises(errors.FeatureNotSupported):
            async with conn.transaction():
                await statement.fetchrow(1)
        assert tuple(await statement.fetchrow(1) or ()) == (1, "x")
    finally:
        await other.execute("drop table changing")


async def test_f75_no_second_attempt_inside_of_anothers_transaction(
    conn: pgpoll.Connection, other: pgpoll.Connection
) -> None:
    """What is said to be done is not undone by a stranger's rollback."""
    insert = "insert into changing_too values ($1) returning *"
    await other.executescript("drop table if exists changing_too; create table changing_too (i int4)")
    try:
        await conn.execute(insert, 0)
        await other.execute("alter table changing_too add j int4")

        async def roll_back() -> None:
            tx = conn.transaction()
            await tx.start()
            await tx.rollback()

        inserted, _ = await asyncio.gather(conn.execute(insert, 1), roll_back(), return_exceptions=True)
        stands = await other.fetchval("select count(*)::int4 from changing_too where i = 1")
        assert stands == (0 if isinstance(inserted, errors.FeatureNotSupported) else 1)
    finally:
        await other.execute("drop table changing_too")


async def test_f22_a_text_whose_describing_was_abandoned(conn: pgpoll.Connection) -> None:
    """Asked for again before that has ended: in a transaction 42P05 would be the end of it."""
    await conn.execute("select pg_sleep($1::float8)", 0)
    async with conn.transaction() as tx:
        ahead = asyncio.create_task(tx.execute("select pg_sleep($1::float8)", 0.05))
        abandoned = asyncio.create_task(tx.fetchval("select 4711 as once"))
        await asyncio.sleep(0)
        abandoned.cancel()
        assert await tx.fetchval("select 4711 as once") == 4711
        await ahead


@pytest.mark.parametrize("sql", ["deallocate all", "discard all", "select pg_sleep(0); deallocate all"])
async def test_f75_statements_are_dropped_by_hand(conn: pgpoll.Connection, sql: str) -> None:
    statement = await conn.prepare("select $1::int4 + 1")
    for i in range(3):
        tasks = [asyncio.create_task(conn.fetchval("select $1::int4", k)) for k in range(10)]
        drop = conn.executescript(sql) if ";" in sql or i else conn.execute(sql)
        tasks.append(asyncio.create_task(drop))
        tasks += [asyncio.create_task(conn.fetchval("select $1::int4", k)) for k in range(10)]
        results = await asyncio.gather(*tasks)
        assert results[:10] == results[11:] == list(range(10))
        assert await statement.fetchval(i) == i + 1


async def test_f75_one_statement_is_dropped_behind_our_back(conn: pgpoll.Connection) -> None:
    assert await conn.fetchval("select 11") == 11
    name = await conn.fetchval("select name from pg_prepared_statements where statement = 'select 11'")
    await conn.executescript(f'deallocate "{name}"')
    assert await asyncio.gather(*(conn.fetchval("select 11") for _ in range(5))) == [11] * 5
    await conn.executescript(f'deallocate "{name}"')
    with pytest.raises(errors.InvalidSqlStatementName):
        async with conn.transaction():
            await conn.fetchval("select 11")
    assert await conn.fetchval("select 11") == 11


async def test_a_name_is_taken(conn: pgpoll.Connection) -> None:
    """By whoever shares the backend through a pooler."""
    assert await conn.fetchval("select 12") == 12
    name = await conn.fetchval("select name from pg_prepared_statements where statement = 'select 12'")
    await conn.executescript(f'deallocate all; prepare "{name}" as select 12')
    assert await conn.fetchval("select 12") == 12


async def test_search_path_changes(conn: pgpoll.Connection) -> None:
    """The server analyses anew, and says 0A000 where that matters."""
    await conn.executescript(
        "create schema if not exists one; create schema if not exists two;"
        "create table one.t as select 1 as i; create table two.t as select 'two' as i; set search_path = one"
    )
    try:
        assert await conn.fetchval("select i from t") == 1
        await conn.execute("set search_path = two")
        assert await conn.fetchval("select i from t") == "two"
    finally:
        await conn.executescript("drop schema one cascade; drop schema two cascade")


async def test_statements_are_bounded_by_number_and_bytes(dsn: str) -> None:
    count = "select count(*)::int4, sum(length(statement))::int4 from pg_prepared_statements"
    async with pgpoll.connect(dsn, statement_cache_size=5) as conn:
        for i in range(20):
            assert await conn.fetchval(f"select {i}") == i
        row = await conn.fetchrow(count)
        assert row is not None
        assert row[0] <= 5
    async with pgpoll.connect(dsn) as conn:
        for i in range(12):
            assert await conn.fetchval(f"select {i} /* {'x' * 1_000_000} */") == i
        row = await conn.fetchrow(count)
        assert row is not None
        assert row[1] <= 4 << 20


async def test_nothing_is_named_without_a_cache(dsn: str) -> None:
    """And what is known takes one flight all the same."""
    async with pgpoll.connect(dsn, statement_cache_size=0) as conn:
        for i in range(5):
            assert await conn.fetchval("select $1::int4", i) == i
        assert await asyncio.gather(*(conn.fetchval("select $1::int4", k) for k in range(50))) == list(range(50))
        statement = await conn.prepare("select $1::text || 'x'")
        assert await statement.fetchval("a") == "ax"
        assert await conn.fetchval("select count(*)::int4 from pg_prepared_statements") == 0
        await conn.execute("create temp table t (a int4, b text)")
        await conn.execute("insert into t values ($1, $2)", 1, "x")
        assert await conn.fetch("select * from t where a = $1", 1) == [(1, "x")]
        await conn.execute("alter table t alter a type int8")
        assert await conn.fetch("select * from t where a = $1", 1) == [(1, "x")]
        await conn.execute("alter table t add c bool default true")
        assert await conn.fetch("select * from t where a = $1", 1) == [(1, "x", True)]
        async with conn.transaction():
            assert await conn.fetchval("select $1::int4", 3) == 3
        with pytest.raises(pgpoll.InterfaceError, match="copy_in"):
            await conn.execute("copy t from stdin")
        assert await conn.fetchval("select 1") == 1
