"""Row streaming on a real server, the asyncio face: outside of a transaction, inside of one, and without a limit."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import warnings
from typing import Any

import pytest

import pgpoll
from pgpoll import errors

SERIES = "select i from (select generate_series(1, $1::int4) as i) as t"
EVERY = [None, 1, 2, 3, 7, 100, 1000]


async def cursors(conn: pgpoll.Connection) -> list[str]:
    """The named portals that are open."""
    return [row.name for row in await conn.fetch("select name from pg_cursors where name <> ''")]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefetch", EVERY)
async def test_every_row_once_and_in_order(conn: pgpoll.Connection, prefetch: int | None, inside: bool) -> None:
    for count in (0, 1, 2, 3, 99, 100, 101, 2500 if prefetch != 1 else 250):
        async with conn.transaction() if inside else contextlib.nullcontext():
            stream = conn.stream(SERIES, count, prefetch=prefetch)
            assert [row.i async for row in stream] == list(range(1, count + 1))
            assert stream.rowcount == count
            assert [row async for row in stream] == []
            assert await conn.fetchval("select $1::int4", count) == count
            assert not inside or await cursors(conn) == []


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefetch", EVERY)
async def test_batches(conn: pgpoll.Connection, prefetch: int | None, inside: bool) -> None:
    async with conn.transaction() if inside else contextlib.nullcontext():
        stream = conn.stream(SERIES, 500, prefetch=prefetch)
        batches = [batch async for batch in stream.batches()]
        assert all(batches)
        assert [row.i for batch in batches for row in batch] == list(range(1, 501))
        assert all(len(batch) <= (prefetch or 500) for batch in batches)
        assert stream.rowcount == 500


async def test_rows_and_batches_of_one_stream(conn: pgpoll.Connection) -> None:
    async with conn.stream(SERIES, 1000, prefetch=100) as rows:
        assert (await anext(rows)).i == 1
        assert rows.rowcount == 1
        seen = [1]
        async for batch in rows.batches():
            seen += [row.i for row in batch]
            if len(seen) < 900:
                seen.append((await anext(rows)).i)
        assert seen == list(range(1, 1001))


async def test_nothing_happens_before_the_first_step(conn: pgpoll.Connection) -> None:
    made = [
        conn.stream("no statement at all", prefetch=0),
        conn.stream(5),  # type: ignore[arg-type]
        conn.stream("select $1::int4", "x"),
    ]
    for stream in made:
        assert stream.columns is None
        assert stream.rowcount == 0
    assert await conn.fetchval("select 1") == 1
    del made, stream
    gc.collect()
    assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize("prefetch", [0, -1, 2.0, "10", True, 2**31, 2**80])
async def test_a_wrong_prefetch(conn: pgpoll.Connection, prefetch: Any) -> None:
    for step in (anext, type(conn.stream("")).__aenter__):
        with pytest.raises(pgpoll.InterfaceError, match=r"prefetch must be an int from 1 to 2147483647, or None, not "):
            await step(conn.stream("select 1", prefetch=prefetch))
    assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize("inside", [False, True])
async def test_columns(conn: pgpoll.Connection, inside: bool) -> None:
    async with conn.transaction() if inside else contextlib.nullcontext():
        for _ in range(2):
            async with conn.stream("select 1 as a, 'x'::text as b") as rows:
                assert rows.columns is not None
                assert [(each.name, each.type_name) for each in rows.columns] == [("a", "int4"), ("b", "text")]
                assert rows.rowcount == 0
                assert [tuple(row) async for row in rows] == [(1, "x")]
            async with conn.stream("set application_name = 'x'") as rows:
                assert rows.columns == ()
                assert [row async for row in rows] == []
            assert [row async for row in conn.stream("")] == []


async def test_returning(conn: pgpoll.Connection) -> None:
    """A statement that writes is run as a whole, whatever of its rows is taken; outside of a transaction it is lost."""
    await conn.execute("create temp table t (i int4)")
    insert = "insert into t select generate_series(1, 500) returning i"
    assert sum([row.i async for row in conn.stream(insert, prefetch=10)]) == 125_250
    assert await conn.fetchval("select count(*) from t") == 500
    async with conn.stream(insert, prefetch=10) as rows:
        assert (await anext(rows)).i == 1
    assert await conn.fetchval("select count(*) from t") in (500, 1000)  # committed by the Sync that ended it


async def test_statements(conn: pgpoll.Connection) -> None:
    statement = await conn.prepare("select $1::int4 + i as n from generate_series(1, 50) as t(i)")
    assert [row.n async for row in statement.stream(10, prefetch=7)] == list(range(11, 61))
    async with conn.transaction() as tx:
        inner = await tx.prepare("select $1::int4 as n")
        assert [row.n async for row in inner.stream(3)] == [3]
        assert [row.i async for row in tx.stream(SERIES, 5, prefetch=2)] == [1, 2, 3, 4, 5]


# Who may send meanwhile.


async def test_outside_it_owns_the_connection(conn: pgpoll.Connection) -> None:
    order: list[str] = []

    async def stranger() -> None:
        assert await conn.fetchval("select 5") == 5
        order.append("stranger")

    async with conn.stream(SERIES, 5000, prefetch=10) as rows:
        waiting = asyncio.create_task(stranger(), context=contextvars.Context())
        async for row in rows:
            if row.i in (1, 2500):
                for request in (conn.fetchval("select 1"), conn.transaction().start(), anext(conn.stream("select 1"))):
                    with pytest.raises(pgpoll.InterfaceError, match=r"a stream is open here.*use transaction\(\)"):
                        await request
            await asyncio.sleep(0)
        order.append("ended")  # it has let go of the connection at its last row, not at the end of the block
        await waiting
        assert await conn.fetchval("select 1") == 1
    assert sorted(order) == ["ended", "stranger"]


async def test_a_stream_waits_for_its_turn(conn: pgpoll.Connection) -> None:
    async def total() -> int:
        return sum([row.i async for row in conn.stream(SERIES, 100, prefetch=10)])

    async with conn.transaction():
        waiting = [asyncio.create_task(total(), context=contextvars.Context()) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert await conn.fetchval("select 1") == 1
        assert not any(each.done() for each in waiting)
    assert await asyncio.gather(*waiting, conn.fetchval("select 7")) == [5050] * 5 + [7]


async def test_inside_other_requests_go_in_between(conn: pgpoll.Connection) -> None:
    async with conn.transaction() as tx:
        one, two = conn.stream(SERIES, 300, prefetch=10), tx.stream(SERIES, 300, prefetch=7)
        async for row in one:
            assert (await anext(two)).i == row.i
            assert await conn.fetchval("select $1::int4", row.i) == row.i
            if row.i % 50 == 0:
                async with conn.transaction():
                    assert await tx.fetchval("select 1") == 1
        await two.aclose()
        assert await cursors(conn) == []
        assert conn.transaction_status == "T"


async def test_without_a_limit_it_owns_the_connection_inside_as_well(conn: pgpoll.Connection) -> None:
    async with conn.transaction():
        async for row in conn.stream(SERIES, 10, prefetch=None):
            with pytest.raises(pgpoll.InterfaceError, match="a stream is open here"):
                await conn.fetchval("select 1")
            assert row.i > 0
        assert await conn.fetchval("select 1") == 1


async def test_two_tasks_wait_for_its_next_row(conn: pgpoll.Connection) -> None:
    stream = conn.stream("select 1 as i from pg_sleep(0.1)")
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.02)
    for step in (anext(stream), anext(stream.batches()), stream.aclose()):
        with pytest.raises(pgpoll.InterfaceError, match="in use"):
            await step
    assert (await first).i == 1
    assert [row async for row in stream] == []


# Ends.


async def test_rolled_back_to_before_it_was_opened(conn: pgpoll.Connection) -> None:
    async with conn.transaction():
        outer = conn.stream(SERIES, 100, prefetch=2)
        assert (await anext(outer)).i == 1
        with pytest.raises(ZeroDivisionError):
            async with conn.transaction():
                inner = conn.stream(SERIES, 100, prefetch=2)
                assert (await anext(inner)).i == 1
                raise ZeroDivisionError
        with pytest.raises(pgpoll.InterfaceError, match=r"opened in the transaction entered at .*: rolled back"):
            async for _ in inner:
                pass
        assert [row async for row in inner] == []
        assert conn.transaction_status == "T"
        async with conn.transaction():  # a savepoint that is released leaves its portals to its parent
            kept = conn.stream(SERIES, 100, prefetch=2)
            assert (await anext(kept)).i == 1
        assert [row.i async for row in kept] == list(range(2, 101))
        assert [row.i async for row in outer] == list(range(2, 101))
        late = conn.stream(SERIES, 100, prefetch=2)
        assert (await anext(late)).i == 1
    with pytest.raises(pgpoll.InterfaceError, match=r"opened in the transaction entered at .*: committed"):
        async for _ in late:
            pass
    assert await conn.fetchval("select 1") == 1


async def test_without_a_limit_it_ends_with_its_block(conn: pgpoll.Connection) -> None:
    async with conn.transaction():
        inner = await conn.transaction().__aenter__()
        stream = inner.stream(SERIES, 1_000_000, prefetch=None)
        assert (await anext(stream)).i == 1
        await inner.rollback()
        with pytest.raises(pgpoll.InterfaceError, match=r"opened in the transaction entered at .*: rolled back"):
            async for _ in stream:
                pass
        assert [row async for row in stream] == []
    assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefetch", [None, 3, 1000])
async def test_errors_of_the_server(conn: pgpoll.Connection, prefetch: int | None, inside: bool) -> None:
    sql = "select 100 / (i - 10) as x, i from (select generate_series(1, $1::int4) as i) as t"
    tx = conn.transaction()
    if inside:
        await tx.start()
    stream = conn.stream(sql, 100, prefetch=prefetch)
    seen = []
    with pytest.raises(errors.DivisionByZero):
        async for row in stream:
            seen.append(row.i)  # noqa: PERF401
    assert seen == list(range(1, 10))
    assert stream.rowcount == 9
    assert [row async for row in stream] == []
    for bad in ("select * from nowhere", "select 1; select 2", "select"):
        if not inside and bad != "select":
            with pytest.raises(errors.Error):
                await anext(conn.stream(bad, prefetch=prefetch))
    if inside:
        assert conn.transaction_status == "E"
        await tx.rollback()
    assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefetch", [None, 7, 1000])
async def test_rows_before_an_error_are_given_first(
    conn: pgpoll.Connection, prefetch: int | None, inside: bool, whole: bool
) -> None:
    """Those of a fetch that failed, and of one that has failed when `async with` is entered; once, and then the end."""
    tx = conn.transaction()
    if inside:
        await tx.start()
    seen: list[int] = []
    async with conn.stream("select i, 1 / (20 - i) from generate_series(1, 50) as i", prefetch=prefetch) as rows:
        assert rows.columns is not None
        with pytest.raises(errors.DivisionByZero):
            if whole:
                async for batch in rows.batches():
                    seen.extend(row.i for row in batch)
            async for row in rows:
                seen.append(row.i)  # noqa: PERF401
        assert seen == list(range(1, 20))
        assert rows.rowcount == 19
        assert [row async for row in rows] == []
    if inside:
        assert conn.transaction_status == "E"
        await tx.rollback()
    assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefetch", [None, 4, 1000])
async def test_a_bad_value(conn: pgpoll.Connection, prefetch: int | None, inside: bool) -> None:
    """The rows before it are given; its error names row and column; the stream has ended and the connection goes on."""
    sql = "select i, case when i = 31 then date '5874897-12-31' else date '2000-01-01' end as at"
    sql += " from generate_series(1, $1::int4) as t(i)"
    count = 5000 if prefetch is not None else 100  # so that nothing has to be cancelled: that fails a transaction
    async with conn.transaction() if inside else contextlib.nullcontext():
        stream = conn.stream(sql, count, prefetch=prefetch)
        seen = []
        with pytest.raises(pgpoll.DataError, match=r"row 30, column 1 \('at', date\)"):
            async for row in stream:
                seen.append(row.i)  # noqa: PERF401
        assert seen == list(range(1, 31))
        assert [row async for row in stream] == []
        assert await conn.fetchval("select 1") == 1
    assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize("sql", ["select $1::int4 as i", "select i + $1::int4 as i from generate_series(1, 2) as t(i)"])
async def test_a_bad_argument(conn: pgpoll.Connection, sql: str) -> None:
    for _ in range(2):  # the statement is new, and known
        with pytest.raises(pgpoll.DataError, match=r"\$1"):
            await anext(conn.stream(sql, "x"))
        assert await conn.fetchval("select 1") == 1
    async with conn.transaction():
        with pytest.raises(pgpoll.DataError, match=r"\$1"):
            await anext(conn.stream(sql, "x"))
        assert await conn.fetchval("select 1") == 1


async def test_timeout(conn: pgpoll.Connection) -> None:
    """For each wait, not for the whole."""
    sql = "select i, pg_sleep(0.02) from generate_series(1, 10) as t(i)"
    assert [row.i async for row in conn.stream(sql, prefetch=1, timeout=0.15)] == list(range(1, 11))
    stream = conn.stream("select i, pg_sleep(i * 0.1) from generate_series(0, 100) as t(i)", prefetch=1, timeout=0.05)
    assert (await anext(stream)).i == 0
    with pytest.raises(pgpoll.QueryTimeout):
        await anext(stream)
    assert [row async for row in stream] == []
    assert await conn.fetchval("select 1", timeout=2) == 1


async def test_timeout_in_a_transaction(conn: pgpoll.Connection) -> None:
    """What runs is cancelled at the server, and the transaction fails by that."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(errors.InFailedSqlTransaction):
        async with conn.transaction():
            stream = conn.stream("select i, pg_sleep(20) from generate_series(1, 100) as t(i)", timeout=0.05)
            with pytest.raises(pgpoll.QueryTimeout):
                await anext(stream)
            assert [row async for row in stream] == []
            with pytest.raises(errors.InFailedSqlTransaction):
                await conn.fetchval("select 1")
    assert loop.time() - began < 5
    assert await conn.fetchval("select 1") == 1


