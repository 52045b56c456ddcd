"""faults.md 2.1, rows 13 to 19: what a real server does to its connections, and what the kernel does to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import pgpoll
import server as _server
from callers import slow_commit
from pgpoll import errors, sync
from sanity import Sanity, SyncSanity, run_delay

# How a backend may be caught: what it runs at that moment, if anything.
MOMENTS = ["idle", "in a query", "in a transaction", "in a pipeline"]


@pytest.fixture(scope="module")
def victim() -> Iterator[_server.Server]:
    """A server of which backends are killed: all others of it go down with them."""
    with _server.Server(superuser_reserved_connections="3", max_connections="20") as running:
        yield running


@pytest.fixture
async def watcher(dsn: str) -> AsyncIterator[pgpoll.Connection]:
    async with pgpoll.connect(dsn) as connection:
        yield connection


async def sleeping(watcher: pgpoll.Connection, pid: int) -> None:
    """Until that backend is within pg_sleep."""
    async with asyncio.timeout(10):
        while await watcher.fetchval("select wait_event from pg_stat_activity where pid = $1", pid) != "PgSleep":  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def at_moment(sane: Sanity, conn: pgpoll.Connection, moment: str) -> list[asyncio.Task[Any]]:
    """Brings the connection there; its requests."""
    if moment == "idle":
        return []
    if moment == "in a transaction":
        tx = conn.transaction()
        await tx.start()
        return [asyncio.create_task(tx.execute("select pg_sleep(20)"))]
    count = 1 if moment == "in a query" else 5
    return [asyncio.create_task(conn.execute("select pg_sleep(20), $1::int4", n)) for n in range(count)]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_f13_terminated(assert_sane: Sanity, watcher: pgpoll.Connection, moment: str) -> None:
    conn = await assert_sane.connect()
    tasks = await at_moment(assert_sane, conn, moment)
    if tasks:
        await sleeping(watcher, conn.backend_pid)
    delay = run_delay()
    assert await watcher.fetchval("select pg_terminate_backend($1)", conn.backend_pid)
    async with asyncio.timeout(1 + run_delay() - delay):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await assert_sane.until(lambda: conn.closed, 1)  # also where nobody asks: before it is used
    for outcome in outcomes:
        assert isinstance(outcome, pgpoll.OperationalError)
        assert_sane.examine(outcome)
    if outcomes:
        assert isinstance(outcomes[0], errors.AdminShutdown)
        assert outcomes[0].sqlstate == "57P01"
    for follower in outcomes[1:]:
        assert isinstance(follower, pgpoll.ConnectionLost)
        assert isinstance(follower.__cause__, errors.AdminShutdown)


@pytest.mark.parametrize("moment", ["idle", "in a query", "in a transaction"])
def test_f13_terminated_blocking(assert_sane_sync: SyncSanity, moment: str) -> None:
    with sync.connect(assert_sane_sync.dsn) as watcher:
        conn = assert_sane_sync.connect()
        kill = "select pg_terminate_backend(pg_backend_pid())"
        if moment == "idle":
            watcher.execute("select pg_terminate_backend($1, 5000)", conn.backend_pid)
        with assert_sane_sync.raises(errors.AdminShutdown):
            if moment == "in a transaction":
                with conn.transaction():
                    conn.execute(kill)
            else:
                conn.execute("select 1" if moment == "idle" else kill)


async def test_f13_terminated_in_a_commit(assert_sane: Sanity, watcher: pgpoll.Connection) -> None:
    conn = await assert_sane.connect()
    await conn.executescript(slow_commit(20))

    async def body() -> None:
        async with conn.transaction():
            await conn.execute("insert into d values (1)")

    task = asyncio.create_task(body())
    await sleeping(watcher, conn.backend_pid)
    await watcher.execute("select pg_terminate_backend($1)", conn.backend_pid)
    with assert_sane.raises(pgpoll.CommitUnknown) as caught:
        await asyncio.wait_for(task, 5)
    assert isinstance(caught.value.__cause__, errors.AdminShutdown)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_f14_killed(assert_sane: Sanity, victim: _server.Server, moment: str) -> None:
    """kill -9: the postmaster ends all others too, and refuses for a while."""
    assert_sane.dsn = victim.dsn
    conn, other = await assert_sane.connect(), await assert_sane.connect()
    tasks = await at_moment(assert_sane, conn, moment)
    if tasks:
        await sleeping(other, conn.backend_pid)
    innocent = asyncio.create_task(other.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.02)
    os.kill(conn.backend_pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*tasks, innocent, return_exceptions=True)
        await assert_sane.until(lambda: conn.closed and other.closed)
    for outcome in outcomes:
        assert isinstance(outcome, (pgpoll.ConnectionLost, errors.CrashShutdown)), repr(outcome)
        assert isinstance(outcome, pgpoll.OperationalError)
        assert_sane.examine(outcome)
    refusals = 0
    async with asyncio.timeout(20):
        while True:
            try:
                await assert_sane.connect()
            except (errors.CannotConnectNow, pgpoll.ConnectionLost) as error:  # 57P03, or not listening
                assert_sane.examine(error)
                refusals += 1
                await asyncio.sleep(0.02)
            else:
                break


def test_f14_killed_blocking(assert_sane_sync: SyncSanity, victim: _server.Server) -> None:
    assert_sane_sync.dsn = victim.dsn
    conn, other = assert_sane_sync.connect(), assert_sane_sync.connect()
    os.kill(conn.backend_pid, signal.SIGKILL)
    for each in (conn, other):
        with assert_sane_sync.raises(pgpoll.ConnectionLost, errors.CrashShutdown):
            each.execute("select pg_sleep(20)")  # for a moment it may be served
    recovered(victim)


def recovered(victim: _server.Server) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with sync.connect(victim.dsn):
                return
        except pgpoll.OperationalError:
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.02)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP; the kernel goes on taking bytes for it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_f16_a_frozen_backend(assert_sane: Sanity) -> None:
    """Deadlines hold, tasks are told at once; when it goes on so does the connection. At most one CancelRequest."""
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    await assert_sane.ask(conn)
    with stopped(conn.backend_pid):
        task = asyncio.create_task(conn.execute("select 1"))
        others = [asyncio.create_task(conn.fetchval("select $1::int4", n)) for n in range(10)]
        await asyncio.sleep(0.05)
        for each in (task, *others[:5]):
            with assert_sane.at_once(0.05):
                each.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await each
        with assert_sane.raises(pgpoll.QueryTimeout):
            await conn.execute("select 1", timeout=0.05)
        assert not conn.closed
    assert await asyncio.wait_for(asyncio.gather(*others[5:]), 5) == list(range(5, 10))
    await assert_sane.usable(conn)
    assert proxy.cancels <= 1


def test_f16_a_frozen_backend_blocking(assert_sane_sync: SyncSanity) -> None:
    conn = assert_sane_sync.connect()
    with stopped(conn.backend_pid), assert_sane_sync.at_once(0.5), assert_sane_sync.raises(pgpoll.QueryTimeout):
        conn.execute("select 1", timeout=0.1)
    assert_sane_sync.usable(conn)


async def test_f16_a_frozen_postmaster(assert_sane: Sanity, victim: _server.Server) -> None:
    """Connections go on; new ones have their deadline."""
    assert_sane.dsn = victim.dsn
    conn = await assert_sane.connect()
    with stopped(victim.pid):
        await assert_sane.usable(conn)
        with assert_sane.at_once(0.4), assert_sane.raises(pgpoll.QueryTimeout):
            await assert_sane.connect(connect_timeout=0.3)


async def test_f17_too_many_connections(assert_sane: Sanity, victim: _server.Server) -> None:
    assert_sane.dsn = victim.dsn
    conn = await assert_sane.connect()
    await conn.execute("drop role if exists few")
    await conn.execute("create role few login connection limit 1")
    await assert_sane.connect(user="few")
    with assert_sane.at_once(0.5), assert_sane.raises(errors.TooManyConnections) as caught:
        await assert_sane.connect(user="few")
    assert caught.value.sqlstate == "53300"
    assert isinstance(caught.value, pgpoll.OperationalError)
    with assert_sane.raises(errors.TooManyConnections):
        for _ in range(30):
            await assert_sane.connect()


async def test_f17_a_database_that_goes_away(assert_sane: Sanity, victim: _server.Server) -> None:
    assert_sane.dsn = victim.dsn
    watcher = await assert_sane.connect()
    await watcher.execute("create database doomed")
    conn = await assert_sane.connect(dbname="doomed")
    task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    await sleeping(watcher, conn.backend_pid)
    await watcher.execute("drop database doomed with (force)")
    with assert_sane.raises(errors.AdminShutdown, errors.DatabaseDropped):
        await asyncio.wait_for(task, 5)
    with assert_sane.raises(errors.InvalidCatalogName):
        await assert_sane.connect(dbname="doomed")


async def test_f17_not_yet(assert_sane: Sanity, victim: _server.Server) -> None:
    """57P03 while it starts: the condition's own class, and nothing hangs."""
    assert_sane.dsn = victim.dsn
    conn, other = await assert_sane.connect(), await assert_sane.connect()
    os.kill(conn.backend_pid, signal.SIGKILL)
    await assert_sane.until(lambda: other.closed)  # now the postmaster knows
    seen = set()
    async with asyncio.timeout(20):
        while True:
            try:
                await assert_sane.connect()
            except pgpoll.OperationalError as error:
                assert_sane.examine(error)
                seen.add(type(error))
            else:
                break
    assert seen <= {errors.CannotConnectNow, pgpoll.ConnectionLost, errors.CrashShutdown}, seen


