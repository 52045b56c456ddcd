"""What a blocking connection's verbs give that lasts: Stream, Batch, Listener. For pgpoll.sync; imports no asyncio."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pgpoll import _batches, errors
from pgpoll._flows import seconds, started
from pgpoll._listening import LEFT, NEW, Listens, Notification
from pgpoll._streams import R, Rows
from pgpoll._turns import ENDED
from pgpoll.core import RESULT, ROW, ROWS, VALUE, _surely

if TYPE_CHECKING:
    from types import TracebackType

    from pgpoll import core
    from pgpoll._flows import Flow
    from pgpoll.sync import Verbs

T = TypeVar("T")

FLUSHED_ITEMS = 64  # of a batch, that leave together
LOOK_SECONDS = 0.05


class Stream(Rows[R]):
    """The rows of one statement as they come: an iterator and a context manager. See pgpoll.Stream.

    To be used by one thread at a time.
    """

    __slots__ = ()

    def __iter__(self) -> Stream[R]:
        return self

    def __next__(self) -> R:
        for row in self._chunk:
            return row
        rows = self._at_hand(False) or self._run(self._more(False))
        if not rows:
            raise StopIteration
        self._chunk = iter(rows)
        return next(self._chunk)

    def batches(self) -> Batches[R]:
        """An iterator of lists of records: all that have come, each time. See pgpoll.Stream.batches."""
        return Batches(self)

    def close(self) -> None:
        """See pgpoll.Stream.aclose."""
        self._shut()

    def _enter(self) -> Stream[R]:
        self._run(self._begin())
        return self

    def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shut()

    __enter__ = _surely(_enter, Rows._torn)
    __exit__ = _surely(_exit, Rows._torn)

    def _run(self, flow: Flow[T]) -> T:
        try:
            result: T = self._verbs._driver.run(flow, self._timeout)
        except BaseException as error:
            self._torn(error)
            raise
        return result


class Batches(Generic[R]):
    """The rows of a stream in lists, as they come. See pgpoll.Stream.batches."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream[R]) -> None:
        self._stream = stream

    def __iter__(self) -> Batches[R]:
        return self

    def __next__(self) -> list[R]:
        stream = self._stream
        rows = list(stream._chunk) or stream._at_hand(True) or stream._run(stream._more(True))
        if not rows:
            raise StopIteration
        return rows


BatchItem = _batches.BatchItem


class Batch(_batches.Batch):
    """Many requests under one Sync, on a blocking connection. See pgpoll.Batch; items have `result()`."""

    __slots__ = ("_driver", "_looks_at", "_timeout", "_verbs", "_via", "_where")

    def __init__(self, verbs: Verbs, where: str, timeout: float | None) -> None:
        super().__init__()
        self._timeout = timeout
        self._looks_at = monotonic() + LOOK_SECONDS
        self._verbs: Verbs | None = verbs  # also keeps the connection, until the block is left
        self._via = verbs._via
        self._driver = verbs._driver
        self._where = where

    def execute(self, sql: str, /, *args: Any) -> BatchItem[core.Result]:
        """See pgpoll.Connection.execute."""
        return self._add(sql, args, RESULT)

    def fetch(self, sql: str, /, *args: Any) -> BatchItem[list[core.Record]]:
        """See pgpoll.Connection.fetch."""
        return self._add(sql, args, ROWS)

    def fetchrow(self, sql: str, /, *args: Any) -> BatchItem[core.Record | None]:
        """See pgpoll.Connection.fetchrow."""
        return self._add(sql, args, ROW)

    def fetchval(self, sql: str, /, *args: Any) -> BatchItem[Any]:
        """See pgpoll.Connection.fetchval."""
        return self._add(sql, args, VALUE)

    def _add(self, sql: str, args: tuple[Any, ...], want: core.Want[T]) -> BatchItem[T]:
        driver = self._driver
        number = driver.call(partial(self._number, sql, args))
        if number % FLUSHED_ITEMS == FLUSHED_ITEMS - 1 or monotonic() >= self._looks_at:
            driver.call(driver.look)  # what is there leaves; and answers may have come, or the end of the connection
            self._looks_at = monotonic() + LOOK_SECONDS
        return BatchItem(self, number, want)

    def _torn(self, error: BaseException) -> None:
        if not isinstance(error, errors.Error):
            self._break(error)
            if self._hold is not None:
                self._driver.doom(self._hold.block)

    def _begin(self) -> Batch:
        driver = self._driver
        hold = self._enter(driver.hold("batch", driver.core.start_batch, self._via, self._where))
        self._opened(driver.run(started(driver.blocks, hold), self._timeout))
        return self

    def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        driver, hold = self._driver, self._hold
        assert hold is not None
        try:
            if error is None:
                driver.run(_batches.leave(self, driver.blocks, driver.core.flush), self._timeout)
            else:
                self._break(error)
                driver.doom(hold.block)
        except errors.QueryTimeout as late:
            if self._state is _batches.OPEN:  # another thread was driving all that time
                self._break(late)
                driver.doom(hold.block)
            raise
        finally:
            self._verbs = None

    __enter__ = _surely(_begin, _torn)
    __exit__ = _surely(_exit, _torn)

    def __del__(self) -> None:
        hold = getattr(self, "_hold", None)  # unset where __init__ failed
        if hold is not None and hold.block.state is not ENDED:  # whatever it was told: a signal handler may have raised
            self._driver.doom(hold.block)


class Listener(Listens):
    """What `Connection.listen` gives: a context manager, and an iterator of Notifications. See pgpoll.Listener.

        with conn.listen("news") as notifications:
            for each in notifications:
                print(each.channel, each.payload, each.pid)

    Iterating waits without end; `next(timeout=)` for a time. While one thread waits others may use the connection, and
    what comes meanwhile is told at once. Where none waits and none uses it, what the server sends waits in the socket.
    """

    __slots__ = ()

    def next(self, *, timeout: float | None = None) -> Notification | None:
        """The next notification; None where none has come within so many seconds, or after it has been left."""
        driver, box = self._parent._driver, self._box
        driver.check_process()
        deadline = None if timeout is None else monotonic() + seconds(timeout)
        looked = False
        while True:
            if box.state is NEW:
                driver.run(self._enter(), timeout if self._timeout is None else self._timeout)
            if (found := self._at_hand()) is not None or box.state is LEFT:
                return found
            if looked and deadline is not None and deadline <= monotonic():
                return None
            driver.hear(box, deadline)
            looked = True

    def _torn(self, error: BaseException) -> None:
        if not isinstance(error, errors.Error):
            self._parent._driver.dismiss(self._box)

    def _begin(self) -> Listener:
        self._parent._driver.run(self._enter(), self._timeout)
        return self

    def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._parent._driver.dismiss(self._box)

    __enter__ = _surely(_begin, _torn)
    __exit__ = _surely(_exit, _torn)

    def __iter__(self) -> Listener:
        return self

    def __next__(self) -> Notification:
        if (found := self.next()) is None:
            raise StopIteration
        return found

    def __del__(self) -> None:
        box = getattr(self, "_box", None)  # unset where __init__ failed
        if box is not None and box.state is not NEW and box.state is not LEFT:
            self._parent._driver.dismiss(box)
