"""The asyncio face on a real server: verbs, timeouts, ends, loops, lifetimes."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import contextvars
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import warnings
import weakref
from typing import Any

import pytest

import pgpoll
from pgpoll import errors
from server import Server


def test_importing_pgpoll_imports_no_asyncio(dsn: str) -> None:
    program = (
        "import sys, pgpoll, pgpoll.sync, pgpoll.core, pgpoll.conninfo, pgpoll.errors\n"
        f"with pgpoll.sync.connect({dsn!r}) as conn: conn.execute('select 1')\n"
        "assert 'asyncio' not in sys.modules\n"
        "assert pgpoll.connect and pgpoll.Connection and pgpoll.Transaction and pgpoll.Statement\n"
        "assert 'asyncio' in sys.modules\n"
        "assert set(pgpoll.__all__) <= set(dir(pgpoll)) and all(hasattr(pgpoll, name) for name in pgpoll.__all__)\n"
        "assert not hasattr(pgpoll, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_only_one_module_imports_asyncio() -> None:
    folder = os.path.dirname(pgpoll.__file__)
    importers = []
    for name in os.listdir(folder):
        if name.endswith(".py"):
            with open(os.path.join(folder, name)) as file:
                if any(line.lstrip().startswith(("import asyncio", "from asyncio")) for line in file):
                    importers.append(name)
    assert importers == ["_loop.py"]


async def test_connect_is_a_coroutine_and_a_context_manager(dsn: str) -> None:
    connecting = pgpoll.connect(dsn)
    assert isinstance(connecting, collections.abc.Coroutine)
    conn = await connecting
    assert "pid=" in repr(conn)
    await conn.close()
    assert "closed" in repr(conn)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pgpoll.connect(dsn))
    await task.result().close()
    conn = await asyncio.wait_for(pgpoll.connect(dsn), 10)
    async with conn as same:
        assert same is conn
    connecting = pgpoll.connect("nonsense=1")  # nothing is checked before the first step
    with pytest.raises(pgpoll.InterfaceError):
        await connecting


class _Resolving(asyncio.SelectorEventLoop):
    """A loop with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    async def getaddrinfo(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(host)
        if host == "nowhere.invalid":
            raise OSError(-2, "Name or service not known")
        return [(2, 1, 6, "", ("127.0.0.9", 0)), (2, 1, 6, "", ("127.0.0.1", 0))]


def test_names_are_looked_up_by_the_loop(dsn: str) -> None:
    options: dict[str, Any] = {"port": urllib.parse.urlsplit(dsn).port, "user": "postgres", "dbname": "postgres"}

    async def main() -> list[Any]:
        async with pgpoll.connect(host="somewhere.invalid", **options) as conn:
            assert await conn.fetchval("select 1") == 1
        async with pgpoll.connect(host="nowhere.invalid,127.0.0.1", **options) as conn:
            assert await conn.fetchval("select 1") == 1
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _Resolving)
        asked = list(loop.asked)
        with pytest.raises(pgpoll.OperationalError, match=r"nowhere\.invalid"):
            await pgpoll.connect(host="nowhere.invalid", **options)
        return asked

    with asyncio.Runner(loop_factory=_Resolving) as runner:
        assert runner.run(main()) == ["somewhere.invalid", "nowhere.invalid"], "IP literals are never looked up"


async def test_two_addresses_refuse_then_one_lives(dsn: str) -> None:
    port = urllib.parse.urlsplit(dsn).port
    hosts: dict[str, Any] = {"host": "127.0.0.2,127.0.0.3,127.0.0.1", "port": f"1,1,{port}"}
    for _ in range(3):
        async with pgpoll.connect(user="postgres", dbname="postgres", **hosts) as conn:
            assert await asyncio.wait_for(conn.fetchval("select 1"), 5) == 1
    with pytest.raises(pgpoll.OperationalError) as caught:
        await pgpoll.connect(user="postgres", dbname="postgres", host="127.0.0.2,127.0.0.3", port="1,1")
    assert "127.0.0.2" in str(caught.value)
    assert "127.0.0.3" in str(caught.value)


async def test_connect_timeout() -> None:
    deaf = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, and nobody answers
    port = deaf.getsockname()[1]
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(pgpoll.QueryTimeout) as caught:
        await pgpoll.connect(host="127.0.0.1", port=port, user="postgres", connect_timeout=2)
    assert 1.5 < loop.time() - began < 4
    assert caught.value.safe_to_retry
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pgpoll.connect(host="127.0.0.1", port=port, user="postgres")
    deaf.close()


