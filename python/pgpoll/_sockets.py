"""What is watched: the connection's socket, that of a CancelRequest on its way, a doorbell. Imports no asyncio."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from contextvars import Context
from typing import TYPE_CHECKING, Self

from pgpoll import core
from pgpoll._cancelling import CANCEL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll._loop import Driver, Future, Loop

_LONGEST_SECONDS = 1_000_000.0  # that select.poll takes
_EMPTY = Context()


class Registration:
    """What a loop watches one socket for; its callbacks run in an empty context."""

    def __init__(self, loop: Loop, readable: Callable[[], None], writable: Callable[[], None]) -> None:
        self._loop = loop
        self._readable = readable
        self._writable = writable
        self._fd = -1
        self._writing = False

    def watch(self, fd: int, flags: int) -> None:
        """Watch `fd` (-1: none) for reading, and as long as `flags` say so for writing."""
        if fd != self._fd:
            self.forget()
            if fd >= 0:
                _EMPTY.copy().run(self._loop.add_reader, fd, self._readable)
                self._fd = fd
        writing = bool(flags & core.WAIT_WRITE) and fd >= 0
        if writing and not self._writing:
            _EMPTY.copy().run(self._loop.add_writer, fd, self._writable)
        elif self._writing and not writing:
            self._loop.remove_writer(fd)
        self._writing = writing

    def forget(self) -> None:
        """Watch nothing any more."""
        if self._fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
            if self._writing:
                self._loop.remove_writer(self._fd)
        self._fd, self._writing = -1, False


class CancelRequest:
    """A CancelRequest on its way. `ended` is done when its socket has reached its end, or its time is up."""

    def __init__(self, driver: Driver) -> None:
        self.ended: Future[None] = driver.loop.create_future()
        self.delivered = False
        self._driver = driver
        self._cancel = driver.core.start_cancel()
        self._socket = Registration(driver.loop, self._poll, self._poll)
        self._timer = driver.loop.call_later(CANCEL_SECONDS, self._finish)
        self._poll()

    def _poll(self) -> None:
        flags = self._cancel.poll()
        if self._cancel.done():
            self._finish()
        else:
            self._socket.watch(self._cancel.fileno(), flags)

    def _finish(self) -> None:
        in_time, self.delivered = self._cancel.done(), self._cancel.delivered()
        self.give_up()
        self._driver.cancel_ended(in_time=in_time)

    def give_up(self) -> None:
        """It has ended, or its connection has: nothing of it stays in the loop."""
        self._timer.cancel()
        self._socket.forget()
        self._cancel.close_fd()
        if not self.ended.done() and not self._driver.loop.is_closed():
            self.ended.set_result(None)


class Doorbell:
    """Wakes one thread that waits for a socket, from another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may ring within
        self._open = False

    def __enter__(self) -> Self:
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open = False
            os.close(self._reads)
            os.close(self._writes)

    def ring(self) -> None:
        """Let `wait` return, now or the next time."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full of rings
            if self._open:  # else its number may be another's already
                os.write(self._writes, b".")

    def wait(self, fd: int, events: int, seconds: float) -> None:
        """Wait for `fd` (-1: none), a ring, a signal, or so many seconds."""
        poller = select.poll()
        poller.register(self._reads, select.POLLIN)
        if fd >= 0:
            poller.register(fd, events)
        poller.poll(min(seconds, _LONGEST_SECONDS) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reads, 1 << 10)
