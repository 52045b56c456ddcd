"""on_notice: each notice of the server, in connect's context, in order; and floods of them (row 37 of the faults)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pgpoll
from backend import command_complete, notice, ready_for_query, started
from pgpoll import Notice, core

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

HELLO = "do $$ begin raise notice 'hello' using detail = 'the detail', hint = 'the hint'; end $$"
FLOOD = int(os.environ.get("PGPOLL_NOTICES", "200000"))


def raising(count: int, then: str = "") -> str:
    return f"do $$ begin for i in 1..{count} loop raise notice '%', i; end loop; {then} end $$"


# -- one by one


async def test_a_notice_comes_before_its_request_goes_on(dsn: str) -> None:
    got: list[Notice] = []
    async with pgpoll.connect(dsn, on_notice=got.append) as conn:
        await conn.execute(HELLO)
        (hello,) = got
        await conn.execute("do $$ begin raise warning 'careful'; end $$")
    assert (hello.message, hello.severity, hello.sqlstate) == ("hello", "NOTICE", "00000")
    assert (hello.detail, hello.hint, hello.position) == ("the detail", "the hint", None)
    assert hello.where is not None
    assert "inline_code_block" in hello.where
    assert isinstance(hello.source_line, int)
    assert repr(hello) == "<pgpoll.Notice NOTICE 00000: 'hello'>"
    assert pickle.loads(pickle.dumps(hello)) == hello
    assert [each.severity for each in got] == ["NOTICE", "WARNING"]


def test_a_notice_has_the_attributes_of_an_error() -> None:
    ours = {name for name, value in vars(pgpoll.DatabaseError).items() if not callable(value) and name[0] != "_"}
    assert set(Notice._fields) == ours - {"copy_line"}  # which is read from `where`
    assert set(Notice._field_defaults.values()) == {None}


async def test_in_the_context_of_connect(dsn: str) -> None:
    got: list[str] = []

    async def connect() -> pgpoll.Connection:
        who.set("whoever connects")
        return await pgpoll.connect(dsn, on_notice=lambda _: got.append(who.get()))

    conn = await asyncio.create_task(connect())
    who.set("whoever asks")
    await conn.execute(HELLO)
    assert got == ["whoever connects"]
    await conn.close()


async def test_a_callback_that_raises(dsn: str) -> None:
    error = ValueError("the callback's own")
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    def listen(each: Notice) -> None:
        raise error

    async with pgpoll.connect(dsn, on_notice=listen) as conn:
        for _ in range(2):
            assert (await conn.execute(HELLO)).tag == "DO"
    assert [each["exception"] for each in unhandled] == [error, error]
    assert "on_notice" in unhandled[0]["message"]


async def test_a_callback_that_uses_the_connection(dsn: str) -> None:
    tasks: list[asyncio.Task[Any]] = []
    async with pgpoll.connect(
        dsn, on_notice=lambda each: tasks.append(asyncio.create_task(conn.fetchval("select $1", each.message)))
    ) as conn:
        await conn.execute(HELLO)
        assert await tasks[0] == "hello"
    conn = await pgpoll.connect(dsn, on_notice=lambda _: conn.terminate())
    with pytest.raises(pgpoll.ConnectionLost):
        await conn.executescript(f"{HELLO}; select pg_sleep(60)")
    assert conn.closed


async def test_all_of_an_ordinary_number_in_order(dsn: str) -> None:
    got: list[str] = []
    async with pgpoll.connect(dsn, on_notice=lambda each: got.append(each.message)) as conn:
        await conn.execute(raising(5000))
        async with asyncio.timeout(10):
            while len(got) < 5000:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)
    assert got == [str(i) for i in range(1, 5001)]


async def test_without_a_callback_they_are_logged(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pgpoll"):
        async with pgpoll.connect(dsn) as conn:
            await conn.execute("set client_min_messages = debug1")
            for level in ("warning", "notice", "info", "debug"):
                await conn.execute(HELLO.replace("notice", level))
    found = [each for each in caplog.records if each.message.endswith("hello")]
    assert [(each.name, each.levelname, each.message) for each in found] == [
        ("pgpoll.notice", "WARNING", "WARNING: hello"),
        ("pgpoll.notice", "INFO", "NOTICE: hello"),
        ("pgpoll.notice", "INFO", "INFO: hello"),
        ("pgpoll.notice", "DEBUG", "DEBUG: hello"),
    ]
    for secret in ("the detail", "the hint", "inline_code_block", "begin raise"):  # S22
        assert secret not in caplog.text


def test_sync(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    got: list[object] = []

    def listen(each: Notice) -> None:
        got.append((each.message, who.get()))
        if each.message == "hello":
            got.append(conn.fetchval("select 1"))
        else:
            raise ValueError("the callback's own")

    who.set("whoever connects")
    with pgpoll.sync.connect(dsn, on_notice=listen) as conn:
        who.set("whoever asks")
        conn.execute(HELLO)
        assert got == [("hello", "whoever connects"), 1]
        conn.execute(raising(30), timeout=5)
        assert len(got) == 32
        with conn.transaction():
            conn.executescript(raising(2))
    assert len(got) == 34
    assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info] == ["the callback's own"] * 32


@pytest.mark.parametrize("then", ["", "perform pg_sleep(0.2);"])
def test_sync_all_come_before_the_verb_returns(dsn: str, then: str) -> None:
    """Also those that came with one that was told while the server went on."""
    got: list[str] = []

    def listen(each: Notice) -> None:
        got.append(each.message)
        time.sleep(0.021)  # longer than a slice

    with pgpoll.sync.connect(dsn, on_notice=listen) as conn:
        conn.execute(raising(5, then))
        assert got == list("12345")


# -- floods


@contextlib.contextmanager
def flooding(count: int, *, answers: bool = True) -> Iterator[dict[str, Any]]:
    """A server that answers a simple query with so many notices, and then with its end, or never."""
    listener = socket.create_server(("127.0.0.1", 0))
    block = notice("n" * 100) * 1000
    over = threading.Event()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):  # the client may go away at any time
            peer.recv(1 << 16)
            peer.sendall(started())
            peer.recv(1 << 16)
            for _ in range(count // 1000):
                peer.sendall(block)
            if answers:
                peer.sendall(command_complete("DO") + ready_for_query())
            over.wait(60)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield {"host": "127.0.0.1", "port": listener.getsockname()[1], "user": "u", "sslmode": "disable"}
    finally:
        over.set()
        listener.close()
        thread.join()


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Heartbeat:
    """How much of its thread's CPU time the loop has spent between two turns, at most: what others had to wait."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.task = asyncio.create_task(self.beat())

    async def beat(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.worst, last = max(self.worst, now - last), now


@pytest.mark.parametrize("callback", [True, False])
async def test_f37_a_flood_of_notices(callback: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Constant memory; the loop is never held for 50 ms; whoever was lost is told of."""
    got = 0

    def listen(each: Notice) -> None:
        nonlocal got
        got += 1

    with flooding(FLOOD) as server:
        conn = await pgpoll.connect(**server, on_notice=listen if callback else None)
        heartbeat = Heartbeat()
        before = resident()
        assert [each.tag for each in await conn.executescript("select flood()")] == ["DO"]
        await asyncio.sleep(0.01)
        assert resident() - before < 32 << 20
        heartbeat.task.cancel()
        assert heartbeat.worst < 0.05, "CPU time, so that a busy machine does not count"
        while conn._core.take_notices(1000):  # noqa: ASYNC110 - the loop hands over meanwhile
            await asyncio.sleep(0)
        dropped = conn._core.notices_dropped
        if callback:
            assert got + dropped <= FLOOD
            assert got >= 10_000
        assert ("notices of the server were dropped" in caplog.text) == (dropped > 0)
        conn.terminate()


class SlowListener:
    def __init__(self) -> None:
        self.got = 0

    def __call__(self, each: Notice) -> None:
        self.got += 1
        time.sleep(0.002)


async def test_f37_deadlines_fire_in_a_flood() -> None:
    listen = SlowListener()
    with flooding(FLOOD, answers=False) as server:
        conn = await pgpoll.connect(**server, on_notice=listen)
        heartbeat = Heartbeat()
        begun = time.monotonic()
        with pytest.raises(pgpoll.QueryTimeout):
            await conn.executescript("select flood()", timeout=0.3)
        assert time.monotonic() - begun < 1
        heartbeat.task.cancel()
        assert heartbeat.worst < 0.05, "CPU time, so that a busy machine does not count"
        assert listen.got > 0
        conn.terminate()


def test_f37_deadlines_fire_in_a_flood_sync() -> None:
    listen = SlowListener()
    with flooding(FLOOD, answers=False) as server:
        conn = pgpoll.sync.connect(**server, on_notice=listen)
        before = resident()
        begun = time.monotonic()
        with pytest.raises(pgpoll.QueryTimeout):
            conn.executescript("select flood()", timeout=0.3)
        assert time.monotonic() - begun < 2.5  # the CancelRequest, which nobody takes, has its own 2 s
        assert resident() - before < 32 << 20
        assert listen.got > 0
        conn.terminate()


# -- beneath


def test_the_core_keeps_the_oldest_and_counts_the_rest(dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as conn:
        connection = conn._core
        operation = connection.start_script(raising(25_000))
        while not connection.wait(operation, 10):  # returns early, for notices have come
            pass
        first = connection.take_notices(3)
        assert [each["M"] for each in first] == ["1", "2", "3"]
        kept = len(first) + len(connection.take_notices())
        assert kept <= 10_000
        assert kept + connection.notices_dropped == 25_000
        assert connection.take_notices() == []
    assert isinstance(connection, core.Connection)
