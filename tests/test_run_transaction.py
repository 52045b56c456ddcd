"""run_transaction: again after 40001 and 40P01, and after nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import pgpoll
import pgpoll.sync
from pgpoll import _retrying, errors


@pytest.fixture
async def two(dsn: str) -> AsyncIterator[tuple[pgpoll.Connection, pgpoll.Connection]]:
    """Two connections, and accounts 1 and 2 with 100 each."""
    async with pgpoll.connect(dsn) as one, pgpoll.connect(dsn) as other:
        await one.executescript(
            "drop table if exists accounts; create table accounts (id int4 primary key, value int4);"
            "insert into accounts values (1, 100), (2, 100)"
        )
        yield one, other
        await one.execute("drop table accounts")


async def values(conn: pgpoll.Connection) -> list[int]:
    return [row.value for row in await conn.fetch("select value from accounts order by id")]


READ = "select value from accounts where id = $1"
WRITE = "update accounts set value = $2 where id = $1"
SERIALIZATION = "do $$ begin raise exception 'again' using errcode = '40001'; end $$"
DEADLOCK = "do $$ begin raise exception 'again' using errcode = '40P01'; end $$"


async def test_its_value_and_its_options(dsn: str) -> None:
    async def body(tx: pgpoll.Transaction, one: int, two: int) -> tuple[int, str]:
        assert tx.transaction_status == "I", "nothing was sent yet"
        return one + two, await tx.fetchval("show transaction_isolation")

    async with pgpoll.connect(dsn) as conn:
        assert await conn.run_transaction(body, 3, 4, isolation="serializable") == (7, "serializable")

        async def readonly(tx: pgpoll.Transaction) -> Any:
            return await tx.fetchval("show transaction_read_only"), await tx.fetchval("show transaction_deferrable")

        assert await conn.run_transaction(readonly, readonly=True, deferrable=True) == ("on", "on")
        with pytest.raises(pgpoll.InterfaceError, match="isolation"):
            await conn.run_transaction(readonly, isolation="chaos")


async def test_a_serialization_failure_at_the_update(two: tuple[pgpoll.Connection, pgpoll.Connection]) -> None:
    """Both read, then both write what they have read: one comes second, and begins anew with what the first wrote."""
    attempts = 0
    both_have_read = asyncio.Barrier(2)

    async def add(tx: pgpoll.Transaction) -> int:
        nonlocal attempts
        attempts += 1
        value: int = await tx.fetchval(READ, 1)
        if attempts <= 2:
            await both_have_read.wait()
        await tx.execute(WRITE, 1, value + 10)
        return value + 10

    results = await asyncio.gather(*(conn.run_transaction(add, isolation="repeatable_read") for conn in two))
    assert sorted(results) == [110, 120]
    assert attempts == 3
    assert await values(two[0]) == [120, 100]


async def test_a_serialization_failure_at_the_commit(two: tuple[pgpoll.Connection, pgpoll.Connection]) -> None:
    """Write skew: each reads what the other writes; SERIALIZABLE refuses one of them, whose next attempt sees that."""
    attempts = 0
    both_have_read = asyncio.Barrier(2)

    async def withdraw(tx: pgpoll.Transaction, account: int) -> bool:
        nonlocal attempts
        attempts += 1
        total = await tx.fetchval("select sum(value) from accounts")
        if attempts <= 2:
            await both_have_read.wait()
        if total < 150:
            return False
        await tx.execute("update accounts set value = value - 100 where id = $1", account)
        return True

    one, other = two
    results = await asyncio.gather(
        one.run_transaction(withdraw, 1, isolation="serializable"),
        other.run_transaction(withdraw, 2, isolation="serializable"),
    )
    assert sorted(results) == [False, True]
    assert attempts >= 3
    assert sorted(await values(one)) == [0, 100]


async def test_a_deadlock(two: tuple[pgpoll.Connection, pgpoll.Connection]) -> None:
    attempts = 0
    both_have_one = asyncio.Barrier(2)
    for conn in two:
        await conn.execute("set deadlock_timeout = '20ms'")

    async def transfer(tx: pgpoll.Transaction, first: int, second: int) -> None:
        nonlocal attempts
        attempts += 1
        await tx.execute("update accounts set value = value - 1 where id = $1", first)
        if attempts <= 2:
            await both_have_one.wait()
        await tx.execute("update accounts set value = value + 1 where id = $1", second)

    one, other = two
    await asyncio.gather(one.run_transaction(transfer, 1, 2), other.run_transaction(transfer, 2, 1))
    assert attempts == 3
    assert await values(one) == [100, 100]


@pytest.mark.parametrize("sql", [SERIALIZATION, DEADLOCK])
@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_the_last_error_says_how_often(dsn: str, sql: str, retries: int) -> None:
    attempts = 0

    async def body(tx: pgpoll.Transaction) -> None:
        nonlocal attempts
        attempts += 1
        await tx.execute(sql)

    async with pgpoll.connect(dsn) as conn:
        with pytest.raises(_retrying.RETRYABLE) as caught:
            await conn.run_transaction(body, retries=retries)
        assert attempts == retries + 1
        assert caught.value.__notes__ == [f"(run_transaction made {attempts} attempt{'s' if retries else ''})"]
        assert conn.transaction_status == "I"


async def test_nothing_else_is_tried_again(dsn: str) -> None:
    attempts = 0

    async def body(tx: pgpoll.Transaction, error: BaseException) -> None:
        nonlocal attempts
        attempts += 1
        await tx.execute("select 1")
        raise error

    async with pgpoll.connect(dsn) as conn:
        kinds = (KeyError(), pgpoll.CommitUnknown("x"), errors.UniqueViolation("x"), asyncio.CancelledError())
        for error in kinds:
            with pytest.raises(type(error)) as caught:
                await conn.run_transaction(body, error)
            assert caught.value is error
            assert not getattr(error, "__notes__", None)
        assert attempts == len(kinds)

        async def swallows(tx: pgpoll.Transaction) -> None:
            nonlocal attempts
            attempts += 1
            with pytest.raises(errors.SerializationFailure):
                await tx.execute(SERIALIZATION)

        with pytest.raises(errors.InFailedSqlTransaction):
            await conn.run_transaction(swallows)
        assert attempts == len(kinds) + 1


async def test_a_connection_that_was_lost_meanwhile(dsn: str) -> None:
    async def body(tx: pgpoll.Transaction) -> None:
        with pytest.raises(errors.SerializationFailure) as caught:
            await tx.execute(SERIALIZATION)
        conn.terminate()
        raise caught.value

    conn = await pgpoll.connect(dsn)
    with pytest.raises(errors.SerializationFailure) as caught:
        await conn.run_transaction(body)
    assert caught.value.__notes__ == ["(run_transaction made 1 attempt)"]


async def test_others_go_on_during_the_pause(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retrying, "FIRST_SECONDS", 30.0)
    failed = asyncio.Event()

    async def body(tx: pgpoll.Transaction) -> None:
        try:
            await tx.execute(SERIALIZATION)
        finally:
            failed.set()

    async with pgpoll.connect(dsn) as conn:
        task = asyncio.create_task(conn.run_transaction(body))
        await failed.wait()
        assert await conn.fetchval("select 1") == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert conn.transaction_status == "I"


@pytest.mark.parametrize("retries", [-1, 1.5, "3", True, None])
async def test_wrong_retries(dsn: str, retries: Any) -> None:
    async with pgpoll.connect(dsn) as conn:
        with pytest.raises(pgpoll.InterfaceError, match="retries"):
            await conn.run_transaction(asyncio.sleep, retries=retries)


async def test_inside_of_a_transaction(dsn: str) -> None:
    async def never(tx: pgpoll.Transaction) -> None:
        raise AssertionError

    async with pgpoll.connect(dsn) as conn, conn.transaction() as tx:
        with pytest.raises(pgpoll.InterfaceError, match="run_transaction can't be used inside"):
            await conn.run_transaction(never)
        with pytest.raises(pgpoll.InterfaceError, match="run_transaction can't be used inside"):
            await asyncio.create_task(conn.run_transaction(never))
        assert await tx.fetchval("select 1") == 1


def test_pauses_grow_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        bounds.append(high)
        return low

    monkeypatch.setattr("random.uniform", uniform)
    attempts = _retrying.Attempts(20)
    error = errors.DeadlockDetected("x")
    while attempts.pause(error, closed=False) is not None:
        pass
    assert bounds == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, *[1.0] * 14]
    assert error.__notes__ == ["(run_transaction made 21 attempts)"]


def test_sync(dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as one, pgpoll.sync.connect(dsn) as other:
        one.executescript("drop table if exists accounts; create table accounts (id int4 primary key, value int4)")
        one.execute("insert into accounts values (1, 100)")
        attempts = 0
        both_have_read = threading.Barrier(2)

        def add(tx: pgpoll.sync.Transaction, more: int) -> int:
            nonlocal attempts
            attempts += 1
            number = attempts
            value: int = tx.fetchval(READ, 1)
            if number <= 2:
                both_have_read.wait(10)
            tx.execute(WRITE, 1, value + more)
            return value + more

        results: list[int] = []
        thread = threading.Thread(
            target=lambda: results.append(other.run_transaction(add, 10, isolation="serializable"))
        )
        thread.start()
        results.append(one.run_transaction(add, 10, isolation="serializable"))
        thread.join()
        assert sorted(results) == [110, 120]
        assert attempts == 3
        one.execute("drop table accounts")

        def fails(tx: pgpoll.sync.Transaction) -> None:
            tx.execute(DEADLOCK)

        with pytest.raises(errors.DeadlockDetected) as caught:
            one.run_transaction(fails, retries=2)
        assert caught.value.__notes__ == ["(run_transaction made 3 attempts)"]
        with pytest.raises(pgpoll.InterfaceError, match="run_transaction"), one.transaction():
            one.run_transaction(fails)
        assert one.transaction_status == "I"
