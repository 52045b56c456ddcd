"""faults.md 2.1, rows 1 to 12 and 21: the network between the driver and a real server, through proxy.py."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import pgpoll
from pgpoll import errors
from proxy import End, Faults, Proxy
from sanity import Sanity, SyncSanity, run_delay

ENDS: list[End] = ["cut", "reset"]
ROWS = "select $1::int4, i, repeat('x', 50) from generate_series(1, 2000) as t(i)"


async def outcome(awaitable: Any) -> Any:
    try:
        return await awaitable
    except pgpoll.Error as error:
        return error


@pytest.mark.parametrize("end", ENDS)
async def test_f01_f02_everyone_is_told_at_once(assert_sane: Sanity, end: End) -> None:
    """In the middle of the first answer of five; with max_pipeline=2 three have not left."""
    proxy = assert_sane.through(Faults(end=end, at=50_000))
    conn = await assert_sane.connect(proxy, max_pipeline=2)
    delay = run_delay()
    tasks = [asyncio.create_task(outcome(conn.fetch(ROWS, n))) for n in range(5)]
    first = await tasks[0]
    assert_sane.told_at_once(proxy, delay)
    await asyncio.sleep(0)
    assert all(task.done() for task in tasks), "all are told in one turn of the loop"
    told = [task.result() for task in tasks]
    for error in told:
        assert isinstance(error, pgpoll.ConnectionLost)
        assert isinstance(error, pgpoll.OperationalError)
        assert not isinstance(error, OSError)
        assert_sane.examine(error)
    assert "with requests in flight" in str(first) or "closed" in str(first)
    assert [each.safe_to_retry for each in told] == [False, False, True, True, True]
    assert all(each.__cause__ is not None for each in told[1:])
    assert conn.closed


@pytest.mark.parametrize("size", [3_000, 300_000, 3_000_000])
async def test_f02_a_reset_behind_unread_data(assert_sane: Sanity, size: int) -> None:
    """libuv tells of it once, and forgets the descriptor: all that has come is read then."""
    assert_sane.blocking_allowed = True
    proxy = assert_sane.through(Faults(end="reset", at=size))
    conn = await assert_sane.connect(proxy)
    sql = "select repeat('x', 1000) from generate_series(1, 10000)"
    await conn.prepare(sql)
    task = asyncio.create_task(outcome(conn.fetch(sql)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    while not proxy.ended.wait(0.05) and size < 1_000_000:  # the loop stands still, until data and reset are there
        pass
    error = await asyncio.wait_for(task, 5)
    assert isinstance(error, pgpoll.ConnectionLost)
    assert "reset" in str(error)


async def test_f01_while_idle(assert_sane: Sanity) -> None:
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    await assert_sane.ask(conn)
    proxy.close()
    with assert_sane.at_once():
        while not conn.closed:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await assert_sane.closed(conn)


@pytest.mark.parametrize("end", ENDS)
def test_f01_f02_blocking(assert_sane_sync: SyncSanity, end: End) -> None:
    proxy = assert_sane_sync.through(Faults(end=end, at=50_000))
    conn = assert_sane_sync.connect(proxy)
    delay = run_delay()
    with assert_sane_sync.raises(pgpoll.ConnectionLost) as caught:
        conn.fetch(ROWS, 1)
    assert_sane_sync.told_at_once(proxy, delay)
    assert not caught.value.safe_to_retry
    assert conn.closed


@pytest.mark.parametrize("stream", ["server", "client"])
async def test_f03_silence(assert_sane: Sanity, stream: Any) -> None:
    """A deadline holds, and a cancelled task is told within 50 ms; the connection then waits for what never comes."""
    at = {"server": 30_000, "client": 400}[stream]
    proxy = assert_sane.through(Faults(end="stall", at=at, stream=stream, cancels="hang"))
    conn = await assert_sane.connect(proxy)
    task = asyncio.create_task(conn.fetch(ROWS, 1))
    timed = asyncio.create_task(outcome(conn.fetch(ROWS + " -- " + "x" * 400, 2, timeout=0.2)))
    began = asyncio.get_running_loop().time()
    assert isinstance(await timed, pgpoll.QueryTimeout)
    assert asyncio.get_running_loop().time() - began >= 0.19
    assert not task.done()
    with assert_sane.at_once(0.05):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not conn.closed
    with assert_sane.at_once():
        conn.terminate()


def test_f03_silence_blocking(assert_sane_sync: SyncSanity) -> None:
    proxy = assert_sane_sync.through(Faults(end="stall", at=30_000, cancels="refuse"))
    conn = assert_sane_sync.connect(proxy)
    with assert_sane_sync.raises(pgpoll.QueryTimeout), assert_sane_sync.at_once(0.4):
        conn.fetch(ROWS, 1, timeout=0.2)
    assert conn.closed, "nothing will end what runs: its CancelRequest was refused"


SLOW = {
    "a byte at a time": Faults(segment=1),
    "random segments": Faults(segment=-1, seed=3),
    "latency and jitter": Faults(delay=0.02, jitter=0.02, seed=4),
    "in pieces of 7, late": Faults(segment=700, delay=0.0005, jitter=0.001, seed=5),
}


@pytest.mark.parametrize("name", SLOW)
async def test_f04_f05_the_same_answers_however_they_come(assert_sane: Sanity, name: str) -> None:
    async def answers(conn: pgpoll.Connection) -> list[Any]:
        found = await asyncio.gather(
            *(
                conn.fetch("select $1::int4, i, repeat('x', 20) from generate_series(1, 20) as t(i)", n)
                for n in range(5)
            ),
            conn.executescript("select 1; create temp table slow (i int4); select 'two'"),
            outcome(conn.execute("select $1::int4 / 0", 1)),
            conn.prepare("select $1::text || 'x'"),
            outcome(conn.execute("select 1 /")),
        )
        return [
            [list(row) for row in each] if isinstance(each, list) and not hasattr(each[0], "tag") else repr(each)[:40]
            for each in found
        ]

    straight = await answers(await assert_sane.connect())
    proxy = assert_sane.through(SLOW[name])
    assert await answers(await assert_sane.connect(proxy)) == straight
    assert proxy.connections == 1


async def test_f05_ten_bytes_a_second_cost_no_time(assert_sane: Sanity) -> None:
    """Deadlines are exact, and while nothing comes nothing is done: no busy loop."""
    proxy = assert_sane.through()
    proxy.heal(Faults(rate=10_000))
    conn = await assert_sane.connect(proxy)
    used, delay, began = time.thread_time(), run_delay(), time.monotonic()
    with assert_sane.raises(pgpoll.QueryTimeout):
        await conn.fetch(ROWS, 1, timeout=0.5)
    took = time.monotonic() - began
    whole_milliseconds = type(asyncio.get_running_loop()).__module__.startswith("uvloop")  # as libuv counts
    assert took >= (0.499 if whole_milliseconds else 0.5)
    assert took - (run_delay() - delay) <= 0.6
    assert time.thread_time() - used < 0.1, "of 0.5 s"
    conn.terminate()


async def test_f07_it_heals(assert_sane: Sanity) -> None:
    """Held back for a second: the request is completed, by the same connection."""
    proxy = assert_sane.through(Faults(delay=0.1))
    conn = await assert_sane.connect(proxy)
    pid = conn.backend_pid
    with assert_sane.raises(pgpoll.QueryTimeout):
        await conn.fetchval("select 1", timeout=0.05)
    assert await conn.fetchval("select pg_backend_pid()") == pid
    assert proxy.connections == 1


async def test_f07_close_does_not_wait_for_ever(assert_sane: Sanity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgpoll._loop.CLOSE_SECONDS", 0.2)
    proxy = assert_sane.through(Faults(end="stall", at=30_000))
    conn = await assert_sane.connect(proxy)
    task = asyncio.create_task(outcome(conn.fetch(ROWS, 1)))
    await assert_sane.until(proxy.ended.is_set)
    began = asyncio.get_running_loop().time()
    await conn.close()
    assert 0.19 <= asyncio.get_running_loop().time() - began <= 0.4
    assert isinstance(await task, pgpoll.ConnectionLost)


# -- connecting


@contextlib.contextmanager
def deaf() -> Any:
    """A port whose queue of connections is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_f09_nobody_accepts(assert_sane: Sanity) -> None:
    with deaf() as port:
        with assert_sane.at_once(0.4), assert_sane.raises(pgpoll.QueryTimeout) as caught:
            await assert_sane.connect(port=port, connect_timeout=0.3)
        assert caught.value.safe_to_retry
        with assert_sane.at_once(0.4), assert_sane.raises(pgpoll.QueryTimeout):
            await assert_sane.connect(host="127.0.0.1,127.0.0.1", port=f"{port},{port}", connect_timeout=0.3)