async def test_verbs(conn: pgpoll.Connection) -> None:
    assert (await conn.execute("select 1 as a union all select 2")).tag == "SELECT 2"
    assert await conn.fetch("select 1 as a union all select 2 order by a") == [(1,), (2,)]
    assert await conn.fetchrow("select 1, 'x'") == (1, "x")
    assert await conn.fetchrow("select 1 where false") is None
    assert await conn.fetchval("select $1::text", "x") == "x"
    assert await conn.fetchval("select 1 where false") is None
    results = await conn.executescript("select 1; select 2, 'b'")
    assert [list(map(tuple, each)) for each in results] == [[("1",)], [("2", "b")]]
    assert conn.server_parameters["client_encoding"] == "UTF8"


async def test_prepared(conn: pgpoll.Connection) -> None:
    statement = await conn.prepare("select $1::int4 as a, $2::text as b")
    assert [each.type_name for each in statement.parameters] == ["int4", "text"]
    assert statement.columns is not None
    assert [each.name for each in statement.columns] == ["a", "b"]
    assert statement.sql in repr(statement)
    assert await statement.fetch(1, "x") == [(1, "x")]
    assert await statement.fetchrow(1, "x") == (1, "x")
    assert (await statement.execute(1, "x")).scalar() == 1
    assert await asyncio.gather(*(statement.fetchval(n, "x") for n in range(50))) == list(range(50))
    with pytest.raises(pgpoll.DataError):
        await statement.fetchval("no number", "x")
    with pytest.raises(pgpoll.QueryTimeout):
        await (await conn.prepare("select pg_sleep($1)")).execute(20.0, timeout=0.05)
    async with conn.transaction() as tx:
        inside = await tx.prepare("select 1")
        assert await inside.fetchval() == 1
    with pytest.raises(pgpoll.InterfaceError):
        await inside.fetchval()


async def test_an_error_is_its_own_requests_alone(conn: pgpoll.Connection) -> None:
    calls: list[Any] = []
    for n in range(100):
        calls.append(conn.fetchval("select $1::int4", n))
        calls.append(conn.fetchval("select 1 / ($1::int4 - $1::int4)", n))
        calls.append(conn.fetchval("select nothing"))
        calls.append(conn.fetchval("select $1::int4", "text"))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[::4] == list(range(100))
    for offset, kind in ((1, errors.DivisionByZero), (2, errors.UndefinedColumn), (3, pgpoll.DataError)):
        assert all(isinstance(each, kind) for each in answers[offset::4])


