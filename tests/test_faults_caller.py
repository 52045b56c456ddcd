"""faults.md 2.3, rows 53 to 58 and 60, on a real server: what a caller gives wrongly never reaches the wire.

Rows 53, 54, 56 and 59 have their tables in test_conninfo.py, test_parameters.py and test_poll_api.py; here is what they
do to the connection: nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import mmap
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import pgpoll
from proxy import Proxy
from sanity import Sanity, SyncSanity


async def unsent(sane: Sanity, conn: pgpoll.Connection, proxy: Proxy, verb: Coroutine[Any, Any, Any]) -> pgpoll.Error:
    """Awaits what raises; no byte of it has left."""
    await sane.ask(conn)
    before = proxy.streams["client"]
    with sane.raises(pgpoll.InterfaceError, pgpoll.DataError) as caught:
        await verb
    await asyncio.sleep(0.02)
    assert proxy.streams["client"] == before, "something has left"
    error: pgpoll.Error = caught.value
    return error


async def test_f53_nul(assert_sane: Sanity) -> None:
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    await conn.prepare("select $1::text")
    for verb in (
        conn.execute("select 'hid\0den'"),
        conn.fetchval("select 'hid\0den', $1::int4", 1),
        conn.executescript("select 1; select 'hid\0den'"),
        conn.prepare("select 'hid\0den'"),
        conn.execute("select $1::text", "hid\0den"),
        conn.execute("select $1::text", "hid\0den", timeout=1),
    ):
        assert "den" not in str(await unsent(assert_sane, conn, proxy, verb)).replace("hidden", "")


async def test_f54_text_that_is_none(assert_sane: Sanity) -> None:
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    await conn.prepare("select $1::text, $2::int8")
    for sql in (b"select 1", None, 5, "select '\ud800'"):
        await unsent(assert_sane, conn, proxy, conn.execute(sql))  # type: ignore[arg-type]
    for args, named in ((("\ud800", 1), "$1"), ((b"x", 1), "$1"), (("x", 2**63), "$2"), (("x", 1.5), "$2")):
        error = await unsent(assert_sane, conn, proxy, conn.execute("select $1::text, $2::int8", *args))
        assert isinstance(error, pgpoll.DataError)
        assert named in str(error)


async def test_f55_too_many_parameters(assert_sane: Sanity) -> None:
    """65,535 work (test_f12_...); one more never leaves."""
    assert_sane.blocking_allowed = True
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    error = None
    try:
        await conn.execute("select 1", *range(65_536))
    except pgpoll.Error as raised:
        error = raised
    assert isinstance(error, (pgpoll.InterfaceError, pgpoll.DataError)), error
    await assert_sane.usable(conn)


def most_memory() -> int:
    """Bytes resident at most, since the last time."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux measures the memory")
async def test_f56_more_than_a_message_takes(assert_sane: Sanity) -> None:
    """Refused before it is copied, and before any of it is sent."""
    assert_sane.blocking_allowed = True
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    wide = f"select $1::bytea{', 1' * 1600}"  # what says in which format each column is to come takes its room, too
    one, two = "select length($1::bytea)", "select length($1::bytea) + length($2::bytea)"
    lazily = mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no page of it is there
    with (
        lazily,
        memoryview(lazily) as all_of_it,
        all_of_it[: 1 << 31] as half,
        all_of_it[: (1 << 30) - (1 << 20)] as most,
        all_of_it[: (1 << 30) - 2000] as nearly,
        all_of_it[: 16 << 20] as little,
    ):
        for sql, args in (
            *((one, (too_much,)) for too_much in (all_of_it, half, bytes((1 << 30) + 5))),
            *((two, (half, half)), (two, (little, half)), (two, (little, most)), (wide, (nearly,))),
        ):
            await conn.prepare(sql)
            most_memory()
            before, sent = most_memory(), proxy.streams["client"]
            with assert_sane.raises(pgpoll.InterfaceError, match="GiB"):
                await conn.execute(sql, *args)
            assert most_memory() - before < 64 << 20
            assert proxy.streams["client"] == sent, "something has left"
            await assert_sane.ask(conn)
        with assert_sane.raises(pgpoll.InterfaceError, match="GiB"):
            await conn.execute(f"{two} -- new", half, b"")


