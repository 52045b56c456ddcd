"""faults.md 2.4 on a real server: every verb cancelled at every suspension, late CancelRequests, timeouts at the reply.

PGPOLL_RUNS: how often each verb is cancelled at each point (default 1); PGPOLL_CHAOS: random cancels and timeouts of
the chaos tests (default 600); PGPOLL_FIRST_SEED: the first seed.
"""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

import pgpoll
import server as _server
from callers import stranger
from pgpoll import errors
from proxy import Faults
from sanity import Sanity

RUNS = int(os.environ.get("PGPOLL_RUNS", "1"))
CHAOS = int(os.environ.get("PGPOLL_CHAOS", "600"))
SEED = int(os.environ.get("PGPOLL_FIRST_SEED", "0"))


async def in_transaction(conn: pgpoll.Connection) -> Any:
    async with conn.transaction():
        return await conn.fetchval("select 1")


async def nested(conn: pgpoll.Connection) -> Any:
    async with conn.transaction(), conn.transaction() as tx:
        return await tx.fetchval("select 1")


async def by_hand(conn: pgpoll.Connection, end: str) -> None:
    tx = conn.transaction()
    await tx.start()
    await getattr(tx, end)()


async def prepared(conn: pgpoll.Connection, verb: str) -> Any:
    return await getattr(await conn.prepare("select $1::int4 + 0"), verb)(5)


MADE: set[int] = set()


async def streamed(conn: pgpoll.Connection, prefetch: int | None, *, inside: bool = False, by_hand: bool = True) -> Any:
    """Rows that come in many parts, some of them slowly."""
    sql = "select i, case when i = 8 then pg_sleep(0.001) end from generate_series(1, 12) as t(i)"
    async with contextlib.AsyncExitStack() as stack:
        if inside:
            await stack.enter_async_context(conn.transaction())
        stream = conn.stream(sql, prefetch=prefetch)
        if by_hand:
            assert [row[0] async for row in stream] == list(range(1, 13))
            return
        async with stream as rows:
            async for batch in rows.batches():
                if batch[-1][0] > 6:
                    break


async def into(conn: pgpoll.Connection, copy: Callable[[], Awaitable[Any]]) -> None:
    """A COPY into a table, which is made once. test_copy.py looks at what is in such a table."""
    if conn.backend_pid not in MADE:
        await conn.execute("create temp table if not exists copied (i int4, t text)")
        MADE.add(conn.backend_pid)
    await copy()


async def lines() -> AsyncIterator[bytes]:
    for n in range(3):
        await asyncio.sleep(0)
        yield b"%d\tx\n" % n


async def some(source: AsyncIterator[Any], at_most: int) -> None:
    """The first few of a COPY, which is then left."""
    async for _ in source:
        at_most -= 1
        if not at_most:
            break


async def listening(conn: pgpoll.Connection, *channels: str) -> Any:
    async with conn.listen(*channels) as notifications:
        await conn.execute("notify a")
        return await anext(notifications)


async def explained(conn: pgpoll.Connection) -> Any:
    return await (await conn.prepare("select $1::int4")).explain(5, analyze=True)


BIG = "copy (select repeat('x', 5000) from generate_series(1, 100)) to stdout"
BREAKING = "copy (select 1 / (9 - i) from generate_series(1, 9) i) to stdout"

NEW = itertools.count()


async def in_batch(conn: pgpoll.Connection, *texts: str) -> list[Any]:
    async with conn.batch() as batch:
        items = [batch.fetchval(each) for each in texts]
        await asyncio.sleep(0)
        items.append(batch.fetchval("select $1::int4", 1))
    return [await each for each in items]


async def rows(count: int, error: BaseException | None = None) -> AsyncIterator[tuple[int]]:
    for n in range(count):
        await asyncio.sleep(0)
        yield (n,)
    if error is not None:
        raise error


def new() -> str:
    return f"select {next(NEW)} + $1::int4"