def test_f09_nobody_accepts_blocking(assert_sane_sync: SyncSanity) -> None:
    with deaf() as port, assert_sane_sync.at_once(0.45), assert_sane_sync.raises(pgpoll.QueryTimeout):
        assert_sane_sync.connect(port=port, connect_timeout=0.3)


async def test_f09_refused_names_each_host(assert_sane: Sanity) -> None:
    with assert_sane.at_once(), assert_sane.raises(pgpoll.OperationalError) as caught:
        await assert_sane.connect(host="127.0.0.1,127.0.0.2,nowhere.invalid", port="1,2,3")
    for each in ("127.0.0.1 port 1: Connection refused", "127.0.0.2 port 2: Connection refused", "nowhere.invalid"):
        assert each in str(caught.value)


@pytest.mark.parametrize("end", [*ENDS, "stall"])
async def test_f09_accepted_then_nothing(assert_sane: Sanity, end: End) -> None:
    proxy = assert_sane.through(Faults(end=end, at=0))
    kind = pgpoll.QueryTimeout if end == "stall" else pgpoll.ConnectionLost
    with assert_sane.at_once(0.4), assert_sane.raises(kind):
        await assert_sane.connect(proxy, connect_timeout=0.3)


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x00" * 64,
    ],
)
async def test_f10_another_protocol(assert_sane: Sanity, greeting: bytes) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with listener:
        with assert_sane.at_once(), assert_sane.raises(pgpoll.ProtocolError):
            await assert_sane.connect(port=listener.sockets[0].getsockname()[1])
        await asyncio.sleep(0.02)


