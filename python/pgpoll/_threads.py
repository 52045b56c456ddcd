"""One connection for blocking callers: what _loop.py is for a loop, without asyncio.

A verb holds the connection's mutex while it drives, in slices of SLICE_SECONDS with the GIL free, and gives it back
while it waits for another thread's block. While others wait so, it gives way to them between slices: the time of one
may be up. Each verb first finishes what an interrupted one has left: the CancelRequest under way, and the ends of
blocks (`watch`). `cancel` and `terminate` never take the mutex.

When a wait ends early (Ctrl-C, a timeout, whatever a signal handler raises) its request is abandoned; where it runs at
the server, a CancelRequest is driven to its end there and then, for _cancelling's INTERRUPT_SECONDS at most.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections import deque
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from pgpoll import _forks, core, errors
from pgpoll._blocks import Blocks
from pgpoll._cancelling import CANCEL_SECONDS, ThreadCancelling
from pgpoll._flows import END, Call, Flow, Item, Lookup, News, Sent, Step, allowed, entered, resolve, timed_out
from pgpoll._listening import LEFT, Listening, Mailbox
from pgpoll._mending import mend, resume
from pgpoll._observing import SLICE_SECONDS as NOTICES_SECONDS
from pgpoll._observing import InLine, Notices, Observers, RequestRecord
from pgpoll._sockets import Doorbell
from pgpoll._turns import Block, Control, Hold, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll import conninfo

T = TypeVar("T")

SLICE_SECONDS = 0.1
SHORT_SECONDS = 0.01  # of a slice while others wait
GIVEN_SECONDS = 0.001
ELSEWHERE_SECONDS = 0.01  # a listener looks again at a connection that another thread drives
CLOSE_SECONDS = 5.0
PATIENCE_SECONDS = 5.0

_log = logging.getLogger("pgpoll")


class Driver:
    """What drives one core.Connection for blocking callers. But for `cancel` and `terminate`, under its mutex."""

    def __init__(self, options: conninfo.Options, observers: Observers) -> None:
        self.core = core.Connection(options, pipeline=True, max_queued=options.max_queued or 0)
        self.blocks = Blocks(self.core, self, options.max_queued)
        self.mutex = core._Mutex()
        self._watched: list[tuple[core.Operation[Any], Callable[[], None]]] = []
        self.cancelling = ThreadCancelling(self.core, self)
        self._driving = False
        self._apart: deque[Callable[[], object]] = deque()  # what is to be done, whoever has the mutex
        self._close: core.Operation[Any] | None = None
        self._pid = os.getpid()
        self._observed = observers.on_request is not None
        if self._observed:
            self.core._observe(observers.on_request, RequestRecord, partial(_failed, "on_request"), False)
        self._notices = Notices(self.core, observers.on_notice, _failed)
        self.listening = Listening(self.core, self.blocks, self)
        _forks.drivers.add(self)

    @property
    def ours(self) -> bool:
        """False in the child of a fork: the socket is the parent's."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """InterfaceError in the child of a fork."""
        if not self.ours:
            _forks.refuse()

    # -- requests

    def execute(self, sql: str | core.PreparedStatement, args: tuple[Any, ...], want: core.Want[T]) -> T:
        """As `request`, of an execute without a timeout: nothing to wait for but the server, as a rule."""
        with self.mutex:
            if not (
                self.mutex.disturbed
                or self.blocks.stack
                or self._watched
                or self.cancelling.under_way
                or self.cancelling.stray
                or self._driving
                or self._apart
            ):
                operation = None
                news = False  # some are told already, and others may have been taken with them
                try:
                    operation = self.core.start_execute(sql, args, want)
                    self._driving = True
                    while not self.core.wait(operation, SHORT_SECONDS if self.mutex.waiting else SLICE_SECONDS):
                        self._give_way(operation)
                        if self.core._news:
                            news = True
                            self._driving = False
                            self._hand_over(NOTICES_SECONDS)
                            self._driving = True
                    self._driving = False
                    if news or self.core._news:
                        self._tell_all()
                    if self._apart:
                        self._settle()
                        self.cancelling.end_abandoned(0.0)
                    return operation.result()
                except BaseException:
                    self._driving = False
                    if operation is not None and not operation.done():
                        self.cancelling.abandon(operation)
                    self._recover()
                    self.mutex.mended = True
                    raise
        return self.request(lambda: self.core.start_execute(sql, args, want), None, None, sql, opens=True)

    def request(
        self,
        begin: Callable[[], core.Operation[T]],
        via: Block | None,
        timeout: float | None,
        sql: str | core.PreparedStatement,
        *,
        opens: bool = False,
    ) -> T:
        """The result of the operation that `begin` starts, when it is this request's turn.

        `opens`: BEGIN may ride with it.
        """
        deadline = None if timeout is None else monotonic() + allowed(timeout)

        def answered() -> T:
            operation = None
            try:
                self._catch_up(deadline, timeout)
                if opens:
                    operation = self.blocks.start(begin, via, threading.current_thread())
                elif self.blocks.admits(via, threading.current_thread(), ()):
                    operation = begin()
                if operation is None:
                    turn = self.turn(begin, via, opens=opens)
                    operation = self._wait_for_turn(turn, deadline, timeout, sql)
                self._drive(operation, deadline, timeout)
            except BaseException:
                if operation is not None and not operation.done():
                    self.cancelling.abandon(operation)
                raise
            self._settle()
            self._tell_all()
            return operation.result()

        return self._held(answered, deadline, timeout)

    def enter(self, control: Control) -> None:
        """Enter a block that its first request begins, when it is its turn."""

        def entering() -> None:
            self._catch_up(None, None)
            self.blocks.enter(control, lazy=True)
            if not control.decided:
                self.run(entered(self.blocks, control))

        self._held(entering)

    def run(self, flow: Flow[T], timeout: float | None = None) -> T:
        """Run a flow to its end, in at most so many seconds; None has no limit."""
        deadline = None if timeout is None else monotonic() + allowed(timeout)

        def running() -> T:
            try:
                self._catch_up(deadline, timeout)
                step = next(flow)
                while True:
                    try:
                        answer = self._step(step, deadline, timeout)
                    except BaseException as error:  # noqa: BLE001 - the flow's to judge
                        if isinstance(step, (Turn, News, Sent)) and not isinstance(error, errors.Error):
                            self._mend(step if isinstance(step, Turn) else step.operation)
                        step = flow.throw(error)
                    else:
                        step = flow.send(answer)
            except StopIteration as stop:
                self._settle()
                result: T = stop.value
                return result
            except BaseException:
                flow.close()  # it may have been left at a yield
                raise

        return self._held(running, deadline, timeout)

    def _held(self, body: Callable[[], T], deadline: float | None = None, timeout: float | None = None) -> T:
        """What `body` gives, with the mutex, which is to be had by the deadline.

        A signal handler can't use what its thread is driving. What is left where it raises anywhere is seen to.
        """
        try:
            with self.mutex.held(None if deadline is None else deadline - monotonic()) as held:
                if not held:
                    raise timed_out(timeout)
                if self.mutex.depth > 1:
                    if self._driving:
                        raise errors.InterfaceError("the connection is used within a request of the same thread")
                    return body()
                if self.mutex.disturbed:
                    self._recover()
                try:
                    return body()
                except BaseException:
                    self._recover()
                    self.mutex.mended = True
                    raise
        finally:
            if self._apart:
                self._see_apart()

    def _recover(self) -> None:
        """Whoever had the mutex was torn from what it did, may be by a signal handler that raises.

        All that is in flight and that nobody waits for is abandoned: what had just been started has not left. Once
        this is through the blocks are right again; else whoever has the mutex next begins anew.
        """
        self._driving = False
        self._mend()
        self._settle()
        if not self.core.closed:
            self.cancelling.end_abandoned()
        self.mutex.disturbed = False

    def _mend(self, mine: object = None) -> None:
        """Make the blocks right, and abandon what nobody wants; `mine` is what this thread still waits for."""
        watched = {each for each, _ in self._watched}
        awaited = {mine, *self.mutex.awaited}
        awaited.update([each.operation for each in awaited if isinstance(each, Turn)])
        mend(self.blocks, watched, awaited)
        self._watched[:] = [each for each in self._watched if each[0] in watched]
        self.listening.mend(watched)
        wanted = watched | awaited | self.blocks.operations
        for operation in self.core._unfinished():
            if operation not in wanted:
                operation.abandon()
        resume(self.blocks)
        self.listening.resume()

    def turn(self, start: Callable[[], core.Operation[Any]], via: Block | None, *, opens: bool = False) -> Turn:
        """A request's place in the line, as the current thread's."""
        return Turn(start, via, threading.current_thread(), monotonic(), context=copy_context(), opens=opens)

    @staticmethod
    def who() -> object:
        """Who owns blocks: the current thread."""
        return threading.current_thread()

    def call(self, function: Callable[[], T]) -> T:
        """What `function` gives, which uses the connection and neither drives nor waits."""
        return self._held(function)

    def control(self, block: Block, via: Block | None, *, commit: bool = False, prepare: str = "") -> Control:
        """A block's start or end, as the current thread's."""
        return Control(block, via, threading.current_thread(), monotonic(), commit=commit, prepare=prepare)

    def hold(self, channel: str, start: Callable[[], core.Operation[Any]], via: Block | None, where: str) -> Hold:
        """The turn of a channel, as the current thread's."""
        return Hold(channel, where, start, via, threading.current_thread(), monotonic(), context=copy_context())

    def taken(self, block: Block) -> None:
        """The current thread takes from a channel, which may have been handed over: it owns it, outside of blocks."""
        who = threading.current_thread()
        if block.owner is not who and block.owner is not None and self.blocks.stack[:1] == [block]:
            block.owner = who

    def check_outside(self, what: str) -> None:
        """InterfaceError where the current thread is inside of a transaction."""
        with self.mutex:
            self.blocks.check_outside(Turn(self.core.start_close, None, threading.current_thread(), 0.0), what)

    def drop(self, block: Block) -> None:
        """Let go of a channel now; what runs of it is cancelled at the server where that is called for."""
        if not self.ours:
            return
        with self.mutex:
            self.blocks.release(block)
            if not self._driving:
                self.cancelling.end_abandoned()
        if self._apart:
            self._see_apart()

    def doom(self, block: Block) -> None:
        """Roll a block back, or let go of a channel, from wherever its end was noticed; what that needs leaves now."""
        self.apart(partial(self.blocks.doom, block))

    def dismiss(self, box: Mailbox) -> None:
        """Let go of a listener, from wherever; UNLISTEN leaves now, or within the next verb."""
        self._apart.append(partial(self.listening.leave, box))  # first: a signal handler may raise in between
        box.end(LEFT)
        self._see_apart()

    def apart(self, call: Callable[[], object]) -> None:
        """`call()` when nobody has the mutex, from wherever; what it has written, or abandoned, is seen to now."""
        self._apart.append(call)
        self._see_apart()

    def _see_apart(self) -> None:
        """Whoever has the mutex sees to it in the end: this thread, too, which may be anywhere within (a finalizer)."""
        while self._apart and self.ours and not self.mutex.owned():
            with self.mutex.held(0.0) as held:
                if not held:
                    return
                if self.mutex.disturbed:
                    self._recover()
                self._settle()
                self.cancelling.end_abandoned(0.0)

    def nudge(self, call: Callable[[], T]) -> T:
        """`call()`, and what it has written leaves at once: the server goes on while its caller does."""

        def nudging() -> T:
            result = call()
            if not self.core.closed:
                self.core.flush()
            return result

        return self._held(nudging)

    def look(self) -> None:
        """Send and receive what can be without waiting."""
        if not self.core.closed:
            self._driving = True
            try:
                self.core.poll()
            finally:
                self._driving = False
        self._settle()

    def _wait_for_turn(
        self,
        turn: Turn,
        deadline: float | None,
        timeout: float | None,
        sql: str | core.PreparedStatement,
    ) -> core.Operation[Any]:
        turn.wake = self.mutex.notify_all
        self.blocks.line_up(turn)
        observed = InLine(self.core, turn, sql) if self._observed else None
        try:
            while not turn.decided:
                self._wait(turn, None, deadline, timeout)
            if turn.error is not None:
                raise turn.error
        except BaseException as error:
            if error is not turn.error:
                self.blocks.give_up(turn)
            if observed is not None:
                observed.left(turn, error)
            raise
        assert turn.operation is not None
        return turn.operation

    def _step(self, step: Step, deadline: float | None, timeout: float | None) -> Any:
        """What a flow waits for."""
        if isinstance(step, Turn):
            step.wake = self.mutex.notify_all
            while not step.decided:
                self._wait(step, step.operation, deadline, timeout)
            if step.error is not None:
                raise step.error
            return step.operation
        if isinstance(step, News):
            while not (step.operation.done() or step.operation.stirred):
                self._wait_in_core(step.operation, _left(deadline, timeout))
                self.cancelling.grant_wish()
                self._settle()
            return None
        if isinstance(step, Sent):
            _left(deadline, timeout)
            if not step.operation.done():
                self.look()
            return None
        assert isinstance(step, (Item, Call))
        channel = self.blocks.stack[-1].operation if self.blocks.stack else None
        if isinstance(step, Call):  # a caller's code may take its time
            return self.mutex.outside(channel, step.function)
        return self.mutex.outside(channel, next, step.source, END)

    def _wait(
        self, turn: Turn, operation: core.Operation[Any] | None, deadline: float | None, timeout: float | None
    ) -> None:
        """One slice of waiting: for `operation`, else for what the blocks are about, else for another thread."""
        self._settle()
        self.cancelling.grant_wish()
        if turn.decided:
            return
        left = _left(deadline, timeout)
        if operation is None:
            operation = next((each for each, _ in self._watched), None)
        if operation is not None:
            self._wait_in_core(operation, left, turn)
            self._settle()
            return
        waited = monotonic() - turn.since
        if waited > PATIENCE_SECONDS and (complaint := self.blocks.complaint(waited)) is not None:
            _log.warning(complaint)
        self.mutex.wait(left, turn)

    def _drive(self, operation: core.Operation[Any], deadline: float | None, timeout: float | None) -> None:
        while not operation.done():
            self._wait_in_core(operation, _left(deadline, timeout))
            self.cancelling.grant_wish()
            self._hand_over(NOTICES_SECONDS)

    def hear(self, box: Mailbox, deadline: float | None) -> None:
        """Wait until something has come for a listener, or it has ended; or for the deadline.

        The mutex is not held while the socket is waited for: other threads go on, and what they receive is told here.
        """
        with Doorbell() as bell:
            box.attend(bell.ring)
            try:
                while True:
                    events, seconds = self._listen_in()
                    left = seconds if deadline is None else min(seconds, deadline - monotonic())
                    if not box.waiting or left <= 0:
                        return
                    bell.wait(self.core.fileno() if events else -1, events, left)
            finally:
                box.unattend(bell.ring)

    def _listen_in(self) -> tuple[int, float]:
        """Receive what there is: what to watch the socket for, and when to look again at the latest."""
        with self.mutex.held(0.0) as held:
            if not held:
                return 0, ELSEWHERE_SECONDS
            if self.mutex.depth > 1 and self._driving:
                raise errors.InterfaceError("the connection is used within a request of the same thread")
            if self.mutex.depth == 1 and self.mutex.disturbed:
                self._recover()
            flags = core.CLOSED if self.core.closed else self.core.poll()
            self.cancelling.grant_wish()
            self._catch_up(None, None)
            if not flags & (core.WAIT_READ | core.IDLE):  # a channel is full: whoever has it sees to it
                return 0, ELSEWHERE_SECONDS
            return select.POLLIN | (select.POLLOUT if flags & core.WAIT_WRITE else 0), (
                SLICE_SECONDS if self.core.in_flight else threading.TIMEOUT_MAX
            )

    def _wait_in_core(self, operation: core.Operation[Any], seconds: float, what: object = None) -> None:
        """For `operation`, on account of `what`."""
        self._driving = True
        try:
            if not self.core.wait(operation, min(seconds, SHORT_SECONDS) if self.mutex.waiting else seconds):
                self._give_way(what or operation)
        finally:
            self._driving = False

    def _give_way(self, what: object) -> None:
        """Between two slices of driving: whoever else waits needs the mutex to see that its time is up."""
        if self.mutex.waiting:
            self._driving = False
            self.mutex.wait(GIVEN_SECONDS, what)
            self._driving = True

    # -- what the blocks need

    def watch(self, operation: core.Operation[Any], done: Callable[[], None]) -> None:
        """See _blocks.Engine. Whoever holds the mutex drives it; at the latest the next verb."""
        self._watched.append((operation, done))

    def tell(self, operation: core.Operation[Any], done: Callable[[], None]) -> None:
        """See _blocks.Engine."""
        self._watched.append((operation, done))

    def flush(self) -> None:
        """See _blocks.Engine: a verb that drives sends as well."""

    def attend(self, operation: core.Operation[Any]) -> None:
        """See _blocks.Engine: `_settle` looks."""

    def abort(self, why: str) -> None:
        """See _blocks.Engine."""
        self.terminate(why)

    def _settle(self) -> None:
        """Tell who observes and the blocks what is done, and everyone where the connection has ended."""
        if self.core._news or self.listening.unspread:
            self.core._report()
            self._hand_over(NOTICES_SECONDS)
        if self._apart:
            while self._apart:
                self._apart[0]()
                self._apart.popleft()  # not before: a signal handler may raise in between
            if not self.core.closed:
                self.core.flush()
        closed = self.core.closed  # before what is done is told: else it may end in between, and some are not
        if (stack := self.blocks.stack) and stack[-1].channel:
            self.blocks.settle()
        if self._watched:
            for each in [each for each in self._watched if each[0].done()]:
                each[1]()
                if each in self._watched:
                    self._watched.remove(each)
        if closed:
            self.cancelling.drop()
            self.core.close_fd()
            self._watched.clear()
            self.blocks.lost()
            self.listening.lost()
            self.mutex.notify_all()

    def _tell_all(self) -> None:
        """Tell who observes all that there is, before a verb returns."""
        if self.core._news:
            self.core._report()
        self._hand_over(None)

    def _hand_over(self, seconds: float | None) -> None:
        if self.core._news or self.listening.unspread or self._notices.untold:
            self.listening.hand_over(seconds)
            self._notices.hand_over(seconds)

    def cancel(self, via: Block | None) -> None:
        """Cancel the running request at the server; returns when the CancelRequest's socket has reached its end."""
        self.check_process()
        self.blocks.check_cancel(Turn(self.core.start_close, via, threading.current_thread(), 0.0))
        self.cancelling.cancel()

    def _catch_up(self, deadline: float | None, timeout: float | None) -> None:
        """What an interrupted verb has left to do."""
        if self.cancelling.under_way is not None:
            self.cancelling.go_on(_left(deadline, timeout, CANCEL_SECONDS))
        if self.cancelling.stray:
            self.cancelling.grow_old()
        apart = bool(self._apart)
        self._settle()
        if apart:
            self.cancelling.end_abandoned()

    # -- start and ends

    def connect(self, deadline: float | None, timeout: float | None) -> None:
        """Start-up. Leaves nothing open where it fails."""
        try:
            operation = self.core.start_connect()
            self._drive(operation, deadline, timeout)
            operation.result()
        except BaseException as error:
            self.terminate()
            if isinstance(error, errors.QueryTimeout):
                error.safe_to_retry = True
            raise

    def close(self, via: Block | None) -> None:
        """Serve what was accepted, then end the connection; whatever happens, within CLOSE_SECONDS."""
        deadline = monotonic() + CLOSE_SECONDS
        try:
            self._held(partial(self._closed, via, deadline), deadline, CLOSE_SECONDS)
        except errors.QueryTimeout:
            self.terminate()
        except BaseException:
            self.terminate()
            raise

    def _closed(self, via: Block | None, deadline: float) -> None:
        if self.core.closed:
            self._settle()
            return
        self._catch_up(deadline, CLOSE_SECONDS)
        turn = Turn(self.core.start_close, via, threading.current_thread(), monotonic())
        self.blocks.retire(turn)
        last = Turn(self._start_close, None, None, monotonic())
        last.wake = self.mutex.notify_all
        self.blocks.close(last)
        while not last.decided:
            self._wait(last, None, deadline, CLOSE_SECONDS)
        if last.operation is not None:
            self._drive(last.operation, deadline, CLOSE_SECONDS)
        self._settle()

    def _start_close(self) -> core.Operation[Any]:
        if self._close is None:
            self._close = self.core.start_close()
        return self._close

    def leave(self) -> None:
        """End the connection now, the running request at the server as well: the way out by an exception."""
        try:
            if self.ours:
                self.cancelling.leave(self.terminate)
        finally:
            self.terminate()

    def terminate(self, why: str = "closed") -> None:
        """End the connection now, from any thread; in the child of a fork, only this process's part of it."""
        if not self.ours:
            self.core.close_fd()
            return
        self.core.terminate(why)
        if not self.mutex.owned():  # by a signal handler, say, anywhere within a verb
            with self.mutex.held(0.0) as held:
                if held:  # else whoever has it sees it, within a slice
                    self._settle()


def resolved(options: conninfo.Options) -> conninfo.Options:
    """The options with every host name looked up, blocking."""
    flow = resolve(options)
    try:
        step = next(flow)
        while True:
            assert isinstance(step, Lookup)
            try:
                answer = socket.getaddrinfo(step.host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as stop:
        found: conninfo.Options = stop.value
        return found


def _left(deadline: float | None, timeout: float | None, at_most: float = SLICE_SECONDS) -> float:
    """How long to wait at once; QueryTimeout where the time is up."""
    if deadline is None:
        return at_most
    if (left := deadline - monotonic()) <= 0:
        raise timed_out(timeout)
    return min(left, at_most)


def _failed(callback: str, error: BaseException) -> None:
    """A callback has raised."""
    if not isinstance(error, Exception):
        raise error
    _log.error("exception in %s of a pgpoll connection", callback, exc_info=error)
