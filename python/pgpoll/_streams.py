"""Row streaming: what the streams of both faces share.

Outside of a transaction a stream owns the connection (`Held`): one operation from Bind to Sync, whose credit is granted
anew as rows are consumed. Inside of one it is a portal (`Portal`): each fetch is a request of its own, and the next one
is started while half of the rows are still to be consumed. With `prefetch=None` it is always the former, without limit.

    Rows          the object: nothing happens before its first step; exactly one error, or the end, and then the end
    Held, Portal  where its rows come from: open (a flow), take, consumed, wait (a flow), close

A flow runs only where rows have to be waited for: what has come already is taken without one. A wait that ends early
(the task is cancelled, a timeout runs out) ends the stream.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from operator import length_hint
from typing import TYPE_CHECKING, Any, Generic, Protocol

from pgpoll import errors
from pgpoll._flows import News, started
from pgpoll._turns import COMMITTED, DOOMED, ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import TypeVar

    from pgpoll import _loop, _threads, core
    from pgpoll._flows import Flow
    from pgpoll._turns import Block

    R = TypeVar("R", default=core.Record)
else:
    from typing import TypeVar

    R = TypeVar("R")

PREFETCH = 1000

_numbers = count(1)


class _Source(Protocol):
    """Where rows come from."""

    def open(self) -> Flow[None]:
        """Begin, when it is its turn."""

    def opened(self) -> bool:
        """Whether the columns are known. Raises where it has failed."""

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
        self._operation: core.Operation[str] | None = None

    @property
    def outside(self) -> bool:
        """Whether its maker is in no live block."""
        return self._hold.via is None and not any(self._driver.blocks.inside(self._hold))

    def open(self) -> Flow[None]:
        """See _Source."""
        self._operation = yield from started(self._driver.blocks, self._hold)

    def opened(self) -> bool:
        """See _Source."""
        assert self._operation is not None
        if self._operation.done():
            self._operation.result()
            return True
        return self._operation._columns() is not None

    def take(self, whole: bool) -> list[Any] | None:
        """See _Source."""
        operation = self._operation
        assert operation is not None
        done = operation.done()  # before the rows: another thread may drive
        rows = operation.take_rows(None if whole else self._half - self._consumed)
        if not self._limited:
            self._driver.flush()  # it may read on
        if done and not rows:
            operation.result()
            return None
        return rows

    def consumed(self, rows: int) -> None:
        """See _Source."""
        assert self._operation is not None
        self._consumed += rows
        if self._consumed >= self._half:
            if self._limited and not self._operation.done():
                self._driver.nudge(partial(self._operation.grant, self._consumed))
            self._consumed = 0

    def wait(self) -> Flow[None]:
        """See _Source."""
        assert self._operation is not None
        yield News(self._operation)

    def columns(self) -> tuple[core.Column, ...] | None:
        """See _Source."""
        return self._operation._columns() if self._operation is not None else None

    def close(self) -> None:
        """See _Source."""
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
        """See _Source."""
        yield from started(self._driver.blocks, self._driver.turn(self._start, self._via))

    def opened(self) -> bool:
        """See _Source."""
        assert self._opened is not None
        if not self._opened.done():
            return False
        self._opened.result()
        return True

    def take(self, whole: bool) -> list[Any] | None:
        """See _Source."""
        room = None if whole else self._half - self._consumed
        if room is not None and room <= 0:
            room = self._half
        rows = self._giving.take_rows(room) if self._giving is not None else []
        if not rows and self._asked is not None and self._asked.done():
            self._giving, self._asked = self._asked, None
            self._more = self._giving.result()
            rows = self._giving.take_rows(room)
        if not rows and not self._more and self._asked is None:
            return None
        return rows

    def consumed(self, rows: int) -> None:
        """See _Source."""
        self._consumed += rows
        if self._consumed >= self._half and self._more and self._asked is None and self._gone() is None:
            turn = self._driver.turn(self._fetch, self._via)
            self._driver.nudge(partial(self._driver.blocks.go_now, turn))

    def wait(self) -> Flow[None]:
        """See _Source."""
        driver = self._driver
        if self._asked is None:
            yield from started(driver.blocks, driver.turn(self._fetch, self._via))
        assert self._asked is not None
        yield News(self._asked)

    def columns(self) -> tuple[core.Column, ...] | None:
        """See _Source."""
        return self._opened._columns() if self._opened is not None else None

    def close(self) -> None:
        """See _Source."""
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
            outcome = f": {gone.outcome}" if gone.outcome else ""
            raise errors.InterfaceError(
                f"the stream was opened in the transaction entered at {gone.where}, which {gone.state.value}{outcome}"
            )
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


class Rows(Generic[R]):
    """What the streams of both faces have in common."""

    __slots__ = (
        "__weakref__",
        "_args",
        "_chunk",
        "_ended",
        "_given",
        "_open",
        "_prefetch",
        "_size",
        "_source",
        "_sql",
        "_stepping",
        "_timeout",
        "_verbs",
        "_where",
    )

    def __init__(
        self,
        verbs: Any,
        sql: str | core.PreparedStatement,
        args: tuple[Any, ...],
        prefetch: int | None,
        timeout: float | None,
        where: str,
    ) -> None:
        self._verbs = verbs  # also keeps the connection
        self._sql = sql
        self._args = args
        self._prefetch = prefetch
        self._timeout = timeout
        self._where = where
        self._source: _Source | None = None
        self._open = False  # it has a source to let go of
        self._ended = False
        self._stepping = False
        self._chunk: Iterator[R] = iter(())
        self._size = 0  # rows of the chunk, until they are consumed
        self._given = 0  # with all of the chunk

    @property
    def columns(self) -> tuple[core.Column, ...] | None:
        """The columns of its rows, () where it returns none; None before they are known, see `async with`."""
        return self._source.columns() if self._source is not None else None

    @property
    def rowcount(self) -> int:
        """How many rows it has given so far, as the driver has counted them."""
        return self._given - length_hint(self._chunk)

    def _at_hand(self, whole: bool) -> list[R]:
        """Rows that have come; [] where there are none. Those given before are done with."""
        if not self._open or self._stepping:
            return []
        try:
            rows = self._take(whole)
            return rows if rows is not None else []
        except BaseException:
            self._end()
            raise

    def _take(self, whole: bool) -> list[R] | None:
        """Rows that have come; None at the end, which it is told of. A whole batch is done with when it is given."""
        source = self._source
        assert source is not None
        if self._size:
            size, self._size = self._size, 0
            source.consumed(size)
        rows = source.take(whole)
        if rows is None:
            self._end()
            return None
        self._given += len(rows)
        if not whole:
            self._size = len(rows)
        elif rows:
            source.consumed(len(rows))
        return rows

    def _begin(self) -> Flow[None]:
        """The first step, up to when the columns are known."""
        if self._open:
            return
        self._enter()
        try:
            source = yield from self._begun()
            while not source.opened():
                yield from source.wait()
        except BaseException:
            self._give_up()
            raise
        finally:
            self._stepping = False

    def _more(self, whole: bool) -> Flow[list[R]]:
        """The next rows, waited for; [] at the end."""
        if self._ended:
            return []
        self._enter()
        try:
            source = self._source
            if source is None:
                source = yield from self._begun()
            while True:
                rows = self._take(whole)
                if rows is None:
                    return []
                if rows:
                    return rows
                yield from source.wait()
        except BaseException:
            self._give_up()
            raise
        finally:
            self._stepping = False

    def _enter(self) -> None:
        if self._stepping:
            raise errors.InterfaceError("the stream is in use: somebody waits for its next row already")
        if self._ended:
            raise errors.InterfaceError("the stream has ended: make a new one")
        self._stepping = True

    def _begun(self) -> Flow[_Source]:
        prefetch: Any = self._prefetch
        if prefetch is not None and (isinstance(prefetch, bool) or not isinstance(prefetch, int) or prefetch < 1):
            raise errors.InterfaceError(f"prefetch must be an int from 1 on, or None, not {prefetch!r}")
        verbs = self._verbs
        driver, via = verbs._driver, verbs._via
        start = partial(driver.core.start_stream, self._sql, self._args, prefetch)
        held = Held(driver, via, start, prefetch, self._where)
        source: _Source = held
        if prefetch is not None and not held.outside:
            source = Portal(driver, via, self._sql, self._args, prefetch)
        self._source = source
        self._open = True
        yield from source.open()
        return source

    def _give_up(self) -> None:
        """A wait has ended early, or the stream by an error."""
        if self._open and isinstance(self._source, Portal):
            self._source.abandon()
        self._end()

    def _end(self) -> None:
        self._ended = True
        if self._open:
            self._open = False
            assert self._source is not None
            self._source.close()

    def _shut(self) -> None:
        """By its owner: what was not given never is."""
        if self._stepping:
            raise errors.InterfaceError("the stream is in use: somebody waits for its next row")
        self._given = self.rowcount
        self._chunk = iter(())
        self._end()

    def __del__(self) -> None:
        if getattr(self, "_open", False):  # unset where __init__ failed
            self._open = False
            self._source.close()  # type: ignore[union-attr]

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._open else "not started"
        return f"<{type(self).__module__}.{type(self).__qualname__} made at {self._where}, {state}>"
