"""CancelRequests of one connection: the one under way, what else is to be cancelled, and how long one may still strike.

ThreadCancelling is for blocking callers, LoopCancelling for a loop (imports no asyncio). Of both: `cancel` for the verb
of that name, `grant_wish` whenever something may have changed, `leave` where the connection is left by an exception.

The core says what it wants cancelled at the server (`cancel_wanted`, `abandoned_head`); when, and how long that may
take, is decided here. Nothing else is sent while a CancelRequest is under way (the core sees to that).

- A CancelRequest has a socket of its own, and CANCEL_SECONDS: then the connection is ended, for nobody knows any more
  what the server will interrupt. So it is where one is refused, or there is no key to make one.
- An abandoned request that others wait behind has GRACE_SECONDS to end by itself, then it is cancelled.
- For STRAY_SECONDS after its socket's end a CancelRequest may still strike whatever runs; then it is too old.
"""

from __future__ import annotations

import contextlib
import select
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any

from pgpoll import core, errors
from pgpoll._sockets import Registration

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll._blocks import Engine
    from pgpoll._loop import Future, Loop, TimerHandle

CANCEL_SECONDS = 2.0  # for the CancelRequest's socket
GRACE_SECONDS = 1.0  # for an abandoned request that others wait behind
STRAY_SECONDS = 5.0  # how long after its socket's end a CancelRequest may still strike, by way of a pooler
INTERRUPT_SECONDS = 1.0  # for what is cancelled where a blocking caller goes away
_SLICE_SECONDS = 0.1  # a blocking caller looks whether its connection has ended meanwhile
_EMPTY = Context()


