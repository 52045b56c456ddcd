"""Transactions on a real server: ownership (D18), nothing rolled back looks committed (D19), cancelled ends (D20).

The rules themselves are tested without a server in test_blocks.py; these show them through the asyncio face.
"""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import pgpoll
from callers import count, slow_commit, stranger
from pgpoll import errors


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table t (i int4 primary key)")
    return conn


async def test_commit_rollback_and_the_bodys_exception(conn: pgpoll.Connection) -> None:
    async with conn.transaction() as tx:
        await tx.execute("insert into t values (1)")
        assert conn.transaction_status == "T"
    with pytest.raises(KeyError) as caught:
        async with conn.transaction():
            await conn.execute("insert into t values (2)")
            raise KeyError("body")
    assert not getattr(caught.value, "__notes__", None)
    assert await count(conn) == 1
    assert conn.transaction_status == "I"


async def test_nested_blocks_are_savepoints(conn: pgpoll.Connection) -> None:
    async with conn.transaction() as tx:
        await conn.execute("insert into t values (1)")
        for n in range(3):
            with pytest.raises(errors.UniqueViolation):
                async with tx.transaction():
                    await conn.execute("insert into t values ($1)", 10 + n)
                    async with conn.transaction() as inner:
                        await inner.execute("insert into t values (1)")
        async with conn.transaction():
            await conn.execute("insert into t values (2)")
    assert await count(conn) == 2


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read", "repeatable_read", "READ_COMMITTED"])
async def test_isolation(conn: pgpoll.Connection, isolation: str) -> None:
    async with conn.transaction(isolation=isolation, readonly=True, deferrable=True):
        assert await conn.fetchval("show transaction_isolation") == isolation.lower().replace("_", " ")
        assert await conn.fetchval("show transaction_read_only") == "on"
        with pytest.raises(pgpoll.InterfaceError, match="savepoint"):
            async with conn.transaction(isolation=isolation):
                pass
    with pytest.raises(pgpoll.InterfaceError):
        conn.transaction(isolation="chaos")


async def test_by_hand(conn: pgpoll.Connection) -> None:
    tx = conn.transaction()
    with pytest.raises(pgpoll.InterfaceError, match="has not been started"):
        await tx.fetchval("select 1")
    await tx.start()
    with pytest.raises(pgpoll.InterfaceError, match="make a new one"):
        await tx.start()
    assert await tx.fetchval("select 1") == 1
    await tx.rollback()
    with pytest.raises(pgpoll.InterfaceError, match="rolled back"):
        await tx.commit()
    async with conn.transaction() as tx:
        await tx.execute("insert into t values (1)")
        await tx.rollback()  # by hand inside of `with`: leaving it is quiet
    assert await count(conn) == 0


async def test_begin_sent_by_hand_gives_no_ownership(conn: pgpoll.Connection) -> None:
    await conn.execute("begin")
    assert await stranger(conn.fetchval("select 1")) == 1
    with pytest.raises(pgpoll.InterfaceError, match="by hand"):
        async with conn.transaction():
            pass
    await conn.execute("rollback")
    with pytest.raises(pgpoll.InterfaceError, match="by hand"):
        async with conn.transaction():
            await conn.execute("commit")
    assert conn.transaction_status == "I"


async def test_who_is_inside(conn: pgpoll.Connection) -> None:
    """A task made before the block is outside; one made inside, or with the handle, is inside."""
    entered = asyncio.Event()
    order: list[str] = []

    async def made_before() -> None:
        await entered.wait()
        await conn.execute("select 1")
        order.append("before")

    async def child() -> None:
        await conn.execute("select 1")
        order.append("child")

    async def friend(tx: pgpoll.Transaction) -> None:
        async with tx.transaction() as inner:
            await inner.execute("select 1")
        order.append("friend")

    before = asyncio.create_task(made_before())
    await asyncio.sleep(0)
    async with conn.transaction() as tx:
        entered.set()
        await asyncio.sleep(0)
        await asyncio.create_task(child())
        await stranger(friend(tx))
        await asyncio.sleep(0.02)
        order.append("owner")
    await before
    assert order == ["child", "friend", "owner", "before"]


async def test_strangers_go_on_in_order(conn: pgpoll.Connection) -> None:
    done: list[int] = []

    async def one(n: int) -> None:
        if n == 5:
            async with conn.transaction():
                await asyncio.sleep(0.01)
                assert await conn.fetchval("select $1::int4", n) == n
                done.append(n)
        else:
            assert await conn.fetchval("select $1::int4", n) == n
            done.append(n)

    async with conn.transaction():
        tasks = [stranger(one(n)) for n in range(10)]
        await asyncio.sleep(0.01)
        assert not done
    newcomer = stranger(one(10))
    await asyncio.gather(*tasks, newcomer)
    assert done == list(range(11))


