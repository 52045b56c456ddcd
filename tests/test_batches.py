"""batch() and executemany on a real server, in both faces: all or none, whoever fails (rows 73 and 76).

The dialogues are in tests/dialogues/batches.py, every suspension in test_faults_cancel.py.
"""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import pgpoll
from callers import count, stranger
from pgpoll import core, errors, sync
from script import error_of, plain
from test_pipeline_errors import MOST, Pipeline

INSERT = "insert into t values ($1)"


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table t (i int4 primary key)")
    return conn


@pytest.fixture
def blocking(blocking: sync.Connection) -> sync.Connection:
    blocking.execute("create temp table t (i int4 primary key)")
    return blocking


# -- f73


@pytest.mark.parametrize("failure", ["fail parse", "fail bind", "fail execute", "fail late", "fail sync"])
@pytest.mark.parametrize("n", range(1, MOST + 1))
def test_f73_error_in_the_kth_of_n_items_of_a_batch(n: int, failure: str) -> None:
    """All k <= n: one Sync, and the one that failed is named, but for an error at the Sync."""
    pipeline = Pipeline()
    client = pipeline.client
    held = [client.start_prepare("echo")]
    if failure != "fail parse":
        held.append(client.start_prepare(f"{failure} 7"))
    pipeline.settle()
    list(pipeline.handed())
    for k in range(n):
        batch = client.start_batch()
        for i in range(n):
            assert batch.add(*((f"{failure} 7",) if i == k else ("echo", (i,)))) == i
        batch.end()
        behind = client.start_execute("echo", (1,))
        if failure != "fail parse":
            assert pipeline.leave().count(b"S\0\0\0\4") == 2, "not one Sync for all of it"
        pipeline.settle()
        assert list(pipeline.handed()) == [batch, behind]
        error = error_of(batch)
        assert isinstance(error, errors.DatabaseError)
        assert (str(error), error.sqlstate) == (f"{failure} 7", "P0001")
        assert batch.failed_item == (None if failure == "fail sync" else k)
        assert plain(behind.result()) == ([(1,)], "SELECT 1")


@pytest.mark.parametrize("new", [False, True], ids=["known", "new"])
async def test_f73_error_in_the_kth_item_at_a_server(conn: pgpoll.Connection, new: bool) -> None:
    n, serial = 20, itertools.count()
    for k in range(n):
        items = []
        with pytest.raises(errors.DivisionByZero) as caught:
            async with conn.batch() as batch:
                for i in range(n):
                    text = f" /* {next(serial)} */" if new else ""
                    items.append(
                        batch.fetchval(f"insert into t values (1 / $1 + $2) returning i{text}", int(i != k), i)
                    )
        assert caught.value.item == k
        assert f"item {k} of the batch, counted from 0" in caught.value.__notes__
        for i, item in enumerate(items):
            kind = errors.DivisionByZero if i == k else pgpoll.BatchRolledBack if i < k else pgpoll.BatchSkipped
            with pytest.raises(kind) as own:
                await item
            assert own.value is caught.value or own.value.__cause__ is caught.value
        assert await count(conn) == 0


# -- batch()


async def test_items_of_every_verb(conn: pgpoll.Connection) -> None:
    async with conn.batch() as batch:
        items = (
            batch.execute("insert into t values (1), (2)"),
            batch.fetch("select i from t order by i"),
            batch.fetchrow("select i, $1::text as x from t order by i", "x"),
            batch.fetchval("select sum(i) from t"),
            batch.fetchrow("select 1 where false"),
            batch.fetchval("select 1 where false"),
            batch.fetch("select 1 where false"),
        )
    for _ in range(2):  # each time
        assert (await items[0]).tag == "INSERT 0 2"
        assert await items[1] == [(1,), (2,)]
        assert await items[2] == (1, "x")
        assert [await each for each in items[3:]] == [3, None, None, []]
    assert [each.number for each in items] == list(range(7))
    assert repr(items[1]) == "<pgpoll.BatchItem 1>"