async def test_a_cancelled_step_ends_it(conn: pgpoll.Connection) -> None:
    stream = conn.stream("select i, pg_sleep(20) from generate_series(1, 100) as t(i)")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(stream)
    assert [row async for row in stream] == []
    assert await conn.fetchval("select 1", timeout=2) == 1
    with pytest.raises(errors.QueryCanceled):
        async with conn.transaction():
            await anext(conn.stream("set statement_timeout = '50ms'"), None)
            await anext(conn.stream("select pg_sleep(20)"))
    assert conn.transaction_status == "I"


async def test_loss(conn: pgpoll.Connection, dsn: str) -> None:
    async with pgpoll.connect(dsn) as killer:
        for inside in (False, True):
            victim = await pgpoll.connect(dsn)
            tx = victim.transaction()
            if inside:
                await tx.start()
            stream = victim.stream(SERIES, 100_000, prefetch=10)
            assert (await anext(stream)).i == 1
            await killer.execute("select pg_terminate_backend($1, 2000)", victim.backend_pid)
            with pytest.raises(pgpoll.OperationalError):
                async for _ in stream:
                    pass
            assert [row async for row in stream] == []
            assert victim.closed
            with pytest.raises(pgpoll.InterfaceError, match="closed"):
                await anext(victim.stream("select 1"))