FATAL = [
    ("idle_in_transaction_session_timeout", "25P03", errors.IdleInTransactionSessionTimeout),
    ("idle_session_timeout", "57P05", errors.IdleSessionTimeout),
    ("transaction_timeout", "25P04", errors.TransactionTimeout),
]


@pytest.mark.parametrize(("setting", "sqlstate", "kind"), FATAL)
async def test_f18_the_servers_timeouts_that_end_all(
    assert_sane: Sanity, setting: str, sqlstate: str, kind: type[pgpoll.DatabaseError]
) -> None:
    conn = await assert_sane.connect(None, **{setting: 50})
    if "transaction" in setting:
        tx = conn.transaction()
        await tx.start()
        await tx.execute("select 1")
    await assert_sane.until(lambda: conn.closed)
    why = conn._core.why_closed
    assert isinstance(why, kind)
    assert why.sqlstate == sqlstate
    with assert_sane.raises(pgpoll.InterfaceError):
        await conn.execute("select 1")


async def test_f18_transaction_timeout_in_a_query(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect(transaction_timeout=50)
    with assert_sane.raises(errors.TransactionTimeout) as caught:
        async with conn.transaction() as tx:
            await tx.execute("select pg_sleep(20)")
    assert isinstance(caught.value, pgpoll.OperationalError)


async def test_f18_statement_timeout_is_not_our_cancel(assert_sane: Sanity) -> None:
    """57014 without a CancelRequest is the request's own error: told, and never taken for a stray one."""
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    await conn.execute("set statement_timeout = 30")
    for _ in range(3):
        with assert_sane.raises(errors.QueryCanceled, match="statement timeout"):
            await conn.execute("select pg_sleep(20)")
        await assert_sane.usable(conn)
    tasks = [
        asyncio.create_task(conn.fetchval("select $1::int4 from pg_sleep($2::float8)", n, n % 2)) for n in range(4)
    ]
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert [each if isinstance(each, int) else type(each) for each in told] == [
        *(0, errors.QueryCanceled, 2, errors.QueryCanceled)
    ]
    assert proxy.cancels == 0


async def test_f18_lock_timeout(assert_sane: Sanity) -> None:
    holder, conn = await assert_sane.connect(), await assert_sane.connect(lock_timeout=30)
    async with holder.transaction():
        await holder.execute("select pg_advisory_xact_lock(4711)")
        with assert_sane.raises(errors.LockNotAvailable) as caught:
            await conn.execute("select pg_advisory_xact_lock(4711)")
        assert caught.value.sqlstate == "55P03"
        await assert_sane.usable(conn)


async def test_f19_no_more_room(assert_sane: Sanity) -> None:
    """53400 stands for a full disk: the limit for temporary files is reached in the middle of rows, and a RAISE of
    53100 is mapped; the connection is usable after ROLLBACK."""
    conn = await assert_sane.connect()
    await conn.executescript("set temp_file_limit = '100kB'; set work_mem = '64kB'")
    with assert_sane.raises(errors.ConfigurationLimitExceeded) as caught:
        async with conn.transaction():
            await conn.fetch("select i from generate_series(1, 1000000) as t(i) order by i desc")
    assert caught.value.sqlstate == "53400"
    with assert_sane.raises(errors.DiskFull):
        await conn.execute("do $$ begin raise 'full' using errcode = '53100'; end $$")
    await conn.executescript("reset temp_file_limit; reset work_mem")