async def test_a_batch_of_one_flight_is_atomic_and_in_order(conn: pgpoll.Connection) -> None:
    async with conn.batch() as batch:
        ids = [batch.fetchval("insert into t values ($1) returning txid_current()", i) for i in range(2500)]
    assert len({await each for each in ids}) == 1
    assert await count(conn) == 2500


async def test_an_empty_batch(conn: pgpoll.Connection) -> None:
    async with conn.batch():
        pass
    assert await conn.fetchval("select 1") == 1


async def test_both_directions_progress(conn: pgpoll.Connection) -> None:
    """Much to write while the server has much to say: neither waits for the other."""
    text = "x" * 20_000
    async with asyncio.timeout(30), conn.batch() as batch:
        items = [batch.fetchval("select $1::text || $2::int4", text, i) for i in range(1500)]
    assert [await each for each in items] == [f"{text}{i}" for i in range(1500)]


async def test_misuse_inside_and_after(conn: pgpoll.Connection) -> None:
    later = conn.batch()
    with pytest.raises(pgpoll.InterfaceError, match="was not entered"):
        later.execute("select 1")
    async with conn.batch() as batch:
        item = batch.fetchval("select 1")
        for misuse in (
            lambda: item,
            lambda: conn.execute("select 1"),
            lambda: conn.prepare("select 1"),
            lambda: conn.executemany(INSERT, [(1,)]),
            lambda: conn.transaction().start(),
            lambda: conn.batch().__aenter__(),
            lambda: asyncio.create_task(conn.fetchval("select 1")),
        ):
            with pytest.raises(pgpoll.InterfaceError, match="batch is open"):
                await misuse()
    assert await item == 1
    with pytest.raises(pgpoll.InterfaceError, match="has ended"):
        batch.execute("select 1")
    with pytest.raises(pgpoll.InterfaceError, match="once"):
        await batch.__aenter__()


async def test_strangers_wait_in_order(conn: pgpoll.Connection) -> None:
    async with conn.batch() as batch:
        waiting = [stranger(conn.fetchval("select $1::int4 + count(*) from t", n)) for n in range(3)]
        batch.execute("insert into t values (1)")
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in waiting)
    assert await asyncio.gather(*waiting) == [1, 2, 3]

    async with conn.transaction() as tx:
        entered = stranger(enter(conn))
        await asyncio.sleep(0.01)
        await tx.execute("insert into t values (2)")
    assert await entered == 2


async def enter(conn: pgpoll.Connection) -> int:
    async with conn.batch() as batch:
        item = batch.fetchval("select count(*) from t")
    value: int = await item
    return value


async def test_arguments_that_do_not_fit(conn: pgpoll.Connection) -> None:
    """At the call where the statement is known; else they are that item's error."""
    await conn.prepare(INSERT)
    async with conn.batch() as batch:
        batch.execute(INSERT, 1)
        with pytest.raises(pgpoll.DataError, match=r"\$1 \(int4\)"):
            batch.execute(INSERT, "x")
        with pytest.raises(pgpoll.InterfaceError, match="1 parameter"):
            batch.execute(INSERT)
        with pytest.raises(pgpoll.InterfaceError, match="sql must be str"):
            batch.execute(7)  # type: ignore[arg-type]
        assert batch.execute(INSERT, 2).number == 1
    assert await count(conn) == 2

    with pytest.raises(pgpoll.DataError) as caught:
        async with conn.batch() as batch:
            before = batch.execute(INSERT, 3)
            bad = batch.execute("insert into t values ($1) returning i", "x")
            after = batch.execute(INSERT, 4)
    assert caught.value.item == 1
    for item, kind in ((before, pgpoll.BatchRolledBack), (bad, pgpoll.DataError), (after, pgpoll.BatchSkipped)):
        with pytest.raises(kind):
            await item
    assert await count(conn) == 2


