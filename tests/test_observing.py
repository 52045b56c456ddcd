"""on_request: one record for each request, whatever its outcome, before whoever asked goes on (D17); and max_queued."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import pathlib
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import pgpoll
from pgpoll import RequestRecord, errors

SEEDS = int(os.environ.get("PGPOLL_SEEDS", "3"))

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Seen(list[RequestRecord]):
    """An observer that keeps its records."""

    def __call__(self, record: RequestRecord) -> None:
        self.append(record)

    @property
    def sqls(self) -> list[str | None]:
        return [each.sql for each in self]

    def only(self, sql: str) -> RequestRecord:
        (found,) = (each for each in self if each.sql == sql)
        return found


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture(name="conn")
async def observed_connection(dsn: str, seen: Seen) -> AsyncIterator[pgpoll.Connection]:
    async with pgpoll.connect(dsn, on_request=seen) as connection:
        yield connection


@pytest.fixture
async def unhandled() -> list[dict[str, Any]]:
    """What the loop's exception handler gets."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


def in_order(record: RequestRecord) -> bool:
    times = [each for each in record[2:6] if each is not None]
    return times == sorted(times)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def begun(conn: pgpoll.Connection) -> AsyncIterator[None]:
    """A transaction whose BEGIN was sent at once."""
    transaction = conn.transaction()
    await transaction.start()
    yield
    await transaction.commit()


@contextlib.contextmanager
def begun_sync(conn: pgpoll.sync.Connection) -> Iterator[None]:
    transaction = conn.transaction()
    transaction.start()
    yield
    transaction.commit()


# -- what a record says


async def test_every_verb_is_recorded_once(conn: pgpoll.Connection, seen: Seen) -> None:
    await conn.execute("select 1 as a")
    await conn.fetch("select generate_series(1, 20)")
    await conn.fetchrow("select generate_series(1, 30)")
    await conn.fetchval("select generate_series(1, 40)")
    await conn.executescript("select 1; select generate_series(1, 4)")
    statement = await conn.prepare("select generate_series(1, $1::int4) as p")
    await statement.fetch(50)
    await statement.fetchval(60, timeout=9)
    await conn.execute("create temp table observed (i int4)")
    assert [record.rows for record in seen] == [1, 20, 30, 40, 5, 0, 50, 60, 0]
    assert seen.sqls == [
        "select 1 as a",
        *(f"select generate_series(1, {n})" for n in (20, 30, 40)),
        "select 1; select generate_series(1, 4)",
        *["select generate_series(1, $1::int4) as p"] * 3,
        "create temp table observed (i int4)",
    ]
    assert all(in_order(record) and record.error is None and None not in record[2:6] for record in seen)
    assert seen[4].statement is None
    assert {each.statement for each in seen[5:8]} == {statement._prepared.name}


async def test_bytes_are_those_of_the_reply(conn: pgpoll.Connection, seen: Seen) -> None:
    for _ in range(2):
        await conn.fetchval("select 1::int4")
    described, known = seen
    assert known.bytes == 5 + 15 + 14 + 6  # BindComplete, DataRow, CommandComplete, ReadyForQuery
    assert described.bytes == known.bytes + 5 + 7 + (5 + 2 + len("int4\0") + 18)  # and what describes it


async def test_a_transaction_is_recorded_with_its_own_commands(conn: pgpoll.Connection, seen: Seen) -> None:
    async with conn.transaction(isolation="serializable"):
        async with conn.transaction():
            await conn.execute("select 1")
        with pytest.raises(ZeroDivisionError):
            async with conn.transaction():
                await conn.execute("select 2")
                raise ZeroDivisionError
        async with conn.transaction():
            pass  # sends nothing
    assert seen.sqls == [
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "SAVEPOINT pgpoll_1",
        "select 1",
        "RELEASE SAVEPOINT pgpoll_1",
        "SAVEPOINT pgpoll_2",
        "select 2",
        "ROLLBACK TO SAVEPOINT pgpoll_2",
        "RELEASE SAVEPOINT pgpoll_2",
        "COMMIT",
    ]
    assert all(in_order(record) for record in seen)


