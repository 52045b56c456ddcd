"""Stream: the rows of one statement as they come, for the asyncio face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from pgpoll._streams import PREFETCH, R, Rows

if TYPE_CHECKING:
    from types import TracebackType

    from pgpoll._flows import Flow

T = TypeVar("T")

__all__ = ["PREFETCH", "Batches", "Stream"]


class Stream(Rows[R]):
    """The rows of one statement as they come: an async iterator and an async context manager.

    Made by `Connection.stream` and the like. Nothing happens before its first step: `async with`, or the first row.
    Then it ends once: with the last row, by an error, by `aclose()` or the end of the `async with`, or when it is
    dropped; a step that is cancelled or runs out of time ends it, too. What was given before an error stays given.
    Afterwards iterating gives nothing more.

    A stream that ends early leaves the connection clean: where the server runs on, its statement is cancelled. Inside
    of a transaction that makes the transaction fail, so there only a step that is cancelled, or runs out of time, does
    so, and a stream without `prefetch`; leaving one with it costs the rows on their way, at most.

    Outside of a transaction the stream owns the connection. One's own requests, those of tasks made meanwhile included,
    raise InterfaceError; others wait for its end. It needs no transaction block: the statement is its own transaction,
    and fails, or not, as a whole at the end. Inside of one it lasts at most as long as the block that it was opened in;
    what a savepoint is rolled back to takes the streams along that were opened since: iterating on raises
    InterfaceError.

    Two tasks can't wait for its next row at once: InterfaceError.
    """

    __slots__ = ()

    def __aiter__(self) -> Stream[R]:
        return self

    async def __anext__(self) -> R:
        for row in self._chunk:
            return row
        rows = self._at_hand(False) or await self._run(self._more(False))
        if not rows:
            raise StopAsyncIteration
        self._chunk = iter(rows)
        return next(self._chunk)

    def batches(self) -> Batches[R]:
        """An async iterator of lists of records: all that have come each time, at least one, at most `prefetch`."""
        return Batches(self)

    async def aclose(self) -> None:
        """End it now: what has not been given never is. May be called often."""
        self._shut()

    async def __aenter__(self) -> Stream[R]:
        await self._run(self._begin())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shut()

    async def _run(self, flow: Flow[T]) -> T:
        result: T = await self._verbs._driver.run(flow, self._timeout)
        return result


class Batches(Generic[R]):
    """The rows of a stream in lists, as they come: an async iterator. Ends as its stream does."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream[R]) -> None:
        self._stream = stream

    def __aiter__(self) -> Batches[R]:
        return self

    async def __anext__(self) -> list[R]:
        stream = self._stream
        rows = list(stream._chunk) or stream._at_hand(True) or await stream._run(stream._more(True))
        if not rows:
            raise StopAsyncIteration
        return rows
