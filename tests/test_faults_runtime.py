"""faults.md 2.5, rows 77 to 87: the end of connections by garbage collection, loops, forks, signals and threads."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import pgpoll
from pgpoll import errors, sync
from proxy import Faults
from sanity import Sanity, SyncSanity

PREAMBLE = """
import asyncio, gc, os, socket, sys, threading, time, weakref
import pgpoll
from pgpoll import sync
dsn = {dsn!r}
def open_sockets():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + name))
        except OSError:
            pass
    return sum(link.startswith("socket") for link in links)
"""
MAIN = {
    "asyncio": "def run(main): return asyncio.run(main)\n",
    "uvloop": "import uvloop\ndef run(main):\n"
    "    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:\n        return runner.run(main)\n",
}


def program(dsn: str, text: str, *, loop: str = "asyncio") -> str:
    """Runs it in a process of its own, in development mode; what it wrote to stderr. Fails where it does."""
    source = PREAMBLE.format(dsn=dsn) + MAIN[loop] + text
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", source], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert "never retrieved" not in done.stderr, done.stderr
    assert "never awaited" not in done.stderr, done.stderr
    return done.stderr


def warned(stderr: str, times: int) -> None:
    """So many ResourceWarnings for connections, and no other noise."""
    noise = [line for line in stderr.splitlines() if "Warning" in line and "tracemalloc" not in line]
    assert len(noise) == times, stderr
    assert all("ResourceWarning: unclosed connection" in line or "unclosed <pgpoll." in line for line in noise), stderr


LOOPS = list(MAIN)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", ["plainly", "in a thread", "in a cycle", "after the loop", "at exit"])
def test_f77_dropped(dsn: str, how: str, loop: str) -> None:
    """The descriptor is closed, with one ResourceWarning, and nothing else is said."""
    text = {
        "plainly": "    before = open_sockets() - 1\n    del conn\n    gc.collect()\n    await asyncio.sleep(0.05)\n"
        "    assert open_sockets() == before\n",
        "in a thread": "    before = open_sockets() - 1\n    box = [conn]\n    del conn\n"
        "    t = threading.Thread(target=box.clear)\n    t.start()\n    t.join()\n    await asyncio.sleep(0.1)\n"
        "    assert open_sockets() == before\n",
        "in a cycle": "    before = open_sockets() - 1\n    cycle = [conn]\n    cycle.append(cycle)\n"
        "    del cycle, conn\n"
        "    gc.collect()\n    await asyncio.sleep(0.05)\n    assert open_sockets() == before\n",
        "after the loop": "    return conn\n",
        "at exit": "    globals()['kept'] = conn\n",
    }[how]
    after = "before = open_sockets() - 1\ndel conn\ngc.collect()\nassert open_sockets() == before\n"
    stderr = program(
        dsn,
        "async def main():\n    conn = await pgpoll.connect(dsn)\n    await conn.execute('select 1')\n"
        + text
        + "conn = run(main())\n"
        + (after if how == "after the loop" else ""),
        loop=loop,
    )
    warned(stderr, 1)


@pytest.mark.parametrize("what", ["result", "statement", "record", "transaction"])
def test_f77_what_outlives_the_loop(dsn: str, what: str) -> None:
    """Results, statements and handles free themselves without it."""
    get = {
        "result": "await conn.execute('select 1 as a')",
        "statement": "await conn.prepare('select 1')",
        "record": "await conn.fetchrow('select 1 as a')",
        "transaction": "conn.transaction()",
    }[what]
    stderr = program(
        dsn,
        f"async def main():\n    conn = await pgpoll.connect(dsn)\n    kept = {get}\n    await conn.close()\n"
        "    return kept\nkept = run(main())\n"
        + ("assert kept[0].a == 1\n" if what == "result" else "")
        + "assert open_sockets() == 0\ndel kept\ngc.collect()\n",
    )
    warned(stderr, 0)


@pytest.mark.parametrize("how", ["plainly", "in a thread", "at exit", "in a cycle"])
def test_f77_dropped_blocking(dsn: str, how: str) -> None:
    text = {
        "plainly": "del conn\nassert open_sockets() == 0\n",
        "in a thread": "box = [conn]\ndel conn\nt = threading.Thread(target=box.clear)\nt.start()\nt.join()\n"
        "assert open_sockets() == 0\n",
        "at exit": "",
        "in a cycle": "c = [conn]\nc.append(c)\ndel c, conn\ngc.collect()\nassert open_sockets() == 0\n",
    }[how]
    warned(program(dsn, "conn = sync.connect(dsn)\nconn.execute('select 1')\n" + text), 1)


@pytest.mark.parametrize("loop", LOOPS)
def test_f78_the_loop_ends_with_requests_pending(dsn: str, loop: str) -> None:
    stderr = program(
        dsn,
        """
