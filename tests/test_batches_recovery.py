"""D15 in a batch and an executemany: a statement that the server has dropped is an error, and prepared anew later."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

import pgpoll
from pgpoll import errors, sync

ASKED = "select * from s where a > $1"
INSERT = "insert into s values ($1) returning *"
DROPPED = ["plan", "existence", "all"]
CODES = {"plan": "0A000", "existence": "26000", "all": "26000"}


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table s as select 1 as a")
    return conn


@pytest.fixture
def blocking(blocking: sync.Connection) -> sync.Connection:
    blocking.execute("create temp table s as select 1 as a")
    return blocking


def drop(kind: str, sql: str) -> str:
    """A statement that spoils `sql`, of which the driver does not learn."""
    if kind == "plan":
        return "alter table s add b int4 default 2"
    if kind == "all":
        return "do $$ begin execute 'deallocate all'; end $$"
    wanted = sql.replace("'", "''")
    return (
        "do $$ begin execute (select format('deallocate %I', name) from pg_prepared_statements where "
        f"statement = '{wanted}'); end $$"
    )


@pytest.mark.parametrize("place", ["behind", "first", "last"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", DROPPED)
async def test_batch(conn: pgpoll.Connection, kind: str, inside: bool, place: str) -> None:
    """It fails in its place, and the next batch with the same statement works."""
    assert await conn.fetch(ASKED, 0) == [(1,)]
    others = {"first": (0, 2), "behind": (1, 1), "last": (2, 0)}[place]
    await conn.execute(drop(kind, ASKED))
    async with conn.transaction() if inside else contextlib.nullcontext():
        with pytest.raises(pgpoll.DatabaseError) as caught:
            async with conn.transaction() if inside else contextlib.nullcontext(), conn.batch() as batch:
                items: list[Any] = [batch.fetchval("select 1::int4") for _ in range(others[0])]
                items += [batch.fetch(ASKED, 0)]
                items += [batch.fetchval("select 1::int4") for _ in range(others[1])]
        assert caught.value.sqlstate == CODES[kind]
        assert caught.value.item == others[0]
        assert caught.value.safe_to_retry is False
        for number, item in enumerate(items):
            with pytest.raises(pgpoll.DatabaseError) as told:
                await item
            assert (
                told.value is caught.value
                if number == others[0]
                else isinstance(told.value, errors.BatchRolledBack if number < others[0] else errors.BatchSkipped)
            )
        for _ in range(2):
            async with conn.batch() as batch:
                again = batch.fetch(ASKED, 0), batch.fetch(ASKED, 7)
            assert await again[0] == [(1, 2) if kind == "plan" else (1,)]
            assert await again[1] == []
    assert await conn.fetch(ASKED, 0) == await again[0]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", DROPPED)
async def test_executemany(conn: pgpoll.Connection, kind: str, inside: bool) -> None:
    await conn.executemany(INSERT, [(2,)])
    await conn.execute(drop(kind, INSERT))
    async with conn.transaction() if inside else contextlib.nullcontext():
        with pytest.raises(pgpoll.DatabaseError) as caught:
            async with conn.transaction() if inside else contextlib.nullcontext():
                await conn.executemany(INSERT, ((n,) for n in range(10, 5000)))
        assert caught.value.sqlstate == CODES[kind]
        assert caught.value.item == 0
        assert await conn.fetchval("select count(*) from s") == 2
        for _ in range(2):
            got = await conn.executemany(INSERT, [(3,), (4,)])
            assert [tuple(row) for row in got] == ([(3, 2), (4, 2)] if kind == "plan" else [(3,), (4,)])
            assert got.rowcount == 2


@pytest.mark.parametrize("kind", DROPPED)
async def test_prepared(conn: pgpoll.Connection, kind: str) -> None:
    """The user's handle of a statement, within and behind it."""
    statement = await conn.prepare(ASKED)
    await conn.execute(drop(kind, ASKED))
    with pytest.raises(pgpoll.DatabaseError):
        async with conn.batch() as batch:
            batch.fetch(ASKED, 0)
    assert await statement.fetch(0) == [(1, 2) if kind == "plan" else (1,)]


@pytest.mark.parametrize("kind", DROPPED)
async def test_dropped_within(conn: pgpoll.Connection, kind: str) -> None:
    """By an item ahead of it."""
    assert await conn.fetch(ASKED, 0) == [(1,)]
    with pytest.raises(pgpoll.DatabaseError) as caught:
        async with conn.batch() as batch:
            batch.execute(drop(kind, ASKED))
            batch.fetch(ASKED, 0)
    assert caught.value.sqlstate == CODES[kind]
    assert caught.value.item == 1
    async with conn.batch() as batch:
        item = batch.fetch(ASKED, 0)
    assert await item == [(1,)]


async def test_a_request_ahead_of_an_open_batch(conn: pgpoll.Connection) -> None:
    """What runs again goes in front of a batch that has sent nothing."""
    assert await conn.fetch(ASKED, 0) == [(1,)]
    await conn.execute(drop("existence", ASKED))
    ahead = asyncio.create_task(conn.fetch(ASKED, 0))
    await asyncio.sleep(0)
    async with conn.batch() as batch:
        assert await ahead == [(1,)]
        item = batch.fetch(ASKED, 0)
    assert await item == [(1,)]


@pytest.mark.parametrize("kind", DROPPED)
def test_blocking(blocking: sync.Connection, kind: str) -> None:
    assert blocking.fetch(ASKED, 0) == [(1,)]
    blocking.executescript(drop(kind, ASKED))
    with pytest.raises(pgpoll.DatabaseError) as caught, blocking.batch() as batch:
        batch.fetch(ASKED, 0)
    assert caught.value.sqlstate == CODES[kind]
    with blocking.batch() as batch:
        item = batch.fetch(ASKED, 0)
    assert item.result() == [(1, 2) if kind == "plan" else (1,)]


@pytest.mark.parametrize("kind", DROPPED)
def test_blocking_executemany(blocking: sync.Connection, kind: str) -> None:
    blocking.executemany(INSERT, [(2,)])
    blocking.executescript(drop(kind, INSERT))
    with pytest.raises(pgpoll.DatabaseError) as caught:
        blocking.executemany(INSERT, [(3,), (4,)])
    assert caught.value.sqlstate == CODES[kind]
    assert list(blocking.executemany(INSERT, [(3,)])) == [(3, 2) if kind == "plan" else (3,)]