# Every verb of the asyncio face, each way to take.
VERBS: dict[str, Callable[[pgpoll.Connection], Coroutine[Any, Any, Any]]] = {
    "execute": lambda c: c.execute("select $1::int4", 1),
    "execute, new statement": lambda c: c.execute(f"select $1::int4 + {next(NEW)}", 1),
    "execute, timed": lambda c: c.execute("select $1::int4", 1, timeout=20),
    "execute, many rows": lambda c: c.execute("select repeat('x', 5000) from generate_series(1, 400)"),
    "execute, error": lambda c: c.execute("select 1 / $1::int4", 0),
    "execute, bad argument": lambda c: c.execute(f"select $1::int4 - {next(NEW)}", "x"),
    "execute, COPY": lambda c: c.execute("copy (select 1) to stdout"),
    "fetch": lambda c: c.fetch("select i from generate_series(1, 100) as t(i)"),
    "fetchrow": lambda c: c.fetchrow("select 1, 2"),
    "fetchval": lambda c: c.fetchval("select 1"),
    "fetchval, running long": lambda c: c.fetchval("select 1, pg_sleep(0.003)"),
    "executescript": lambda c: c.executescript("select 1; select 2"),
    "prepare": lambda c: c.prepare(f"select $1::int4 * {next(NEW)}"),
    "prepared execute": lambda c: prepared(c, "execute"),
    "prepared fetch": lambda c: prepared(c, "fetch"),
    "prepared fetchrow": lambda c: prepared(c, "fetchrow"),
    "prepared fetchval": lambda c: prepared(c, "fetchval"),
    "stream": lambda c: streamed(c, 4),
    "stream, left": lambda c: streamed(c, 4, by_hand=False),
    "stream, no limit": lambda c: streamed(c, None),
    "stream in a transaction": lambda c: streamed(c, 4, inside=True),
    "stream in a transaction, left": lambda c: streamed(c, 4, inside=True, by_hand=False),
    "stream, error": lambda c: anext(c.stream("select 1 / $1::int4", 0)),
    "transaction": in_transaction,
    "transaction, savepoint": nested,
    "start, commit": lambda c: by_hand(c, "commit"),
    "start, rollback": lambda c: by_hand(c, "rollback"),
    "cancel": lambda c: c.cancel(),
    "copy_in": lambda c: into(c, lambda: c.copy_in("copy copied from stdin", lines())),
    "copy_in, timed": lambda c: into(c, lambda: c.copy_in("copy copied from stdin", lines(), timeout=20)),
    "listen": lambda c: listening(c, "a"),
    "listen, several channels": lambda c: listening(c, "a", "b", "c"),
    "explain": explained,
    "batch": lambda c: in_batch(c, "select 1", "select 2"),
    "batch, new statements": lambda c: in_batch(c, f"select {next(NEW)}", f"select {next(NEW)}"),
    "batch, error": lambda c: in_batch(c, "select 1", "select 1 / 0", "select 2"),
    "executemany": lambda c: c.executemany("select $1::int4", [(n,) for n in range(2000)]),
    "executemany, new statement": lambda c: c.executemany(new(), [(1,), (2,)]),
    "executemany, asynchronous": lambda c: c.executemany("select $1::int4", rows(10)),
    "executemany, error": lambda c: c.executemany("select 1 / $1::int4", [(1,), (0,), (1,)]),
    "executemany, bad row": lambda c: c.executemany(new(), [(1,), ("x",)]),
    "executemany, rows that raise": lambda c: c.executemany(new(), rows(5, pgpoll.Error())),
    "copy_in, error": lambda c: into(c, lambda: c.copy_in("copy copied from stdin", [b"1\tx\n", b"x\n"])),
    "copy_records": lambda c: into(c, lambda: c.copy_records("copied", ((n, "x") for n in range(3)))),
    "copy_out": lambda c: some(c.copy_out(BIG), -1),
    "copy_out, left": lambda c: some(c.copy_out("copy (select generate_series(1, 20000)) to stdout"), 1),
    "copy_out, error": lambda c: some(c.copy_out(BREAKING), -1),
    "copy_out_records": lambda c: some(c.copy_out_records("select i, 'x' from generate_series(1, 1000) i"), -1),
}


class Stepped:
    """Drives a coroutine, and counts its suspensions; at the k-th the task is cancelled from within."""

    def __init__(self, inner: Coroutine[Any, Any, Any], at: int) -> None:
        self.inner = inner
        self.at = at
        self.reached = False

    @types.coroutine
    def run(self) -> Generator[Any, Any, Any]:
        go_on: Callable[[], Any] = functools.partial(self.inner.send, None)
        for step in itertools.count():
            try:
                wanted = go_on()
            except StopIteration as stop:
                return stop.value
            if step == self.at:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                yield wanted
                go_on = functools.partial(self.inner.send, None)
            except BaseException as error:  # noqa: BLE001 - it is the inner one's
                go_on = functools.partial(self.inner.throw, error)


