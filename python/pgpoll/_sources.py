"""Where a stream's rows come from; _streams.py has the stream itself.

Source        what both are: open and wait are flows, the rest is done at once
Held          outside of a transaction, and without a limit: one operation that owns the connection, Bind to Sync.
              Its credit is granted anew as rows are consumed
Portal        inside of one: each fetch is a request of its own, and the next one is started when half of the rows
              are consumed. What is still in flight when it is left runs to its end: a CancelRequest would make the
              transaction fail
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from pgpoll import errors
from pgpoll._flows import News, started
from pgpoll._turns import COMMITTED, DOOMED, ENDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll import _loop, _threads, core
    from pgpoll._flows import Flow
    from pgpoll._turns import Block

PREFETCH = 1000

_numbers = count(1)


class Source(Protocol):
    """Where rows come from."""

    def open(self) -> Flow[None]:
        """Begin, when it is its turn."""

    def opened(self) -> bool:
        """Whether the columns are known. Raises where it has failed and returns no rows: they are given first."""

    def take(self, whole: bool) -> list[Any] | None:
        """The next rows that have come, `whole` or a part; None where no more will come. Raises where that is why."""

    def consumed(self, rows: int) -> None:
        """So many of those that were taken are done with."""

    def wait(self) -> Flow[None]:
        """Until there is something to take, or the end."""

    def columns(self) -> tuple[core.Column, ...] | None:
        """None before they are known."""

    def close(self) -> None:
        """Let go of it, from any thread: the server is told, and nobody waits."""


class Held:
    """One operation that owns the connection."""

    def __init__(
        self,
        driver: _loop.Driver | _threads.Driver,
        via: Block | None,
        start: Callable[[], core.Operation[str]],
        prefetch: int | None,
        where: str,
    ) -> None:
        self._driver = driver
        self._limited = prefetch is not None
        self._half = max(1, (prefetch or PREFETCH) // 2)
        self._consumed = 0
        self._hold = driver.hold("stream", start, via, where)
        self._home: tuple[Block, ...] = ()  # the blocks that it was opened in, outermost first
        self._operation: core.Operation[str] | None = None

    @property
    def outside(self) -> bool:
        """Whether its maker is in no live block."""
        return self._hold.via is None and not any(self._driver.blocks.inside(self._hold))

    def open(self) -> Flow[None]:
        """See Source."""
        self._operation = yield from started(self._driver.blocks, self._hold)
        self._hold.block.carry()  # a task that its consumer makes, and waits for, would wait for itself
        self._home = tuple(each for each in self._driver.blocks.stack if each is not self._hold.block)

    def opened(self) -> bool:
        """See Source."""
        assert self._operation is not None
        done = self._operation.done()  # before the columns: another thread may drive
        columns = self._operation._columns()
        if done and not columns:
            self._operation.result()
        return done or columns is not None

    def take(self, whole: bool) -> list[Any] | None:
        """See Source."""
        operation = self._operation
        assert operation is not None
        self._driver.taken(self._hold.block)
        done = operation.done()  # before the rows: another thread may drive
        try:
            rows = operation.take_rows(None if whole else self._half - self._consumed)
        except errors.InterfaceError:  # abandoned, with the block around it
            for block in reversed(self._home):
                if block.state in (ENDED, DOOMED):
                    raise _gone_with(block) from None
            raise
        if not self._limited:
            self._driver.flush()  # it may read on
        if done and not rows:
            operation.result()
            return None
        return rows

    def consumed(self, rows: int) -> None:
        """See Source."""
        assert self._operation is not None
        self._consumed += rows
        if self._consumed >= self._half:
            if self._limited and not self._operation.done():
                self._driver.nudge(partial(self._operation.grant, self._consumed))
            self._consumed = 0

    def wait(self) -> Flow[None]:
        """See Source."""
        assert self._operation is not None
        yield News(self._operation)

    def columns(self) -> tuple[core.Column, ...] | None:
        """See Source."""
        return self._operation._columns() if self._operation is not None else None

    def close(self) -> None:
        """See Source."""
        if (operation := self._operation) is not None and operation.done():
            operation.abandon()  # nobody takes its outcome
        self._driver.doom(self._hold.block)


class Portal:
    """Requests in a transaction: one that opens the portal, and those that fetch from it."""

    def __init__(
        self,
        driver: _loop.Driver | _threads.Driver,
        via: Block | None,
        sql: str | core.PreparedStatement,
        args: tuple[Any, ...],
        prefetch: int,
    ) -> None:
        self._driver = driver
        self._via = via
        self._sql = sql
        self._args = args
        self._limit = prefetch
        self._half = max(1, prefetch // 2)
        self._name = f"pgpoll_{next(_numbers)}"
        self._home: tuple[Block, ...] = ()  # the blocks that it was opened in, outermost first
        self._opened: core.Operation[bool] | None = None
        self._giving: core.Operation[bool] | None = None  # it is done: whose rows are taken
        self._asked: core.Operation[bool] | None = None  # in flight
        self._more = True  # there may be rows that were not asked for
        self._consumed = 0  # since they were asked for last
        self._number = prefetch  # of the first row that was not asked for

    def open(self) -> Flow[None]:
        """See Source."""
        yield from started(self._driver.blocks, self._driver.turn(self._start, self._via))

    def opened(self) -> bool:
        """See Source."""
        assert self._opened is not None
        if not self._opened.done():
            return False
        if not self._opened._columns():
            self._opened.result()
        return True

    def take(self, whole: bool) -> list[Any] | None:
        """See Source."""
        room = None if whole else self._half - self._consumed
        if room is not None and room <= 0:
            room = self._half
        rows = self._giving.take_rows(room) if self._giving is not None else []
        if not rows and self._asked is not None and self._asked.done():
            self._giving, self._asked = self._asked, None
            rows = self._giving.take_rows(room)
            try:
                self._more = self._giving.result()
            except errors.Error:  # told behind the rows that have come before it
                self._more = False
        if not rows and not self._more and self._asked is None:
            assert self._giving is not None
            self._giving.result()
            return None
        return rows

    def consumed(self, rows: int) -> None:
        """See Source."""
        self._consumed += rows
        if self._consumed >= self._half and self._more and self._asked is None and self._gone() is None:
            turn = self._driver.turn(self._fetch, self._via)
            self._driver.nudge(partial(self._driver.blocks.go_now, turn))

    def wait(self) -> Flow[None]:
        """See Source."""
        driver = self._driver
        if self._asked is None:
            yield from started(driver.blocks, driver.turn(self._fetch, self._via))
        assert self._asked is not None
        yield News(self._asked)

    def columns(self) -> tuple[core.Column, ...] | None:
        """See Source."""
        return self._opened._columns() if self._opened is not None else None

    def close(self) -> None:
        """See Source."""
        self._driver.apart(self._close)

    def abandon(self) -> None:
        """Nobody waits for what was asked for: it may be cancelled at the server, and its transaction fail."""
        if self._asked is not None:
            self._asked.abandon()
            self._asked = None

    def _close(self) -> None:
        if self._asked is not None:
            self._asked._spare()  # its transaction goes on
        if self._opened is not None and self._gone() is None:
            self._driver.core._close_portal(self._name)
        self._driver.flush()

    def _start(self) -> core.Operation[bool]:
        driver = self._driver
        self._home = tuple(driver.blocks.stack)
        self._opened = self._asked = driver.core._start_open(self._sql, self._args, self._name, self._limit)
        return self._opened

    def _fetch(self) -> core.Operation[bool]:
        assert self._opened is not None
        if (why := self._driver.core.why_closed) is not None:
            raise errors.ConnectionLost(f"the connection was lost: {why}") from why
        if (gone := self._gone()) is not None:
            raise _gone_with(gone)
        rows = self._consumed or self._limit
        self._asked = self._driver.core._start_fetch(self._opened, rows, self._number)
        self._number += rows
        self._consumed = 0
        return self._asked

    def _gone(self) -> Block | None:
        """The block that has taken the portal with it. What a released savepoint leaves is its parent's."""
        for block in reversed(self._home):
            if block.state in (ENDED, DOOMED):
                if block.outcome != COMMITTED or not block.savepoint:
                    return block
                continue
            return None
        return None


def _gone_with(block: Block) -> errors.InterfaceError:
    outcome = f": {block.outcome}" if block.outcome else ""
    return errors.InterfaceError(
        f"the stream was opened in the transaction entered at {block.where}, which {block.state.value}{outcome}"
    )
