"""How a socket is watched: on a loop (Registration), or by a thread that others can wake (Doorbell). No asyncio."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from contextvars import Context
from typing import TYPE_CHECKING, Self

from pgpoll import core

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll._loop import Loop

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
