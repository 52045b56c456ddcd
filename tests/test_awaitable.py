"""The awaitable of the extension: asyncio's future protocol, direct wakes, and the sending rule (D4)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import weakref
from asyncio import CancelledError, current_task
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import pgpoll
from pgpoll import conninfo, core, errors

PyTask: Any = getattr(asyncio.tasks, "_PyTask", asyncio.Task)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come true")


class Driven:
    """The least that an asyncio face does with a core.Connection."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.core = core.Connection(conninfo.resolve(dsn), pipeline=True)
        self.changes: list[int] = []
        self.flushes = 0
        self.soon: list[object] = []
        self.fd = -1
        self.writing = False
        self.core._attach(
            self.loop,
            self.call_soon,
            current_task,
            asyncio.get_running_loop,
            (asyncio.Task, PyTask),
            self.changed,
            lambda: self.core.take_notices(),
            CancelledError,
        )

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context) -> object:
        self.soon.append(callback)
        if callback == self.core._flush_due:
            self.flushes += 1
        return self.loop.call_soon(callback, *args, context=context)

    def changed(self, flags: int) -> None:
        self.changes.append(flags)
        fd = self.core.fileno()
        if flags & core.CLOSED:
            self.loop.remove_reader(self.fd)
            self.loop.remove_writer(self.fd)
            self.core.close_fd()
            return
        if fd != self.fd:
            if self.fd >= 0:
                self.loop.remove_reader(self.fd)
                self.loop.remove_writer(self.fd)
            self.loop.add_reader(fd, self.core._on_readable)
            self.fd, self.writing = fd, False
        if (writing := bool(flags & core.WAIT_WRITE)) != self.writing:
            self.writing = writing
            if writing:
                self.loop.add_writer(fd, self.core._on_writable)
            else:
                self.loop.remove_writer(fd)

    async def connect(self) -> None:
        waiter = self.core._waiter(self.core.start_connect())
        self.core._on_writable()
        await waiter

    async def fetchval(self, sql: str, *args: Any) -> Any:
        return (await self.core._execute(sql, args)).scalar()


@pytest.fixture
async def driven(dsn: str) -> AsyncIterator[Driven]:
    made = Driven(dsn)
    await made.connect()
    yield made
    if not made.core.closed:
        made.core.terminate()
    assert made.changes[-1] & core.CLOSED


async def test_one_after_the_other(driven: Driven) -> None:
    driven.changes.clear()
    for i in range(10):
        assert await driven.fetchval("select $1::int4", i) == i
    assert driven.changes == []  # nothing for the loop to do: the reader stays, nothing waits for the socket
    assert driven.flushes == 0  # each found the connection quiet, or was started while replies were handed out
    assert driven.core.quiet


async def test_a_turns_requests_leave_together(driven: Driven) -> None:
    await driven.fetchval("select $1::int4", 0)
    driven.flushes = 0
    answers = await asyncio.gather(*(driven.fetchval("select $1::int4", i) for i in range(100)))
    assert answers == list(range(100))
    assert driven.flushes == 1


async def test_many(driven: Driven) -> None:
    async def many(task: int) -> None:
        for i in range(20):
            assert await driven.fetchval("select $1::int4 * 1000 + $2::int4", task, i) == task * 1000 + i

    await asyncio.gather(*(many(task) for task in range(50)))


async def test_the_tasks_own_step_runs_in_its_context(driven: Driven) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    async def run(value: int) -> int:
        variable.set(value)
        await driven.fetchval("select 1")
        return variable.get()

    assert await asyncio.gather(*(asyncio.create_task(run(i)) for i in range(10))) == list(range(10))
    assert variable.get(None) is None


def wake_of(driven: Driven, kind: type[Any]) -> Awaitable[list[object]]:
    async def run() -> list[object]:
        driven.soon.clear()
        await driven.fetchval("select 1")
        return [each for each in driven.soon if each != driven.core._flush_due]

    return kind(run(), loop=asyncio.get_running_loop())  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [asyncio.Task, PyTask])
async def test_direct_wake(driven: Driven, kind: type[Any]) -> None:
    assert await wake_of(driven, kind) == []


async def test_no_direct_wake_in_debug_mode(driven: Driven) -> None:
    driven.loop.set_debug(True)
    try:
        assert len(await wake_of(driven, asyncio.Task)) == 1
    finally:
        driven.loop.set_debug(False)


async def test_no_direct_wake_while_a_task_runs(driven: Driven) -> None:
    woken = wake_of(driven, asyncio.Task)
    await until(lambda: driven.core.in_flight > 0)
    while driven.core.in_flight:
        driven.core._on_readable()
    assert len(await woken) == 1