async def test_close_and_terminate(dsn: str) -> None:
    for way in ("close", "terminate"):
        conn = await pgpoll.connect(dsn)
        stream = conn.stream(SERIES, 100_000, prefetch=10)
        assert (await anext(stream)).i == 1
        if way == "close":
            await conn.close()
        else:
            conn.terminate()
        assert conn.closed
        with pytest.raises((pgpoll.ConnectionLost, pgpoll.InterfaceError)):
            for _ in range(20):
                await anext(stream)


# What is left behind: nothing.


async def test_observed(dsn: str) -> None:
    seen: list[pgpoll.RequestRecord] = []
    async with pgpoll.connect(dsn, on_request=seen.append) as conn:
        assert len([row async for row in conn.stream(SERIES, 2500, prefetch=100)]) == 2500
        (record,) = [each for each in seen if each.sql == SERIES]
        assert (record.rows, record.error) == (2500, None)
        seen.clear()
        async with conn.transaction():
            assert len([row async for row in conn.stream(SERIES, 250, prefetch=100)]) == 250
        records = [each for each in seen if each.sql == SERIES]
        assert sum(each.rows for each in records) == 250
        assert all(each.finished >= each.sent >= each.queued for each in records if each.sent is not None)


async def test_dropped_in_a_cycle(conn: pgpoll.Connection) -> None:
    """The collector lets go of it, wherever it runs, and without a word."""
    for inside in (False, True):
        async with conn.transaction() if inside else contextlib.nullcontext():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                holder: list[Any] = [conn.stream(SERIES, 1_000_000, prefetch=10)]
                holder.append(holder)
                assert (await anext(holder[0])).i == 1
                del holder
                await asyncio.to_thread(gc.collect)
                await asyncio.sleep(0.01)
                assert await conn.fetchval("select 1", timeout=1) == 1
                assert await cursors(conn) == []
