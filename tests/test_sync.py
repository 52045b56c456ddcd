"""The blocking face on a real server: verbs, Ctrl-C, threads, ownership by thread and handle, ends."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import pgpoll
from callers import slow_commit
from pgpoll import errors, sync
from server import Server


@pytest.fixture
def conn(dsn: str) -> Iterator[sync.Connection]:
    with sync.connect(dsn) as connection:
        connection.execute("create temp table t (i int4 primary key)")
        yield connection


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def count(conn: sync.Connection) -> int:
    value: int = conn.fetchval("select count(*) from t")
    return value


@contextlib.contextmanager
def interrupted(*after: float) -> Iterator[None]:
    """KeyboardInterrupt so many seconds from now; must be raised by the body."""
    timers = [threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)) for seconds in after]
    for timer in timers:
        timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        for timer in timers:
            timer.join()
    assert time.monotonic() - began < 3


def test_verbs(conn: sync.Connection) -> None:
    assert conn.execute("select 1 as a union all select 2").tag == "SELECT 2"
    assert conn.fetch("select 1 as a union all select 2 order by a") == [(1,), (2,)]
    assert conn.fetchrow("select 1, 'x'") == (1, "x")
    assert conn.fetchrow("select 1 where false") is None
    assert conn.fetchval("select $1::text", "x") == "x"
    assert [list(map(tuple, each)) for each in conn.executescript("select 1; select 2, 'b'")] == [
        [("1",)],
        [("2", "b")],
    ]
    statement = conn.prepare("select $1::int4 as a")
    assert statement.fetchval(1) == 1
    assert statement.fetch(2) == [(2,)]
    assert statement.fetchrow(3) == (3,)
    assert statement.execute(4).scalar() == 4
    assert statement.parameters[0].type_name == "int4"
    with pytest.raises(errors.DivisionByZero):
        conn.execute("select 1/0")
    with pytest.raises(pgpoll.DataError):
        conn.execute("select $1::int4", "text")
    with pytest.raises(pgpoll.InterfaceError):
        conn.execute("copy t from stdin")
    assert conn.fetchval("select 1") == 1
    assert conn.backend_pid > 0
    assert conn.transaction_status == "I"
    assert conn.server_parameters["client_encoding"] == "UTF8"
    assert "pid=" in repr(conn)


def test_timeouts(conn: sync.Connection) -> None:
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(pgpoll.QueryTimeout):
            conn.execute("select pg_sleep(20)", timeout=0.03)
        assert conn.fetchval("select 5", timeout=5) == 5
    with pytest.raises(pgpoll.QueryTimeout):
        conn.prepare("select pg_sleep(20)").execute(timeout=0.03)
    assert time.monotonic() - began < 3
    assert conn.fetchval("select 6") == 6


def test_connect_timeout() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(pgpoll.QueryTimeout) as caught:
            sync.connect(host="127.0.0.1", port=port, user="postgres", connect_timeout=2)
        assert 1.5 < time.monotonic() - began < 4
        assert caught.value.safe_to_retry


# -- Ctrl-C


def test_ctrl_c_cancels_at_the_server(conn: sync.Connection, dsn: str) -> None:
    with interrupted(0.1):
        conn.execute("select pg_sleep(20)")
    with sync.connect(dsn) as other:
        state = other.fetchval("select state from pg_stat_activity where pid = $1", conn.backend_pid)
        assert state != "active"
    assert conn.fetchval("select 1") == 1


def test_ctrl_c_where_the_server_takes_no_cancel_request(server: Server) -> None:
    """1 s for the CancelRequest, none after a second Ctrl-C; 2 s in all, then the connection is ended."""
    for after, least, most in (((0.1,), 1.0, 1.5), ((0.1, 0.2), 0.1, 0.5)):
        with sync.connect(server.dsn) as conn:
            os.kill(server.pid, signal.SIGSTOP)  # connections are accepted by the kernel, and never served
            try:
                began = time.monotonic()
                with interrupted(*after):
                    conn.execute("select pg_sleep(20)")
                assert least < time.monotonic() - began < most
                with pytest.raises(pgpoll.Error, match=r"CancelRequest|closed"):
                    conn.execute("select 1")
                assert time.monotonic() - began < 3
                assert conn.closed
            finally:
                os.kill(server.pid, signal.SIGCONT)


def test_ctrl_c_in_a_transaction(conn: sync.Connection) -> None:
    with interrupted(0.1), conn.transaction():
        conn.execute("insert into t values (1)")
        conn.execute("select pg_sleep(20)")
    assert count(conn) == 0
    assert conn.transaction_status == "I"
    with interrupted(0.1), conn.transaction(), conn.transaction():
        conn.execute("insert into t values (1)")
        time.sleep(5)
    with conn.transaction():
        assert count(conn) == 0


def test_ctrl_c_in_commit(conn: sync.Connection) -> None:
    conn.executescript(slow_commit(0.4))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as caught, conn.transaction():
        conn.execute("insert into d values (1)")
    assert isinstance(caught.value.__cause__, pgpoll.CommitUnknown)
    assert conn.fetchval("select count(*) from d") == 1


def test_ctrl_c_while_waiting_for_a_block(conn: sync.Connection, pool: ThreadPoolExecutor) -> None:
    entered, release = threading.Event(), threading.Event()

    def owner() -> None:
        with conn.transaction():
            entered.set()
            release.wait(10)

    task = pool.submit(owner)
    entered.wait()
    with interrupted(0.1):
        conn.execute("select 1")
    release.set()
    task.result(10)
    assert conn.fetchval("select 1") == 1


def test_other_exceptions_of_signal_handlers(conn: sync.Connection) -> None:
    def handler(*_: Any) -> None:
        with pytest.raises(pgpoll.InterfaceError, match="same thread"):
            conn.execute("select 1")
        raise ZeroDivisionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for verb in (conn.execute, conn.executescript):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(ZeroDivisionError):
                verb("select pg_sleep(20)")
            assert conn.fetchval("select 1") == 1
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_storm_of_signals(conn: sync.Connection) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for n in range(200):
            assert conn.fetchval("select $1::int4, pg_sleep(0.002)", n) == n
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- threads


def test_threads_share_a_connection(conn: sync.Connection, pool: ThreadPoolExecutor) -> None:
    assert list(pool.map(lambda n: conn.fetchval("select $1::int4", n), range(500))) == list(range(500))


def test_a_thread_owns_its_transaction(conn: sync.Connection, pool: ThreadPoolExecutor) -> None:
    order: list[str] = []

    def other() -> None:
        conn.execute("select 1")
        order.append("stranger")

    def friend(tx: sync.Transaction) -> None:
        with tx.transaction():
            tx.execute("insert into t values (2)")
        order.append("friend")

    with conn.transaction() as tx:
        conn.execute("insert into t values (1)")
        waiting = pool.submit(other)
        pool.submit(friend, tx).result(10)
        time.sleep(0.05)
        with conn.transaction():
            conn.execute("insert into t values (3)")
        order.append("owner")
    waiting.result(10)
    assert order == ["friend", "owner", "stranger"]
    assert count(conn) == 3
    with pytest.raises(pgpoll.InterfaceError, match="committed"):
        tx.execute("select 1")


def test_strangers_and_their_transactions(conn: sync.Connection, pool: ThreadPoolExecutor) -> None:
    def one(n: int) -> None:
        if n % 2:
            with conn.transaction():
                conn.execute("insert into t values ($1)", n)
                time.sleep(0.001)
                if n % 4 == 1:
                    raise KeyError
        else:
            conn.execute("insert into t values ($1)", n)

    with conn.transaction():
        tasks = [pool.submit(one, n) for n in range(100)]
        time.sleep(0.05)
        assert count(conn) == 0
    for task in tasks:
        assert isinstance(task.exception(20), KeyError | None)
    assert count(conn) == 75


def test_by_hand(conn: sync.Connection) -> None:
    tx = conn.transaction(isolation="repeatable_read", readonly=True)
    tx.start()
    assert tx.fetchval("show transaction_isolation") == "repeatable read"
    inner = tx.transaction()
    inner.start()
    with pytest.raises(pgpoll.InterfaceError, match="still open"):
        tx.commit()
    inner.rollback()
    tx.commit()
    assert conn.transaction_status == "I"
    with pytest.raises(pgpoll.InterfaceError):
        tx.rollback()


def test_nothing_rolled_back_looks_committed(conn: sync.Connection) -> None:
    with pytest.raises(errors.InFailedSqlTransaction), conn.transaction():
        conn.execute("insert into t values (1)")
        with contextlib.suppress(pgpoll.Error):
            conn.execute("select 1/0")
    with pytest.raises(KeyError), conn.transaction():
        conn.execute("insert into t values (1)")
        raise KeyError
    assert count(conn) == 0


def test_a_long_wait_is_logged(
    conn: sync.Connection,
    pool: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgpoll._threads.PATIENCE_SECONDS", 0.1)
    with caplog.at_level(logging.WARNING, "pgpoll"):
        with conn.transaction():
            waiting = pool.submit(conn.fetchval, "select 1")
            time.sleep(0.5)
        assert waiting.result(10) == 1
    (record,) = caplog.records
    assert "MainThread" in record.getMessage()
    assert "test_sync.py" in record.getMessage()


def test_a_timeout_covers_the_wait_for_a_block(conn: sync.Connection, pool: ThreadPoolExecutor) -> None:
    def hasty() -> None:
        with pytest.raises(pgpoll.QueryTimeout):
            conn.fetchval("select 1", timeout=0.05)
        with pytest.raises(pgpoll.QueryTimeout):
            conn.transaction().start(timeout=0.05)

    with conn.transaction():
        pool.submit(hasty).result(10)
    assert conn.fetchval("select 1") == 1


# -- cancel, close, terminate


def running(pool: ThreadPoolExecutor, call: Callable[..., Any], *args: Any) -> Future[Any]:
    task = pool.submit(call, *args)
    time.sleep(0.1)
    return task


def test_cancel_from_another_thread(conn: sync.Connection, pool: ThreadPoolExecutor) -> None:
    conn.cancel()
    task = running(pool, conn.execute, "select pg_sleep(20)")
    conn.cancel()
    with pytest.raises(errors.QueryCanceled):
        task.result(5)

    def in_a_transaction(handles: list[sync.Transaction]) -> None:
        with conn.transaction() as tx:
            handles.append(tx)
            tx.execute("select pg_sleep(20)")

    handles: list[sync.Transaction] = []
    task = running(pool, in_a_transaction, handles)
    with pytest.raises(pgpoll.InterfaceError, match="handle"):
        conn.cancel()
    handles[0].cancel()
    with pytest.raises(errors.QueryCanceled):
        task.result(5)
    assert conn.fetchval("select 1") == 1


def test_terminate_from_another_thread(dsn: str, pool: ThreadPoolExecutor) -> None:
    conn = sync.connect(dsn)
    task = running(pool, conn.execute, "select pg_sleep(20)")
    waiting = running(pool, conn.execute, "select 1")
    conn.terminate()
    for each in (task, waiting):
        with pytest.raises(pgpoll.Error, match="closed"):
            each.result(1)
    assert conn.closed
    conn.terminate()
    conn.close()
    with pytest.raises(pgpoll.InterfaceError, match="closed"):
        conn.execute("select 1")


def test_terminate_ends_the_wait_for_a_block(dsn: str, pool: ThreadPoolExecutor) -> None:
    conn = sync.connect(dsn)
    tx = conn.transaction()
    tx.start()
    waiting = running(pool, conn.execute, "select 1")
    conn.terminate()
    with pytest.raises(pgpoll.ConnectionLost, match="closed") as caught:
        waiting.result(1)
    assert caught.value.safe_to_retry
    with pytest.raises(pgpoll.ConnectionLost):
        tx.commit()


def test_close(dsn: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    conn = sync.connect(dsn)
    with pytest.raises(pgpoll.InterfaceError, match="closed: rolled back"), conn.transaction():
        waiting = running(pool, conn.fetchval, "select 5")
        conn.close()
    assert waiting.result(5) == 5
    assert conn.closed

    conn = sync.connect(dsn)
    with conn.transaction():
        closing = running(pool, conn.close)
        assert not closing.done()
    closing.result(5)
    assert conn.closed

    monkeypatch.setattr("pgpoll._threads.CLOSE_SECONDS", 0.2)
    conn = sync.connect(dsn)
    task = running(pool, conn.execute, "select pg_sleep(20)")
    conn.close()
    with pytest.raises(pgpoll.ConnectionLost, match="closed"):
        task.result(1)


def test_leaving_by_an_exception(dsn: str) -> None:
    with pytest.raises(KeyError), sync.connect(dsn) as conn:
        raise KeyError
    assert conn.closed


def test_loss(dsn: str) -> None:
    with sync.connect(dsn) as conn, sync.connect(dsn) as other:
        other.execute("select pg_terminate_backend($1)", conn.backend_pid)
        with pytest.raises(pgpoll.OperationalError):
            conn.execute("select 1")
        assert conn.closed
        with pytest.raises(pgpoll.InterfaceError, match="closed"):
            conn.execute("select 1")
    with sync.connect(dsn) as conn, sync.connect(dsn) as other:
        with pytest.raises(KeyError), conn.transaction():
            other.execute("select pg_terminate_backend($1)", conn.backend_pid)
            raise KeyError
        conn.close()


def test_dropped_without_close(dsn: str) -> None:
    conn = sync.connect(dsn)
    core = conn._core
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del conn
        gc.collect()
    assert [str(each.message)[:19] for each in caught if each.category is ResourceWarning] == ["unclosed connection"]
    assert core.closed
    assert core.fileno() == -1


def test_inside_of_a_running_loop(dsn: str) -> None:
    program = f"""
import asyncio, pgpoll
async def main():
    with pgpoll.sync.connect({dsn!r}) as conn:
        assert conn.fetchval("select 1") == 1
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_the_child_of_a_fork_leaves_the_parents_connection_alone(dsn: str) -> None:
    program = f"""
import os, gc, pgpoll
conn = pgpoll.sync.connect({dsn!r})
child = os.fork()
if child == 0:
    code = 1
    try:
        conn.execute("select 1")
    except pgpoll.InterfaceError as error:
        code = 0 if "fork" in str(error) else 2
    conn.terminate()
    del conn
    gc.collect()
    os._exit(code)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert conn.fetchval("select 1") == 1
conn.close()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