async def settle(sane: Sanity, conn: pgpoll.Connection) -> None:
    await sane.usable(conn)
    assert conn.transaction_status == "I"
    assert not conn.closed


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", VERBS)
async def test_f61_cancelled_at_every_suspension(assert_sane: Sanity, name: str) -> None:
    """By the suspension: CancelledError, once; and by the turn of the loop."""
    conn = await assert_sane.connect()
    for _ in range(RUNS):
        for k in itertools.count():
            stepped = Stepped(VERBS[name](conn), k)

            async def body(stepped: Stepped = stepped) -> None:
                with contextlib.suppress(pgpoll.Error):
                    await stepped.run()

            task = asyncio.create_task(body())
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()  # through, for its last suspension was over before the cancel came
            await settle(assert_sane, conn)
            if not stepped.reached:
                break
        for turns in itertools.count():
            task = asyncio.create_task(quiet(lambda: VERBS[name](conn)))
            for _ in range(turns):
                await asyncio.sleep(0)
            asked = task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == asked, "swallowed, or made into something else"
            assert task.cancelling() == asked
            await assert_sane.ask(conn)
            if not asked:
                break
        await settle(assert_sane, conn)


async def quiet(verb: Callable[[], Awaitable[Any]]) -> None:
    with contextlib.suppress(pgpoll.Error):
        await verb()


async def test_f61_uncancel_is_balanced(assert_sane: Sanity) -> None:
    """asyncio.timeout() inside of a verb's wait leaves nothing behind; an outer cancel is not swallowed."""
    conn = await assert_sane.connect()
    task = asyncio.current_task()
    assert task is not None
    for n in range(30):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(n * 0.0005):
                await conn.fetchval("select 1, pg_sleep(0.005)")
        assert task.cancelling() == 0

    async def both() -> None:
        async with asyncio.timeout(0.01):
            await conn.execute("select pg_sleep(20)")

    one = asyncio.create_task(both())
    await asyncio.sleep(0.0101)
    one.cancel()
    with pytest.raises((asyncio.CancelledError, TimeoutError)):
        await one
    await settle(assert_sane, conn)


@pytest.mark.parametrize("role", ["postgres", "pgpoll_scram"])
async def test_f62_cancelled_while_connecting(assert_sane: Sanity, server: _server.Server, role: str) -> None:
    """At every byte that the server says, by a proxy that stalls there: socket closed, backend gone."""
    assert_sane.dsn = server.dsn
    step = 40 if RUNS == 1 else 5
    for at in itertools.count(0, step):
        proxy = assert_sane.through(Faults(end="stall", at=at))
        connecting = asyncio.create_task(assert_sane.connect(proxy, user=role, password=_server.PASSWORD))
        async with asyncio.timeout(10):
            while not (proxy.ended.is_set() or connecting.done()):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        for _ in range(3):
            await asyncio.sleep(0)
        if connecting.done():
            (await connecting).terminate()
            break
        with assert_sane.at_once(0.05):
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
        proxy.close()


async def test_f63_cancelled_before_it_was_sent(assert_sane: Sanity) -> None:
    """Not a byte of it leaves: the server has seen no statement of its text."""
    conn = await assert_sane.connect(max_pipeline=1)
    seen = conn._core
    first = asyncio.create_task(conn.execute("select pg_sleep(0.1)"))
    await asyncio.sleep(0.02)
    queued = asyncio.create_task(conn.execute("create temp table never_made ()"))
    await asyncio.sleep(0)
    in_flight = seen.in_flight
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert seen.in_flight == in_flight - 1
    await first
    assert await conn.fetchval("select to_regclass('pg_temp.never_made')") is None
    assert (
        await conn.fetchval("select count(*) from pg_prepared_statements where statement like 'create%never_made%'")
        == 0
    )


async def test_f64_cancelled_amid_others(assert_sane: Sanity) -> None:
    """Neither the head nor alone: its neighbours know nothing of it, and nothing is cancelled at the server."""
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    for victim in range(1, 4):  # the last one is alone when its turn comes, and is cancelled
        tasks = [asyncio.create_task(conn.fetchval("select $1::int4, pg_sleep(0.02)", n)) for n in range(5)]
        await asyncio.sleep(0.01)
        tasks[victim].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes.pop(victim), asyncio.CancelledError)
        assert outcomes == [n for n in range(5) if n != victim]
    assert proxy.cancels == 0


async def test_f65_the_running_one_is_stopped_at_the_server(assert_sane: Sanity) -> None:
    conn, watcher = await assert_sane.connect(), await assert_sane.connect()
    pid = conn.backend_pid
    for _ in range(5):
        task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
        async with asyncio.timeout(5):
            while await watcher.fetchval("select wait_event from pg_stat_activity where pid = $1", pid) != "PgSleep":  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        with assert_sane.at_once(0.05):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with assert_sane.at_once(0.3):
            while await watcher.fetchval("select wait_event from pg_stat_activity where pid = $1", pid) == "PgSleep":  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        await assert_sane.ask(conn)
    assert await conn.fetchval("select pg_backend_pid()") == pid


