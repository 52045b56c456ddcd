"""One connection on an asyncio loop: the only importer of asyncio.

A Driver owns the socket's registration, the deadlines, the CancelRequests and the blocks. The loop holds the driver,
and the driver never holds a handle: so a handle that nobody holds any more is noticed.

- The reader is added once per descriptor and stays; the writer only while bytes wait for the socket. Both run in an
  empty context. core.Connection calls `_changed` when what the loop should watch has changed, when the connection has
  ended, or when an abandoned request is to be cancelled at the server.
- poll() never closes a descriptor that may be registered, so a new socket has a new number; the old registration is
  removed here before the next poll().
- `close` has 5 s, whatever the server does; `terminate` none.

Everything runs in the loop's thread, but for `terminate` and `doom`, which find their way to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from asyncio import CancelledError, current_task
from collections import deque
from contextvars import Context, copy_context
from functools import partial
from socket import SOCK_STREAM
from typing import TYPE_CHECKING, Any, TypeVar

from pgpoll import _forks, conninfo, core, errors
from pgpoll._blocks import Blocks
from pgpoll._cancelling import LoopCancelling
from pgpoll._expiry import Expiry
from pgpoll._flows import END, Call, Flow, Item, Lookup, News, Sent, Step, allowed, resolve, timed_out
from pgpoll._listening import Listening, Mailbox
from pgpoll._observing import SLICE_SECONDS, InLine, Notices, Observers, RequestRecord
from pgpoll._sockets import Registration
from pgpoll._turns import Block, Control, Hold, Turn, carried

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop
Future = asyncio.Future
TimerHandle = asyncio.TimerHandle

CLOSE_SECONDS = 5.0
PATIENCE_SECONDS = 5.0

_log = logging.getLogger("pgpoll")
_PyTask: Any = getattr(asyncio.tasks, "_PyTask", asyncio.Task)
_TASK_TYPES = tuple({asyncio.Task, _PyTask})
_EMPTY = Context()


class Driver:
    """What drives one core.Connection on one loop."""

    cancelled_error = CancelledError

    def __init__(self, options: conninfo.Options, observers: Observers) -> None:
        self.loop = asyncio.get_running_loop()
        self.core = core.Connection(options, pipeline=True, max_queued=options.max_queued or 0)
        self.blocks = Blocks(self.core, self, options.max_queued)
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._socket = Registration(self.loop, self.core._on_readable, self.core._on_writable)
        self.cancelling = LoopCancelling(self.loop, self.core, self)
        self._news: dict[core.Operation[Any], Future[None]] = {}  # who waits for a channel
        self._closed: Future[None] | None = None  # of close(): done when the connection has ended
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._over = False
        self._observed = observers.on_request is not None
        if self._observed:
            self.core._observe(observers.on_request, RequestRecord, partial(self._failed, "on_request"), True)
        self._notices = Notices(self.core, observers.on_notice, self._failed)
        self.listening = Listening(self.core, self.blocks, self)
        self._handing_over = False
        self._apart: deque[Callable[[], object]] = deque()  # what is to be done when nobody is within the blocks
        self.core._attach(
            self.loop,
            self.loop.call_soon,
            current_task,
            asyncio.get_running_loop,
            _TASK_TYPES,
            self._changed,
            self._notices_came,
            CancelledError,
            level_triggered=isinstance(self.loop, asyncio.SelectorEventLoop),  # libuv is not, after a reset
        )

    async def start(self) -> None:
        """Start-up. Leaves nothing open where it fails."""
        try:
            waiter = self.core._waiter(self.core.start_connect())
            self.core._on_writable()
            await waiter
        except BaseException:
            self.terminate()
            raise

    @property
    def ours(self) -> bool:
        """False in the child of a fork: the socket is the parent's."""
        return os.getpid() == self._pid

    # -- requests

    def check_loop(self) -> None:
        """Before each verb. InterfaceError where the running loop is not the connection's."""
        if not self.core._runs_here():
            if not self.ours:
                _forks.refuse()
            running = asyncio._get_running_loop()
            raise errors.InterfaceError(f"the connection belongs to {self.loop!r}, not to the running loop {running!r}")
        if self._apart:
            self._see_apart()

    async def request(
        self,
        start: Callable[[], core.Operation[T]],
        via: Block | None,
        timeout: float | None,
        sql: str | core.PreparedStatement,
        *,
        opens: bool = False,
    ) -> T:
        """The result of the operation that `start` starts, when it is this request's turn.

        `opens`: BEGIN may ride with it.
        """
        self.check_loop()
        if timeout is not None:
            timeout = allowed(timeout)
        operation: core.Operation[T] | None = None
        if opens:
            operation = self.blocks.start(start, via, current_task(), carried())
        elif self.blocks.admits(via, current_task(), carried()):
            operation = start()
        if operation is not None:
            waiter = self.core._waiter(operation)
            self.core._flush_soon()
            if timeout is None:
                return await waiter
            return await self._until(waiter, Expiry(self, timeout, waiter))
        turn = self.turn(start, via)
        turn.opens = opens
        woken: Future[core.Waiter[T]] = self.loop.create_future()
        turn.wake, turn.gone = partial(self._started, turn, woken), woken.done
        self.blocks.line_up(turn)
        observed = InLine(self.core, turn, sql) if self._observed else None
        self._be_patient()
        expiry = Expiry(self, timeout, woken) if timeout is not None else None
        try:
            waiter = await woken
        except BaseException as error:
            if error is not turn.error:
                self.blocks.give_up(turn)
            if observed is not None:
                observed.left(turn, error)
            if expiry is not None:
                expiry.cancel()
            raise
        if expiry is None:
            return await waiter
        expiry.wait_for(waiter)
        return await self._until(waiter, expiry)

    def run(self, flow: Flow[T], timeout: float | None = None) -> Coroutine[Any, Any, T]:
        """Run a flow to its end, in at most so many seconds; None has no limit. Awaited at once."""
        self.check_loop()
        return run(flow, self) if timeout is None else self._run_within(flow, timeout)

    async def _run_within(self, flow: Flow[T], timeout: float) -> T:
        expiry = Expiry(self, allowed(timeout))
        try:
            return await run(flow, self, expiry)
        finally:
            expiry.cancel()

    def turn(self, start: Callable[[], core.Operation[Any]], via: Block | None) -> Turn:
        """A request's place in the line, as the current task's."""
        return Turn(start, via, self._task(), self.loop.time(), carried=carried(), context=copy_context())

    def control(self, block: Block, via: Block | None, *, commit: bool = False, prepare: str = "") -> Control:
        """A block's start or end, as the current task's."""
        now = self.loop.time()
        return Control(block, via, self._task(), now, carried=carried(), commit=commit, prepare=prepare)

    @staticmethod
    def who() -> object:
        """Who owns blocks: the current task."""
        return current_task()

    @staticmethod
    def maker() -> object:
        """Who makes a transaction that another task may start; None outside of a task."""
        try:
            return current_task()
        except RuntimeError:
            return None

    def doom(self, block: Block) -> None:
        """Roll a block back without a task, or let go of a channel, from wherever its end was noticed."""
        self.apart(partial(self.blocks.doom, block))

    def apart(self, call: Callable[[], object]) -> None:
        """`call()` in the loop, soon, or before the next verb; nothing where the connection has ended.

        Never now: a finalizer may have interrupted whatever runs in the loop's thread, the blocks' own code as well.
        """
        if self._over or self.loop.is_closed() or not self.ours:
            return
        self._apart.append(call)
        here = threading.get_ident() == self._thread and asyncio._get_running_loop() is self.loop
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            (self.loop.call_soon if here else self.loop.call_soon_threadsafe)(self._see_apart, context=_EMPTY.copy())

    def _see_apart(self) -> None:
        while self._apart and not self._over:
            self._apart.popleft()()

    def nudge(self, call: Callable[[], T]) -> T:
        """`call()`, and what it has written leaves at once: the server goes on while its caller does."""
        self.check_loop()
        result = call()
        if not self._over:
            self.core._flush_due()
        return result

    def dismiss(self, box: Mailbox, *, at_once: bool) -> None:
        """Let go of a listener: at once where this is the loop, else from wherever its end was noticed."""
        if self._over or self.loop.is_closed() or not self.ours:
            return
        if at_once and asyncio._get_running_loop() is self.loop:
            self.listening.leave(box)
        else:
            self.apart(partial(self.listening.leave, box))

    def hold(self, channel: str, start: Callable[[], core.Operation[Any]], via: Block | None, where: str) -> Hold:
        """The turn of a channel, as the current task's."""
        now = self.loop.time()
        return Hold(channel, where, start, via, self._task(), now, carried=carried(), context=copy_context())

    @staticmethod
    def taken(block: Block) -> None:
        """The current task takes from a channel, which may have been handed over: it is inside of it."""
        if block not in carried():
            block.carry()

    def check_outside(self, what: str) -> None:
        """InterfaceError where the current task is inside of a transaction."""
        self.check_loop()
        self.blocks.check_outside(self.turn(_never, None), what)

    @staticmethod
    async def pause(seconds: float) -> None:
        """Let others go on."""
        await asyncio.sleep(seconds)

    def drop(self, block: Block) -> None:
        """Let go of a channel now; what runs of it is cancelled at the server where that is called for."""
        if self.ours:
            self.blocks.release(block)

    def inside(self, via: Block | None) -> bool:
        """Whether a request may go now; see Blocks.admits."""
        if self._apart:
            self._see_apart()
        return self.blocks.admits(via, self._task(), carried())

    def _task(self) -> object:
        """Who makes a request. InterfaceError where no loop runs, as in the child of a fork."""
        try:
            return current_task()
        except RuntimeError:
            self.check_loop()
            raise

    async def step(self, step: Step, expiry: Expiry | None) -> Any:
        """What a flow waits for, but for a Control."""
        if isinstance(step, Sent):
            self.core._flush_soon()
            await asyncio.sleep(0)
            return None
        if expiry is not None:
            expiry.check()
        if isinstance(step, Turn):
            if not step.decided:
                await self._turn_of(step, expiry)
            if step.error is not None:
                raise step.error
            return step.operation
        if isinstance(step, News):
            return await self._news_of(step.operation, expiry)
        if isinstance(step, Item):
            if not hasattr(step.source, "__anext__"):
                return next(step.source, END)
            return await _next_of(step.source, expiry)
        if isinstance(step, Call):
            return step.function()
        return await _look_up(step)

    async def _news_of(self, operation: core.Operation[Any], expiry: Expiry | None) -> None:
        if operation.done() or operation.stirred:
            return
        if operation.on_stir is None:
            self.attend(operation)
        self._news[operation] = news = self.loop.create_future()
        if expiry is not None:
            expiry.awaited = news
        self.core._flush_soon()
        try:
            await news
        finally:
            self._news.pop(operation, None)

    async def hear(self, box: Mailbox, seconds: float | None) -> None:
        """Wait until something has come for a listener, or it has ended; or for so many seconds."""
        self.check_loop()
        if not box.waiting:
            return
        woken: Future[None] = self.loop.create_future()
        wake = partial(_set, woken)
        timer = None if seconds is None else self.loop.call_later(seconds, wake, context=_EMPTY.copy())
        box.attend(wake)
        try:
            await woken
        finally:
            box.unattend(wake)
            if timer is not None:
                timer.cancel()

    def _stirred(self, operation: core.Operation[Any]) -> None:
        if operation.done():
            self.blocks.settle()
        if (news := self._news.get(operation)) is not None and not news.done():
            news.set_result(None)

    async def settled(self, control: Control, expiry: Expiry | None) -> None:
        """Waits until a block's start or end is decided. Cancelling this cancels nothing else."""
        if expiry is not None:
            expiry.check()
        if not control.decided and control.operation is None:  # it stands in the line
            await self._turn_of(control, expiry)
        if not control.decided and control.operation is not None:
            waiter = self.core._shielded_waiter(control.operation)
            if expiry is not None:
                expiry.awaited = waiter
            await waiter
        if not control.decided:  # it was done when it was watched
            await self._turn_of(control, expiry)
        if control.error is not None:
            raise control.error

    async def _turn_of(self, turn: Turn, expiry: Expiry | None) -> None:
        woken = self.loop.create_future()
        turn.wake, turn.gone = partial(_set, woken), woken.done
        if expiry is not None:
            expiry.awaited = woken
        self._be_patient()
        await woken

    def _started(self, turn: Turn, woken: Future[Any]) -> None:
        if woken.done():
            return
        if turn.error is not None:
            woken.set_exception(turn.error)
        elif turn.operation is not None:
            woken.set_result(self.core._waiter(turn.operation))

    @staticmethod
    async def _until(waiter: core.Waiter[T], expiry: Expiry) -> T:
        try:
            return await waiter
        finally:
            expiry.cancel()

    def _be_patient(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(PATIENCE_SECONDS, self._complain)

    def _complain(self) -> None:
        self._patience = None
        if (oldest := self.blocks.oldest) is None:
            return
        waited = self.loop.time() - oldest.since
        if waited < PATIENCE_SECONDS:
            self._patience = self.loop.call_later(PATIENCE_SECONDS - waited, self._complain)
            return
        if (complaint := self.blocks.complaint(waited)) is not None:
            _log.warning(complaint)
        self._be_patient()

    # -- what the blocks need

    def watch(self, operation: core.Operation[Any], done: Callable[[], None]) -> None:
        """See _blocks.Engine."""
        self.tell(operation, done)
        self.core._flush_soon()

    def tell(self, operation: core.Operation[Any], done: Callable[[], None]) -> None:
        """See _blocks.Engine."""
        if operation.done():
            self.loop.call_soon(done, context=_EMPTY.copy())
        else:
            operation.on_stir = done

    def flush(self) -> None:
        """See _blocks.Engine."""
        if not self._over:
            self.core._flush_soon()

    def attend(self, operation: core.Operation[Any]) -> None:
        """See _blocks.Engine."""
        self.tell(operation, partial(self._stirred, operation))

    def abort(self, why: str) -> None:
        """See _blocks.Engine."""
        self.terminate(why)

    # -- who observes

    def _notices_came(self) -> None:
        """Hand them over, but never for long: the loop goes on in between."""
        if self._handing_over:  # in this turn of the loop already, or in the next
            return
        more = self.listening.hand_over(SLICE_SECONDS)
        if (self._notices.hand_over(SLICE_SECONDS) or more) and not self.loop.is_closed():
            self._handing_over = True
            self.loop.call_soon(self._hand_over_more, context=_EMPTY.copy())

    def _hand_over_more(self) -> None:
        self._handing_over = False
        self._notices_came()

    def _failed(self, callback: str, error: BaseException) -> None:
        """A callback has raised: as one of the loop's own."""
        if isinstance(error, (SystemExit, KeyboardInterrupt)) and not self.loop.is_closed():
            self.loop.call_soon(_raise, error)
        else:
            message = f"Exception in {callback} of a pgpoll connection"
            self.loop.call_exception_handler({"message": message, "exception": error})

    # -- the socket

    def _changed(self, flags: int) -> None:
        if flags & core.CLOSED:
            self._end()
            return
        self._socket.watch(self.core.fileno(), flags)
        self.cancelling.grant_wish()

    def _end(self) -> None:
        """The connection has ended: nothing of it stays in the loop, and everyone in line is told."""
        if self._over:
            return
        self._over = True
        self._apart.clear()
        self._socket.forget()
        self.core.close_fd()
        for timer in (self._deadline, self._patience):
            if timer is not None:
                timer.cancel()
        self._deadline = self._patience = None
        self.cancelling.end()
        self.core._report()  # where the loop was not there to be told
        if not self.loop.is_closed():
            self.blocks.lost()
            self.listening.lost()
            if self._closed is not None and not self._closed.done():
                self._closed.set_result(None)

    # -- ends

    async def cancel(self, via: Block | None) -> None:
        """Cancel the running request at the server; returns when the CancelRequest's socket has reached its end."""
        self.check_loop()
        self.blocks.check_cancel(self.turn(_never, via))
        if (request := self.cancelling.cancel()) is not None:
            await asyncio.shield(request.ended)
            if not request.delivered:
                raise errors.OperationalError("the CancelRequest could not be delivered")

    async def close(self, via: Block | None) -> None:
        """Serve what was accepted, then end the connection; whatever happens, within CLOSE_SECONDS."""
        if self.core.closed:
            self._end()
            return
        self.check_loop()
        turn = self.turn(self.core.start_close, via)
        self.blocks.retire(turn)
        if self._closed is None:
            self._closed = self.loop.create_future()
            self._deadline = self.loop.call_later(CLOSE_SECONDS, self.terminate)
            last = Turn(self.core.start_close, None, None, self.loop.time())
            self.blocks.close(last)
        await asyncio.shield(self._closed)

    async def leave(self) -> None:
        """End the connection now, the running request at the server as well: the way out by an exception."""
        if self.core.closed or self.loop.is_closed() or asyncio.get_running_loop() is not self.loop:
            self.terminate()
            return
        request = self.cancelling.leave()
        self.terminate()
        if request is not None:
            try:
                await asyncio.shield(request.ended)
            finally:
                request.give_up()

    def terminate(self, why: str = "closed") -> None:
        """End the connection now, from any thread; in the child of a fork, only this process's part of it."""
        if not self.ours:
            self.core.close_fd()
            return
        if self.loop.is_closed() or not self.loop.is_running() or threading.get_ident() == self._thread:
            self.core.terminate(why)  # tells who waits, and _changed()
            self._end()
        else:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self.loop.call_soon_threadsafe(self.terminate, why, context=_EMPTY.copy())


async def connect(dsn: str | None, params: dict[str, Any], observers: Observers) -> Driver:
    """A Driver whose connection is ready, in `connect_timeout` seconds."""
    observers = observers.checked()
    options = conninfo.parse(dsn, **params)
    seconds = options.connect_timeout
    if seconds is None:
        return await _connect(options, observers)
    try:
        async with asyncio.timeout(seconds) as limit:
            return await _connect(options, observers)
    except TimeoutError as error:
        if not limit.expired():
            raise
        late = timed_out(seconds, "connecting")
        late.safe_to_retry = True
        raise late from error


async def _connect(options: conninfo.Options, observers: Observers) -> Driver:
    driver = Driver(await run(resolve(options)), observers)
    await driver.start()
    return driver


async def run(flow: Flow[T], driver: Driver | None = None, expiry: Expiry | None = None) -> T:
    """Run a flow to its end. One that only looks up names needs no driver."""
    try:
        step = next(flow)
        while True:
            try:
                answer: Any = None
                if driver is None:
                    answer = await _look_up(step)
                elif isinstance(step, Control):
                    await driver.settled(step, expiry)
                else:
                    answer = await driver.step(step, expiry)
            except BaseException as error:  # noqa: BLE001 - the flow's to judge
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _look_up(step: Step) -> Any:
    assert isinstance(step, Lookup)
    return await asyncio.get_running_loop().getaddrinfo(step.host, None, type=SOCK_STREAM)


async def _next_of(source: Any, expiry: Expiry | None) -> Any:
    """The next item of a caller's asynchronous iterator, for as long as there is time; END where there is none."""
    if expiry is None:
        return await anext(source, END)
    try:
        async with asyncio.timeout_at(expiry.when) as limit:
            return await anext(source, END)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise timed_out(expiry.seconds) from error


def _set(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _raise(error: BaseException) -> None:
    raise error


def _never() -> core.Operation[Any]:
    raise AssertionError