async def test_f11_no_such_socket(assert_sane: Sanity, tmp_path: Path) -> None:
    with assert_sane.at_once(), assert_sane.raises(pgpoll.OperationalError, match="No such file"):
        await assert_sane.connect(host=str(tmp_path))
    with assert_sane.at_once(), assert_sane.raises(pgpoll.InterfaceError, match="107 bytes"):
        await assert_sane.connect(host="/" + "x" * 120)


async def test_f11_a_socket_that_vanishes(assert_sane: Sanity, tmp_path: Path) -> None:
    """Its connections are none the worse; only new ones are refused."""
    conn = await assert_sane.connect()
    directory = (await conn.fetchval("show unix_socket_directories")).split(",")[0].strip()
    port = await conn.fetchval("show port")
    link = tmp_path / f".s.PGSQL.{port}"
    link.symlink_to(f"{directory}/{link.name}")
    through = await assert_sane.connect(host=str(tmp_path), port=port)
    link.unlink()
    await assert_sane.usable(through)
    with assert_sane.raises(pgpoll.OperationalError, match="No such file"):
        await assert_sane.connect(host=str(tmp_path), port=port)


# -- both directions at once


async def test_f12_a_large_request_while_the_server_talks(assert_sane: Sanity) -> None:
    """The server's notices fill its socket while ours is full of parameters: who only writes waits for ever."""
    conn = await assert_sane.connect(assert_sane.through(Faults(segment=65536)))
    noisy = "do $$ begin for i in 1..20000 loop raise notice '% %', i, repeat('x', 500); end loop; end $$"
    big = "x" * 8_000_000
    first = asyncio.create_task(conn.execute(noisy))
    rest = [asyncio.create_task(conn.fetchval("select length($1::text) + $2::int4", big, n)) for n in range(3)]
    assert [await each for each in rest] == [len(big) + n for n in range(3)]
    await first