async def test_no_direct_wake_of_other_callbacks(driven: Driven) -> None:
    called: list[core.Waiter] = []
    done = driven.loop.create_future()
    waiter = driven.core._execute("select 5", ())

    def callback(finished: core.Waiter) -> None:
        called.append(finished)
        done.set_result(None)

    other: list[object] = []
    waiter.add_done_callback(callback)
    waiter.add_done_callback(other.append, context=contextvars.Context())
    waiter.add_done_callback(print)
    assert waiter.remove_done_callback(print) == 1
    assert not waiter.done()
    with pytest.raises(pgpoll.InterfaceError):
        waiter.result()
    driven.soon.clear()
    await done
    assert called == [waiter]
    assert other == [waiter]
    assert waiter.done()
    assert not waiter.cancelled()
    assert waiter.exception() is None
    assert waiter.result().scalar() == 5
    assert callback in driven.soon
    late = driven.loop.create_future()
    waiter.add_done_callback(late.set_result)
    assert await late is waiter


async def test_errors_reach_the_task(driven: Driven) -> None:
    with pytest.raises(errors.DivisionByZero):
        await driven.fetchval("select 1 / $1::int4", 0)
    waiter = driven.core._execute("select 1 / $1::int4", (0,))
    with pytest.raises(errors.DivisionByZero):
        await waiter
    assert isinstance(waiter.exception(), errors.DivisionByZero)
    with pytest.raises(pgpoll.Error):
        driven.core._execute("select 1 / $1::int4", ("zero",))
    assert await driven.fetchval("select 4") == 4


async def test_awaited_once(driven: Driven) -> None:
    waiter = driven.core._execute("select pg_sleep(0.02)", ())

    async def wait() -> object:
        return await waiter

    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    with pytest.raises(RuntimeError, match="once"):
        await second
    assert len(await first) == 1  # type: ignore[arg-type]
    operation = driven.core.start_execute("select 1")
    driven.core._waiter(operation)
    with pytest.raises(pgpoll.InterfaceError, match="awaited"):
        driven.core._waiter(operation)
    driven.core._flush_soon()


async def test_it_is_a_future_for_asyncio(driven: Driven) -> None:
    waiter = driven.core._execute("select 1", ())
    assert asyncio.isfuture(waiter)
    assert waiter.get_loop() is driven.loop
    assert (await waiter).scalar() == 1


async def test_a_finished_one_is_awaited_without_a_turn(driven: Driven) -> None:
    operation = driven.core.start_execute("select 6")
    driven.core._flush_soon()
    await until(operation.done)
    assert (await driven.core._waiter(operation)).scalar() == 6


# -- cancelling


async def test_cancel_before_hand_out(driven: Driven) -> None:
    async def sleep() -> None:
        await driven.fetchval("select pg_sleep(0.1)")

    task = asyncio.create_task(sleep())
    await until(lambda: driven.core.in_flight > 0)
    assert task.cancel("enough")
    with pytest.raises(CancelledError, match="enough"):
        await task
    assert task.cancelled()
    assert await driven.fetchval("select 7") == 7


async def test_cancel_says_whether_it_came_in_time(driven: Driven) -> None:
    waiter = driven.core._execute("select 1", ())
    assert waiter.cancel(msg="why") is True
    assert waiter.cancel() is False
    assert waiter.done()
    assert waiter.cancelled()
    with pytest.raises(CancelledError, match="why"):
        waiter.result()
    with pytest.raises(CancelledError):
        waiter.exception()
    done = driven.core._execute("select 1", ())
    await done
    assert done.cancel() is False
    assert not done.cancelled()


async def test_a_reply_that_is_in_and_not_handed_out_is_still_cancelled(driven: Driven) -> None:
    waiter = driven.core._execute("select 1", ())
    while driven.core.in_flight:
        driven.core.poll()  # in, but only _on_readable() hands out
    assert not waiter.done()
    assert waiter.cancel() is True
    with pytest.raises(CancelledError):
        waiter.result()
    assert driven.core.poll() == core.IDLE
    assert await driven.fetchval("select 2") == 2


async def test_expire(driven: Driven) -> None:
    waiter = driven.core._execute("select pg_sleep(0.05)", ())
    driven.loop.call_later(0.01, waiter.expire, TimeoutError("late"))
    with pytest.raises(TimeoutError, match="late"):
        await waiter
    assert isinstance(waiter.exception(), TimeoutError)
    assert waiter.expire(ValueError()) is False
    assert waiter.cancel() is False
    with pytest.raises(TypeError):
        waiter.expire("late")  # type: ignore[arg-type]
    assert await driven.fetchval("select 2") == 2


