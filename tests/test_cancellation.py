"""Cancelling is always safe: many tasks on one connection, a third of them cancelled at random, queries with tokens.

A surviving task gets its own right answer, a cancelled one CancelledError, and the connection goes on. Seeds:
PGPOLL_SEEDS (how many, default 3) from PGPOLL_FIRST_SEED (default 0); tasks: PGPOLL_TASKS (default 1000).
"""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import pgpoll
from pgpoll import errors

FIRST_SEED = int(os.environ.get("PGPOLL_FIRST_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("PGPOLL_SEEDS", "3")))
TASKS = int(os.environ.get("PGPOLL_TASKS", "1000"))

tokens = itertools.count(1)


def eager(loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
    """Like asyncio.eager_task_factory, which refuses `eager_start` (uvloop passes it) before 3.13.3."""
    return asyncio.Task(coro, loop=loop, **{**how, "eager_start": True})


MODES = ["plain", "debug", *(["eager"] if sys.version_info >= (3, 12) else [])]


@pytest.fixture(params=MODES)
async def mode(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The loop as it is, in debug mode, and with eager tasks."""
    loop = asyncio.get_running_loop()
    if request.param == "debug":
        loop.set_debug(True)
        loop.slow_callback_duration = 10
    elif request.param == "eager":
        loop.set_task_factory(eager)
    yield request.param
    loop.set_task_factory(None)
    loop.set_debug(False)


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table t (i int4)")
    return conn


class Wrong(BaseException):
    """An answer that is not this request's."""


def expect(token: int, answer: Any) -> None:
    if answer != token:
        raise Wrong(f"{token} was answered by {answer!r}")


async def cached(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    expect(token, await conn.fetchval("select $1::int4", token))


async def new_statement(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    expect(token, await conn.fetchval(f"select {token}"))


async def many_rows(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    rows = await conn.fetch("select $1::int4, repeat('x', 100) from generate_series(1, 200)", token)
    expect(200, len(rows))
    expect(token, rows[199][0])


async def script(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    results = await conn.executescript(f"select 0; select {token}")
    expect(token, int(results[1][0][0]))


async def an_error(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    with pytest.raises(errors.InvalidTextRepresentation) as caught:
        await conn.execute("select $1::text::int4", f"token {token}")
    expect(True, f'"token {token}"' in str(caught.value))


async def an_error_in_the_rows(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    with pytest.raises(errors.DivisionByZero):
        await conn.execute("select $1::int4 / (100 - i) from generate_series(1, 200) as t(i)", token)


async def a_bad_argument(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.DataError):
        await conn.execute("select $1::int4", f"token {next(tokens)}")


async def a_copy(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.InterfaceError):
        await conn.execute("copy t from stdin")


async def prepared(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    statement = await conn.prepare("select $1::int4 + 0")
    expect(token, await statement.fetchval(token))


async def a_notice(conn: pgpoll.Connection) -> None:
    await conn.execute("do $$ begin raise notice 'hello'; end $$")


async def timed(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    with contextlib.suppress(pgpoll.QueryTimeout):
        expect(token, await conn.fetchval("select $1::int4, pg_sleep(0.0005)", token, timeout=random.random() * 0.01))


async def transaction(conn: pgpoll.Connection) -> None:
    token = next(tokens)
    async with conn.transaction():
        await conn.execute("insert into t values ($1)", token)
        if token % 3 == 0:
            with contextlib.suppress(KeyError):
                async with conn.transaction():
                    await conn.execute("insert into t values ($1)", token)
                    raise KeyError
        await conn.execute("insert into t values ($1)", token)
        expect(2, await conn.fetchval("select count(*) from t where i = $1", token))


Body = Callable[[pgpoll.Connection], Coroutine[Any, Any, None]]
ANY: list[Body] = [
    *(cached, cached, cached, new_statement, many_rows, script, an_error, an_error_in_the_rows),
    *(a_bad_argument, a_copy, prepared, a_notice, timed),
]


async def usable(conn: pgpoll.Connection) -> None:
    """The connection is right after whatever happened; it costs at most the drain of one cancelled query."""
    for _ in range(3):
        token = next(tokens)
        expect(token, await asyncio.wait_for(conn.fetchval("select $1::int4", token), 10))
    assert conn.transaction_status == "I"
    assert not conn._driver.blocks.stack
    assert await conn.fetchval("select count(*) from (select i from t group by i having count(*) <> 2) as odd") == 0


def check(outcome: BaseException | None) -> None:
    if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
        raise outcome


async def cancel_some(tasks: list[asyncio.Task[None]], dice: random.Random) -> set[asyncio.Task[None]]:
    """Cancels a third of the tasks, at random moments; who was cancelled before it was done."""
    chosen = dice.sample(tasks, len(tasks) // 3)
    cancelled = set()
    while chosen:
        for _ in range(dice.randrange(1, 60)):
            if chosen and (task := chosen.pop()).cancel():
                cancelled.add(task)
        await asyncio.sleep(dice.choice([0, 0, 0.0002, 0.002]))
    return cancelled


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_third_is_cancelled(conn: pgpoll.Connection, mode: str, seed: int) -> None:
    dice = random.Random(seed)
    tasks = [asyncio.create_task(dice.choice(ANY)(conn)) for _ in range(TASKS)]
    cancelled = await cancel_some(tasks, dice)
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    for task, outcome in zip(tasks, outcomes, strict=True):
        check(outcome)
        assert task.cancelled() == (task in cancelled)
    await usable(conn)


@pytest.mark.parametrize("seed", SEEDS)
async def test_transactions_among_them(conn: pgpoll.Connection, mode: str, seed: int) -> None:
    dice = random.Random(seed)
    bodies = [*ANY, transaction, transaction, transaction, transaction]
    tasks = [asyncio.create_task(dice.choice(bodies)(conn)) for _ in range(TASKS // 4)]
    await cancel_some(tasks, dice)
    for outcome in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60):
        check(outcome)
    await usable(conn)


@pytest.mark.parametrize("seed", SEEDS)
async def test_two_by_two(conn: pgpoll.Connection, mode: str, seed: int) -> None:
    """Few tasks at a time, some that sleep at the server: most cancelled requests are the running one."""

    async def sleepy(conn: pgpoll.Connection) -> None:
        token = next(tokens)
        expect(token, await conn.fetchval("select $1::int4, pg_sleep(0.02)", token))

    dice = random.Random(seed)
    bodies = [cached, sleepy, sleepy, transaction, new_statement]
    for _ in range(40):
        tasks = [asyncio.create_task(dice.choice(bodies)(conn)) for _ in range(dice.randrange(1, 4))]
        await asyncio.sleep(dice.choice([0, 0.0005, 0.001, 0.005]))
        dice.choice(tasks).cancel()
        for outcome in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20):
            check(outcome)
    await usable(conn)


# -- what asyncio offers


async def test_wait_for(conn: pgpoll.Connection, mode: str) -> None:
    async def one(n: int) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ANY[n % len(ANY)](conn), n % 50 * 0.0005)

    await asyncio.gather(*(one(n) for n in range(300)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(conn.execute("select pg_sleep(20)"), 0.02)
    await usable(conn)


async def test_timeout_scopes(conn: pgpoll.Connection, mode: str) -> None:
    async def one(n: int) -> None:
        try:
            async with asyncio.timeout(n % 50 * 0.0005):
                async with asyncio.timeout(10):
                    await ANY[n % len(ANY)](conn)
        except TimeoutError:
            pass
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    await asyncio.gather(*(one(n) for n in range(300)))
    await usable(conn)


async def test_shield(conn: pgpoll.Connection, mode: str) -> None:
    inner = asyncio.ensure_future(conn.fetchval("select 7, pg_sleep(0.05)"))
    outer = asyncio.ensure_future(asyncio.shield(inner))
    await asyncio.sleep(0.01)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert await inner == 7
    await usable(conn)


async def test_gather_cancelled_as_a_whole(conn: pgpoll.Connection, mode: str) -> None:
    whole = asyncio.gather(*(ANY[n % len(ANY)](conn) for n in range(200)), conn.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.01)
    whole.cancel()
    with pytest.raises(asyncio.CancelledError):
        await whole
    await usable(conn)


async def test_as_completed(conn: pgpoll.Connection, mode: str) -> None:
    with contextlib.suppress(TimeoutError):
        for each in asyncio.as_completed([ANY[n % len(ANY)](conn) for n in range(300)], timeout=5):
            await each
    tasks = [asyncio.ensure_future(conn.execute("select pg_sleep(0.5)")) for _ in range(4)]
    with pytest.raises(TimeoutError):
        for one in asyncio.as_completed(tasks, timeout=0.02):
            await one
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await usable(conn)


async def test_task_group_abort(conn: pgpoll.Connection, mode: str) -> None:
    async def fail() -> None:
        await conn.fetchval("select 1")
        raise KeyError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            for n in range(200):
                group.create_task(ANY[n % len(ANY)](conn))
            group.create_task(fail())
            group.create_task(conn.execute("select pg_sleep(20)"))
    assert [type(each) for each in caught.value.exceptions] == [KeyError]
    await usable(conn)


async def test_cancel_messages_and_second_cancels(conn: pgpoll.Connection, mode: str) -> None:
    async def stubborn() -> str:
        try:
            await conn.execute("select pg_sleep(20)")
        except asyncio.CancelledError as error:
            expect(True, error.args == ("because",))
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        return str(await conn.fetchval("select 'on'"))

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0.02)
    task.cancel("because")
    assert await task == "on"
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0.02)
    task.cancel("because")
    await asyncio.sleep(0)
    task.cancel("again")
    with pytest.raises(asyncio.CancelledError):
        await task
    await usable(conn)


async def test_a_coroutine_that_is_closed(conn: pgpoll.Connection, mode: str) -> None:
    """Its request is abandoned as if its task were cancelled."""
    coroutine = conn.execute("select pg_sleep(20)")
    coroutine.send(None)
    coroutine.close()
    await usable(conn)


async def test_every_suspension_of_every_verb(conn: pgpoll.Connection, mode: str) -> None:
    """Cancelled at the k-th turn of the loop, for k = 0, 1, ... until the verb is through."""
    for body in (*dict.fromkeys(ANY), transaction):
        for turns in itertools.count():
            task = asyncio.create_task(body(conn))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
                break
            expect(turns, await conn.fetchval("select $1::int4", turns))
    await usable(conn)


async def test_cancelled_while_connecting(dsn: str, mode: str) -> None:
    async with pgpoll.connect(dsn) as watcher:
        name = f"cancelled {os.getpid()} {next(tokens)}"
        for turns in itertools.count():
            task = asyncio.create_task(pgpoll.connect(dsn, application_name=name))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(turns * 0.0002)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
                break
        for _ in range(100):
            left = await watcher.fetchval("select count(*) from pg_stat_activity where application_name = $1", name)
            if not left:
                break
            await asyncio.sleep(0.02)
        assert left == 0
