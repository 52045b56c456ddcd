"""LISTEN in the asyncio face, on a real server: what is heard, by whom, what the server is told (rows 38 and 76)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import logging
import os
import pickle
import random
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any

import pytest

import pgpoll
from backend import (
    FrontendReader,
    bind_complete,
    command_complete,
    notification,
    parse_complete,
    ready_for_query,
    started,
)
from peers import Memory, options
from pgpoll import Notification, _listening, conninfo, core, errors
from sanity import Sanity
from test_faults_cancel import Stepped
from test_notices import Heartbeat, resident

FLOOD = int(os.environ.get("PGPOLL_NOTIFICATIONS", "200000"))
SEED = int(os.environ.get("PGPOLL_FIRST_SEED", "0"))
ROUNDS = int(os.environ.get("PGPOLL_LISTENERS", "400"))

_channels = itertools.count()


@pytest.fixture
def channel() -> str:
    """One that no other test uses."""
    return f"channel {os.getpid()} {next(_channels)}"


async def tell(other: pgpoll.Connection, channel: str, *payloads: object) -> None:
    for each in payloads:
        await other.execute("select pg_notify($1, $2)", channel, str(each))


async def listened(conn: pgpoll.Connection) -> set[str]:
    """What the server listens to for this connection."""
    return {each[0] for each in await conn.fetch("select pg_listening_channels()")}


async def heard(listener: pgpoll.Listener, count: int) -> list[str]:
    async with asyncio.timeout(5):
        return [(await anext(listener)).payload for _ in range(count)]


# -- hearing


async def test_what_a_notification_is(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    async with conn.listen(channel) as notifications:
        await tell(other, channel, "hi", "")
        await tell(conn, channel, "mine")
        first, second, third = [await anext(notifications) for _ in range(3)]
    assert first == (channel, "hi", other.backend_pid) == (first.channel, first.payload, first.pid)
    assert second.payload == ""
    assert third.pid == conn.backend_pid
    assert isinstance(first, pgpoll.Notification)
    assert pickle.loads(pickle.dumps(first)) == first
    assert notifications.channels == (channel,)
    assert repr(notifications) == f"<pgpoll.Listener of {channel!r}, has been left>"


async def test_kept_from_the_answer_to_listen_on(
    conn: pgpoll.Connection, other: pgpoll.Connection, channel: str
) -> None:
    """D9; and other requests go on meanwhile."""
    async with conn.listen(channel) as notifications:
        await tell(other, channel, *range(500))
        assert await conn.fetchval("select 3") == 3
        assert await heard(notifications, 500) == [str(i) for i in range(500)]
        waiting = asyncio.create_task(anext(notifications))
        assert await asyncio.gather(*(conn.fetchval("select $1::int4", i) for i in range(50))) == list(range(50))
        assert not waiting.done()
        await tell(other, channel, "late")
        assert (await waiting).payload == "late"


async def test_without_async_with(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    """The first iteration enters it; dropping it leaves it."""

    async def listen() -> str:
        async for each in conn.listen(channel):
            return each.payload
        raise AssertionError

    task = asyncio.create_task(listen())
    while channel not in await listened(conn):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await tell(other, channel, "x")
    assert await task == "x"
    gc.collect()
    await asyncio.sleep(0)
    assert await listened(conn) == set()


async def test_many_listeners(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    """Each gets all of its own channels; the server is told once, and again when the last one leaves."""
    more = channel + " more"
    async with conn.listen(channel, more, channel) as both:
        assert both.channels == (channel, more)
        async with conn.listen(channel) as one:
            assert await listened(conn) == {channel, more}
            await tell(other, channel, "a")
            await tell(other, more, "b")
            assert await heard(both, 2) == ["a", "b"]
            assert await heard(one, 1) == ["a"]
            assert await one.next(timeout=0) is None
        assert await listened(conn) == {channel, more}
        await tell(other, channel, "c")
        assert await heard(both, 1) == ["c"]
    assert await listened(conn) == set()


async def test_many_tasks_on_one_listener(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    got: list[str] = []

    async def take(notifications: pgpoll.Listener) -> None:
        async for each in notifications:
            got.append(each.payload)  # noqa: PERF401 - as they come

    async with conn.listen(channel) as notifications:
        tasks = [asyncio.create_task(take(notifications)) for _ in range(10)]
        await tell(other, channel, *range(100))
        async with asyncio.timeout(5):
            while len(got) < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)  # leaving it ends them
    assert sorted(got, key=int) == [str(i) for i in range(100)]


@pytest.mark.parametrize("name", ["news", "News", "two words", 'quo"te""d', "grüße 🐘", "'", "select", "\n", "x" * 63])
async def test_names_are_taken_to_the_letter(conn: pgpoll.Connection, other: pgpoll.Connection, name: str) -> None:
    async with conn.listen(name) as notifications:
        assert await listened(conn) == {name}
        await tell(other, name.swapcase() if name.swapcase() != name else "another", "no")
        await tell(other, name, name)
        assert await heard(notifications, 1) == [name]
    assert await listened(conn) == set()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), "one channel or more"),
        (("",), "is empty"),
        (("a\0b",), "NUL"),
        (("x" * 64,), "64 bytes"),
        (("fine", "ü" * 32), "64 bytes"),
        (("\ud800",), "surrogate"),
        ((7,), "must be str, not int"),
        ((["news"],), "must be str, not list"),
    ],
)
async def test_names_that_are_none(conn: pgpoll.Connection, names: tuple[Any, ...], text: str) -> None:
    with pytest.raises(pgpoll.InterfaceError, match=text):
        conn.listen(*names)


async def test_next_and_its_timeout(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    async with conn.listen(channel) as notifications:
        assert await notifications.next(timeout=0) is None
        assert await notifications.next(timeout=0.01) is None
        await tell(other, channel, "x")
        note = await notifications.next(timeout=5)
        assert note is not None
        assert note.payload == "x"
    assert await notifications.next() is None
    assert [each async for each in notifications] == []


async def test_entered_once(conn: pgpoll.Connection, channel: str) -> None:
    async with conn.listen(channel) as notifications:
        with pytest.raises(pgpoll.InterfaceError, match="is open: make a new one"):
            await notifications.__aenter__()
    with pytest.raises(pgpoll.InterfaceError, match="has been left: make a new one"):
        await notifications.__aenter__()


# -- blocks


async def test_inside_of_ones_own_block(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    async with conn.listen(channel) as notifications:
        async with conn.transaction():
            with pytest.raises(pgpoll.InterfaceError, match=r"listen\(\) inside of the transaction entered at .*test_"):
                async with conn.listen("x"):
                    pass
            with pytest.raises(pgpoll.InterfaceError, match="waiting for a notification inside of the transaction"):
                await anext(notifications)
            async with conn.transaction():
                with pytest.raises(pgpoll.InterfaceError, match="inside of the transaction"):
                    await anext(notifications)
            child = asyncio.create_task(conn.listen("x").__aenter__())
            with pytest.raises(pgpoll.InterfaceError, match="inside of the transaction"):
                await child  # its LISTEN would be the transaction's
            await tell(other, channel, "x")
            assert await conn.fetchval("select 1") == 1
        assert await heard(notifications, 1) == ["x"]
    assert await listened(conn) == set()


async def test_inside_of_a_transaction_begun_by_hand(conn: pgpoll.Connection) -> None:
    await conn.execute("begin")
    with pytest.raises(pgpoll.InterfaceError, match="begun by hand"):
        async with conn.listen("x"):
            pass
    await conn.execute("rollback")
    async with conn.listen("x"):
        pass


async def test_others_blocks_are_waited_for(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    """Entering stands in the line; so does the UNLISTEN, which nobody waits for."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def listen() -> None:
        async with conn.listen(channel) as notifications:
            entered.set()
            await leave.wait()
            assert await notifications.next(timeout=0) is None

    async def cancelled() -> None:
        async with conn.listen("never"):
            raise AssertionError

    async with conn.transaction() as tx:
        task, victim = asyncio.create_task(outside(listen())), asyncio.create_task(outside(cancelled()))
        assert await tx.fetchval("select 1") == 1
        assert not entered.is_set()
        victim.cancel()
        await asyncio.wait([victim])
        assert victim.cancelled()
    await entered.wait()
    async with conn.transaction() as tx:
        leave.set()
        await task
        assert {each[0] for each in await tx.fetch("select pg_listening_channels()")} == {channel}
    assert await listened(conn) == set()