async def test_siblings_wait_for_each_others_nested_blocks(conn: pgpoll.Connection) -> None:
    async def one(n: int) -> None:
        async with conn.transaction():
            await conn.execute("insert into t values ($1)", n)
            await asyncio.sleep(0.001)
            if n % 3 == 0:
                raise KeyError(n)

    async with conn.transaction():
        results = await asyncio.gather(*(one(n) for n in range(12)), return_exceptions=True)
    assert sum(isinstance(each, KeyError) for each in results) == 4
    assert [row.i for row in await conn.fetch("select i from t order by i")] == [n for n in range(12) if n % 3]


async def test_a_child_that_outlives_its_nested_block(conn: pgpoll.Connection) -> None:
    """Made inside the nested block, in a group of the outer one: it falls back to the outer block."""
    release = asyncio.Event()
    seen: list[str] = []

    async def child() -> None:
        await release.wait()
        await conn.execute("insert into t values (7)")
        seen.append(conn.transaction_status)

    with pytest.raises(KeyError):
        async with conn.transaction():
            async with asyncio.TaskGroup() as group:
                async with conn.transaction():
                    group.create_task(child())
                    await asyncio.sleep(0)
                release.set()
            raise KeyError
    assert seen == ["T"]
    assert await count(conn) == 0, "its insert was part of the outer block"


async def test_a_child_that_outlives_all_blocks_is_a_stranger(conn: pgpoll.Connection) -> None:
    release = asyncio.Event()

    async def child() -> int:
        await release.wait()
        return await count(conn)

    async with conn.transaction():
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
    async with conn.transaction() as tx:
        release.set()
        await asyncio.sleep(0.01)
        assert not task.done()
        await tx.execute("insert into t values (1)")
    assert await task == 1


async def test_a_fixture_that_enters_and_leaves_in_different_contexts(conn: pgpoll.Connection) -> None:
    async def fixture() -> AsyncIterator[pgpoll.Transaction]:
        async with conn.transaction() as tx:
            yield tx

    for _ in range(2):
        generator = fixture()
        tx = await stranger(generator.__anext__())
        await tx.execute("insert into t values (1)")
        waiting = stranger(count(conn))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        with pytest.raises(KeyError):
            await stranger(generator.athrow(KeyError("test")))  # type: ignore[attr-defined]
        assert await waiting == 0
        assert await count(conn) == 0


async def test_a_generator_that_is_never_finished(conn: pgpoll.Connection) -> None:
    async def rows() -> AsyncIterator[int]:
        async with conn.transaction():
            for n in range(3):
                yield await conn.fetchval("select $1::int4", n)

    async for _ in (generator := rows()):
        break
    await generator.aclose()  # type: ignore[attr-defined]
    assert await conn.fetchval("select 1") == 1
    assert conn.transaction_status == "I"


async def test_two_connections_in_one_context(conn: pgpoll.Connection, dsn: str) -> None:
    async with pgpoll.connect(dsn) as other, conn.transaction(), other.transaction(), asyncio.TaskGroup() as group:
        group.create_task(conn.execute("select 1"))
        group.create_task(other.execute("select 1"))


async def test_ending_over_ones_own_open_savepoint(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="still open"):
        async with conn.transaction() as tx:
            inner = conn.transaction()
            await inner.start()
            await conn.execute("insert into t values (1)")
            with pytest.raises(pgpoll.InterfaceError, match="still open"):
                await tx.commit()
    assert await count(conn) == 0
    with pytest.raises(pgpoll.InterfaceError):
        await inner.commit()