async def test_f12_the_most_parameters_while_the_server_echoes_them(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    await conn.execute("set client_min_messages = debug5")
    count = 65_535
    sql = "select array_length(array[" + ",".join(f"${n + 1}" for n in range(count)) + "]::int4[], 1)"
    assert_sane.blocking_allowed = True  # encoding so many takes its time
    assert await conn.fetchval(sql, *range(count)) == count
    await conn.execute("reset client_min_messages")


@pytest.mark.parametrize("end", ENDS)
async def test_f12_closed_while_we_write(assert_sane: Sanity, end: End) -> None:
    proxy = assert_sane.through(Faults(end=end, at=100_000, stream="client"))
    conn = await assert_sane.connect(proxy)
    with assert_sane.raises(pgpoll.ConnectionLost) as caught:
        await asyncio.wait_for(conn.fetchval("select length($1::text)", "x" * 8_000_000), 5)
    assert not caught.value.safe_to_retry
    assert conn.closed


# -- the answer to COMMIT


@pytest.mark.parametrize("end", ENDS)
async def test_f21_the_answer_to_commit_is_lost(assert_sane: Sanity, end: End) -> None:
    watcher = await assert_sane.connect()
    await watcher.execute("create table if not exists f21 (token int8)")
    proxy = assert_sane.through(Faults(reply_lost=b"COMMIT\0", end=end))
    conn = await assert_sane.connect(proxy)
    token = random.randrange(1 << 60)
    with assert_sane.raises(pgpoll.CommitUnknown) as caught:
        async with conn.transaction():
            await conn.execute("insert into f21 values ($1)", token)
    assert isinstance(caught.value.__cause__, pgpoll.ConnectionLost)
    assert not isinstance(caught.value, pgpoll.ConnectionLost)
    assert not caught.value.safe_to_retry
    assert caught.value.sqlstate == "08007"
    assert proxy.connections == 1, "nothing was tried again"
    assert await watcher.fetchval("select count(*) from f21 where token = $1", token) == 1, "it was committed, once"
    await watcher.execute("delete from f21 where token = $1", token)


@pytest.mark.parametrize("end", ENDS)
def test_f21_the_answer_to_commit_is_lost_blocking(assert_sane_sync: SyncSanity, end: End) -> None:
    proxy = assert_sane_sync.through(Faults(reply_lost=b"COMMIT\0", end=end))
    conn = assert_sane_sync.connect(proxy)
    with assert_sane_sync.raises(pgpoll.CommitUnknown) as caught, conn.transaction():
        conn.execute("select 1")
    assert isinstance(caught.value.__cause__, pgpoll.ConnectionLost)


async def test_f21_no_answer_to_commit_by_its_timeout(assert_sane: Sanity) -> None:
    proxy = assert_sane.through(Faults(reply_lost=b"COMMIT\0", end="stall"))
    conn = await assert_sane.connect(proxy)
    tx = conn.transaction()
    await tx.start()
    await tx.execute("select 1")
    with assert_sane.raises(pgpoll.CommitUnknown) as caught:
        await tx.commit(timeout=0.1)
    assert isinstance(caught.value.__cause__, pgpoll.QueryTimeout)
    task = asyncio.create_task(conn.execute("select 1"))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not proxy.cancels, "a COMMIT is never cancelled at the server"
    conn.terminate()


# -- descriptors


async def test_f23_more_than_1024_descriptors(assert_sane: Sanity) -> None:
    """select() would end here."""
    assert_sane.blocking_allowed = True  # opening and closing so many is work of the test's own
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.enter_context(open("/dev/zero"))  # noqa: ASYNC230
        conn = await assert_sane.connect()
        assert conn._core.fileno() >= 1024
        await assert_sane.usable(conn)
        with assert_sane.raises(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep(20)", timeout=0.02)  # the CancelRequest's too
        await assert_sane.usable(conn)
        await conn.close()
        await conn.close()
    assert_sane.made.clear()


def test_f23_more_than_1024_descriptors_blocking(assert_sane_sync: SyncSanity) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.enter_context(open("/dev/zero"))
        conn = assert_sane_sync.connect()
        assert conn._core.fileno() >= 1024
        with assert_sane_sync.raises(pgpoll.QueryTimeout):
            conn.execute("select pg_sleep(20)", timeout=0.02)
        assert_sane_sync.usable(conn)


async def test_f23_no_descriptor_is_left_to_connect(assert_sane: Sanity) -> None:
    """EMFILE is an error of ours; and where the CancelRequest gets none, its connection ends."""
    assert_sane.blocking_allowed = True  # the heartbeat can't open its file either
    conn = await assert_sane.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        opened = []
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
            while True:
                opened.append(stack.enter_context(open("/dev/zero")))  # noqa: ASYNC230
        with assert_sane.raises(pgpoll.OperationalError, match="Too many open files"):
            await assert_sane.connect()
        with assert_sane.raises(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep(1)", timeout=0.02)
        with assert_sane.raises(pgpoll.Error):
            await conn.execute("select 1", timeout=2)
        assert conn.closed


async def test_f24_a_reply_that_is_there_beats_the_deadline(assert_sane: Sanity) -> None:
    """The loop was blocked beyond the deadline, and the answer lies in the socket: it is read once more."""
    assert_sane.blocking_allowed = True
    conn = await assert_sane.connect()
    await assert_sane.ask(conn)
    for _ in range(5):
        token = assert_sane.token()
        task = asyncio.create_task(conn.fetchval("select $1::int4", token, timeout=0.05))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251
        assert await task == token


async def test_f24_the_wall_clock_does_not_matter(assert_sane: Sanity, monkeypatch: pytest.MonkeyPatch) -> None:
    conn = await assert_sane.connect()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    task = asyncio.create_task(conn.fetchval("select 1, pg_sleep(0.1)", timeout=5))
    await asyncio.sleep(0.02)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert await task == 1


async def test_proxied_cancel_request_is_known(assert_sane: Sanity) -> None:
    """The kit itself: what the proxy takes for a CancelRequest is one."""
    proxy: Proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.05)
    await conn.cancel()
    with assert_sane.raises(errors.QueryCanceled):
        await task
    assert (proxy.connections, proxy.cancels, proxy.cancels_delivered) == (1, 1, 1)