class ThreadCancelling:
    """For blocking callers, who drive a CancelRequest themselves. But for `cancel` and `leave`, under the mutex.

    Each verb first goes on with what an interrupted one has left under way.
    """

    def __init__(self, connection: core.Connection, engine: Engine) -> None:
        self.under_way: tuple[core.Cancel, float] | None = None  # and when its time is up
        self.stray = 0.0  # until when one may still strike; 0: none may
        self._abandoned = 0, 0.0  # the number of what runs and nobody awaits, and since when that is known
        self._core = connection
        self._engine = engine

    def cancel(self) -> None:
        """Cancel the running request; returns when the CancelRequest's socket has reached its end."""
        if self._core.closed:
            raise errors.InterfaceError("the connection is closed")
        if not self._core.in_flight or self.under_way is not None:
            return
        request = self._start()
        self._finish(CANCEL_SECONDS)
        if not request.delivered():
            raise errors.OperationalError("the CancelRequest could not be delivered")

    def abandon(self, operation: core.Operation[Any]) -> None:
        """Who waited goes away: its answer is read by the next verb, and its query is cancelled at the server."""
        operation.abandon()
        if self.under_way is None and not self._core.closed and self._core.cancel_wanted() == core.NOW:
            self._cancel_abandoned(INTERRUPT_SECONDS)

    def end_abandoned(self, seconds: float = INTERRUPT_SECONDS) -> None:
        """A channel may have been let go of: its end leaves, or what runs is cancelled, within so many seconds."""
        if self._core.closed or self.under_way is not None:
            return
        self._core.flush()
        if self._core.cancel_wanted() == core.NOW:
            self._cancel_abandoned(seconds)

    def grant_wish(self) -> None:
        """Go on with a CancelRequest that was left under way: nothing else is sent before its end.

        Another one where an abandoned request has run on for a while: the first may have come too early.
        """
        if self.under_way is not None:
            self._finish(0.0)
            return
        if (head := self._core.abandoned_head) == 0:
            return
        number, since = self._abandoned
        if number != head:
            self._abandoned = head, monotonic()
        elif monotonic() - since >= GRACE_SECONDS:
            self._cancel_abandoned(INTERRUPT_SECONDS)

    def go_on(self, seconds: float) -> None:
        """A new verb goes on, for at most so long, with what was left under way."""
        if self.under_way is not None and self.under_way[1] < monotonic():  # nobody has looked at it meanwhile
            self.under_way = self.under_way[0], monotonic() + CANCEL_SECONDS
        self._finish(seconds)

    def grow_old(self) -> None:
        """What was sent long ago strikes no more."""
        if self.stray and self.stray < monotonic():
            self.stray = 0.0
            self._core.cancel_too_old()

    def leave(self, terminate: Callable[[], None]) -> None:
        """Cancel what runs, while `terminate` ends the connection."""
        if not self._core.closed and self._core.in_flight and self.under_way is None:
            with contextlib.suppress(errors.InterfaceError):  # no key: it ends when the server notices
                request, expires = self._core.start_cancel(), monotonic() + CANCEL_SECONDS
                terminate()
                self.under_way = request, expires  # not before: none outlives its connection, but for this one
        if self.under_way is not None:
            self._finish(INTERRUPT_SECONDS)
            self.drop()

    def drop(self) -> None:
        """Nobody goes on with what is under way."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way[0].close_fd()
            self.stray = monotonic() + STRAY_SECONDS

    def _start(self) -> core.Cancel:
        expires = monotonic() + CANCEL_SECONDS
        self.under_way = under_way = self._core.start_cancel(), expires  # one that is not stored ends at once
        return under_way[0]

    def _cancel_abandoned(self, seconds: float) -> None:
        self._abandoned = 0, 0.0
        try:
            request = self._start()
        except errors.InterfaceError as error:  # no key
            self._engine.abort(f"a request could not be cancelled: {error}")
            return
        self._finish(seconds)  # where a signal handler raises, the next verb goes on with this
        if request.done() and not request.delivered() and not self._core.closed:
            self._engine.abort("a CancelRequest was refused")  # nobody knows when what runs will end

    def _finish(self, seconds: float) -> None:
        """Drive the CancelRequest under way to its end, for at most so long; when its own time is up all is over.

        Nor does it outlive a connection that ends meanwhile.
        """
        leaving = self._core.closed
        if (under_way := self.under_way) is None:
            return
        request, expires = under_way
        until = min(monotonic() + seconds, expires)
        while True:
            flags = request.poll()
            if request.done() or (self._core.closed and not leaving):
                break
            if (left := until - monotonic()) <= 0:
                if until < expires:
                    return
                break
            if (fd := request.fileno()) >= 0:  # else another thread has just seen its end
                poller = select.poll()
                poller.register(fd, select.POLLIN | (select.POLLOUT if flags & core.WAIT_WRITE else 0))
                poller.poll(min(left, _SLICE_SECONDS) * 1000)
        in_time = request.done()
        self.drop()
        if not in_time and not self._core.closed:
            self._engine.abort(f"a CancelRequest was not answered within {CANCEL_SECONDS:g} s")


class LoopCancelling:
    """For a loop, which drives a CancelRequest as it comes."""

    def __init__(self, loop: Loop, connection: core.Connection, engine: Engine) -> None:
        self.under_way: CancelRequest | None = None
        self._grace: TimerHandle | None = None  # of the abandoned request of this number
        self._grace_head = 0
        self._stray: TimerHandle | None = None  # how long one may still strike
        self._over = False
        self._loop = loop
        self._core = connection
        self._engine = engine

    def cancel(self) -> CancelRequest | None:
        """What cancels the running request, to be waited for; None where nothing runs."""
        if self._core.closed:
            raise errors.InterfaceError("the connection is closed")
        if self.under_way is None and self._core.in_flight:
            return self._start()
        return self.under_way

    def grant_wish(self) -> None:
        """Cancel what is abandoned: at once, or where somebody waits behind it on the wire after a grace."""
        if self.under_way is not None:
            return
        wish = self._core.cancel_wanted()
        if wish == core.NOW:
            self._cancel_abandoned()
        elif wish == core.GRACE and (self._grace is None or self._grace_head != self._core.abandoned_head):
            if self._grace is not None:
                self._grace.cancel()
            self._grace_head = self._core.abandoned_head
            self._grace = self._loop.call_later(GRACE_SECONDS, self._grace_over, context=_EMPTY.copy())

    def leave(self) -> CancelRequest | None:
        """What cancels the running request, if any: its caller's, who ends the connection now, and gives it up."""
        request = self.under_way
        if request is None and self._core.in_flight:
            with contextlib.suppress(errors.InterfaceError):  # no key: it ends when the server notices
                request = self._start()
        self.under_way = None  # none outlives its connection, but for this one
        return request

    def end(self) -> None:
        """The connection has ended: nothing stays in the loop."""
        self._over = True
        for timer in (self._grace, self._stray):
            if timer is not None:
                timer.cancel()
        self._grace = self._stray = None
        if self.under_way is not None:  # its socket does not outlive ours
            self.under_way.give_up()

    def _start(self) -> CancelRequest:
        request = CancelRequest(self._loop, self._core.start_cancel(), self._ended)
        if not request.ended.done():
            self.under_way = request
        return request

    def _cancel_abandoned(self) -> None:
        """Where that can't be done nobody knows when the connection is of use again: it is ended."""
        try:
            request = self._start()
        except errors.InterfaceError as error:  # no key
            self._engine.abort(f"a request could not be cancelled: {error}")
            return
        request.ended.add_done_callback(lambda _: self._refused(request), context=_EMPTY.copy())

    def _refused(self, request: CancelRequest) -> None:
        if not request.delivered and not self._over:
            self._engine.abort("a CancelRequest was refused")

    def _grace_over(self) -> None:
        self._grace = None
        if self.under_way is None and not self._over and self._core.abandoned_head == self._grace_head:
            self._cancel_abandoned()

    def _ended(self, in_time: bool) -> None:
        """The CancelRequest's socket has reached its end, or its time is up."""
        self.under_way = None
        if self._over:
            return
        if not in_time:
            self._engine.abort(f"a CancelRequest was not answered within {CANCEL_SECONDS:g} s")
            return
        if self._stray is not None:
            self._stray.cancel()
        self._stray = self._loop.call_later(STRAY_SECONDS, self._core.cancel_too_old, context=_EMPTY.copy())
        self.grant_wish()  # it may have come before the backend had begun: once more then, in a while


class CancelRequest:
    """A CancelRequest on its way through a loop. `ended` is done when its socket's end has come, or its time is up."""

    def __init__(self, loop: Loop, request: core.Cancel, done: Callable[[bool], None]) -> None:
        self.ended: Future[None] = loop.create_future()
        self.delivered = False
        self._loop = loop
        self._request = request
        self._done = done  # told whether it was in time
        self._socket = Registration(loop, self._poll, self._poll)
        self._timer = loop.call_later(CANCEL_SECONDS, self._finish)
        self._poll()

    def _poll(self) -> None:
        flags = self._request.poll()
        if self._request.done():
            self._finish()
        else:
            self._socket.watch(self._request.fileno(), flags)

    def _finish(self) -> None:
        in_time, self.delivered = self._request.done(), self._request.delivered()
        self.give_up()
        self._done(in_time)

    def give_up(self) -> None:
        """It has ended, or its connection has: nothing of it stays in the loop."""
        self._timer.cancel()
        self._socket.forget()
        self._request.close_fd()
        if not self.ended.done() and not self._loop.is_closed():
            self.ended.set_result(None)
