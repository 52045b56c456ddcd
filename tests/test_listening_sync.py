"""LISTEN in the blocking face, on a real server: waiting, timeouts, Ctrl-C, threads."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import pgpoll
from pgpoll import _listening, errors, sync
from sanity import SyncSanity
from test_listening import channel as channel
from test_sync import interrupted


@pytest.fixture
def conn(dsn: str) -> Iterator[sync.Connection]:
    with sync.connect(dsn) as connection:
        yield connection


@pytest.fixture
def other(dsn: str) -> Iterator[sync.Connection]:
    with sync.connect(dsn) as connection:
        yield connection


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def tell(other: sync.Connection, channel: str, *payloads: object) -> None:
    for each in payloads:
        other.execute("select pg_notify($1, $2)", channel, str(each))


def listened(conn: sync.Connection) -> set[str]:
    return {each[0] for each in conn.fetch("select pg_listening_channels()")}


def heard(listener: sync.Listener, count: int) -> list[str]:
    got = []
    for _ in range(count):
        note = listener.next(timeout=5)
        assert note is not None
        got.append(note.payload)
    return got


def test_the_same_as_asyncio(conn: sync.Connection, other: sync.Connection, channel: str) -> None:
    with conn.listen(channel) as notifications:
        tell(other, channel, "hi", *range(100))
        assert conn.fetchval("select 3") == 3
        first = next(notifications)
        assert (first.channel, first.payload, first.pid) == (channel, "hi", other.backend_pid)
        assert heard(notifications, 100) == [str(i) for i in range(100)]
        with conn.listen(channel, channel + " 2") as more:
            assert listened(conn) == {channel, channel + " 2"}
            tell(other, channel, "both")
            assert heard(notifications, 1) == heard(more, 1) == ["both"]
        assert listened(conn) == {channel}
    assert listened(conn) == set()
    assert notifications.next() is None
    assert list(notifications) == []
    with pytest.raises(pgpoll.InterfaceError, match="has been left: make a new one"), notifications:
        pass
    with pytest.raises(pgpoll.InterfaceError, match="64 bytes"):
        conn.listen("x" * 64)


def test_without_with(conn: sync.Connection, other: sync.Connection, channel: str) -> None:
    listener = conn.listen(channel)
    assert listener.next(timeout=0.01) is None
    tell(other, channel, "x")
    for each in listener:
        assert each.payload == "x"
        break
    assert listened(conn) == {channel}
    del listener, each
    gc.collect()
    assert listened(conn) == set()
    assert conn._driver.listening._channels == {}


def test_timeouts(conn: sync.Connection, other: sync.Connection, channel: str) -> None:
    with conn.listen(channel) as notifications:
        tell(other, channel, "there already")
        assert heard(notifications, 1) == ["there already"]
        for seconds in (0, 0.05):
            begun = time.monotonic()
            assert notifications.next(timeout=seconds) is None
            assert seconds <= time.monotonic() - begun < seconds + 1
        tell(other, channel, "x")
        time.sleep(0.05)
        note = notifications.next(timeout=0)  # what is in the socket is looked for
        assert note is not None


def test_waiting_costs_no_processor(conn: sync.Connection, channel: str) -> None:
    with conn.listen(channel) as notifications:
        before = time.thread_time()
        assert notifications.next(timeout=0.5) is None
        assert time.thread_time() - before < 0.05


def test_ones_own_transaction(conn: sync.Connection, channel: str) -> None:
    with conn.listen(channel) as notifications, conn.transaction():
        with pytest.raises(pgpoll.InterfaceError, match="waiting for a notification inside"):
            notifications.next(timeout=1)
        with pytest.raises(pgpoll.InterfaceError, match=r"listen\(\) inside of the transaction"), conn.listen("x"):
            pass
    assert listened(conn) == set()


def test_another_threads_transaction(conn: sync.Connection, pool: ThreadPoolExecutor, channel: str) -> None:
    def listen() -> str:
        with conn.listen(channel) as notifications:
            return next(notifications).payload

    with conn.transaction() as tx:
        task = pool.submit(listen)
        time.sleep(0.05)
        assert not task.done()
        assert {each[0] for each in tx.fetch("select pg_listening_channels()")} == set()
    while not listened(conn):
        pass
    tell(conn, channel, "x")
    assert task.result(5) == "x"
    assert listened(conn) == set()


def test_a_timeout_of_entering(conn: sync.Connection, pool: ThreadPoolExecutor, channel: str) -> None:
    def listen() -> None:
        with pytest.raises(pgpoll.QueryTimeout), conn.listen(channel, timeout=0.05):
            pass

    with conn.transaction():
        pool.submit(listen).result(5)
    assert listened(conn) == set()


# -- threads


def test_other_threads_use_the_connection(
    conn: sync.Connection, other: sync.Connection, pool: ThreadPoolExecutor, channel: str
) -> None:
    """Their requests don't wait for the listener, and what they receive is told at once."""
    with conn.listen(channel) as notifications:
        task = pool.submit(heard, notifications, 200)
        worst = 0.0
        for number in range(200):
            begun = time.monotonic()
            assert conn.fetchval("select $1::int4", number) == number
            worst = max(worst, time.monotonic() - begun)
            tell(other, channel, number)
        assert task.result(5) == [str(i) for i in range(200)]
    assert worst < 1


def test_told_while_another_thread_drives(conn: sync.Connection, pool: ThreadPoolExecutor, channel: str) -> None:
    """The server delivers between two requests; the second one's thread receives it, and goes on waiting."""
    with conn.listen(channel) as notifications:
        tell(conn, channel, "mine")
        assert heard(notifications, 1) == ["mine"]
        long = pool.submit(conn.executescript, f"notify \"{channel}\", 'x'; commit; select pg_sleep(1)")
        short = pool.submit(heard, notifications, 1)
        assert short.result(5) == ["x"]
        long.result(5)


