"""faults.md rows 15, 19, 20: servers that are restarted or gone, and a disk that is full.

What a pool will do is played by slots here: each has one connection, and makes another when that is lost.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import pgpoll
import server as _server
from pgpoll import errors
from sanity import Sanity

TASKS = 50
SLOTS = 8


class Operator:
    """Ends and starts a server without blocking the loop, always in the same thread: the server ends with that."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.thread.submit(int).result()  # it is there before the test counts threads

    async def shut_down(self, server: _server.Server, how: signal.Signals) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, server.shut_down, how)

    async def resume(self, server: _server.Server) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, server.resume)


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    made = Operator()
    yield made
    made.thread.shutdown()


@pytest.fixture(scope="module")
def fragile(operator: Operator) -> Iterator[_server.Server]:
    with _server.Server() as running:
        yield running


class Slot:
    """One connection, made anew when it is lost; one attempt at a time."""

    def __init__(self, sane: Sanity) -> None:
        self.sane = sane
        self.conn: pgpoll.Connection | None = None
        self.connecting = asyncio.Lock()
        self.refusals: set[type[BaseException]] = set()

    async def connected(self) -> pgpoll.Connection:
        async with self.connecting:
            while self.conn is None or self.conn.closed:
                try:
                    self.conn = await self.sane.connect(connect_timeout=2)
                except pgpoll.OperationalError as error:
                    self.sane.examine(error)
                    self.refusals.add(type(error))
                    await asyncio.sleep(0.02)
            return self.conn


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
async def test_f15_restarted_under_load(
    assert_sane: Sanity, fragile: _server.Server, operator: Operator, how: signal.Signals
) -> None:
    """No request hangs or gets another's answer; every task goes on within 2 s after the server does."""
    assert_sane.dsn = fragile.dsn
    assert_sane.blocking_allowed = True  # fifty tasks on one processor
    slots = [Slot(assert_sane) for _ in range(SLOTS)]
    answered = [0] * TASKS
    lost: set[type[BaseException]] = set()
    over = False

    async def work(number: int) -> None:
        slot = slots[number % SLOTS]
        while not over:
            token = assert_sane.token()
            conn = await slot.connected()
            try:
                if token % 3 == 0:
                    async with conn.transaction() as tx:
                        assert await tx.fetchval("select $1::int8, pg_sleep(0.001)", token) == token
                else:
                    assert await conn.fetchval("select $1::int8, pg_sleep(0.002)", token) == token
                answered[number] += 1
            except (pgpoll.OperationalError, pgpoll.InterfaceError) as error:
                assert_sane.examine(error)
                assert conn.closed
                lost.add(type(error))

    async def everyone_goes_on(seconds: float) -> None:
        before = list(answered)
        await assert_sane.until(lambda: all(now > then for now, then in zip(answered, before, strict=True)), seconds)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(TASKS):
            group.create_task(work(number))
        for _ in range(2):
            await everyone_goes_on(10)
            await operator.shut_down(fragile, how)
            await operator.resume(fragile)
            await everyone_goes_on(2)
        over = True
    told = {errors.AdminShutdown} if how == signal.SIGINT else {errors.CrashShutdown, pgpoll.ConnectionLost}
    assert lost & told, lost
    allowed = {errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, pgpoll.ConnectionLost}
    assert set().union(*(slot.refusals for slot in slots)) <= allowed
    assert lost <= {*allowed, pgpoll.CommitUnknown, pgpoll.InterfaceError}, lost


async def test_f20_the_next_host(
    assert_sane: Sanity, fragile: _server.Server, operator: Operator, server: _server.Server
) -> None:
    """The first one dies, and comes back: whoever connects takes the first that answers, and knows its statements
    from nowhere else."""
    assert_sane.dsn = fragile.dsn
    both = {"host": "127.0.0.1,127.0.0.1", "port": f"{fragile.port},{server.port}"}

    async def at(conn: pgpoll.Connection) -> int:
        assert await conn.fetchval("select $1::int4 + 1", 1) == 2
        return int(await conn.fetchval("select current_setting('port')"))

    conn = await assert_sane.connect(None, **both)
    assert await at(conn) == fragile.port
    running = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.02)
    await operator.shut_down(fragile, signal.SIGQUIT)
    with assert_sane.raises(errors.CrashShutdown, pgpoll.ConnectionLost):
        await running
    try:
        other = await assert_sane.connect(None, **both)
        assert await at(other) == server.port
    finally:
        await operator.resume(fragile)
    back = await assert_sane.connect(None, **both)
    assert await at(back) == fragile.port
    assert await at(other) == server.port


@pytest.fixture
def small_disk(fragile: _server.Server) -> Iterator[pathlib.Path]:
    """A file system of 4 MiB that belongs to the server."""
    where = fragile.directory / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "pgpoll", where], check=True)
    try:
        owned = where / "space"
        owned.mkdir()
        account = fragile.directory.stat()
        os.chown(owned, account.st_uid, account.st_gid)
        yield owned
    finally:
        subprocess.run(["umount", where], check=True)
        where.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system needs root")
async def test_f19_a_full_disk(assert_sane: Sanity, fragile: _server.Server, small_disk: pathlib.Path) -> None:
    """Where rows go, and where temporary files go; with neighbours on the wire, whom it does not concern."""
    assert_sane.dsn = fragile.dsn
    conn = await assert_sane.connect()
    await conn.execute(f"create tablespace small location '{small_disk}'")
    try:
        table = "create table filling (i int8, t text) tablespace small"
        await conn.execute(table)
        fill = "insert into filling select i, repeat('x', 500) from generate_series(1, $1::int4) as t(i)"
        assert (await conn.execute(fill, 100)).rowcount == 100
        outcomes = await asyncio.gather(
            conn.fetchval("select 1"), conn.execute(fill, 100_000), conn.fetchval("select 2"), return_exceptions=True
        )
        assert (outcomes[0], outcomes[2]) == (1, 2)
        assert isinstance(outcomes[1], errors.DiskFull)
        assert outcomes[1].sqlstate == "53100"
        assert_sane.examine(outcomes[1])
        with assert_sane.raises(errors.DiskFull):
            async with conn.transaction() as tx:
                await tx.execute(fill, 10)
                await tx.execute(fill, 100_000)
        assert await conn.fetchval("select count(*) from filling") == 100
        await conn.executescript("set temp_tablespaces = small; set work_mem = '64kB'")
        with assert_sane.raises(errors.DiskFull):  # in the middle of rows, or before
            await conn.fetch("select i from generate_series(1, 2000000) as t(i) order by i desc")
        await conn.executescript("reset temp_tablespaces; reset work_mem")
        await conn.executescript("drop table filling")
        await conn.execute("checkpoint")  # its files are gone
        await conn.execute(table)
        assert (await conn.execute(fill, 100)).rowcount == 100
    finally:
        await conn.executescript("drop table if exists filling")
        await conn.execute("drop tablespace small")