async def test_a_wish_to_cancel_is_told_each_time(driven: Driven) -> None:
    waiter = driven.core._execute("select pg_sleep($1)", (0.0,))
    await waiter
    waiters = [driven.core._execute("select pg_sleep($1)", (0.05,)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    driven.changes.clear()
    waiters[0].cancel()
    assert len(driven.changes) == 1
    assert driven.core.cancel_wanted() == core.GRACE
    waiters[1].cancel()
    assert len(driven.changes) == 2
    assert driven.core.cancel_wanted() == core.NOW
    assert await driven.fetchval("select 2") == 2


async def test_closing_the_coroutine_abandons(driven: Driven) -> None:
    coroutine = driven.fetchval("select pg_sleep(0.05)")
    coroutine.send(None)
    coroutine.close()
    assert await driven.fetchval("select 2") == 2


async def test_cancelled_and_abandoned_at_random(driven: Driven) -> None:
    async def ask(i: int) -> None:
        assert await driven.fetchval("select $1::int4", i) == i

    for round_ in range(20):
        tasks = [asyncio.create_task(ask(i)) for i in range(60)]
        for i, task in enumerate(tasks):
            if i % 3 == 0:
                for _ in range(round_ % 4):
                    await asyncio.sleep(0)
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(each is None or isinstance(each, CancelledError) for each in outcomes)
    assert driven.core.in_flight == 0


# -- what a step may do


async def test_a_step_terminates(driven: Driven) -> None:
    async def first() -> None:
        await driven.fetchval("select pg_sleep(0.01)")
        driven.core.terminate()

    async def other() -> None:
        await driven.fetchval("select 1")

    tasks = [asyncio.create_task(each) for each in (first(), other(), other())]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes[0] is None
    assert driven.core.closed
    for outcome in outcomes[1:]:
        assert outcome is None or isinstance(outcome, errors.ConnectionLost)
    with pytest.raises(pgpoll.InterfaceError, match="closed"):
        await driven.fetchval("select 1")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_step_that_ends_the_loop(dsn: str, kind: type[BaseException]) -> None:
    loop = asyncio.new_event_loop()
    finished = []

    async def body() -> tuple[Driven, list[asyncio.Task[Any]]]:
        driven = Driven(dsn)
        await driven.connect()
        await driven.fetchval("select $1::int4", 0)

        async def ask(i: int) -> None:
            await driven.fetchval("select $1::int4", i)
            if i == 1:
                raise kind
            finished.append(i)

        return driven, [asyncio.ensure_future(ask(i)) for i in range(4)]

    try:
        driven, tasks = loop.run_until_complete(body())
        with pytest.raises(kind):
            loop.run_until_complete(asyncio.sleep(5))
        rest = [each for i, each in enumerate(tasks) if i != 1]
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(*rest), 5))
        assert isinstance(tasks[1].exception(), kind)
        assert sorted(finished) == [0, 2, 3]

        async def end() -> None:
            assert await driven.fetchval("select 9") == 9
            driven.core.terminate()

        loop.run_until_complete(end())
    finally:
        loop.close()


async def test_dropped_while_a_flush_is_pending(dsn: str) -> None:
    driven = Driven(dsn)
    await driven.connect()
    waiters = [driven.core._execute("select $1::int4", (i,)) for i in range(3)]
    driven.core.terminate()
    with pytest.raises(errors.ConnectionLost):
        await waiters[0]
    del driven, waiters
    gc.collect()
    await asyncio.sleep(0)
    gc.collect()


async def test_from_another_loop(driven: Driven) -> None:
    def elsewhere() -> None:
        async def ask() -> None:
            await driven.fetchval("select 1")

        wrong = pytest.raises(pgpoll.InterfaceError, match=r"belongs to .* not to the running loop")
        with contextlib.closing(asyncio.new_event_loop()) as other, wrong:
            other.run_until_complete(ask())

    await asyncio.to_thread(elsewhere)
    assert await driven.fetchval("select 1") == 1


async def test_a_ping_pong_does_not_starve_the_loop(driven: Driven) -> None:
    beats = 0
    running = True

    async def ping() -> None:
        while running:
            await driven.fetchval("select 1")

    async def beat() -> None:
        nonlocal beats, running
        for _ in range(50):
            await asyncio.sleep(0)
            beats += 1
        running = False

    await asyncio.wait_for(asyncio.gather(ping(), ping(), beat()), 10)
    assert beats == 50


async def test_lost(driven: Driven) -> None:
    running = asyncio.create_task(driven.fetchval("select pg_terminate_backend(pg_backend_pid()), pg_sleep(5)"))
    behind = asyncio.create_task(driven.fetchval("select 1"))
    with pytest.raises(errors.AdminShutdown):
        await running
    with pytest.raises(errors.ConnectionLost):
        await behind
    assert driven.changes[-1] & core.CLOSED


async def test_no_reference_is_kept(dsn: str) -> None:
    class Value:
        def __index__(self) -> int:
            return 3

    driven = Driven(dsn)
    await driven.connect()
    value = Value()
    seen = weakref.ref(value)
    assert await driven.fetchval("select $1::int4", value) == 3
    del value
    gc.collect()
    assert seen() is None
    task = asyncio.create_task(driven.fetchval("select pg_sleep(0.01)"))
    await task
    gone = weakref.ref(task)
    del task
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None
    driven.core.terminate()