async def test_copy_and_several_statements(conn: pgpoll.Connection) -> None:
    async with conn.batch() as batch:
        with pytest.raises(pgpoll.InterfaceError, match="COPY"):
            batch.execute("copy t to stdout")
    with pytest.raises(pgpoll.InterfaceError, match="COPY"):
        await conn.executemany("copy t from stdin", [()])
    with pytest.raises(errors.SyntaxError, match="executescript"):
        async with conn.batch() as batch:
            batch.execute("select 1; select 2")


async def test_a_deferred_constraint_is_of_no_single_item(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table d (i int4 unique deferrable initially deferred)")
    with pytest.raises(errors.UniqueViolation) as caught:
        async with conn.batch() as batch:
            items = [batch.execute("insert into d values (1)") for _ in range(2)]
    assert caught.value.item is None
    for item in items:
        with pytest.raises(pgpoll.BatchRolledBack) as own:
            await item
        assert own.value.__cause__ is caught.value
    with pytest.raises(errors.UniqueViolation) as caught:
        await conn.executemany("insert into d values ($1)", [(1,), (1,)])
    assert caught.value.item is None


@pytest.mark.parametrize("wait", [False, True], ids=["unsent", "sent"])
async def test_a_body_that_raises(conn: pgpoll.Connection, wait: bool) -> None:
    await conn.prepare(INSERT)
    with pytest.raises(KeyError):
        async with conn.batch() as batch:
            item = batch.execute(INSERT, 1)
            if wait:
                await asyncio.sleep(0.05)
            unsent = batch.execute(INSERT, 2)
            raise KeyError
    with pytest.raises(pgpoll.BatchRolledBack if wait else pgpoll.BatchSkipped) as caught:
        await item
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises((pgpoll.BatchSkipped, pgpoll.BatchRolledBack)):
        await unsent
    assert await count(conn) == 0


async def test_a_body_that_raises_behind_an_error(conn: pgpoll.Connection) -> None:
    """The body's exception goes on; the items know better."""
    with pytest.raises(KeyError):
        async with conn.batch() as batch:
            item = batch.execute("select 1 / 0")
            await asyncio.sleep(0.1)
            with pytest.raises(pgpoll.InterfaceError):  # it is a batch still
                await conn.execute("select 1")
            skipped = batch.execute("select 1")
            raise KeyError
    with pytest.raises(errors.DivisionByZero):
        await item
    with pytest.raises(pgpoll.BatchSkipped) as caught:
        await skipped
    assert caught.value.safe_to_retry


async def test_cancelled_in_the_body_and_at_the_end(conn: pgpoll.Connection) -> None:
    items: list[Any] = []

    async def in_body() -> None:
        async with conn.batch() as batch:
            items.append(batch.execute("insert into t values (1)"))
            await asyncio.sleep(20)

    async def at_end() -> None:
        async with conn.batch() as batch:
            items.append(batch.execute("insert into t values (2)"))
            items.append(batch.execute("select pg_sleep(20)"))

    for body in (in_body, at_end):
        task = asyncio.create_task(body())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await count(conn) == 0
    with pytest.raises(pgpoll.BatchRolledBack):
        await items[0]
    with pytest.raises(pgpoll.OperationalError, match="given up"):
        await items[1]


async def test_inside_of_a_transaction(conn: pgpoll.Connection) -> None:
    """A broken one fails it; a nested transaction around it keeps what came before."""
    with pytest.raises(errors.InFailedSqlTransaction):
        async with conn.transaction() as tx:
            await tx.execute("insert into t values (1)")
            with pytest.raises(errors.DivisionByZero):
                async with tx.batch() as batch:
                    item = batch.execute("insert into t values (2)")
                    batch.execute("select 1 / 0")
            with pytest.raises(pgpoll.BatchRolledBack):
                await item
            assert conn.transaction_status == "E"
    assert await count(conn) == 0

    async with conn.transaction() as tx:
        await tx.execute("insert into t values (1)")
        for breaking in (broken_by_its_body, broken_by_a_row):
            with pytest.raises((KeyError, errors.UniqueViolation)):
                async with tx.transaction():
                    await breaking(conn)
        async with tx.batch() as batch:
            batch.execute("insert into t values (2)")
        await conn.executemany(INSERT, [(3,)])
    assert await count(conn) == 3


async def broken_by_its_body(conn: pgpoll.Connection) -> None:
    async with conn.batch() as batch:
        batch.execute("insert into t values (7)")
        await asyncio.sleep(0.02)
        raise KeyError


async def broken_by_a_row(conn: pgpoll.Connection) -> None:
    await conn.executemany(INSERT, [(7,), (1,)])


async def test_a_body_that_raises_leaves_the_transaction_failed(conn: pgpoll.Connection) -> None:
    with pytest.raises(errors.InFailedSqlTransaction):
        async with conn.transaction():
            with pytest.raises(KeyError):
                await broken_by_its_body(conn)
    assert await count(conn) == 0


async def test_the_connection_is_lost_within_a_batch(conn: pgpoll.Connection) -> None:
    with pytest.raises(errors.AdminShutdown):
        async with conn.batch() as batch:
            before = batch.fetchval("select 1")
            lost = batch.execute("select pg_terminate_backend(pg_backend_pid())")
            after = batch.execute("select 1")
    with pytest.raises(errors.AdminShutdown):
        await lost
    for item in (before, after):
        with pytest.raises(pgpoll.ConnectionLost):
            await item
    with pytest.raises(pgpoll.InterfaceError, match="closed"):
        async with conn.batch():
            pass
    with pytest.raises(pgpoll.InterfaceError, match="closed"):
        await conn.executemany(INSERT, [])


async def test_closed_by_its_owner(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="closed"):
        async with asyncio.timeout(5), conn.batch() as batch:
            item = batch.execute("insert into t values (1)")
            await conn.close()
    with pytest.raises(pgpoll.Error):
        await item


async def test_dropped_while_it_is_open(conn: pgpoll.Connection) -> None:
    batch = await conn.batch().__aenter__()
    batch.execute("insert into t values (1)")
    waiting = stranger(count(conn))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    del batch
    gc.collect()
    assert await waiting == 0


async def test_a_dropped_statement_is_a_plain_error(dsn: str, conn: pgpoll.Connection) -> None:
    """D15 ends at a batch; what is known before it is sent is described anew."""
    await conn.execute("create temp table s as select 1 as a")
    assert await conn.fetchrow("select * from s") == (1,)
    with pytest.raises(pgpoll.DatabaseError, match="cached plan"):
        async with conn.batch() as batch:
            batch.execute("alter table s add b int4 default 2")
            batch.fetchrow("select * from s")
    await conn.execute("alter table s add b int4 default 2")
    async with conn.batch() as batch:
        item = batch.fetchrow("select *, 0 from s")
    assert await item == (1, 2, 0)


async def test_observed(dsn: str) -> None:
    records: list[pgpoll.RequestRecord] = []
    async with pgpoll.connect(dsn, on_request=records.append) as conn:
        await conn.executemany("select $1::int4", [(1,), (2,)])
        async with conn.batch() as batch:
            batch.execute("select 1")
    assert [(each.sql, each.rows, each.error) for each in records] == [("select $1::int4", 2, None), (None, 1, None)]


# -- executemany


async def returned(conn: pgpoll.Connection, rows: Any, **options: Any) -> list[int]:
    sql = "insert into t values ($1) returning i"
    return [row.i for row in await conn.executemany(sql, rows, **options)]


async def test_rows_of_every_kind(conn: pgpoll.Connection) -> None:
    async def later() -> AsyncIterator[tuple[int]]:
        for n in range(40, 43):
            await asyncio.sleep(0)
            yield (n,)

    records = await conn.fetch("select 30 + n from generate_series(0, 2) n")
    assert await returned(conn, [(1,), [2], (3,)]) == [1, 2, 3]
    assert await returned(conn, ((n,) for n in range(10, 13))) == [10, 11, 12]
    assert await returned(conn, {(20,): 1, (21,): 2}) == [20, 21]
    assert await returned(conn, records) == [30, 31, 32]
    assert await returned(conn, later()) == [40, 41, 42]
    result = await conn.executemany("update t set i = -i where i < $1", [(4,), (11,), (0,)])
    assert (result.tag, result.rowcount, list(result)) == ("UPDATE 8", 8, [])
    result = await conn.executemany("select $1::int4 as a, $2::text as b", ((n, str(n)) for n in range(3000)))
    assert list(result) == [(n, str(n)) for n in range(3000)]
    assert (result.tag, result.columns[1].name) == ("SELECT 3000", "b")
    result = await conn.executemany("set application_name = 'x'", [(), ()])
    assert (result.tag, result.rowcount) == ("SET", None)


@pytest.mark.parametrize("rows", [[], (), iter(())], ids=["list", "tuple", "iterator"])
async def test_no_rows(conn: pgpoll.Connection, rows: Any) -> None:
    """Nothing is sent, nothing is checked."""
    result = await conn.executemany("no sql at all", rows)
    assert (result.rowcount, result.tag, list(result), result.columns) == (0, "", [], ())


@pytest.mark.parametrize("size", [1, 2, 499, 500, 501, 1500, 3000])
async def test_f73_every_row_that_the_server_refuses(conn: pgpoll.Connection, size: int) -> None:
    for k in sorted({0, size // 2, size - 1}):
        rows = [(int(n != k), n) for n in range(size)]
        with pytest.raises(errors.DivisionByZero) as caught:
            await conn.executemany("insert into t values (1 / $1 + $2)", rows)
        assert caught.value.item == k
        assert caught.value.__notes__ == [f"item {k} of the executemany, counted from 0"]
        assert await count(conn) == 0


@pytest.mark.parametrize("bad", ["x", 3.5, 2**40], ids=repr)
@pytest.mark.parametrize("k", [0, 1, 700])
async def test_a_row_that_does_not_fit(conn: pgpoll.Connection, k: int, bad: object) -> None:
    with pytest.raises(pgpoll.DataError, match=r"\$1 \(int4\)") as caught:
        await conn.executemany(INSERT, [(bad if n == k else n,) for n in range(1000)])
    assert caught.value.item == k
    assert await count(conn) == 0


@pytest.mark.parametrize("bad", [{"i": 1}, 1, "x", None, {1}], ids=repr)
async def test_a_row_that_is_none(conn: pgpoll.Connection, bad: object) -> None:
    with pytest.raises(
        pgpoll.InterfaceError, match=f"a tuple or a list of arguments, not {type(bad).__name__}"
    ) as caught:
        await conn.executemany(INSERT, [(1,), bad])  # type: ignore[list-item]
    assert caught.value.item == 1
    with pytest.raises(pgpoll.InterfaceError, match="2 arguments") as caught:
        await conn.executemany(INSERT, [(1,), (2, 3)])
    assert caught.value.item == 1
    with pytest.raises(pgpoll.InterfaceError, match="must be iterable, not int"):
        await conn.executemany(INSERT, 7)  # type: ignore[arg-type]
    assert await count(conn) == 0


@pytest.mark.parametrize("at", [0, 1, 20_000])
@pytest.mark.parametrize("kind", ["iterator", "asynchronous"])
async def test_rows_that_raise(conn: pgpoll.Connection, kind: str, at: int) -> None:
    def rows() -> Iterator[tuple[int]]:
        yield from ((n,) for n in range(at))
        raise KeyError("rows")

    async def later() -> AsyncIterator[tuple[int]]:
        for n in range(at):
            yield (n,)
        raise KeyError("rows")

    with pytest.raises(KeyError, match="rows"):
        await conn.executemany(INSERT, rows() if kind == "iterator" else later())
    assert await count(conn) == 0
    assert conn.transaction_status == "I"


async def test_rows_that_use_the_connection(conn: pgpoll.Connection) -> None:
    async def rows() -> AsyncIterator[tuple[int]]:
        yield (1,)
        yield (await conn.fetchval("select 2"),)

    with pytest.raises(pgpoll.InterfaceError, match="batch is open") as caught:
        await conn.executemany(INSERT, rows())
    assert caught.value.item is None
    assert await count(conn) == 0


async def test_progress(conn: pgpoll.Connection) -> None:
    told: list[int] = []
    await conn.executemany(INSERT, ((n,) for n in range(20_000)), on_progress=told.append)
    assert told == sorted(set(told))
    assert told[-1] == 20_000
    assert len(told) > 2

    def raising(n: int) -> None:
        raise KeyError(n)

    with pytest.raises(KeyError):
        await conn.executemany(INSERT, ((n,) for n in range(20_000, 40_000)), on_progress=raising)
    assert await count(conn) == 20_000


async def test_f76_cancelled_and_timed_out(conn: pgpoll.Connection) -> None:
    fed = 0

    def forever() -> Iterator[tuple[int]]:
        nonlocal fed
        for fed in itertools.count():
            yield (fed,)

    task = asyncio.create_task(conn.executemany(INSERT, forever()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fed > 100
    assert await count(conn) == 0
    with pytest.raises(pgpoll.QueryTimeout):
        await conn.executemany(INSERT, forever(), timeout=0.1)
    assert await count(conn) == 0
    with pytest.raises(pgpoll.QueryTimeout):
        await conn.executemany("select pg_sleep($1)", [(5.0,)], timeout=0.1)
    assert await conn.fetchval("select 1") == 1


async def test_the_time_is_up_in_the_turn_in_which_an_answer_comes(dsn: str) -> None:
    """The wait that the timeout would end is over already: the next one ends."""
    async with pgpoll.connect(dsn, max_pipeline=1) as conn:
        for _ in range(5):
            task = asyncio.create_task(
                conn.executemany("select $1::int4", ((n,) for n in itertools.count()), timeout=0.05)
            )
            asyncio.get_running_loop().call_later(0.01, time.sleep, 0.06)
            with pytest.raises(pgpoll.QueryTimeout):
                await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("kind", ["executemany", "asynchronous", "batch", "batch in a transaction"])
async def test_f76_all_or_none_wherever_it_is_cancelled(dsn: str, kind: str) -> None:
    """By the turn of the loop: what lasts is all of it, and then only where nobody could stop it any more."""
    async with pgpoll.connect(dsn, max_pipeline=20) as conn:
        await conn.execute("create temp table t (i int4 primary key)")
        await all_or_none(conn, kind, 100)


async def all_or_none(conn: pgpoll.Connection, kind: str, size: int) -> None:

    async def later() -> AsyncIterator[tuple[int]]:
        for n in range(size):
            if n % 10 == 0:
                await asyncio.sleep(0)
            yield (n,)

    async def body() -> None:
        if kind == "executemany":
            await conn.executemany(INSERT, ((n,) for n in range(size)))
        elif kind == "asynchronous":
            await conn.executemany(INSERT, later())
        elif kind == "batch":
            await in_batch()
        else:
            async with conn.transaction():
                await in_batch()

    async def in_batch() -> None:
        async with conn.batch() as batch:
            async for (n,) in later():
                batch.execute(INSERT, n)

    outcomes = set()
    for turns in itertools.count():
        task = asyncio.create_task(body())
        for _ in range(turns):
            await asyncio.sleep(0)
        asked = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == asked
        left = await count(conn)
        assert left in (0, size)
        assert conn.transaction_status == "I"
        outcomes.add(left)
        await conn.execute("delete from t")
        if not asked:
            break
    assert outcomes == {0, size}


@pytest.mark.parametrize("options", [{"max_pipeline": 1}, {"max_pipeline": 3}, {"statement_cache_size": 0}], ids=str)
async def test_windows_and_unnamed_statements(dsn: str, options: dict[str, Any]) -> None:
    async with pgpoll.connect(dsn, **options) as conn:
        await conn.execute("create temp table t (i int4 primary key)")
        for start in (0, 1000):  # new, and known
            assert await returned(conn, ((n,) for n in range(start, start + 300))) == [*range(start, start + 300)]
        async with conn.batch() as batch:
            items = [batch.fetchval(f"select $1::int4 + {n % 3}", n) for n in range(60)]
        assert [await each for each in items] == [n + n % 3 for n in range(60)]
        with pytest.raises(errors.UniqueViolation) as caught:
            await conn.executemany(INSERT, [(2000,), (2001,), (5,)])
        assert caught.value.item == 2


async def test_rows_of_a_megabyte(conn: pgpoll.Connection) -> None:
    text = "x" * (1 << 20)
    result = await conn.executemany("select length($1::text) + $2::int4", ((text, n) for n in range(60)))
    assert [row[0] for row in result] == [(1 << 20) + n for n in range(60)]


MEMORY = """
import asyncio, resource, sys
import pgpoll
from pgpoll import sync

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

async def later(rows):
    for row in rows:
        yield row

async def run(dsn, face, size):
    async with pgpoll.connect(dsn) as conn:
        await conn.execute("create temp table big (i int4, t text)")
        rows = ((n, "a row of some length") for n in range(size))
        before = peak()
        result = await conn.executemany(INSERT, rows if face == "asyncio" else later(rows))
        return result.rowcount, peak() - before

def blocking(dsn, size):
    with sync.connect(dsn) as conn:
        conn.execute("create temp table big (i int4, t text)")
        before = peak()
        result = conn.executemany(INSERT, ((n, "a row of some length") for n in range(size)))
        return result.rowcount, peak() - before

INSERT = "insert into big select $1, $2 where $1 % 100 = 0"
face, dsn, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
print(*(blocking(dsn, size) if face == "sync" else asyncio.run(run(dsn, face, size))))
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("face", "size"), [("asyncio", 1_000_001), ("asynchronous rows", 60_001), ("sync", 60_001)])
def test_memory_is_bounded(dsn: str, tmp_path: Path, face: str, size: int) -> None:
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    done = subprocess.run([sys.executable, script, face, dsn, str(size)], capture_output=True, text=True, check=True)
    rowcount, grown = done.stdout.split()
    assert int(rowcount) == size // 100 + 1
    assert float(grown) < 8, f"{grown} MiB over the baseline"


# -- the blocking face


def test_sync_batch(blocking: sync.Connection) -> None:
    with blocking.batch() as batch:
        one, two = batch.execute("insert into t values (1), (2)"), batch.fetch("select i from t order by i")
        row, value = batch.fetchrow("select 1, 2"), batch.fetchval("select $1::text", "x")
        with pytest.raises(pgpoll.InterfaceError, match="is open"):
            one.result()
        with pytest.raises(pgpoll.InterfaceError, match="batch is open"):
            blocking.execute("select 1")
    assert [tuple(each) for each in two.result()] == [(1,), (2,)]
    assert row.result() == (1, 2)
    assert (one.result().tag, value.result()) == ("INSERT 0 2", "x")

    with pytest.raises(errors.UniqueViolation) as caught, blocking.batch() as batch:
        items = [batch.execute(INSERT, i) for i in (5, 6, 1, 7)]
    assert caught.value.item == 2
    kinds = [type(error_from(each)) for each in items]
    assert kinds == [pgpoll.BatchRolledBack, pgpoll.BatchRolledBack, errors.UniqueViolation, pgpoll.BatchSkipped]
    with pytest.raises(KeyError), blocking.batch() as batch:
        for i in range(200):
            batch.execute(INSERT, 10 + i)
        raise KeyError
    assert blocking.fetchval("select count(*) from t") == 2
    with blocking.batch() as batch:
        items = [batch.execute("select repeat($1, 2000)", "x" * 100) for i in range(200)]
    assert len(items[-1].result()[0][0]) == 200_000


def error_from(item: sync.BatchItem[Any]) -> BaseException:
    with pytest.raises(pgpoll.Error) as caught:
        item.result()
    return caught.value


def test_sync_executemany(blocking: sync.Connection) -> None:
    result = blocking.executemany("insert into t values ($1) returning i", ((n,) for n in range(2000)))
    assert ([row.i for row in result], result.rowcount) == ([*range(2000)], 2000)

    def rows() -> Iterator[tuple[int]]:
        yield from ((n,) for n in range(3000, 9000))
        with pytest.raises(pgpoll.InterfaceError, match="batch is open"):
            blocking.execute("select 1")
        raise KeyError

    told: list[int] = []
    with pytest.raises(KeyError):
        blocking.executemany(INSERT, rows(), on_progress=told.append)
    assert told
    with pytest.raises(pgpoll.QueryTimeout):
        blocking.executemany(INSERT, ((n,) for n in itertools.count(3000)), timeout=0.2)
    with pytest.raises(errors.UniqueViolation) as caught:
        blocking.executemany(INSERT, [(3000,), (1,)])
    assert caught.value.item == 1
    with pytest.raises(pgpoll.InterfaceError, match="asynchronous rows"):
        blocking.executemany(INSERT, asynchronous())  # type: ignore[arg-type]
    assert blocking.executemany(INSERT, []).rowcount == 0
    assert blocking.fetchval("select count(*) from t") == 2000


async def asynchronous() -> AsyncIterator[tuple[int]]:
    yield (1,)


def test_f76_sync_interrupted(blocking: sync.Connection) -> None:
    """Ctrl-C: what was sent is broken at once, not with the next verb."""
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        blocking.executemany(INSERT, ((n,) for n in itertools.count()))
    began = time.monotonic()
    assert blocking.fetchval("select count(*) from t") == 0
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), blocking.batch() as batch:
        batch.execute(INSERT, 1)
        batch.execute("select pg_sleep(20)")
    assert blocking.fetchval("select count(*) from t") == 0
    assert time.monotonic() - began < 5


def test_threads_wait_for_a_batch(blocking: sync.Connection) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(blocking.fetchval("select count(*) from t")))
    with blocking.batch() as batch:
        thread.start()
        time.sleep(0.1)
        assert not seen
        batch.execute(INSERT, 1)
    thread.join(5)
    assert seen == [1]


def test_an_error_with_its_item_pickles() -> None:
    import pickle

    error = errors.UniqueViolation("duplicate")
    error.item = 7
    assert pickle.loads(pickle.dumps(error)).item == 7


def test_poll_api_errors(dsn: str) -> None:
    session = Pipeline().client
    plain_request = session.start_execute("echo", (1,))
    with pytest.raises(pgpoll.InterfaceError, match="no batch"):
        plain_request.add("echo", (1,))
    with pytest.raises(pgpoll.InterfaceError, match="no executemany"):
        plain_request.feed_rows(iter(()))
    batch = session.start_batch()
    with pytest.raises(pgpoll.InterfaceError, match="no executemany"):
        batch.feed_rows(iter(()))
    with pytest.raises(pgpoll.InterfaceError, match="not finished"):
        batch.item(0)
    with pytest.raises(pgpoll.InterfaceError, match="must be a tuple"):
        batch.add("echo", [1])  # type: ignore[arg-type]
    batch.end()
    with pytest.raises(pgpoll.InterfaceError, match="has ended"):
        batch.add("echo", (1,))
    many = session.start_executemany("echo")
    with pytest.raises(pgpoll.InterfaceError, match="iterator"):
        many.feed_rows([])  # type: ignore[arg-type]
    assert core.RESULT == 0


async def test_rows_that_use_the_connection_in_a_task_of_their_own(conn: pgpoll.Connection) -> None:
    async def rows() -> AsyncIterator[tuple[int]]:
        yield (1,)
        await asyncio.create_task(conn.execute("select 1"))

    with pytest.raises(pgpoll.InterfaceError, match="a batch is open here"):
        async with asyncio.timeout(5):
            await conn.executemany("select $1::int4", rows())
    assert await asyncio.create_task(conn.fetchval("select 1")) == 1