@pytest.mark.parametrize("how", ["delay", "twice"])
async def test_f66_a_late_cancel_request(assert_sane: Sanity, how: Any) -> None:
    """Held back for up to 200 ms, its socket open; or delivered a second time. No later request ever gets 57014."""
    dice = random.Random(SEED)
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    for _ in range(12 * RUNS):
        proxy.heal(Faults(cancels=how, cancel_delay=dice.random() * (0.2 if how == "delay" else 0.02)))
        length = dice.choice([0.001, 0.01, 0.05, 20])  # over before it arrives, or not
        with contextlib.suppress(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep($1::float8)", length, timeout=dice.choice([0.0005, 0.002, 0.005]))
        for _ in range(5):
            await assert_sane.ask(conn)
    assert proxy.cancels > 5


@pytest.mark.parametrize("how", ["hang", "refuse", "reset", "drop"])
async def test_f67_the_cancel_requests_socket_fails(
    assert_sane: Sanity, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    """Bounded: the connection is ended, or (the request was taken, to all appearances) goes on at its query's end."""
    monkeypatch.setattr("pgpoll._cancelling.CANCEL_SECONDS", 0.3)
    proxy = assert_sane.through(Faults(cancels=how))
    conn = await assert_sane.connect(proxy)
    with assert_sane.raises(pgpoll.QueryTimeout):
        await conn.execute("select pg_sleep(1)", timeout=0.03)
    began = asyncio.get_running_loop().time()
    if how in ("hang", "refuse"):
        with assert_sane.raises(pgpoll.ConnectionLost, pgpoll.InterfaceError):
            await conn.execute("select 1")
        assert conn.closed
        assert asyncio.get_running_loop().time() - began < 0.6
    else:
        await assert_sane.usable(conn)
    assert conn.closed or proxy.cancels == 1


async def test_f68_a_timeout_at_the_reply(assert_sane: Sanity) -> None:
    """Swept over what the server takes: exactly one of answer and QueryTimeout, and the next answer is right."""
    dice = random.Random(SEED)
    conn = await assert_sane.connect()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(20):
        await conn.fetchval("select 1, pg_sleep(0.002)")
    usual = (loop.time() - began) / 20
    counts = {"answer": 0, "timeout": 0}
    for n in range(CHAOS // 2):
        seconds = [0, 1e-10, max(0.0, usual + dice.uniform(-0.002, 0.002))][n % 9 if n % 9 < 2 else 2]
        token = assert_sane.token()
        try:
            assert await conn.fetchval("select $1::int4, pg_sleep(0.002)", token, timeout=seconds) == token
            counts["answer"] += 1
        except pgpoll.QueryTimeout:
            counts["timeout"] += 1
        if n % 7 == 0:
            await assert_sane.ask(conn)
    assert min(counts.values()) > 0, counts
    await settle(assert_sane, conn)


async def test_f69_scopes_of_asyncio(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    loop = asyncio.get_running_loop()
    for scope in ("timeout", "wait_for", "nested"):
        began = loop.time()
        with pytest.raises(TimeoutError):
            if scope == "wait_for":
                await asyncio.wait_for(conn.execute("select pg_sleep(20)"), 0.05)
            elif scope == "timeout":
                async with asyncio.timeout(0.05):
                    await conn.execute("select pg_sleep(20)")
            else:
                async with asyncio.timeout(5), asyncio.timeout(0.05):
                    await conn.execute("select pg_sleep(20)", timeout=3)
        assert 0.04 <= loop.time() - began <= 0.3
        await assert_sane.ask(conn)


async def test_f69_the_deadline_covers_it_all(assert_sane: Sanity) -> None:
    """The wait in the line, the description and the rows: one deadline."""
    conn = await assert_sane.connect()
    loop = asyncio.get_running_loop()
    async with conn.transaction() as tx:
        await tx.execute("select 1")
        began = loop.time()
        with assert_sane.raises(pgpoll.QueryTimeout):
            await stranger(conn.execute("select 1", timeout=0.05))
        assert 0.04 <= loop.time() - began <= 0.3
    head = asyncio.create_task(conn.execute("select pg_sleep(0.3)"))
    await asyncio.sleep(0)
    began = loop.time()
    with assert_sane.raises(pgpoll.QueryTimeout):
        await conn.execute(f"select {next(NEW)}, pg_sleep(20)", timeout=0.05)
    assert 0.04 <= loop.time() - began <= 0.3
    await head


async def test_f70_a_second_cancel_in_the_cleanup(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    await conn.execute("create temp table t (i int4)")

    async def body() -> None:
        async with conn.transaction():
            await conn.execute("insert into t values (1)")
            await conn.execute("select pg_sleep(20)")

    for turns in range(12):
        task = asyncio.create_task(body())
        await asyncio.sleep(0.01)
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle(assert_sane, conn)
    assert await conn.fetchval("select count(*) from t") == 0


# -- chaos


async def one_of_many(conn: pgpoll.Connection, token: int, kind: int) -> None:
    if kind == 0:
        assert await conn.fetchval("select $1::int8, pg_sleep(0.001)", token) == token
    elif kind == 1:
        rows = await conn.fetch("select $1::int8 from generate_series(1, 50)", token)
        assert [row[0] for row in rows] == [token] * 50
    elif kind == 2:
        assert await conn.fetchval(f"select {token % 300}::int8") == token % 300
    elif kind == 3:
        with pytest.raises(errors.DivisionByZero):
            await conn.execute("select $1::int8 / 0", token)
    elif kind == 4:
        with contextlib.suppress(pgpoll.QueryTimeout):
            assert await conn.fetchval("select $1::int8, pg_sleep(0.002)", token, timeout=token % 40 / 10_000) == token
    else:
        async with conn.transaction() as tx:
            assert await tx.fetchval("select $1::int8", token) == token


@pytest.mark.timeout(3600)
async def test_f66_cancel_chaos(assert_sane: Sanity, record_property: Callable[[str, object], None]) -> None:
    """No connection is lost, no neighbour gets 57014, no answer is another's."""
    dice = random.Random(SEED)
    conns = [await assert_sane.connect() for _ in range(4)]
    cancelled = answered = 0
    while cancelled < CHAOS:
        tasks = [
            asyncio.create_task(one_of_many(dice.choice(conns), assert_sane.token(), dice.randrange(6)))
            for _ in range(dice.choice([1, 4, 40]))
        ]
        await asyncio.sleep(dice.random() * 0.004)
        for task in tasks:
            if dice.random() < 0.5:
                task.cancel()
        for outcome in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60):
            if isinstance(outcome, asyncio.CancelledError):
                cancelled += 1
            elif outcome is not None:
                raise outcome
            else:
                answered += 1
    assert not any(conn.closed for conn in conns)
    record_property("cancelled", cancelled)
    print(f"{cancelled} cancelled, {answered} answered")


# -- pipelines


@pytest.mark.parametrize("kind", ["own Sync", "in a transaction"])
async def test_f73_an_error_in_the_kth_of_n(assert_sane: Sanity, kind: str) -> None:
    conn = await assert_sane.connect()
    count = 20
    await conn.prepare("select 100 / $1::int4")
    for k in range(count):
        divisors = [0 if n == k else n + 1 for n in range(count)]
        if kind == "own Sync":
            made = [conn.fetchval("select 100 / $1::int4", each) for each in divisors]
            outcomes = await asyncio.gather(*made, return_exceptions=True)
            assert isinstance(outcomes.pop(k), errors.DivisionByZero)
            assert outcomes == [100 // each for each in divisors if each]
        else:
            tx = conn.transaction()
            await tx.start()
            made = [tx.fetchval("select 100 / $1::int4", each) for each in divisors]
            outcomes = await asyncio.gather(*made, return_exceptions=True)
            await tx.rollback()
            assert outcomes[:k] == [100 // each for each in divisors[:k]]
            assert isinstance(outcomes[k], errors.DivisionByZero)
            assert all(isinstance(each, errors.InFailedSqlTransaction) for each in outcomes[k + 1 :])


async def test_f73_a_unique_violation_among_a_thousand(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    await conn.execute("create temp table u (i int4 primary key)")
    values = [n // 2 if n % 100 == 51 else n + 1_000_000 for n in range(1000)] + [7, 7]
    outcomes = await asyncio.gather(
        *(conn.execute("insert into u values ($1)", each) for each in values), return_exceptions=True
    )
    failed = [n for n, each in enumerate(outcomes) if isinstance(each, BaseException)]
    assert failed == [1001]
    assert isinstance(outcomes[1001], errors.UniqueViolation)
    assert await conn.fetchval("select count(*) from u") == 1001