async def test_copy_through_execute_with_ten_behind_it(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table t (i int4)")
    for copy in ("copy t from stdin", "copy (select 1) to stdout"):
        answers = await asyncio.gather(
            conn.execute(copy), *(conn.fetchval("select $1::int4", n) for n in range(10)), return_exceptions=True
        )
        assert isinstance(answers[0], pgpoll.InterfaceError)
        assert answers[1:] == list(range(10))
        with pytest.raises(pgpoll.InterfaceError):
            await conn.executescript(copy)
        assert await conn.fetchval("select 1") == 1


async def test_timeouts(conn: pgpoll.Connection) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for verb in (conn.execute, conn.fetch, conn.fetchrow, conn.fetchval, conn.executescript):
        with pytest.raises(pgpoll.QueryTimeout) as caught:
            await verb("select pg_sleep(20)", timeout=0.03)
        assert isinstance(caught.value, TimeoutError)
        assert await conn.fetchval("select 5", timeout=5) == 5
    assert loop.time() - began < 3
    with pytest.raises(pgpoll.QueryTimeout):
        await conn.fetchval("select pg_sleep(1)", timeout=0)
    assert await conn.fetchval("select 6") == 6


async def test_a_timeout_at_the_reply_is_one_or_the_other(conn: pgpoll.Connection) -> None:
    for n in range(300):
        with contextlib.suppress(pgpoll.QueryTimeout):
            assert await conn.fetchval("select $1::int4", n, timeout=(n % 30) * 2e-5) == n
    assert await conn.fetchval("select -1") == -1


async def test_cancel_by_hand(conn: pgpoll.Connection) -> None:
    await conn.cancel()
    running = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    behind = asyncio.create_task(conn.fetchval("select 2"))
    await asyncio.sleep(0.05)
    await asyncio.gather(conn.cancel(), conn.cancel())
    with pytest.raises(errors.QueryCanceled):
        await running
    assert await behind == 2
    async with conn.transaction() as tx:
        running = asyncio.create_task(conn.execute("select pg_sleep(20)"))
        await asyncio.sleep(0.05)
        with pytest.raises(pgpoll.InterfaceError):
            await asyncio.create_task(conn.cancel(), context=contextvars.Context())
        await asyncio.create_task(tx.cancel(), context=contextvars.Context())
        with pytest.raises(errors.QueryCanceled):
            await running
        await tx.rollback()


async def test_a_server_that_takes_no_cancel_request(server: Server) -> None:
    """After 2 s nobody knows any more what the CancelRequest will hit: the connection is ended."""
    async with pgpoll.connect(server.dsn) as conn:
        loop = asyncio.get_running_loop()
        os.kill(server.pid, signal.SIGSTOP)  # connections are accepted by the kernel, and never served
        try:
            began = loop.time()
            with pytest.raises(pgpoll.QueryTimeout):
                await conn.execute("select pg_sleep(20)", timeout=0.05)
            assert loop.time() - began < 0.5
            with pytest.raises(pgpoll.ConnectionLost) as caught:
                await conn.execute("select 1")
            assert caught.value.safe_to_retry
            assert 1.5 < loop.time() - began < 3
            assert conn.closed
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_a_cancel_request_that_is_refused(dsn: str) -> None:
    """Nothing will stop what runs: the connection is ended."""
    there = urllib.parse.urlsplit(dsn)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listener.close()  # whoever comes after is refused
        upstream, downstream = await asyncio.open_connection(there.hostname, there.port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, downstream), copy(upstream, writer))

    listener = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with pgpoll.connect(host="127.0.0.1", port=port, user=there.username, dbname="postgres") as conn:
        with pytest.raises(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep(20)", timeout=0.1)
        with pytest.raises(pgpoll.Error):
            await asyncio.wait_for(conn.execute("select 1"), 3)
        assert conn.closed
    await asyncio.sleep(0.05)


async def test_loss_tells_everyone(dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn, pgpoll.connect(dsn) as other:
        tasks = [asyncio.create_task(conn.fetchval("select pg_sleep(10)")) for _ in range(5)]
        await asyncio.sleep(0.05)
        await other.execute("select pg_terminate_backend($1)", conn.backend_pid)
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(isinstance(each, pgpoll.OperationalError) for each in ended)
        assert isinstance(ended[0], errors.AdminShutdown)
        assert conn.closed
        with pytest.raises(pgpoll.InterfaceError, match="closed"):
            await conn.execute("select 1")


async def test_loss_of_an_idle_connection_is_noticed(dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn, pgpoll.connect(dsn) as other:
        await other.execute("select pg_terminate_backend($1)", conn.backend_pid)
        async with asyncio.timeout(10):  # the server's time
            while not conn.closed:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await conn.close()


async def test_close_serves_what_was_accepted(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    tasks = [asyncio.create_task(conn.fetchval("select $1::int4", n)) for n in range(20)]
    await asyncio.sleep(0)
    await asyncio.gather(conn.close(), conn.close(), conn.close())
    assert await asyncio.gather(*tasks) == list(range(20))
    assert conn.closed
    await conn.close()
    conn.terminate()
    for verb in (
        conn.fetchval("select 1", timeout=1),
        conn.copy_in("copy t from stdin", b""),
        conn.transaction().start(),
    ):
        with pytest.raises(pgpoll.InterfaceError, match="is closed"):
            await verb


async def test_close_cancels_what_was_abandoned(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.05)
    task.cancel()
    began = loop.time()
    await conn.close()
    assert loop.time() - began < 1


async def test_leaving_by_an_exception_serves_nobody(dsn: str) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with pgpoll.connect(dsn) as watcher:
        with pytest.raises(KeyError):
            async with pgpoll.connect(dsn) as conn:
                pid = conn.backend_pid
                tasks = [asyncio.create_task(conn.execute("select pg_sleep(20)")) for _ in range(3)]
                await asyncio.sleep(0.05)
                raise KeyError
        assert conn.closed
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, pgpoll.ConnectionLost)
            assert "closed" in str(error)
        for _ in range(100):
            if not await watcher.fetchval("select count(*) from pg_stat_activity where pid = $1", pid):
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the backend goes on")
    assert loop.time() - began < 4


async def test_terminate(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    task = asyncio.create_task(conn.execute("select pg_sleep(20)"))
    await asyncio.sleep(0.02)
    conn.terminate()
    assert conn.closed
    with pytest.raises(pgpoll.ConnectionLost, match="closed"):
        await asyncio.wait_for(task, 1)
    conn.terminate()
    conn = await pgpoll.connect(dsn)
    thread = threading.Thread(target=conn.terminate)
    thread.start()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0.01)
    assert conn.closed


async def test_dropped_without_close(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    core = conn._core
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del conn
        gc.collect()
    assert [str(each.message)[:19] for each in caught if each.category is ResourceWarning] == ["unclosed connection"]
    assert core.closed
    assert core.fileno() == -1
    async with pgpoll.connect(dsn) as conn:
        core_reference = weakref.ref(conn._driver)
    del conn, core
    gc.collect()
    assert core_reference() is None, "nothing outlives its connection"


async def test_a_pending_request_keeps_its_connection(dsn: str) -> None:
    conn = await pgpoll.connect(dsn)
    task = asyncio.create_task(conn.fetchval("select pg_sleep(0.05), 1"))
    await asyncio.sleep(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del conn
        gc.collect()
        assert not caught
        await task
        del task
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]


def test_another_loop_is_refused(dsn: str) -> None:
    async def connect() -> pgpoll.Connection:
        return await pgpoll.connect(dsn)

    first = asyncio.new_event_loop()
    conn = first.run_until_complete(connect())

    async def use() -> None:
        for coroutine in (
            conn.execute("select 1"),
            conn.fetchval("select 1", timeout=1),
            conn.prepare("select 1"),
            conn.transaction().start(),
            conn.close(),
            conn.cancel(),
        ):
            with pytest.raises(pgpoll.InterfaceError, match="belongs to"):
                await coroutine

    asyncio.run(use())
    first.run_until_complete(conn.close())
    first.close()


def test_a_loop_closed_before_its_connection(dsn: str) -> None:
    program = f"""
import asyncio, gc, sys, pgpoll
def hook(arguments): raise SystemExit(arguments)
sys.unraisablehook = lambda arguments: (print("noise", arguments), sys.exit(1))
async def main(busy):
    conn = await pgpoll.connect({dsn!r})
    if busy:
        asyncio.ensure_future(conn.execute("select pg_sleep(20)"))
        asyncio.ensure_future(conn.transaction().start())
        await asyncio.sleep(0.02)
    return conn
for busy in (False, True):
    conn = asyncio.run(main(busy))
    conn.terminate()
    assert conn.closed
    conn = asyncio.run(main(busy))
    del conn
    gc.collect()
keep = asyncio.run(main(False))
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ResourceWarning: unclosed") in (2, 3), done.stderr
    assert "noise" not in done.stdout
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_child_of_a_fork_leaves_the_parents_connection_alone(dsn: str) -> None:
    program = f"""
import asyncio, os, gc, pgpoll
async def main():
    conn = await pgpoll.connect({dsn!r})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            conn.execute("select 1").send(None)
        except pgpoll.InterfaceError:
            code = 0
        conn.terminate()
        del conn
        gc.collect()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    for n in range(3):
        assert await asyncio.wait_for(conn.fetchval("select $1::int4", n), 5) == n
    await conn.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_thousand_tasks_one_thread(conn: pgpoll.Connection) -> None:
    before = threading.active_count()
    answers = await asyncio.gather(*(conn.fetchval("select $1::int4", n) for n in range(1000)))
    assert answers == list(range(1000))
    assert threading.active_count() == before


async def test_encoding_runs_in_the_requests_context(conn: pgpoll.Connection) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    seen: list[str] = []

    class Number(int):
        def __index__(self) -> int:
            seen.append(name.get())
            return 1

    async def one(who: str) -> None:
        name.set(who)
        await conn.fetchval("select $1::int4 + 0", Number(1))

    async with conn.transaction():
        tasks = [asyncio.create_task(one(who), context=contextvars.Context()) for who in "abc"]
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert seen in ([], ["a", "b", "c"])