def test_a_record_is_plain_immutable_data_that_hides_values() -> None:
    error = errors.InvalidTextRepresentation('invalid input syntax for type integer: "secret"')
    record = RequestRecord("select $1", "s", 1.0, 1.5, 1.75, 2.0, 3, 4, error)
    assert repr(record) == ("<pgpoll.RequestRecord 'select $1' rows=3 bytes=4 1000.000 ms InvalidTextRepresentation>")
    with pytest.raises(AttributeError):
        record.rows = 5  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(record))
    assert copy[:8] == record[:8]
    assert (type(copy.error), str(copy.error)) == (type(error), str(error))


# -- every outcome


async def test_its_own_error(conn: pgpoll.Connection, seen: Seen) -> None:
    with pytest.raises(errors.DivisionByZero) as caught:
        await conn.execute("select 1/0")
    assert seen.only("select 1/0").error is caught.value
    assert None not in seen[0][2:6]


async def test_arguments_that_are_refused(conn: pgpoll.Connection, seen: Seen) -> None:
    for times in (1, 2):  # once described for it, once known
        with pytest.raises(pgpoll.DataError) as caught:
            await conn.execute("select $1::int4", "x")
        assert len(seen) == times
        assert seen[-1].error is caught.value
        assert seen[-1].statement == seen[0].statement is not None
    assert seen[0].sent is not None
    assert seen[1].sent is None


async def test_values_that_can_not_be_decoded(conn: pgpoll.Connection, seen: Seen) -> None:
    with pytest.raises(pgpoll.DataError) as caught:
        await conn.fetchval("select '294276-12-31'::timestamp")
    assert seen[0].error is caught.value
    assert seen[0].rows == 1


async def test_misuse_is_no_request(conn: pgpoll.Connection, seen: Seen) -> None:
    with pytest.raises(pgpoll.InterfaceError):
        await conn.execute(b"select 1")  # type: ignore[arg-type]
    with pytest.raises(pgpoll.InterfaceError):
        await conn.executescript("select '\0'")
    await conn.close()
    with pytest.raises(pgpoll.InterfaceError):
        await conn.execute("select 1")
    assert seen == []


async def test_cancelled_while_it_runs(conn: pgpoll.Connection, seen: Seen) -> None:
    order: list[str] = []

    async def sleep() -> None:
        try:
            await conn.execute("select pg_sleep(60)")
        except asyncio.CancelledError:
            order.append(f"cancelled after {len(seen)} record")
            raise

    task = asyncio.create_task(sleep())
    await until(lambda: conn._core.in_flight == 1)
    await asyncio.sleep(0.01)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order == ["cancelled after 1 record"]
    assert await conn.fetchval("select 1") == 1
    first, _ = seen  # what drains a stray cancellation is no request
    assert isinstance(first.error, asyncio.CancelledError)
    assert first.error.args == ("enough",)
    assert first.sent is not None
    assert first.sent <= first.finished


async def test_cancelled_before_it_was_sent(dsn: str, seen: Seen) -> None:
    async with pgpoll.connect(dsn, on_request=seen, max_pipeline=1) as conn:
        await conn.execute("select 2")
        first = asyncio.create_task(conn.execute("select pg_sleep(0.05)"))
        second = asyncio.create_task(conn.execute("select 2"))
        await until(lambda: conn._core.in_flight == 2)
        second.cancel()
        await first
    cancelled = seen[1]
    assert (cancelled.sql, type(cancelled.error)) == ("select 2", asyncio.CancelledError)
    assert (cancelled.sent, cancelled.first_byte, cancelled.rows, cancelled.bytes) == (None, None, 0, 0)
    assert seen[2].sql == "select pg_sleep(0.05)"
    assert len(seen) == 3


async def test_timed_out(conn: pgpoll.Connection, seen: Seen) -> None:
    with pytest.raises(pgpoll.QueryTimeout) as caught:
        await conn.execute("select pg_sleep(60)", timeout=0.02)
    assert seen.only("select pg_sleep(60)").error is caught.value
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await conn.execute("select pg_sleep(61)")
    assert isinstance(seen.only("select pg_sleep(61)").error, asyncio.CancelledError)
    assert await conn.fetchval("select 1") == 1
    assert len(seen) == 3