async def test_a_long_wait_is_logged(
    conn: pgpoll.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgpoll._loop.PATIENCE_SECONDS", 0.05)
    with caplog.at_level(logging.WARNING, "pgpoll"):
        async with conn.transaction():
            waiting = stranger(conn.fetchval("select 1"))
            await asyncio.sleep(0.2)
    assert await waiting == 1
    (record,) = caplog.records
    assert "test_transactions.py" in record.getMessage()
    task = asyncio.current_task()
    assert task is not None
    assert task.get_name() in record.getMessage()


async def test_a_timeout_covers_the_wait_for_a_block(conn: pgpoll.Connection) -> None:
    async with conn.transaction():

        async def hasty() -> None:
            with pytest.raises(pgpoll.QueryTimeout):
                await conn.fetchval("select 1", timeout=0.02)
            with pytest.raises(pgpoll.QueryTimeout):
                await conn.transaction().start(timeout=0.02)

        await stranger(hasty())
    assert await conn.fetchval("select 1") == 1


# -- D19


async def test_a_swallowed_error_is_not_committed(conn: pgpoll.Connection) -> None:
    with pytest.raises(errors.InFailedSqlTransaction, match=r"rolled back.*not committed"):
        async with conn.transaction():
            await conn.execute("insert into t values (1)")
            with contextlib.suppress(pgpoll.Error):
                await conn.execute("select 1/0")
    assert await count(conn) == 0


async def test_a_swallowed_error_in_a_nested_block_spares_the_outer(conn: pgpoll.Connection) -> None:
    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        with pytest.raises(errors.InFailedSqlTransaction, match="savepoint"):
            async with conn.transaction():
                await conn.execute("insert into t values (2)")
                with contextlib.suppress(pgpoll.Error):
                    await conn.execute("select 1/0")
    assert await count(conn) == 1


async def test_an_unawaited_error_ahead_of_commit(conn: pgpoll.Connection) -> None:
    """COMMIT leaves in status T and is answered by ROLLBACK."""
    with pytest.raises(errors.InFailedSqlTransaction):
        async with conn.transaction():
            task = asyncio.create_task(conn.execute("select 1/0"))
            await asyncio.sleep(0)
    with pytest.raises(errors.DivisionByZero):
        await task
    assert conn.transaction_status == "I"


async def test_a_deferred_constraint_fails_the_commit(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table d (i int4, unique (i) deferrable initially deferred)")
    with pytest.raises(errors.UniqueViolation):
        async with conn.transaction():
            await conn.execute("insert into d values (1), (1)")
    assert conn.transaction_status == "I"
    # outside of a transaction it fails at Sync, after CommandComplete: the request has failed (D2)
    with pytest.raises(errors.UniqueViolation):
        await conn.execute("insert into d values (1), (1)")
    assert await conn.fetchval("select count(*) from d") == 0


# -- D20, and tasks that are cancelled in between


async def cancelled_after(task: asyncio.Task[Any], turns: int) -> BaseException | None:
    """Cancels `task` after so many turns of the loop; what it raised."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return None
    assert task.cancelled()
    try:
        task.result()
    except asyncio.CancelledError as error:
        return error
    return None


@pytest.mark.parametrize("nested", [False, True], ids=["outermost", "nested"])
async def test_cancelled_at_any_turn(dsn: str, nested: bool) -> None:
    """In BEGIN, in between, in COMMIT, at every turn of the loop: the next stranger finds a clean connection."""
    async with pgpoll.connect(dsn) as conn:
        await conn.execute("create temp table t (i int4)")
        unknown = 0

        async def body(n: int) -> None:
            async with conn.transaction() if nested else contextlib.nullcontext(), conn.transaction():
                await conn.execute("insert into t values ($1)", n)
                await conn.execute("insert into t values ($1)", n)

        turns = 0
        while True:
            task = stranger(body(turns))
            next_one = stranger(conn.fetchval("select $1::int4", turns))
            error = await cancelled_after(task, turns)
            assert await next_one == turns
            assert conn.transaction_status == "I"
            assert await conn.fetchval("select count(*) from t where i = $1", turns) in (0, 2)
            if error is None:
                break
            if error.__cause__ is not None:
                assert isinstance(error.__cause__, pgpoll.CommitUnknown)
                unknown += 1
            turns += 1
        assert turns > 3


async def test_cancelled_in_the_body_rolls_back_without_the_task(conn: pgpoll.Connection) -> None:
    async def body() -> None:
        async with conn.transaction():
            await conn.execute("insert into t values (1)")
            await conn.execute("select pg_sleep(20)")

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(body())
    await asyncio.sleep(0.05)
    began = loop.time()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop.time() - began < 0.05
    assert await count(conn) == 0
    assert loop.time() - began < 2


async def test_cancelled_after_commit_was_sent(conn: pgpoll.Connection) -> None:
    await conn.executescript(slow_commit(0.3))

    async def body() -> None:
        async with conn.transaction():
            await conn.execute("insert into d values (1)")

    task = asyncio.create_task(body())
    await asyncio.sleep(0.15)
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, pgpoll.CommitUnknown)
    assert await conn.fetchval("select count(*) from d") == 1, "the COMMIT went on, and was not cancelled"

    tx = conn.transaction()
    await tx.start()
    await tx.execute("insert into d values (2)")
    with pytest.raises(pgpoll.CommitUnknown):
        await tx.commit(timeout=0.05)
    assert await conn.fetchval("select count(*) from d") == 2


async def test_the_connection_is_lost_in_commit(dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn, pgpoll.connect(dsn) as other:
        await conn.executescript(slow_commit(20))

        async def body() -> None:
            async with conn.transaction():
                await conn.execute("insert into d values (1)")

        task = asyncio.create_task(body())
        await asyncio.sleep(0.1)
        waiting = stranger(conn.fetchval("select 1"))
        await asyncio.sleep(0)
        await other.execute("select pg_terminate_backend($1)", conn.backend_pid)
        with pytest.raises(pgpoll.CommitUnknown) as caught:
            await asyncio.wait_for(task, 5)
        assert caught.value.sqlstate == "08007"
        assert isinstance(caught.value.__cause__, errors.AdminShutdown)
        with pytest.raises(pgpoll.ConnectionLost) as lost:
            await waiting
        assert lost.value.safe_to_retry
        assert isinstance(lost.value.__cause__, errors.AdminShutdown)


async def test_the_connection_is_lost_in_the_body(dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn, pgpoll.connect(dsn) as other:
        with pytest.raises(KeyError):
            async with conn.transaction():
                await other.execute("select pg_terminate_backend($1)", conn.backend_pid)
                raise KeyError
        assert conn.closed or await asyncio.sleep(0.1, True)
    async with pgpoll.connect(dsn) as conn, pgpoll.connect(dsn) as other:
        with pytest.raises(pgpoll.Error):
            async with conn.transaction():
                await other.execute("select pg_terminate_backend($1)", conn.backend_pid)
                await asyncio.sleep(0.1)


# -- closing


async def test_the_owners_close_rolls_back_and_serves_the_strangers(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    with pytest.raises(pgpoll.InterfaceError, match="closed: rolled back"):
        async with conn.transaction():
            await conn.execute("select 1")
            waiting = stranger(conn.fetchval("select 5"))
            await asyncio.sleep(0)
            await conn.close()
    assert await waiting == 5
    assert conn.closed


async def test_a_strangers_close_waits_for_the_block(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    async with conn.transaction() as tx:
        waiting = stranger(conn.fetchval("select 5"))
        await asyncio.sleep(0)
        closing = [stranger(conn.close()) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert not closing[0].done()

        async def newcomer() -> None:
            with pytest.raises(pgpoll.InterfaceError, match="clos"):
                await conn.execute("select 1")

        await stranger(newcomer())
        assert await conn.fetchval("select 1") == 1
        async with tx.transaction():
            assert await conn.fetchval("select 2") == 2
    assert await waiting == 5
    await asyncio.gather(*closing)
    assert conn.closed


async def test_close_has_a_deadline(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgpoll._loop.CLOSE_SECONDS", 0.1)
    conn = await pgpoll.connect(dsn)
    with pytest.raises(pgpoll.ConnectionLost) as lost:
        async with conn.transaction():
            waiting = stranger(conn.fetchval("select 5"))
            await asyncio.sleep(0)
            await stranger(conn.close())
    assert lost.value.safe_to_retry
    with pytest.raises(pgpoll.ConnectionLost, match="closed") as served:
        await waiting
    assert served.value.safe_to_retry


async def test_a_dropped_handle_is_rolled_back(conn: pgpoll.Connection) -> None:
    """Nobody could end it any more, and all others would wait."""
    await conn.execute("create temp table dropped (i int4)")
    tx = conn.transaction()
    await tx.start()
    await tx.execute("insert into dropped values (1)")
    waiting = asyncio.create_task(conn.fetchval("select count(*) from dropped"), context=contextvars.Context())
    await asyncio.sleep(0)
    with pytest.warns(ResourceWarning, match="unfinished transaction"):
        del tx
    assert await asyncio.wait_for(waiting, 5) == 0
    assert conn.transaction_status == "I"


async def test_no_time_at_all_sends_nothing(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table timeless (i int4)")
    for timeout in (0, -1, 0.0):
        with pytest.raises(pgpoll.QueryTimeout) as caught:
            await conn.execute("insert into timeless values (1)", timeout=timeout)
        assert caught.value.safe_to_retry
    assert await conn.fetchval("select count(*) from timeless") == 0


def test_no_time_at_all_sends_nothing_and_a_dropped_handle_is_rolled_back_sync(dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as conn:
        conn.execute("create temp table timeless (i int4)")
        with pytest.raises(pgpoll.QueryTimeout) as caught:
            conn.execute("insert into timeless values (1)", timeout=0)
        assert caught.value.safe_to_retry
        tx = conn.transaction()
        tx.start()
        tx.execute("insert into timeless values (2)")
        with pytest.warns(ResourceWarning, match="unfinished transaction"):
            del tx
        assert conn.fetchval("select count(*) from timeless") == 0
        assert conn.transaction_status == "I"