async def outside(coroutine: Any) -> Any:
    """In a task of its own whose context carries no block."""
    return await asyncio.create_task(coroutine, context=contextvars.Context())


async def test_a_listener_comes_back_while_unlisten_waits(
    conn: pgpoll.Connection, other: pgpoll.Connection, channel: str
) -> None:
    async with conn.transaction():
        listener = conn.listen(channel)
        entering = asyncio.create_task(outside(listener.__aenter__()))
        await asyncio.sleep(0.01)
        assert not entering.done()
    await entering
    async with conn.transaction():
        await listener.__aexit__(None, None, None)
        again = conn.listen(channel)
        entering = asyncio.create_task(outside(again.__aenter__()))
        await asyncio.sleep(0.01)
    await entering
    assert await listened(conn) == {channel}
    await tell(other, channel, "x")
    assert await heard(again, 1) == ["x"]
    await again.__aexit__(None, None, None)
    assert await listened(conn) == set()


# -- too many


async def test_overflow_is_told_in_its_place(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    """Once, with the number; then it goes on. Another listener loses nothing by it."""
    count = _listening.BOUND + 500
    many = "select count(pg_notify($1, i::text)) from generate_series($2::int4, $3::int4) as t(i)"
    async with conn.listen(channel) as slow, conn.listen(channel) as fast:
        got: list[str] = []
        for start in range(1, count + 1, 500):
            await other.execute(many, channel, start, start + 499)
            got += await heard(fast, 500)
        assert got == [str(i) for i in range(1, count + 1)]
        assert await heard(slow, _listening.BOUND) == [str(i) for i in range(1, _listening.BOUND + 1)]
        await tell(other, channel, "next")
        assert await heard(fast, 1) == ["next"]
        with pytest.raises(pgpoll.NotificationsLost, match="500 notification") as caught:
            await anext(slow)
        assert caught.value.lost == 500
        assert isinstance(caught.value, pgpoll.OperationalError)
        assert pickle.loads(pickle.dumps(caught.value)).lost == 500
        assert await heard(slow, 1) == ["next"]


@contextlib.asynccontextmanager
async def bringing(**brings: Iterable[bytes]) -> AsyncIterator[pgpoll.Connection]:
    """A connection to a server that answers any command, and behind LISTEN to one of these channels brings this."""
    listener = socket.create_server(("127.0.0.1", 0))
    answered = parse_complete() + bind_complete() + command_complete("LISTEN") + ready_for_query()

    def serve() -> None:
        peer, _ = listener.accept()
        reader = FrontendReader()
        with peer, contextlib.suppress(OSError):  # the client may go away at any time
            reader.feed(peer.recv(1 << 16))
            assert [each.name for each in reader] == ["StartupMessage"]
            peer.sendall(started())
            while data := peer.recv(1 << 16):
                reader.feed(data)
                for each in reader:
                    if each.name == "Parse":
                        peer.sendall(answered)
                        channel = each["query"].removeprefix('LISTEN "').removesuffix('"')
                        for block in brings.get(channel, ()):
                            peer.sendall(block)

    thread = threading.Thread(target=serve)
    thread.start()
    where: dict[str, Any] = {"host": "127.0.0.1", "port": listener.getsockname()[1], "user": "u"}
    try:
        conn = await pgpoll.connect(**where, sslmode="disable")
        try:
            yield conn
        finally:
            conn.terminate()
    finally:
        listener.close()
        thread.join()


async def test_f38_a_flood_while_the_consumer_sleeps() -> None:
    """Constant memory, the loop is never held for 50 ms, and all that is not delivered is told of, in order."""
    blocks = (
        b"".join(notification("a", str(i)) for i in range(start, start + 1000)) for start in range(0, FLOOD, 1000)
    )
    after = {"go": [notification("quiet", "after")], "go on": [notification("quiet", "last")]}
    async with (
        asyncio.timeout(60),
        bringing(quiet=blocks, **after) as conn,
        conn.listen("a", "quiet") as both,
        conn.listen("quiet") as quiet,
    ):
        heartbeat = Heartbeat()
        before = resident()
        async with conn.listen("received"):  # whose answer comes behind
            assert resident() - before < 32 << 20
        while conn._driver._handing_over:  # noqa: ASYNC110
            await asyncio.sleep(0)
        async with conn.listen("go"):
            assert (await anext(quiet)).payload == "after"
        heartbeat.task.cancel()
        assert heartbeat.worst < 0.05, "CPU time, so that a busy machine does not count"
        assert await heard(both, _listening.BOUND) == [str(i) for i in range(_listening.BOUND)]
        with pytest.raises(pgpoll.NotificationsLost) as caught:
            await anext(both)
        assert caught.value.lost == FLOOD - _listening.BOUND + 1
        async with conn.listen("go on"):
            assert (await anext(both)).payload == (await anext(quiet)).payload == "last"


async def test_f38_a_flood_while_the_consumer_takes() -> None:
    """It loses none of them, however many are in the socket at once."""
    blocks = (
        b"".join(notification("a", str(i)) for i in range(start, start + 1000)) for start in range(0, FLOOD, 1000)
    )
    async with asyncio.timeout(60), bringing(a=blocks) as conn, conn.listen("a") as notifications:
        for expected in range(FLOOD):
            assert (await anext(notifications)).payload == str(expected)


async def test_f38_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    """LISTEN by hand: said once, and dropped in the core from there on."""
    async with bringing(by_hand=[notification("by_hand", "secret") * 1000] * 100) as conn:
        for command in ('LISTEN "by_hand"', "SET a = 1", "SET a = 2"):
            await conn._driver.request(partial(conn._core.start_command, command), None, None, "")
        assert conn._core.take_notifications() == []
    (record,) = [each for each in caplog.records if "no listener" in each.message]
    assert (record.levelno, record.name) == (logging.WARNING, "pgpoll")
    assert "'by_hand'" in record.message
    assert "secret" not in caplog.text


async def test_the_core_tells_who_lost_what() -> None:
    """Past its bound: for each channel, in its place; for all where those are too many."""
    run = Memory(options())
    run.client.start_connect()
    run.deliver(started())
    run.client.keep_notifications(True)
    run.deliver(b"".join(notification("a", str(i)) for i in range(10_000)))
    run.deliver(notification("b") * 2 + notification("a") + notification("b"))
    assert run.client.take_notifications(5000) == [("a", str(i), 4711) for i in range(5000)]
    run.deliver(notification("b", "kept"))
    assert run.client.take_notifications(5000) == [("a", str(i), 4711) for i in range(5000, 10_000)]
    assert run.client.take_notifications() == [("b", None, 3), ("a", None, 1), ("b", "kept", 4711)]
    run.deliver(notification("a") * 10_000 + b"".join(notification(f"c{i % 150}") for i in range(300)))
    told = run.client.take_notifications()[10_000:]
    assert told[:100] == [(f"c{i}", None, 1) for i in range(100)]
    assert told[100:] == [("", None, 200)]
    run.deliver(notification("a", "x" * 7000) * 1500)
    kept = run.client.take_notifications()
    room = (8 << 20) // len(notification("a", "x" * 7000)[5:])
    assert kept == [("a", "x" * 7000, 4711)] * room + [("a", None, 1500 - room)]


def test_the_poll_api(dsn: str, channel: str) -> None:
    """READY while some are kept and not taken, IDLE again; by default none are kept."""
    conn = core.Connection(conninfo.resolve(dsn))

    def command(sql: str) -> None:
        operation = conn.start_command(sql)
        while not conn.wait(operation, 10):
            pass
        operation.result()

    assert conn.wait(conn.start_connect(), 10)
    assert conn.next_completed() is not None
    command(f'listen "{channel}"')
    command(f'notify "{channel}"')
    assert conn.poll() == core.IDLE
    conn.keep_notifications(True)
    command(f"notify \"{channel}\", 'kept'")
    assert conn.poll() == core.READY | core.WAIT_READ
    assert conn.take_notifications() == [(channel, "kept", conn.backend_pid)]
    assert conn.poll() == core.IDLE
    command(f"notify \"{channel}\", 'dropped'")
    conn.keep_notifications(False)
    assert conn.poll() == core.IDLE
    assert conn.take_notifications() == []
    for wrong in ((1, 2), ("x",), (-1,)):
        with pytest.raises((TypeError, OverflowError)):
            conn.take_notifications(*wrong)
    conn.terminate()
    conn.close_fd()


# -- ends


async def test_the_servers_own_error_comes_after_what_was_heard(
    conn: pgpoll.Connection, other: pgpoll.Connection, channel: str
) -> None:
    async with conn.listen(channel) as notifications:
        waiting = asyncio.create_task(conn.listen(channel + " idle").next())
        while len(await listened(conn)) < 2:
            pass
        await tell(other, channel, "before")
        assert await conn.fetchval("select 1") == 1
        await other.execute("select pg_terminate_backend($1)", conn.backend_pid)
        with pytest.raises(errors.AdminShutdown):
            await waiting
        assert await heard(notifications, 1) == ["before"]
        for _ in range(2):
            with pytest.raises(errors.AdminShutdown):
                await anext(notifications)
    with pytest.raises(errors.AdminShutdown):
        await anext(notifications)
    with pytest.raises(pgpoll.InterfaceError, match="closed"):
        async with conn.listen("x"):
            pass


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_the_end_of_the_connection_is_told(
    conn: pgpoll.Connection, other: pgpoll.Connection, channel: str, end: str
) -> None:
    async with conn.listen(channel) as notifications:
        await tell(other, channel, "before")
        assert await conn.fetchval("select 1") == 1
        waiting = asyncio.create_task(conn.listen(channel + " idle").next())
        while len(await listened(conn)) < 2:
            pass
        if (awaitable := getattr(conn, end)()) is not None:
            await awaitable
        with pytest.raises(pgpoll.ConnectionLost, match="closed"):
            await waiting
        assert await heard(notifications, 1) == ["before"]
        with pytest.raises(pgpoll.ConnectionLost, match="closed"):
            await anext(notifications)


async def test_a_cut_connection(assert_sane: Sanity) -> None:
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    async with conn.listen("x") as notifications:
        waiting = asyncio.create_task(anext(notifications))
        await assert_sane.ask(conn)
        proxy.close()
        with assert_sane.raises(pgpoll.ConnectionLost):
            await waiting


async def test_dropped_without_leaving(conn: pgpoll.Connection, channel: str) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    listener = await conn.listen(channel).__aenter__()
    in_thread = await conn.listen(channel + " 2").__aenter__()
    assert await listened(conn) == {channel, channel + " 2"}
    del listener
    held = [in_thread]
    del in_thread
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gc.collect()
    async with asyncio.timeout(5):
        while await listened(conn):  # noqa: ASYNC110
            await asyncio.sleep(0)
        while conn._driver.listening._channels:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert not unhandled


async def test_a_listener_keeps_its_connection(dsn: str) -> None:
    async def listen() -> pgpoll.Listener:
        conn = await pgpoll.connect(dsn)
        return await conn.listen("x").__aenter__()

    listener = await listen()
    gc.collect()
    connection: pgpoll.Connection = listener._parent
    assert await listener.next(timeout=0.01) is None
    await connection.close()


async def test_another_loop(dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn, conn.listen("x") as notifications:

        def elsewhere() -> None:
            async def use() -> None:
                with pytest.raises(pgpoll.InterfaceError, match="loop"):
                    await anext(notifications)
                with pytest.raises(pgpoll.InterfaceError, match="loop"):
                    await conn.listen("y").__aenter__()

            asyncio.run(use())

        await asyncio.to_thread(elsewhere)


# -- cancelling


async def test_a_cancelled_wait_loses_nothing(conn: pgpoll.Connection, other: pgpoll.Connection, channel: str) -> None:
    async with conn.listen(channel) as notifications:
        got: list[str] = []
        sender = asyncio.create_task(tell(other, channel, *range(200)))
        dice = random.Random(SEED)
        async with asyncio.timeout(20):
            while len(got) < 200:
                waiting = asyncio.create_task(anext(notifications))
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    got.append((await waiting).payload)
        await sender
    assert got == [str(i) for i in range(200)]


async def use(conn: pgpoll.Connection, *channels: str) -> None:
    async with conn.listen(*channels) as notifications:
        await conn.execute("select pg_notify($1, 'x')", channels[-1])
        assert (await anext(notifications)).channel == channels[-1]


async def bare(conn: pgpoll.Connection, *channels: str) -> None:
    listener = conn.listen(*channels)
    try:
        with contextlib.suppress(pgpoll.QueryTimeout):
            await listener.next(timeout=0.005)
        await asyncio.sleep(0)
    finally:
        del listener


async def stepped_through(stepped: Stepped) -> None:
    await stepped.run()


@pytest.mark.parametrize("verb", [use, bare])
@pytest.mark.parametrize("beside", [False, True])
async def test_f76_cancelled_at_every_suspension(assert_sane: Sanity, channel: str, verb: Any, beside: bool) -> None:
    """What the server listens to is what has a listener, wherever LISTEN and UNLISTEN were cancelled."""
    conn = await assert_sane.connect()
    async with contextlib.AsyncExitStack() as stack:
        if beside:
            await stack.enter_async_context(conn.listen(channel))
        for k in itertools.count():
            stepped = Stepped(verb(conn, channel, channel + " 2"), k)
            task = asyncio.create_task(stepped_through(stepped))
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
            del task
            gc.collect()  # what Stepped has thrown refers to itself
            await asyncio.sleep(0)
            assert await listened(conn) == ({channel} if beside else set())
            if not stepped.reached:
                break
        for turns in itertools.count():
            task = asyncio.create_task(verb(conn, channel, channel + " 2"))
            for _ in range(turns):
                await asyncio.sleep(0)
            asked = task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == asked
            del task
            await asyncio.sleep(0)
            assert await listened(conn) == ({channel} if beside else set())
            if not asked:
                break
    assert await listened(conn) == set()
    await asyncio.sleep(0)
    assert conn._driver.listening._channels == {}


async def test_f76_listeners_come_and_go_at_random(assert_sane: Sanity, channel: str) -> None:
    """Many tasks, few channels, transactions in between, a third cancelled: at the end nothing is listened to, and
    whoever stays in has heard all that was told of its channel meanwhile, in order."""
    conn, other = await assert_sane.connect(), await assert_sane.connect()
    dice = random.Random(SEED)
    names = [f"{channel} {i}" for i in range(3)]
    told = dict.fromkeys(names, 0)

    async def listen() -> None:
        chosen = dice.sample(names, dice.randint(1, 3))
        async with conn.listen(*chosen) as notifications:
            before: dict[str, int] = {}
            for _ in range(dice.randrange(6)):
                note = await notifications.next(timeout=0.002)
                if note is None:
                    continue
                assert note.channel in chosen
                number = int(note.payload)
                assert number == before.get(note.channel, number - 1) + 1, "lost, or out of order"
                before[note.channel] = number

    async def block() -> None:
        async with conn.transaction():
            await conn.fetchval("select 1")

    async def speak() -> None:
        name = dice.choice(names)
        told[name] += 1
        await other.execute("select pg_notify($1, $2)", name, str(told[name]))

    running: set[asyncio.Task[None]] = set()
    for _ in range(ROUNDS):
        kind = dice.choice([listen, listen, block, speak])
        task = asyncio.create_task(kind(), name=kind.__name__)
        running.add(task)
        for _ in range(dice.randrange(5)):
            await asyncio.sleep(0)
        victims = [each for each in running if each.get_name() != "speak"]  # its number would be missing
        if victims and dice.random() < 0.3:
            dice.choice(victims).cancel()
        if len(running) > 20:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                assert each.cancelled() or each.exception() is None, each
    done, _ = await asyncio.wait(running)
    for each in done:
        assert each.cancelled() or each.exception() is None, each
    await assert_sane.ask(conn)
    assert await listened(conn) == set()
    await asyncio.sleep(0)
    assert conn._driver.listening._channels == {}


async def test_a_timeout_while_entering(conn: pgpoll.Connection, channel: str) -> None:
    """The bare form: an error, for LISTEN has not come to be answered; and it may be tried again."""
    listener = conn.listen(channel)
    async with conn.transaction():
        waiting = asyncio.create_task(outside(listener.next(timeout=0.02)))
        with pytest.raises(pgpoll.QueryTimeout):
            await waiting
    assert await listener.next(timeout=0.02) is None
    assert await listened(conn) == {channel}


async def test_listen_that_the_server_refuses(conn: pgpoll.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens then, not to the others of the same call either."""
    monkeypatch.setattr(_listening, "quoted", lambda name: '"fine"' if name == "fine" else "a syntax error")
    for _ in range(2):
        with pytest.raises(errors.SyntaxError):
            async with conn.listen("fine", "bad"):
                raise AssertionError
        assert await listened(conn) == set()
        await asyncio.sleep(0)
        assert conn._driver.listening._channels == {}


async def test_unlisten_that_failed_is_tried_again(
    conn: pgpoll.Connection, other: pgpoll.Connection, channel: str
) -> None:
    """In a transaction begun by hand that has failed; quietly, and with the next notification."""
    async with conn.listen(channel):
        await conn.execute("begin")
        with pytest.raises(pgpoll.Error):
            await conn.execute("select 1/0")
    await conn.execute("rollback")
    assert await listened(conn) == {channel}
    await tell(other, channel, "x")
    async with asyncio.timeout(5):
        while await listened(conn):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_requests_on_the_wire(dsn: str, channel: str) -> None:
    """LISTEN and UNLISTEN are records as any request."""
    seen: list[str | None] = []
    async with pgpoll.connect(dsn, on_request=lambda each: seen.append(each.sql)) as conn:
        async with conn.listen("a", 'b"'), conn.listen("a"):
            seen.append("in")
        await conn.execute("select 1")
    assert seen == ['LISTEN "a"', 'LISTEN "b"""', "in", 'UNLISTEN "a"', 'UNLISTEN "b"""', "select 1"]


def test_a_notification_is_plain_data() -> None:
    assert Notification("a", "b", 3)._asdict() == {"channel": "a", "payload": "b", "pid": 3}