async def test_lost(conn: pgpoll.Connection, dsn: str, seen: Seen) -> None:
    requests = [asyncio.create_task(conn.execute(f"select pg_sleep(60), {i}")) for i in range(3)]
    await until(lambda: conn._core.in_flight == 3)
    async with pgpoll.connect(dsn) as other:
        await other.execute("select pg_terminate_backend($1)", conn.backend_pid)
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert [record.error for record in seen] == outcomes
    assert [type(each) for each in outcomes] == [errors.AdminShutdown, *[pgpoll.ConnectionLost] * 2]
    assert seen[0].first_byte is not None
    assert seen[2].first_byte is None


async def test_terminated(conn: pgpoll.Connection, seen: Seen) -> None:
    requests = [asyncio.create_task(conn.execute(f"select pg_sleep(60), {i}")) for i in range(2)]
    await until(lambda: conn._core.in_flight == 2)
    conn.terminate()
    assert len(seen) == 2
    assert await asyncio.gather(*requests, return_exceptions=True) == [record.error for record in seen]
    assert all(in_order(record) for record in seen)


def test_the_loop_is_closed(dsn: str, seen: Seen) -> None:
    async def main() -> pgpoll.Connection:
        conn = await pgpoll.connect(dsn, on_request=seen)
        conn._core.start_execute("select pg_sleep(60)")
        return conn

    conn = asyncio.run(main())
    conn.terminate()
    assert isinstance(seen.only("select pg_sleep(60)").error, pgpoll.ConnectionLost)


# -- those that wait in the line


async def in_line(conn: pgpoll.Connection, request: Any, place: int = 1) -> asyncio.Task[Any]:
    """The request as a task of a stranger, waiting for our transaction."""
    task = contextvars.Context().run(asyncio.create_task, request)
    await until(lambda: conn._driver.blocks.waiting == place)
    return task


async def test_in_line_and_served(conn: pgpoll.Connection, seen: Seen) -> None:
    async with begun(conn):
        task = await in_line(conn, conn.fetchval("select 7"))
        await conn.execute("select 1")
    assert await task == 7
    assert seen.sqls == ["BEGIN", "select 1", "COMMIT", "select 7"]
    assert seen[0].finished <= seen[3].queued <= seen[1].queued
    assert seen[3].sent is not None
    assert seen[3].sent >= seen[2].finished
    assert in_order(seen[3])