async def test_f57_wrong_counts(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    for _ in range(2):  # new, then known
        for args in ((), (1,), (1, 2, 3)):
            with assert_sane.raises(pgpoll.InterfaceError, pgpoll.DataError) as caught:
                await conn.fetchval("select $1::int4 + $2::int4", *args)
            assert "2" in str(caught.value)
        with assert_sane.raises(pgpoll.DataError, pgpoll.InterfaceError):
            await conn.fetchval("select $1::int4 + $2::int4", (1, 2))
        neighbours = [conn.fetchval("select $1::int4 + $2::int4", n, 1) for n in range(5)]
        neighbours.insert(2, conn.fetchval("select $1::int4 + $2::int4", 1))
        outcomes = await asyncio.gather(*neighbours, return_exceptions=True)
        assert isinstance(outcomes.pop(2), pgpoll.Error)
        assert outcomes == [1, 2, 3, 4, 5]


async def test_f57_one_tuple_for_all(assert_sane: Sanity) -> None:
    """As other drivers take their parameters: the error says how these do. A list may be meant as an array."""
    conn = await assert_sane.connect()
    for _ in range(2):  # new, then known
        for sql in ("select 1", "select $1::int4", "select $1::text", "select $1::uuid", "select $1::int4 + $2::int4"):
            for one in ((7, 8), [7, 8]):
                hint = rf"parameters are \*args, and one {type(one).__name__} was passed"
                with assert_sane.raises(pgpoll.DataError, pgpoll.InterfaceError, match=hint):
                    await conn.fetchval(sql, one)
        assert await conn.fetchval("select $1::int4[]", [7, 8]) == [7, 8]
        for sql, args in (("select $1::int4[]", ([7, "8"],)), ("select $1::int4, $2::int4", ([7], 8))):
            with assert_sane.raises(pgpoll.DataError) as caught:
                await conn.fetchval(sql, *args)
            assert "*args" not in str(caught.value)


async def test_f57_iteration_that_changes_its_list(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()

    class Pop:
        def __index__(self) -> int:
            values.clear()
            return 1

    values: list[Any] = [Pop(), 2, 3]
    for _ in range(2):
        values[:] = [Pop(), 2, 3]
        with assert_sane.raises(pgpoll.Error):
            await conn.fetchval("select $1::int4[]", values)
        await assert_sane.usable(conn)


async def test_f58_a_buffer_changed_after_the_call(assert_sane: Sanity) -> None:
    """What is sent is what was there when the request was made."""
    conn = await assert_sane.connect()
    for size in (10, 3_000_000):
        buffer = bytearray(b"a" * size)
        await conn.prepare("select md5($1::bytea)")
        expected = await conn.fetchval("select md5($1::bytea)", bytes(buffer))
        head = asyncio.create_task(conn.execute("select pg_sleep(0.05)"))
        task = asyncio.create_task(conn.fetchval("select md5($1::bytea)", buffer))
        await asyncio.sleep(0.01)
        buffer[:] = b"b" * size
        buffer.clear()  # a BufferError, were it still exported
        assert await task == expected
        await head
        view = memoryview(bytearray(b"a" * size))
        task = asyncio.create_task(conn.fetchval("select md5($1::bytea)", view))
        await asyncio.sleep(0)
        del view
        gc.collect()
        assert await task == expected


# -- ownership (D18)


async def test_f60_two_transactions_at_once(assert_sane: Sanity) -> None:
    """They follow each other; nobody is told that another operation is in progress."""
    conn = await assert_sane.connect()
    await conn.execute("create temp table t (i int4)")

    async def one(n: int) -> int:
        async with conn.transaction() as tx:
            before = await tx.fetchval("select count(*) from t")
            await asyncio.sleep(0)
            await tx.execute("insert into t values ($1)", n)
            assert await tx.fetchval("select count(*) from t") == before + 1
            return int(before)

    tasks = [asyncio.create_task(one(n), context=contextvars.Context()) for n in range(20)]
    assert sorted(await asyncio.gather(*tasks)) == list(range(20))


async def test_f60_a_self_deadlock_is_told(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    async with conn.transaction() as outer, conn.transaction():
        with assert_sane.raises(pgpoll.InterfaceError, match="test_faults_caller"):
            await outer.commit()


async def test_f60_cancelling_a_waiter_leaves_no_trace(assert_sane: Sanity) -> None:
    """In the line, of every kind: nothing is sent of it, and those behind it go on in order."""
    conn = await assert_sane.connect()
    await conn.execute("create temp table t (i int4)")
    order: list[int] = []

    async def waiter(n: int) -> None:
        if n % 3 == 0:
            async with conn.transaction() as tx:
                await tx.execute("insert into t values ($1)", n)
        elif n % 3 == 1:
            await conn.execute("insert into t values ($1)", n, timeout=20)
        else:
            await conn.executescript(f"insert into t values ({n})")
        order.append(n)

    async with conn.transaction() as tx:
        tasks = [asyncio.create_task(waiter(n), context=contextvars.Context()) for n in range(30)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await tx.execute("insert into t values (100)")
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [n % 2 == 0 for n in range(30)]
    assert order == list(range(1, 30, 2))
    assert await conn.fetchval("select array_agg(i order by i) from t") == [*range(1, 30, 2), 100]
    assert not conn._driver.blocks.stack
    assert conn._driver.blocks.oldest is None


async def test_f60_two_tasks_in_one_context(assert_sane: Sanity) -> None:
    """What the one carries the other has too; the block's end is judged by the connection, not by the context."""
    conn = await assert_sane.connect()
    context = contextvars.copy_context()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def owner() -> None:
        async with conn.transaction() as tx:
            await tx.execute("select 1")
            entered.set()
            await leave.wait()

    async def other() -> str:
        await entered.wait()
        inside = await conn.fetchval("select pg_current_xact_id()::text")
        leave.set()
        await first
        outside = await conn.fetchval("select pg_current_xact_id()::text")
        return "inside" if inside != outside and conn.transaction_status == "I" else "mixed"

    first = asyncio.create_task(owner(), context=context)
    assert await asyncio.wait_for(asyncio.create_task(other(), context=context), 5) == "inside"
    await first


async def test_f60_a_long_wait_names_owner_and_place(
    assert_sane: Sanity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pgpoll._loop.PATIENCE_SECONDS", 0.05)
    conn = await assert_sane.connect()
    with caplog.at_level(logging.WARNING, "pgpoll"):
        async with conn.transaction():
            waiting = asyncio.create_task(conn.fetchval("select 1"), context=contextvars.Context())
            await assert_sane.until(lambda: bool(caplog.records))
            await asyncio.sleep(0.15)
    assert await waiting == 1
    task = asyncio.current_task()
    assert task is not None
    assert len(caplog.records) == 1, "once for a block"
    assert task.get_name() in caplog.text
    assert "test_faults_caller.py:" in caplog.text


def test_f60_two_verbs_at_once_blocking(assert_sane_sync: SyncSanity) -> None:
    conn = assert_sane_sync.connect()
    with conn.transaction() as outer, conn.transaction(), assert_sane_sync.raises(pgpoll.InterfaceError):
        outer.commit()