async def main():
    conn = await pgpoll.connect(dsn)
    tasks = [asyncio.ensure_future(conn.execute("select pg_sleep(20)")) for _ in range(3)]
    tx = conn.transaction()
    waiting = asyncio.ensure_future(tx.start())
    await asyncio.sleep(0.05)
    return conn
for _ in range(2):  # asyncio.run twice
    conn = run(main())
    async def use():
        for verb in (conn.execute("select 1"), conn.close(), conn.cancel(), conn.transaction().start()):
            try:
                await verb
            except pgpoll.InterfaceError as error:
                assert "loop" in str(error), error
            else:
                raise SystemExit("served by another loop")
    run(use())
    conn.terminate()
    assert conn.closed
    assert open_sockets() == 0
""",
        loop=loop,
    )
    warned(stderr, 0)


@pytest.mark.parametrize("loop", LOOPS)
def test_f78_a_cancel_is_running_when_the_loop_stops(dsn: str, loop: str) -> None:
    """D6: its descriptor is closed with the connection's, and nothing is said."""
    stderr = program(
        dsn,
        """
async def main():
    conn = await pgpoll.connect(dsn)
    task = asyncio.ensure_future(conn.execute("select pg_sleep(5)"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.sleep(0)
    assert conn._driver.cancelling.under_way is not None
    conn.terminate()
run(main())
gc.collect()
assert open_sockets() == 0, open_sockets()
""",
        loop=loop,
    )
    warned(stderr, 0)