@pytest.mark.parametrize("verb", ["execute", "executescript", "prepare"])
async def test_in_line_and_given_up(conn: pgpoll.Connection, seen: Seen, verb: str) -> None:
    async with begun(conn):
        task = await in_line(conn, getattr(conn, verb)("select 7"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(pgpoll.QueryTimeout) as caught:
            await (await in_line(conn, getattr(conn, verb)("select 8", timeout=0.01)))
    assert seen.sqls == ["BEGIN", "select 7", "select 8", "COMMIT"]
    assert isinstance(seen[1].error, asyncio.CancelledError)
    assert seen[2].error is caught.value
    assert {each.sent for each in seen[1:3]} == {None}


async def test_in_line_and_refused(conn: pgpoll.Connection, seen: Seen) -> None:
    assert await conn.fetchval("select $1::int4", 1) == 1
    async with begun(conn):
        task = await in_line(conn, conn.execute("select $1::int4", "x"))
    with pytest.raises(pgpoll.DataError) as caught:
        await task
    assert seen.sqls == ["select $1::int4", "BEGIN", "COMMIT", "select $1::int4"]
    assert seen[3].error is caught.value


async def test_in_line_and_lost(conn: pgpoll.Connection, seen: Seen) -> None:
    with pytest.raises(pgpoll.ConnectionLost):
        async with begun(conn):
            task = await in_line(conn, conn.execute("select 7"))
            conn.terminate()
    with pytest.raises(pgpoll.ConnectionLost) as caught:
        await task
    assert seen.sqls == ["BEGIN", "select 7"]
    assert seen[1].error is caught.value


# -- when and where


async def test_before_the_task_goes_on(dsn: str) -> None:
    order: list[str] = []

    async def ask(i: int) -> None:
        await conn.fetchval(f"select {i}")
        order.append(f"answered select {i}")

    async with pgpoll.connect(dsn, on_request=lambda record: order.append(f"recorded {record.sql}")) as conn:
        for _ in range(2):
            await asyncio.gather(*map(ask, range(10)))
    for i in range(10):
        mine = [each for each in order if each.endswith(f" select {i}")]
        assert mine == [f"recorded select {i}", f"answered select {i}"] * 2


async def test_in_the_context_of_the_request(dsn: str) -> None:
    found: dict[str | None, str] = {}

    def observe(record: RequestRecord) -> None:
        found[record.sql] = who.get()
        who.set("the observer")

    async def ask(name: str, sql: str, timeout: float | None = None) -> None:
        who.set(name)
        await conn.execute(sql, timeout=timeout)
        assert who.get() == name

    async with pgpoll.connect(dsn, on_request=observe) as conn:
        await asyncio.gather(ask("one", "select 1"), ask("two", "select 2"))
        cancelled = asyncio.create_task(ask("three", "select pg_sleep(60)"))
        await until(lambda: conn._core.in_flight == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(pgpoll.QueryTimeout):
            await asyncio.create_task(ask("four", "select pg_sleep(61)", 0.01))
        async with conn.transaction():
            late = await in_line(conn, ask("five", "select 5"))
            given_up = asyncio.create_task(
                contextvars.Context().run(ask, "six", "select 6"), context=contextvars.Context()
            )
            await until(lambda: conn._driver.blocks.waiting == 2)
            given_up.cancel()
        await late
    assert [found.get(sql) for sql in ("select 1", "select 2", "select pg_sleep(60)", "select pg_sleep(61)")] == [
        "one",
        "two",
        "three",
        "four",
    ]
    assert (found["select 5"], found["select 6"]) == ("five", "six")


# -- what a callback may do


async def test_a_callback_that_raises(dsn: str, unhandled: list[dict[str, Any]]) -> None:
    error = ValueError("the observer's own")

    def observe(record: RequestRecord) -> None:
        raise error

    async with pgpoll.connect(dsn, on_request=observe) as conn:
        assert await conn.fetchval("select 1") == 1
        with pytest.raises(errors.DivisionByZero):
            await conn.execute("select 1/0")
        with pytest.raises(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep(60)", timeout=0.01)
        with pytest.raises(pgpoll.DataError):
            await conn.execute("select $1::int4", "x")
        with pytest.raises(pgpoll.DataError):
            await conn.execute("select $1::int4", "x")
    assert [each["exception"] for each in unhandled] == [error] * 5
    assert "on_request" in unhandled[0]["message"]


def test_a_callback_that_exits(dsn: str) -> None:
    answers: list[int] = []

    def observe(record: RequestRecord) -> None:
        raise SystemExit(7)

    async def main() -> None:
        conn = await pgpoll.connect(dsn, on_request=observe)
        try:
            answers.append(await conn.fetchval("select 1"))
            await asyncio.sleep(5)
        finally:
            conn.terminate()

    with pytest.raises(SystemExit) as caught:
        asyncio.run(main())
    assert caught.value.code == 7
    assert answers == [1]


async def test_a_callback_that_starts_requests(dsn: str) -> None:
    tasks: list[asyncio.Task[Any]] = []
    sqls: list[str | None] = []

    def observe(record: RequestRecord) -> None:
        sqls.append(record.sql)
        if record.sql == "select 1":
            tasks.append(asyncio.create_task(conn.fetchval("select 2")))

    async with pgpoll.connect(dsn, on_request=observe) as conn:
        assert await conn.fetchval("select 1") == 1
        assert await tasks[0] == 2
    assert sqls == ["select 1", "select 2"]


async def test_a_callback_that_ends_the_connection(dsn: str, seen: Seen) -> None:
    def observe(record: RequestRecord) -> None:
        seen(record)
        conn.terminate()

    conn = await pgpoll.connect(dsn, on_request=observe)
    outcomes = await asyncio.gather(*(conn.fetchval(f"select {i}") for i in range(5)), return_exceptions=True)
    assert outcomes[0] == 0
    assert conn.closed
    assert [record.error for record in seen[1:]] == outcomes[1:]
    assert sorted(str(each) for each in seen.sqls) == [f"select {i}" for i in range(5)]


async def test_a_callback_that_closes_or_cancels(dsn: str, seen: Seen) -> None:
    closing: list[asyncio.Task[None]] = []

    def observe(record: RequestRecord) -> None:
        seen(record)
        asker.cancel()
        closing.append(asyncio.create_task(conn.close()))

    conn = await pgpoll.connect(dsn, on_request=observe)
    asker = asyncio.create_task(conn.fetchval("select 1"))
    with pytest.raises(asyncio.CancelledError):
        await asker
    await closing[0]
    assert [record.error for record in seen] == [None], "it had succeeded"


@pytest.mark.parametrize("name", ["on_request", "on_notice"])
async def test_what_is_not_callable(name: str) -> None:
    wrong: dict[str, Any] = {name: 7, "host": "127.0.0.1", "port": 1, "user": "u"}  # nobody listens there
    with pytest.raises(pgpoll.InterfaceError, match=f"{name} must be callable or None, not int"):
        await pgpoll.connect(**wrong)
    with pytest.raises(pgpoll.InterfaceError, match=f"{name} must be callable or None, not int"):
        pgpoll.sync.connect(**wrong)


# -- all at once


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_chaos_leaves_one_record_each(dsn: str, seen: Seen, seed: int) -> None:
    """Requests of all kinds, a third of them cancelled or timed out at random, then the connection is lost."""
    choose = random.Random(seed)
    outcomes: dict[str, BaseException | None] = {}

    async def ask(token: int) -> None:
        await asyncio.sleep(choose.random() / 50)
        sql = f"select {token} " + choose.choice(["", "", "/ 0", ", generate_series(1, 500)", ", pg_sleep(0.001)"])
        timeout = choose.choice([None, None, choose.random() / 50])
        try:
            if choose.random() < 0.1:
                async with conn.transaction():
                    await run(sql, timeout)
            else:
                await run(sql, timeout)
        except (pgpoll.Error, asyncio.CancelledError):
            return

    async def run(sql: str, timeout: float | None) -> None:
        verb = choose.choice(["execute", "fetch", "fetchval", "executescript"])
        try:
            await getattr(conn, verb)(sql, timeout=timeout)
        except BaseException as error:
            outcomes[sql] = error
            raise
        else:
            outcomes[sql] = None

    conn = await pgpoll.connect(dsn, on_request=seen)
    tasks = [asyncio.create_task(ask(token)) for token in range(200)]
    for _ in range(60):
        await asyncio.sleep(choose.random() / 500)
        choose.choice(tasks).cancel()
    if seed % 2:
        conn.terminate()
    await asyncio.gather(*tasks, return_exceptions=True)
    await conn.close()
    records = {record.sql: record for record in seen if str(record.sql).startswith("select")}
    assert len(records) == sum(str(record.sql).startswith("select") for record in seen), "one has two records"
    assert all(in_order(record) for record in seen)
    for sql, outcome in outcomes.items():
        if type(outcome) is pgpoll.InterfaceError:  # closed: never queued
            assert sql not in records
            continue
        error = records.pop(sql).error
        if isinstance(outcome, asyncio.CancelledError):  # or it was answered, and its task cancelled before it went on
            assert error is None or isinstance(error, (asyncio.CancelledError, pgpoll.Error))
        else:
            assert error is outcome
    assert not records


# -- nobody observes

COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <time.h>
int calls_of_core;
int clock_gettime(clockid_t clock, struct timespec *time) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  Dl_info from;
  if (dladdr(__builtin_return_address(0), &from) && strstr(from.dli_fname, "/pgpoll/core.")) ++calls_of_core;
  return real(clock, time);
}
"""

PROGRAM = """
import asyncio, ctypes, sys, pgpoll
calls = ctypes.c_int.in_dll(ctypes.CDLL(None), "calls_of_core")
async def main(**observers):
    async with pgpoll.connect(sys.argv[1], **observers) as conn:
        await asyncio.gather(*(conn.fetchval("select 1") for _ in range(100)))
        for _ in range(100):
            await conn.fetchval("select 1")
    return calls.value
print(asyncio.run(main()), asyncio.run(main(on_request=lambda record: None)))
"""


def test_no_clock_is_read_where_nobody_observes(dsn: str, tmp_path: pathlib.Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None
    (tmp_path / "counter.c").write_text(COUNTER)
    library = tmp_path / "counter.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "counter.c", "-ldl"], check=True)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, dsn],
        env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    off, on = map(int, run.stdout.split())
    assert off == 0
    # each request's start; and the polls and flushes: two each where it is alone, fewer where they share one
    assert 200 < on <= 200 + 3 * 100 + 100


# -- the blocking face


def test_sync_outcomes(dsn: str, seen: Seen) -> None:
    with pgpoll.sync.connect(dsn, on_request=seen) as conn:
        conn.execute("select 1")
        caught: list[BaseException] = []
        for sql, args, timeout in (
            ("select 1/0", (), None),
            ("select $1::int4", ("x",), None),
            ("select $1::int4", ("x",), None),
            ("select '294276-12-31'::timestamp", (), None),
            ("select pg_sleep(60)", (), 0.01),
        ):
            try:
                conn.fetchval(sql, *args, timeout=timeout)
            except pgpoll.Error as error:
                caught.append(error)
        with conn.transaction(), conn.transaction():
            conn.prepare("select 2")
        with pytest.raises(ZeroDivisionError), conn.transaction(), conn.transaction():
            conn.execute("select 3")
            raise ZeroDivisionError
        assert len(conn.executescript("select 1; select 2")) == 2
    assert [each.error for each in seen[1:6]] == caught
    assert seen.sqls[6:] == [
        "BEGIN",
        "SAVEPOINT pgpoll_1",
        "select 2",
        "RELEASE SAVEPOINT pgpoll_1",
        "COMMIT",
        "BEGIN",
        "SAVEPOINT pgpoll_2",
        "select 3",
        "ROLLBACK TO SAVEPOINT pgpoll_2",
        "RELEASE SAVEPOINT pgpoll_2",
        "ROLLBACK",
        "select 1; select 2",
    ]
    assert all(in_order(record) for record in seen)
    assert seen[0].rows == 1


def test_sync_interrupted_and_terminated(dsn: str, seen: Seen) -> None:
    with pgpoll.sync.connect(dsn, on_request=seen) as conn:
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt) as interrupted:
            conn.execute("select pg_sleep(60)")
        timer.join()
        assert [record.error for record in seen] == [interrupted.value]
        assert conn.fetchval("select 1") == 1
        timer = threading.Timer(0.1, conn.terminate)
        timer.start()
        with pytest.raises(pgpoll.ConnectionLost) as caught:
            conn.execute("select pg_sleep(61)")
        timer.join()
    assert seen.only("select pg_sleep(61)").error is caught.value
    assert len(seen) == 3


def test_sync_in_line(dsn: str, seen: Seen) -> None:
    done: list[object] = []

    def stranger(sql: str, timeout: float | None) -> None:
        who.set(sql)
        try:
            done.append(conn.fetchval(sql, timeout=timeout))
        except pgpoll.Error as error:
            done.append(error)

    contexts: dict[str | None, str] = {}

    def observe(record: RequestRecord) -> None:
        seen(record)
        contexts[record.sql] = who.get()

    with pgpoll.sync.connect(dsn, on_request=observe) as conn:
        with begun_sync(conn):
            first = threading.Thread(target=stranger, args=("select 6", 0.02))
            first.start()
            first.join()
            second = threading.Thread(target=stranger, args=("select 7", None))
            second.start()
            while not conn._driver.blocks.waiting:
                pass
        second.join()
    assert seen.sqls == ["BEGIN", "select 6", "COMMIT", "select 7"]
    assert [seen[1].error, 7] == done
    assert isinstance(seen[1].error, pgpoll.QueryTimeout)
    assert seen[3].queued <= seen[2].queued
    assert contexts == {"BEGIN": "nobody", "COMMIT": "nobody", "select 6": "select 6", "select 7": "select 7"}


def test_sync_callbacks_that_use_the_connection(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    sqls: list[str | None] = []

    def observe(record: RequestRecord) -> None:
        sqls.append(record.sql)
        match record.sql:
            case "select 1" | "BEGIN" | "select pg_sleep(60)" | "select $1::int4":
                assert conn.fetchval("select 2") == 2
            case "select 3":
                raise ValueError("the observer's own")
            case "select 4":
                conn.close()

    conn = pgpoll.sync.connect(dsn, on_request=observe)
    assert conn.fetchval("select 1") == 1
    with begun_sync(conn):
        pass
    with pytest.raises(pgpoll.QueryTimeout):
        conn.execute("select pg_sleep(60)", timeout=0.01)
    for _ in range(2):
        with pytest.raises(pgpoll.DataError):
            conn.execute("select $1::int4", "x")
    with caplog.at_level(logging.ERROR, "pgpoll"):
        assert conn.fetchval("select 3") == 3
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["the observer's own"]
    assert conn.fetchval("select 4") == 4
    assert conn.closed
    assert sqls == (
        ["select 1", "select 2", "BEGIN", "select 2", "COMMIT", "select pg_sleep(60)", "select 2"]
        + ["select $1::int4", "select 2"] * 2
        + ["select 3", "select 4"]
    )


def test_sync_a_callback_that_is_interrupted(dsn: str) -> None:
    def observe(record: RequestRecord) -> None:
        raise KeyboardInterrupt

    with pgpoll.sync.connect(dsn, on_request=observe) as conn:
        with pytest.raises(KeyboardInterrupt):
            conn.execute("select 1")
        assert conn._core.in_flight == 0


async def test_what_observes_is_let_go(dsn: str) -> None:
    """Nothing of the connection outlives it, whichever way its requests have ended."""
    seen = Seen()
    gone = weakref.ref(seen)
    async with pgpoll.connect(dsn, on_request=seen, on_notice=seen.__contains__) as conn:
        async with begun(conn):
            task = await in_line(conn, conn.execute("select 7"))
            with pytest.raises(pgpoll.QueryTimeout):
                await (await in_line(conn, conn.execute("select 8", timeout=0.01), 2))
        await task
        with pytest.raises(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep(60)", timeout=0.01)
    with pgpoll.sync.connect(dsn, on_request=seen) as other:
        other.execute("select 1")
    assert len(seen) == 6
    del conn, other, seen, task
    gc.collect()
    assert gone() is None


# -- max_queued


async def test_max_queued(dsn: str) -> None:
    async with pgpoll.connect(dsn, max_queued=3) as conn:
        outcomes = await asyncio.gather(*(conn.fetchval(f"select {i}") for i in range(5)), return_exceptions=True)
        assert outcomes[:3] == [0, 1, 2]
        assert [type(each) for each in outcomes[3:]] == [pgpoll.BusyError] * 2
        async with conn.transaction():  # whose end needs no room
            asked = [asyncio.create_task(conn.fetchval("select 1, pg_sleep(0.02)")) for _ in range(3)]
            await until(lambda: conn._core.in_flight == 3)
        assert await asyncio.gather(*asked) == [1, 1, 1]
        assert conn.transaction_status == "I"


async def test_max_queued_counts_those_that_wait_for_a_transaction(dsn: str) -> None:
    async with pgpoll.connect(dsn, max_queued=2) as conn:
        async with conn.transaction():
            waiting = [contextvars.Context().run(asyncio.create_task, conn.fetchval(f"select {i}")) for i in range(4)]
            await until(lambda: sum(task.done() for task in waiting) == 2)
            assert await conn.fetchval("select 7") == 7
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert outcomes[:2] == [0, 1]
    assert [type(each) for each in outcomes[2:]] == [pgpoll.BusyError] * 2


@pytest.mark.parametrize("wrong", [0, -1, "3", True, 1.5])
def test_max_queued_is_a_positive_int(wrong: Any) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="max_queued"):
        pgpoll.sync.connect(host="127.0.0.1", port=1, user="u", max_queued=wrong)
