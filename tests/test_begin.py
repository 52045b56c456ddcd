"""BEGIN rides in front of its block's first request: what is sent and when, how it fails, who waits for it (D18).

The core's side of it are the dialogues of dialogues/begin.py; the rules without a server are in test_blocks_lazy.py.
"""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import pgpoll
import pgpoll.sync
from backend import bind_complete, command_complete, parse_complete, ready_for_query
from callers import count, stranger
from dialogues.begin import BEGIN, DESCRIBE, STANDBY
from dialogues.execute import NEW, ONE, knows
from fake_server import FakeServer
from pgpoll import errors
from pgpoll._turns import State
from script import Script, play, where


@pytest.fixture
def trace(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What has passed since the last call, both ways: "F Parse", "B CommandComplete" ..."""
    path = tmp_path / "trace"
    monkeypatch.setenv("PGPOLL_TRACE", str(path))
    told = 0

    def news() -> list[str]:
        nonlocal told
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        found, told = lines[told:], len(lines)
        return [f"{way} {name}" for _, way, _, name, *_ in found]

    return news


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table t (i int4 primary key)")
    await conn.execute(ONE)
    return conn


def flights(messages: list[str]) -> int:
    """How often something was written after something had come."""
    ways = [each[0] for each in messages]
    return sum(here == "F" and before == "B" for before, here in zip(["B", *ways], ways, strict=False))


def sent(messages: list[str]) -> list[str]:
    return [each[2:] for each in messages if each[0] == "F"]


# -- what is sent

BEGIN_AND_ONE = ["Parse", "Bind", "Execute", "Flush", "Bind", "Execute", "Sync"]


async def test_two_flights(trace: Callable[[], list[str]], dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        await conn.execute(ONE)
        trace()
        async with conn.transaction():
            assert await conn.fetchval(ONE) == 1
        messages = trace()
        assert flights(messages) == 2
        assert sent(messages) == [*BEGIN_AND_ONE, "Parse", "Bind", "Execute", "Sync"]
        async with conn.transaction(), conn.transaction():
            assert await conn.fetchval(ONE) == 1
        assert flights(trace()) == 3, "and RELEASE before COMMIT"
        async with conn.transaction():
            assert await conn.fetchval("select 1 as new") == 1
        assert flights(trace()) == 3, "and its description"


def test_two_flights_sync(trace: Callable[[], list[str]], dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as conn:
        conn.execute(ONE)
        trace()
        with conn.transaction() as tx:
            assert tx.fetchval(ONE) == 1
        assert flights(trace()) == 2


async def test_an_empty_block_sends_nothing(trace: Callable[[], list[str]], dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        trace()
        async with conn.transaction(isolation="serializable") as tx:
            assert conn.transaction_status == "I"
            async with conn.transaction():
                pass
            with pytest.raises(KeyError):
                async with tx.transaction():
                    raise KeyError
        with pytest.raises(KeyError):
            async with conn.transaction():
                raise KeyError
        for end in ("commit", "rollback"):
            async with conn.transaction() as tx:
                await getattr(tx, end)()
                with pytest.raises(pgpoll.InterfaceError, match="has ended"):
                    await tx.execute("select 1")
        assert trace() == []
        assert not conn._driver.blocks.stack


def test_an_empty_block_sends_nothing_sync(trace: Callable[[], list[str]], dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as conn:
        trace()
        with conn.transaction() as tx, tx.transaction():
            pass
        with pytest.raises(KeyError), conn.transaction():
            raise KeyError
        assert trace() == []


async def test_start_begins_at_once(trace: Callable[[], list[str]], dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        trace()
        async with conn.transaction():
            inner = conn.transaction()
            await inner.start()
            assert conn.transaction_status == "T"
            assert sent(trace()) == ["Parse", "Bind", "Execute"] * 2 + ["Sync"]
            await inner.rollback()
        tx = conn.transaction()
        await tx.start()
        assert conn.transaction_status == "T"
        await tx.rollback()


async def prepared(tx: pgpoll.Transaction) -> None:
    statement = await tx.prepare("insert into t values (5)")
    await statement.execute()


VERBS: dict[str, Callable[[pgpoll.Transaction], Coroutine[Any, Any, Any]]] = {
    "new": lambda tx: tx.execute("insert into t values (5)"),
    "cached": lambda tx: tx.execute("insert into t values ($1)", 5),
    "timed": lambda tx: tx.execute("insert into t values ($1)", 5, timeout=5),
    "fetch": lambda tx: tx.fetch("insert into t values (5) returning i"),
    "fetchrow": lambda tx: tx.fetchrow("insert into t values (5) returning i"),
    "fetchval": lambda tx: tx.fetchval("insert into t values (5) returning i"),
    "executescript": lambda tx: tx.executescript("insert into t values (5); select 1"),
    "prepare": prepared,
    "in a nested block": lambda tx: nested(tx, 1),
    "in three": lambda tx: nested(tx, 3),
}


async def nested(tx: pgpoll.Transaction, depth: int) -> None:
    async with tx.transaction() as inner:
        if depth > 1:
            await nested(inner, depth - 1)
        else:
            await inner.execute("insert into t values (5)")


@pytest.mark.parametrize("commit", [True, False], ids=["commit", "rollback"])
@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_first(conn: pgpoll.Connection, verb: str, commit: bool) -> None:
    await conn.execute("insert into t values ($1)", 0)
    with contextlib.suppress(KeyError):
        async with conn.transaction() as tx:
            await VERBS[verb](tx)
            assert conn.transaction_status == "T"
            waiting = stranger(count(conn))
            if not commit:
                raise KeyError
    assert await waiting == (2 if commit else 1)
    assert await count(conn) == (2 if commit else 1)


async def test_isolation_holds_from_the_first_request(conn: pgpoll.Connection) -> None:
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        results = await conn.executescript("show transaction_isolation; show transaction_read_only")
        assert [each[0][0] for each in results] == ["repeatable read", "on"]


# -- the first request fails


async def test_an_argument_that_is_refused_begins_nothing(trace: Callable[[], list[str]], dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        await conn.execute("select $1::int4", 1)
        trace()
        async with conn.transaction() as tx, conn.transaction():
            for _ in range(2):
                with pytest.raises(pgpoll.DataError):
                    await conn.execute("select $1::int4", "x")
            assert trace() == []
            assert tx._block.state is State.LAZY
            assert await conn.fetchval("select $1::int4", 2) == 2
            assert conn.transaction_status == "T"
        assert conn.transaction_status == "I"


async def test_an_argument_that_is_refused_once_described(conn: pgpoll.Connection) -> None:
    """BEGIN has left with Parse: the block is open, and nothing has failed in it."""
    async with conn.transaction():
        with pytest.raises(pgpoll.DataError):
            await conn.execute("select $1::int4 + 0", "x")
        assert conn.transaction_status == "T"
        await conn.execute("insert into t values (1)")
    assert await count(conn) == 1


async def test_the_first_request_fails(conn: pgpoll.Connection) -> None:
    with pytest.raises(errors.InFailedSqlTransaction, match="not committed"):
        async with conn.transaction():
            with pytest.raises(errors.DivisionByZero):
                await conn.execute("select 1/0")
    async with conn.transaction():
        with pytest.raises(errors.UniqueViolation):
            async with conn.transaction():
                await conn.execute("insert into t values (1), (1)")
        await conn.execute("insert into t values (2)")
    assert await count(conn) == 1


# -- BEGIN fails


async def failing(conn: pgpoll.Connection, children: int = 0) -> pgpoll.Transaction:
    """A body that tries again and again, within a block whose BEGIN the server refuses."""
    async with conn.transaction() as tx:
        tx._block.begin = "BEGIN ISOLATION LEVEL NONSENSE"
        tasks = [asyncio.create_task(conn.execute("insert into t values ($1)", n)) for n in range(1, children + 1)]
        await asyncio.sleep(0)
        with pytest.raises((errors.SyntaxError, pgpoll.InterfaceError)):
            await conn.execute("insert into t values ($1)", 0)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, (errors.SyntaxError, pgpoll.InterfaceError)), outcome
        for again in (conn.execute, tx.execute, conn.executescript, conn.prepare):
            with pytest.raises(pgpoll.InterfaceError, match="could not be started") as caught:
                await again("insert into t values (7)")
            assert isinstance(caught.value.__cause__, errors.SyntaxError)
        with pytest.raises(pgpoll.InterfaceError, match="could not be started"):
            async with conn.transaction():
                pass
    return tx


@pytest.mark.parametrize("children", [0, 1, 5])
async def test_nothing_runs_behind_a_begin_that_failed(conn: pgpoll.Connection, children: int) -> None:
    """The server skips what rode with it, and nothing else of the block is sent: nothing is committed by itself."""
    await conn.execute("insert into t values ($1)", 100)
    with pytest.raises(errors.InFailedSqlTransaction, match="rolled back") as caught:
        await failing(conn, children)
    assert isinstance(caught.value.__cause__, errors.SyntaxError)
    assert await count(conn) == 1
    assert not conn._driver.blocks.stack


async def test_the_bodys_error_is_the_only_one(conn: pgpoll.Connection) -> None:
    with pytest.raises(errors.SyntaxError) as caught:
        async with conn.transaction() as tx:
            tx._block.begin = "BEGIN NONSENSE"
            await conn.execute("insert into t values (1)")
    assert not getattr(caught.value, "__notes__", None)
    assert await count(conn) == 0


async def test_strangers_wait_for_the_end_of_a_block_that_failed(conn: pgpoll.Connection) -> None:
    async with conn.transaction() as tx:
        tx._block.begin = "BEGIN NONSENSE"
        with pytest.raises(errors.SyntaxError):
            await conn.execute(ONE)
        waiting = stranger(conn.fetchval(ONE))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await tx.rollback()
    assert await waiting == 1


async def test_start_fails(conn: pgpoll.Connection) -> None:
    """By hand it raises there, and nothing is left."""
    tx = conn.transaction()
    tx._block.begin = "BEGIN NONSENSE"
    with pytest.raises(errors.SyntaxError):
        await tx.start()
    assert await count(conn) == 0
    with pytest.raises(pgpoll.InterfaceError, match="could not be started"):
        await tx.execute("select 1")


async def test_a_savepoint_fails(conn: pgpoll.Connection) -> None:
    """In a transaction that has failed already; ROLLBACK TO what never was is not sent."""
    with pytest.raises(errors.InFailedSqlTransaction, match="as a whole"):
        async with conn.transaction():
            with pytest.raises(errors.DivisionByZero):
                await conn.execute("select 1/0")
            async with conn.transaction():
                pass  # sends nothing, so nothing fails
            with pytest.raises(errors.InFailedSqlTransaction, match="current transaction is aborted"):
                async with conn.transaction():
                    await conn.execute("insert into t values (1)")
            with pytest.raises(errors.InFailedSqlTransaction, match="to its savepoint"):
                async with conn.transaction():
                    with contextlib.suppress(pgpoll.Error):
                        await conn.execute("insert into t values (1)")
    assert await count(conn) == 0


async def test_a_savepoint_fails_on_the_wire(trace: Callable[[], list[str]], dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        with pytest.raises(pgpoll.Error):
            async with conn.transaction():
                await conn.execute("select 1/0")
        trace()
        with contextlib.suppress(pgpoll.Error):
            async with conn.transaction():
                with contextlib.suppress(pgpoll.Error):
                    await conn.execute("select 1/0")
                with contextlib.suppress(pgpoll.Error):
                    async with conn.transaction():
                        await conn.execute(ONE)
                trace()
        assert sent(trace()) == ["Parse", "Bind", "Execute", "Sync"], "ROLLBACK alone"


SERIALIZABLE = (where("Parse", query="BEGIN ISOLATION LEVEL SERIALIZABLE"), "Bind", "Execute")


def hot_standby() -> Script:
    """All that it sees is BEGIN with its follower, and who comes after the block."""
    script = Script().connect().expect(*SERIALIZABLE, *NEW)
    script.send(parse_complete(), bind_complete(), STANDBY).expect("Sync").send(ready_for_query())
    return script.expect("Query").send(command_complete("SELECT 1"), ready_for_query()).expect("Terminate")


@pytest.mark.parametrize("swallowed", [True, False], ids=["swallowed", "raised"])
async def test_serializable_on_a_hot_standby(swallowed: bool) -> None:
    with FakeServer(hot_standby()) as server:
        async with pgpoll.connect(host="127.0.0.1", port=server.port, user="u") as conn:
            waiting = None
            with pytest.raises(errors.FeatureNotSupported if not swallowed else errors.InFailedSqlTransaction):
                async with conn.transaction(isolation="serializable"):
                    waiting = stranger(conn.executescript("select 1"))
                    with contextlib.suppress(errors.FeatureNotSupported) if swallowed else contextlib.nullcontext():
                        await conn.execute("insert into t values (1)")
                    with pytest.raises(pgpoll.InterfaceError, match="hot standby"):
                        await conn.execute("insert into t values (2)")
            assert waiting is not None
            assert len(await waiting) == 1


def test_serializable_on_a_hot_standby_sync() -> None:
    with FakeServer(hot_standby()) as server, pgpoll.sync.connect(host="127.0.0.1", port=server.port, user="u") as conn:
        with pytest.raises(errors.InFailedSqlTransaction), conn.transaction(isolation="serializable"):
            with pytest.raises(errors.FeatureNotSupported):
                conn.execute("insert into t values (1)")
            with pytest.raises(pgpoll.InterfaceError, match="hot standby"):
                conn.execute("insert into t values (2)")
        conn.executescript("select 1")


# -- who waits for BEGIN


async def test_children_race_for_the_first_request(trace: Callable[[], list[str]], dsn: str) -> None:
    """One carries BEGIN; nothing else is written before its CommandComplete has come."""
    async with pgpoll.connect(dsn) as conn:
        await conn.execute("select $1::int4", 0)
        trace()
        async with conn.transaction(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(conn.fetchval("select $1::int4", n)) for n in range(20)]
        assert [task.result() for task in tasks] == list(range(20))
        messages = trace()
    answered = messages.index("B CommandComplete")
    assert sent(messages[:answered]) == BEGIN_AND_ONE
    assert messages.count("F Bind") == 1 + 20 + 1


async def test_the_end_waits_for_begin(conn: pgpoll.Connection) -> None:
    """Leaving while a child's request carries BEGIN."""
    async with conn.transaction():
        task = asyncio.create_task(conn.execute("insert into t values (1)"))
        await asyncio.sleep(0)
    await task
    assert await count(conn) == 1


async def test_threads_race_for_the_first_request(dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as conn, conn.transaction() as tx:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(tx.fetchval("select $1::int4", n))) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == list(range(8))
        assert conn.transaction_status == "T"


async def test_begin_by_hand_in_flight(conn: pgpoll.Connection) -> None:
    """The status byte is looked at when that has been answered."""
    by_hand = asyncio.create_task(conn.execute("begin"))
    await asyncio.sleep(0)
    async with conn.transaction():
        with pytest.raises(pgpoll.InterfaceError, match="by hand"):
            await conn.execute("insert into t values (1)")
        await by_hand
        with pytest.raises(pgpoll.InterfaceError, match="by hand"):
            await conn.execute("insert into t values (1)")
        assert conn.transaction_status == "T"
    assert conn.transaction_status == "T", "nothing of it was the block's"
    tx = conn.transaction()
    with pytest.raises(pgpoll.InterfaceError, match="by hand"):
        await tx.start()
    await conn.execute("rollback")
    assert await count(conn) == 0


async def test_begin_by_hand_in_flight_before_a_script(conn: pgpoll.Connection) -> None:
    """Whose BEGIN would go alone, and is not sent: nor is the script."""
    by_hand = asyncio.create_task(conn.execute("begin"))
    await asyncio.sleep(0)
    with pytest.raises(pgpoll.InterfaceError, match="by hand"):
        async with conn.transaction():
            await conn.executescript("insert into t values (1)")
    await by_hand
    await conn.execute("rollback")
    async with conn.transaction():
        await conn.executescript("insert into t values (2)")
    assert await count(conn) == 1


async def test_begin_and_end_by_hand_in_flight(conn: pgpoll.Connection) -> None:
    tasks = [asyncio.create_task(conn.execute(sql)) for sql in ("begin", "insert into t values (1)", "commit")]
    await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with conn.transaction():
            await conn.execute("insert into t values (2)")
            raise KeyError
    await asyncio.gather(*tasks)
    assert await count(conn) == 1


# -- cancelled, closed and lost


@pytest.mark.parametrize("verb", VERBS)
async def test_the_first_request_is_cancelled_at_any_turn(conn: pgpoll.Connection, verb: str) -> None:
    """As a child's: the block goes on, as if it had never been; as the owner's: it is rolled back."""
    over = False

    async def body(own: bool, turns: int) -> None:
        nonlocal over
        async with conn.transaction() as tx:
            task = stranger(VERBS[verb](tx))
            for _ in range(turns):
                await asyncio.sleep(0)
            over = task.done()
            task.cancel()
            if own:
                await task
            else:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                with contextlib.suppress(errors.InFailedSqlTransaction):  # cancelled at the server, it may have failed
                    await tx.execute("insert into t values ($1)", 6)
            raise KeyError

    for own in (True, False):
        over, turns = False, 0
        while not over:
            with pytest.raises((KeyError, asyncio.CancelledError)):
                await stranger(body(own, turns))
            assert await count(conn) == 0
            assert conn.transaction_status == "I"
            assert not conn._driver.blocks.stack
            turns += 1
        assert turns > 2


async def test_a_request_that_is_timed_out_leaves_the_block_begun(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.QueryTimeout):
        async with conn.transaction():
            await conn.execute("select pg_sleep(60)", timeout=0.05)
    assert conn.transaction_status == "I"
    async with conn.transaction():
        async with conn.transaction():
            pass
        with pytest.raises(pgpoll.QueryTimeout):
            async with conn.transaction():
                await conn.execute("select pg_sleep(60)", timeout=0.05)
        await conn.execute("insert into t values (1)")
    assert await count(conn) == 1


async def test_closed_inside_of_a_block_that_has_not_begun(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    with pytest.raises(pgpoll.InterfaceError, match="closed: rolled back"):
        async with conn.transaction():
            await conn.close()
    with pytest.raises(pgpoll.InterfaceError, match="clos"):
        async with conn.transaction():
            pass
    with pgpoll.sync.connect(dsn) as other:
        with pytest.raises(pgpoll.InterfaceError, match="closed: rolled back"), other.transaction():
            other.close()
        with pytest.raises(pgpoll.InterfaceError, match="clos"), other.transaction():
            pass


async def test_lost_while_begin_is_on_its_way(dsn: str) -> None:
    script = Script().connect().expect(*BEGIN, *DESCRIBE)
    with FakeServer(script) as server:
        conn = await pgpoll.connect(host="127.0.0.1", port=server.port, user="u")
        tasks = []
        with pytest.raises(pgpoll.ConnectionLost):
            async with conn.transaction() as tx:
                tasks = [asyncio.create_task(each.execute(ONE)) for each in (tx, conn)]
                tasks.append(stranger(conn.execute(ONE)))
                await tasks[0]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in outcomes] == [pgpoll.ConnectionLost] * 3
        assert [each.safe_to_retry for each in outcomes if isinstance(each, pgpoll.Error)] == [False, True, True]
        assert not conn._driver.blocks.stack


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "new"])
def test_interrupted_in_the_first_request(dsn: str, cached: bool) -> None:
    """Ctrl-C in the blocking face: cancelled at the server, and rolled back by the next verb."""
    with pgpoll.sync.connect(dsn) as conn:
        if cached:
            conn.execute("select pg_sleep($1)", 0.0)
        began = time.monotonic()
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt), conn.transaction():
            conn.execute("select pg_sleep($1)", 60.0)
        timer.join()
        assert conn.fetchval("select 1") == 1
        assert conn.transaction_status == "I"
        assert not conn._driver.blocks.stack
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("start", ["stream", "open"])
def test_no_stream_carries_what_begins_a_block(start: str) -> None:
    """Its BEGIN would be lost: nothing is sent."""
    run = play(knows())
    session = run.client

    def begin() -> Any:
        if start == "stream":
            return session.start_stream("select 1 as one", (), None)
        return session._start_open("select 1 as one", (), "p", 5)

    with pytest.raises(errors.InterfaceError, match="no stream"):
        session._start_behind(("BEGIN",), True, begin)
    assert session.outbound() == b""
    assert session.in_flight == 0