@pytest.mark.parametrize("loop", LOOPS)
def test_f78_a_cancel_hangs_when_the_loop_stops(assert_sane_sync: SyncSanity, loop: str) -> None:
    proxy = assert_sane_sync.through(Faults(cancels="hang"))
    where = assert_sane_sync.parameters(proxy, {})
    dsn = f"postgresql://{where['user']}@127.0.0.1:{proxy.port}/postgres"
    stderr = program(
        dsn,
        """
async def main():
    conn = await pgpoll.connect(dsn)
    task = asyncio.ensure_future(conn.execute("select pg_sleep(1)"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.sleep(0.05)
    assert conn._driver.cancelling.under_way is not None
    return conn
conn = run(main())
conn.terminate()
del conn
gc.collect()
assert open_sockets() == 0, open_sockets()
""",
        loop=loop,
    )
    warned(stderr, 0)
    proxy.close()
    deadline = time.monotonic() + 3  # the query that nobody could cancel
    with sync.connect(assert_sane_sync.dsn) as watcher:
        while watcher.fetchval("select count(*) from pg_stat_activity where query = 'select pg_sleep(1)'"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("face", ["asyncio", "sync"])
def test_f79_fork(dsn: str, face: str) -> None:
    """The child can't use it, says nothing on the parent's socket at its end, and the parent goes on."""
    use = {
        "asyncio": "conn.execute('select 1').send(None)",
        "sync": "conn.execute('select 1')",
    }[face]
    body = f"""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            {use}
        except pgpoll.InterfaceError as error:
            code = 0 if "fork" in str(error) or "process" in str(error) else 4
        except BaseException as error:
            print("child", repr(error), file=sys.stderr)
        WAY
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    ways = [
        "os._exit(code)",
        "conn = None; gc.collect(); os._exit(code)",
        "conn.terminate(); os._exit(code)",
        "sys.exit(code)",
    ]
    if face == "asyncio":
        ways.pop()  # the child would go on with the parent's loop
        text = "async def main():\n    conn = await pgpoll.connect(dsn)\n"
        text += "".join(body.replace("WAY", way) for way in ways)
        text += "    assert await conn.fetchval('select 7') == 7\n    await conn.close()\nrun(main())\n"
    else:
        text = "def main():\n    conn = sync.connect(dsn)\n" + "".join(body.replace("WAY", way) for way in ways)
        text += "    assert conn.fetchval('select 7') == 7\n    conn.close()\nmain()\n"
    stderr = program(dsn, text)
    assert "child" not in stderr, stderr
    assert stderr.count("ResourceWarning") == 0, stderr


def test_f79_multiprocessing(dsn: str) -> None:
    warned(
        program(
            dsn,
            """
import multiprocessing
def work(queue):
    with sync.connect(dsn) as mine:
        queue.put(mine.fetchval("select 5"))
conn = sync.connect(dsn)
context = multiprocessing.get_context("fork")
queue = context.Queue()
children = [context.Process(target=work, args=(queue,)) for _ in range(3)]
for child in children: child.start()
assert [queue.get(timeout=20) for _ in children] == [5, 5, 5]
for child in children: child.join()
assert [child.exitcode for child in children] == [0, 0, 0]
assert conn.fetchval("select 6") == 6
conn.close()
""",
        ),
        0,
    )


# -- signals


class Interrupted(Exception):
    pass


def test_f80_signals_of_every_kind(assert_sane_sync: SyncSanity) -> None:
    """A storm of EINTR every millisecond changes nothing; a handler that raises ends the wait within 100 ms."""
    conn = assert_sane_sync.connect()
    ticks = 0

    def tick(*_: object) -> None:
        nonlocal ticks
        ticks += 1

    before = signal.signal(signal.SIGALRM, tick)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for n in range(50):
            assert conn.fetchval("select $1::int4, pg_sleep(0.004)", n) == n
        assert len(conn.fetch("select repeat('x', 1000) from generate_series(1, 20000)")) == 20_000
        other = assert_sane_sync.connect()
        assert other.fetchval("select length($1::text)", "x" * 5_000_000) == 5_000_000
        with assert_sane_sync.raises(pgpoll.QueryTimeout):
            other.execute("select pg_sleep(20)", timeout=0.05)
        assert_sane_sync.usable(other)
        assert ticks > 50
        signal.setitimer(signal.ITIMER_REAL, 0)

        def interrupt(*_: object) -> None:
            raise Interrupted(time.monotonic())

        signal.signal(signal.SIGALRM, interrupt)
        for _ in range(3):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted) as caught:
                conn.execute("select pg_sleep(20)")
            assert time.monotonic() - caught.value.args[0] < 0.2
            assert_sane_sync.usable(conn)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_f80_interrupted_while_connecting(assert_sane_sync: SyncSanity) -> None:
    proxy = assert_sane_sync.through(Faults(end="stall", at=20))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with assert_sane_sync.at_once(0.3), pytest.raises(KeyboardInterrupt):
            assert_sane_sync.connect(proxy)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- threads


def test_f81_eight_threads_each_its_own(assert_sane_sync: SyncSanity) -> None:
    """At the same time: while one waits for the server, the GIL is free."""
    conns = [assert_sane_sync.connect() for _ in range(8)]

    def work(conn: sync.Connection, who: int) -> None:
        for n in range(60):
            assert conn.fetchval("select $1::int4", who * 1000 + n) == who * 1000 + n
            if n % 20 == 0:
                with pytest.raises(errors.DivisionByZero):
                    conn.execute("select 1 / $1::int4", 0)
                with pytest.raises(pgpoll.QueryTimeout):
                    conn.execute("select pg_sleep(20)", timeout=0.005)
                with conn.transaction():
                    assert conn.fetchval("select $1::text", str(n)) == str(n)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, conn, who) for who, conn in enumerate(conns)]:
            done.result(60)
        began = time.monotonic()
        list(pool.map(lambda conn: conn.execute("select pg_sleep(0.3)"), conns))
        assert time.monotonic() - began < 1.5, "one after the other"


def test_f81_eight_threads_on_one(assert_sane_sync: SyncSanity) -> None:
    conn = assert_sane_sync.connect()
    conn.execute("create temp table t (i int4)")

    def work(who: int) -> int:
        right = 0
        for n in range(60):
            token = who * 1000 + n
            if n % 10 == 0:
                with conn.transaction() as tx:
                    tx.execute("insert into t values ($1)", token)
                    assert tx.fetchval("select count(*) from t where i = $1", token) == 1
            elif n == 31:
                with pytest.raises(pgpoll.QueryTimeout):
                    conn.execute("select pg_sleep(0.5)", timeout=0.01)
            elif n % 10 == 2:
                with pytest.raises(errors.InvalidTextRepresentation, match=f"token {token}"):
                    conn.execute("select $1::text::int4", f"token {token}")
            else:
                assert conn.fetchval("select $1::int4", token) == token
            right += 1
        return right

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 8 * 60
    assert conn.fetchval("select count(*) from t") == 8 * 6


def test_f81_a_timeout_while_another_thread_drives(assert_sane_sync: SyncSanity) -> None:
    """The one that drives waits for its own answer, behind a request of which nobody else can look at the time."""
    conn = assert_sane_sync.connect()
    line = conn._driver.blocks

    def timed() -> float:
        with pytest.raises(pgpoll.QueryTimeout):
            conn.execute("select pg_sleep(2)", timeout=0.2)
        return time.monotonic()

    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            with conn.transaction():
                began = time.monotonic()
                other = pool.submit(timed)
                while line.oldest is None:
                    time.sleep(0.001)
            assert conn.fetchval("select 5") == 5  # has the mutex first, as a rule
            assert other.result(5) - began < 1


def test_f81_a_signal_while_another_thread_drives(assert_sane_sync: SyncSanity) -> None:
    """The handler runs in the main thread, and does not end the other's wait."""
    conn = assert_sane_sync.connect()
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(conn.fetchval, "select 3, pg_sleep(0.2)")
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert other.result(5) == 3
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen


async def test_f81_blocking_inside_a_loop(assert_sane: Sanity, dsn: str) -> None:
    """It blocks the loop, as any blocking call does, and works."""
    assert_sane.blocking_allowed = True
    with sync.connect(dsn) as conn:
        assert conn.fetchval("select 1") == 1


# -- the callers' code


class Odd:
    """An int-like argument whose encoding does something else first."""

    action: Any = None

    def __index__(self) -> int:
        if Odd.action is not None:
            Odd.action()
        return 7


@pytest.mark.parametrize("raised", [KeyError("own"), GeneratorExit(), RecursionError("deep"), ValueError("own")])
async def test_f85_an_argument_raises(assert_sane: Sanity, raised: BaseException) -> None:
    conn = await assert_sane.connect()

    def action() -> None:
        raise raised

    for sql in ("select $1::int4", "select $1::int4 + 0"):
        for _ in range(2):  # described while it waits, and known
            Odd.action = action
            try:
                with pytest.raises(BaseException) as caught:  # noqa: PT011
                    await conn.fetchval(sql, Odd())
            finally:
                Odd.action = None
            assert (
                type(caught.value) is type(raised)
                or caught.value.__cause__ is raised
                or isinstance(caught.value, pgpoll.DataError)
            )
            await assert_sane.usable(conn)


async def test_f85_a_deep_recursion(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises((pgpoll.DataError, RecursionError)):
        await conn.fetchval("select $1::int4[]", deep)
    await assert_sane.usable(conn)
    with pytest.raises((pgpoll.DataError, RecursionError)):
        await conn.fetchval("select $1::jsonb", deep)
    while deep:
        deep = deep[0]  # freed without recursion
    await assert_sane.usable(conn)


async def test_f86_poll_from_within_a_callback(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    seen: list[BaseException] = []

    def action() -> None:
        try:
            conn._core.poll()
        except pgpoll.InterfaceError as error:
            seen.append(error)

    Odd.action = action
    try:
        assert await conn.fetchval("select $1::int4 * 1", Odd()) == 7
    finally:
        Odd.action = None
    assert all("poll() inside poll()" in str(each) for each in seen)
    assert seen


async def test_f86_a_callback_that_uses_the_connection(assert_sane: Sanity) -> None:
    """It may start requests, which come behind; and it may end it all."""
    conn = await assert_sane.connect()
    started: list[asyncio.Task[Any]] = []

    def action() -> None:
        started.append(asyncio.get_running_loop().create_task(conn.fetchval("select 11")))

    Odd.action = action
    try:
        assert await conn.fetchval("select $1::int4 * 2", Odd()) == 14
        assert {await each for each in started} == {11}
        Odd.action = conn.terminate
        with pytest.raises(pgpoll.Error):
            await conn.fetchval("select $1::int4 * 3", Odd())
    finally:
        Odd.action = None
    assert conn.closed


@pytest.mark.parametrize("ending", ["close", "terminate", "server"])
async def test_f87_a_descriptor_used_again_gets_no_events_of_ours(assert_sane: Sanity, ending: str) -> None:
    """Unregistered before it is closed: whoever gets its number next registers it without trouble."""
    loop = asyncio.get_running_loop()
    for _ in range(5):
        conn = await assert_sane.connect()
        number = conn._core.fileno()
        if ending == "close":
            await conn.close()
        elif ending == "terminate":
            conn.terminate()
        else:
            with assert_sane.raises(errors.AdminShutdown):
                await conn.execute("select pg_terminate_backend(pg_backend_pid())")
            await assert_sane.until(lambda conn=conn: conn._core.fileno() < 0)  # type: ignore[misc]
        a, b = socket.socketpair()
        if b.fileno() == number:
            a, b = b, a
        if a.fileno() != number:
            os.dup2(a.fileno(), number)
            a.close()
            a = socket.socket(fileno=number)
        with a, b:
            got = loop.create_future()
            loop.add_reader(number, lambda got=got, a=a: got.done() or got.set_result(a.recv(10)))  # type: ignore[misc]
            b.send(b"mine")
            assert await asyncio.wait_for(got, 5) == b"mine"
            loop.remove_reader(number)


async def test_f87_debug_mode(assert_sane: Sanity) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        conn = await assert_sane.connect()
        await asyncio.gather(*(assert_sane.ask(conn) for _ in range(50)))
        with assert_sane.raises(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep(20)", timeout=0.02)
        await assert_sane.usable(conn)
        await conn.close()
    finally:
        loop.set_debug(False)


async def test_f77_nothing_refers_to_a_closed_connection(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    core = weakref.ref(conn._driver)
    task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await conn.close()
    assert_sane.made.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del conn, task
        gc.collect()
    await asyncio.sleep(0)
    assert core() is None


async def test_f81_terminate_from_many_threads(assert_sane: Sanity) -> None:
    conn = await assert_sane.connect()
    task = asyncio.create_task(conn.execute("select pg_sleep(1)"))
    await asyncio.sleep(0.02)
    threads = [threading.Thread(target=conn.terminate) for _ in range(8)]
    for each in threads:
        each.start()
    with assert_sane.raises(pgpoll.ConnectionLost):
        await asyncio.wait_for(task, 5)
    for each in threads:
        each.join()
    assert conn.closed