def test_many_threads_listen(conn: sync.Connection, other: sync.Connection, channel: str) -> None:
    """On one connection: two on each channel, and two on the same listener."""
    names = [f"{channel} {i}" for i in range(3)]
    got: dict[tuple[str, int], list[str]] = {}
    ready = threading.Barrier(7)
    shared: list[str] = []

    def listen(name: str, number: int) -> None:
        with conn.listen(name) as notifications:
            ready.wait(10)
            got[name, number] = heard(notifications, 50)

    def share(notifications: sync.Listener) -> None:
        while (each := notifications.next()) is not None:
            shared.append(each.payload)

    with ThreadPoolExecutor(8) as pool, conn.listen(*names) as all_of_them:
        tasks = [pool.submit(listen, name, number) for name in names for number in range(2)]
        sharing = [pool.submit(share, all_of_them) for _ in range(2)]
        ready.wait(10)
        for payload in range(50):
            for name in names:
                tell(other, name, payload)
        for task in tasks:
            task.result(20)
        deadline = time.monotonic() + 5
        while len(shared) < 150 and time.monotonic() < deadline:
            time.sleep(0.01)
        all_of_them.__exit__(None, None, None)  # which ends both
        for each in sharing:
            each.result(5)
    assert all(each == [str(i) for i in range(50)] for each in got.values())
    assert len(got) == 6
    assert sorted(shared, key=int) == [str(i) for i in range(50) for _ in range(3)]
    assert listened(conn) == set()


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_another_thread_ends_the_connection(dsn: str, channel: str, pool: ThreadPoolExecutor, end: str) -> None:
    conn = sync.connect(dsn)
    with conn.listen(channel) as notifications:
        task = pool.submit(notifications.next)
        time.sleep(0.05)
        begun = time.monotonic()
        getattr(conn, end)()
        with pytest.raises(pgpoll.ConnectionLost, match="closed"):
            task.result(5)
        assert time.monotonic() - begun < 1
    with pytest.raises(pgpoll.ConnectionLost):
        next(notifications)


def test_the_servers_own_error(
    conn: sync.Connection, other: sync.Connection, pool: ThreadPoolExecutor, channel: str
) -> None:
    with conn.listen(channel) as notifications:
        tell(other, channel, "before")
        assert conn.fetchval("select 1") == 1  # and the notification has come
        other.execute("select pg_terminate_backend($1)", conn.backend_pid)
        assert heard(notifications, 1) == ["before"]
        with pytest.raises(errors.AdminShutdown):
            next(notifications)


def test_a_cut_connection(assert_sane_sync: SyncSanity) -> None:
    proxy = assert_sane_sync.through()
    conn = assert_sane_sync.connect(proxy)
    with conn.listen("x") as notifications:
        cut = threading.Timer(0.1, proxy.close)
        cut.start()
        with assert_sane_sync.raises(pgpoll.ConnectionLost):
            next(notifications)
        cut.join()


# -- Ctrl-C


def test_ctrl_c_while_waiting(conn: sync.Connection, other: sync.Connection, channel: str) -> None:
    """Prompt; the listener goes on."""
    with conn.listen(channel) as notifications:
        begun = time.monotonic()
        with interrupted(0.1):
            next(notifications)
        assert time.monotonic() - begun < 1
        tell(other, channel, "x")
        assert heard(notifications, 1) == ["x"]
    assert listened(conn) == set()


def test_ctrl_c_while_entering(conn: sync.Connection, pool: ThreadPoolExecutor, channel: str) -> None:
    leave = threading.Event()
    entered = threading.Event()

    def block() -> None:
        with conn.transaction():
            entered.set()
            leave.wait(10)

    task = pool.submit(block)
    entered.wait(10)
    with interrupted(0.1), conn.listen(channel):
        pass
    leave.set()
    task.result(5)
    assert listened(conn) == set()
    assert conn._driver.listening._channels == {}


def test_ctrl_c_in_the_body(conn: sync.Connection, channel: str) -> None:
    with interrupted(0.1), conn.listen(channel):
        time.sleep(10)
    assert listened(conn) == set()


# -- bounds


def test_overflow(conn: sync.Connection, other: sync.Connection, channel: str) -> None:
    many = "select count(pg_notify($1, i::text)) from generate_series($2::int4, $3::int4) as t(i)"
    with conn.listen(channel) as notifications:
        for start in range(0, _listening.BOUND + 1000, 1000):
            other.execute(many, channel, start, start + 999)
            conn.execute("select 1")
        assert heard(notifications, _listening.BOUND) == [str(i) for i in range(_listening.BOUND)]
        with pytest.raises(pgpoll.NotificationsLost) as caught:
            next(notifications)
        assert caught.value.lost == 1000
        tell(other, channel, "x")
        assert heard(notifications, 1) == ["x"]


def test_what_the_child_of_a_fork_gets(conn: sync.Connection, other: sync.Connection, channel: str) -> None:
    with conn.listen(channel) as notifications:
        child = os.fork()
        if child == 0:
            code = 9
            try:
                notifications.next(timeout=1)
            except pgpoll.InterfaceError as error:
                code = 0 if "fork" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        tell(other, channel, "x")
        assert heard(notifications, 1) == ["x"]


def test_descriptors_are_closed(conn: sync.Connection, channel: str) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with conn.listen(channel) as notifications:
        before: Any = count()
        for _ in range(50):
            assert notifications.next(timeout=0) is None
        assert count() == before
