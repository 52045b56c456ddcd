"""Row streaming: what the streams of both faces share. Where the rows come from is in _sources.py.

Nothing happens before a stream's first step; then there is exactly one error, or the end, and afterwards the end again.
A flow runs only where rows have to be waited for: what has come already is taken without one. A wait that ends early
(the task is cancelled, a timeout runs out) ends the stream.
"""

from __future__ import annotations

from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING, Any, Generic

from pgpoll import errors
from pgpoll._sources import PREFETCH, Held, Portal, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import TypeVar

    from pgpoll import core
    from pgpoll._flows import Flow

    R = TypeVar("R", default=core.Record)
else:
    from typing import TypeVar

    R = TypeVar("R")

T = TypeVar("T")

__all__ = ["PREFETCH", "R", "Rows"]


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
        self._source: Source | None = None
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
        if not self._open:
            yield from self._step(self._opened())

    def _more(self, whole: bool) -> Flow[list[R]]:
        """The next rows, waited for; [] at the end."""
        if self._ended:
            return []
        return (yield from self._step(self._next(whole)))

    def _step(self, flow: Flow[T]) -> Flow[T]:
        """One at a time; a wait that ends early ends the stream."""
        if self._stepping:
            raise errors.InterfaceError("the stream is in use: somebody waits for its next row already")
        if self._ended:
            raise errors.InterfaceError("the stream has ended: make a new one")
        try:
            self._stepping = True
            return (yield from flow)
        except BaseException:
            self._give_up()
            raise
        finally:
            self._stepping = False

    def _opened(self) -> Flow[None]:
        source = yield from self._begun()
        while not source.opened():
            yield from source.wait()

    def _next(self, whole: bool) -> Flow[list[R]]:
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

    def _begun(self) -> Flow[Source]:
        prefetch: Any = self._prefetch
        if prefetch is not None and (
            isinstance(prefetch, bool) or not isinstance(prefetch, int) or not 1 <= prefetch < 2**31
        ):
            raise errors.InterfaceError(f"prefetch must be an int from 1 to 2147483647, or None, not {prefetch!r}")
        verbs = self._verbs
        driver, via = verbs._driver, verbs._via
        start = partial(driver.core.start_stream, self._sql, self._args, prefetch)
        held = Held(driver, via, start, prefetch, self._where)
        source: Source = held
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
            assert self._source is not None
            self._source.close()
            self._open = False  # not before: a signal handler may raise in between

    def _torn(self, error: BaseException) -> None:
        """Entering or leaving it has failed."""
        if not isinstance(error, errors.Error):
            self._end()

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
