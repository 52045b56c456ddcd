"""Batches: many requests under one Sync, and one statement for many rows. Written once for both faces.

    Batch         what the handles of `batch()` have in common: its items, and what becomes of each
    Item          the handle of one item
    executemany   the flow of that verb

Nothing is told to anybody before ReadyForQuery: an error at the Sync (a deferred constraint) concerns all items.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pgpoll import errors
from pgpoll._flows import END, Call, Flow, Item, News, Sent, check_callback, started
from pgpoll._turns import CLOSED

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable

    from pgpoll import core
    from pgpoll._blocks import Blocks
    from pgpoll._turns import Hold

T = TypeVar("T")

NEW, OPEN, LEFT = "was not entered: use `with`", "is open: its items have results when its block is left", "has ended"


class Batch:
    """The items of one batch: numbered in order, counted from 0."""

    __slots__ = ("_ended", "_error", "_hold", "_operation", "_state")

    def __init__(self) -> None:
        self._hold: Hold | None = None
        self._operation: core.Operation[Any] | None = None
        self._state = NEW
        self._ended = False  # its Sync may have been sent
        self._error: BaseException | None = None  # what left it early

    def _enter(self, hold: Hold) -> Hold:
        if self._state is not NEW or self._hold is not None:
            raise errors.InterfaceError("a batch is entered once: make a new one")
        hold.block.stays = True
        self._hold = hold
        return hold

    def _opened(self, operation: core.Operation[Any]) -> None:
        self._operation = operation
        self._state = OPEN

    def _number(self, sql: str, args: tuple[Any, ...]) -> int:
        if self._operation is None or self._state is not OPEN:
            raise errors.InterfaceError(f"the batch {self._state}")
        operation = self._operation
        if operation.done() and getattr(operation.connection, "closed", True):
            operation.result()  # raises what ended it; any other error is told when the block is left
        return operation.add(sql, args)

    def _break(self, error: BaseException) -> None:
        """The block was left by an exception: what was not sent is dropped, what was can't last."""
        self._state = LEFT
        if self._operation is not None and not self._operation.done():
            self._error = error

    def _value(self, number: int, want: core.Want[T]) -> T:
        """What this item gave; raises what became of it instead."""
        operation = self._operation
        if operation is None or self._state is not LEFT:
            raise errors.InterfaceError(f"the batch {self._state}")
        if self._error is not None:
            raise self._left_early(operation, number)
        try:
            return operation.item(number, want)
        except errors.Error as error:
            failed = operation.failed_item
            if number == failed or error is not self._failure(operation):
                raise
            raise _consequence(operation, number, failed, error) from error

    @staticmethod
    def _failure(operation: core.Operation[Any]) -> errors.Error | None:
        try:
            operation.result()
        except errors.Error as error:
            return error
        return None

    def _left_early(self, operation: core.Operation[Any], number: int) -> errors.Error:
        error: errors.Error
        if self._ended:
            error = errors.OperationalError("the wait for the batch was given up: it may have taken effect, or not")
        elif number < operation.items_written:
            error = errors.BatchRolledBack("the block of the batch was left by an exception: this item was rolled back")
        else:
            error = errors.BatchSkipped("the block of the batch was left by an exception before this item was sent")
            error.safe_to_retry = True
        error.__cause__ = self._error
        return error


def _consequence(operation: core.Operation[Any], number: int, failed: int | None, error: errors.Error) -> errors.Error:
    """What an item gets where another one has failed, or the connection."""
    if operation.items_written and not operation.settled:
        lost = errors.ConnectionLost("the connection was lost before the batch was answered")
        lost.safe_to_retry = number >= operation.items_written
        return lost
    if failed is None:
        return errors.BatchRolledBack(f"the batch failed at its end, and this item with it: {error}")
    if number < failed:
        return errors.BatchRolledBack(f"item {failed} of the batch failed: this item was rolled back")
    skipped = errors.BatchSkipped(f"item {failed} of the batch failed: this item was not executed")
    skipped.safe_to_retry = number >= operation.items_written
    return skipped


class BatchItem(Generic[T]):
    """One request of a batch. Its result is there once the block has been left.

    Raises its own error; BatchRolledBack or BatchSkipped where another one's error, or leaving the block early, has
    undone it or kept it from being executed; InterfaceError while the block is open.
    """

    __slots__ = ("_batch", "_outcome", "_want", "number")

    number: int
    """Its place in the batch, counted from 0."""

    def __init__(self, batch: Batch, number: int, want: core.Want[T]) -> None:
        self._batch = batch
        self.number = number
        self._want = want
        self._outcome: tuple[T | None, Exception | None] | None = None

    def result(self) -> T:
        """What it gave, or its error, each time; see the class."""
        if self._outcome is None:
            batch = self._batch
            try:
                self._outcome = batch._value(self.number, self._want), None
            except Exception as error:
                if batch._state is not LEFT:
                    raise
                self._outcome = None, error
        value, failure = self._outcome
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<pgpoll.{type(self).__qualname__} {self.number}>"


def blame(error: BaseException, operation: core.Operation[Any], what: str) -> None:
    """Let an error say which item it is of."""
    number = operation.failed_item
    if number is not None and isinstance(error, errors.Error) and error.item is None:
        error.item = number
        error.add_note(f"item {number} of the {what}, counted from 0")


def _check_open(hold: Hold) -> None:
    """InterfaceError where its own task has closed the connection."""
    if hold.block.outcome == CLOSED:
        raise errors.InterfaceError(f"the batch entered at {hold.block.where} has ended: {CLOSED}")


def ended(operation: core.Operation[Any], flush: Callable[[], object]) -> Flow[None]:
    """Send the Sync, and wait for what it comes to."""
    operation.end()
    flush()
    while not operation.done():
        yield News(operation)


def leave(batch: Batch, blocks: Blocks, flush: Callable[[], object]) -> Flow[None]:
    """The normal end of the block. Raises the error of the item that has failed."""
    hold, operation = batch._hold, batch._operation
    assert hold is not None
    assert operation is not None
    try:
        _check_open(hold)
        batch._ended = True
        yield from ended(operation, flush)
    except BaseException as error:
        batch._error = error
        raise
    finally:
        batch._state = LEFT
        blocks.release(hold.block)
    try:
        operation.result()
    except errors.Error as error:
        blame(error, operation, "batch")
        raise


def executemany(
    blocks: Blocks,
    hold: Hold,
    rows: Iterable[Any] | AsyncIterable[Any],
    flush: Callable[[], object],
    on_progress: Callable[[int], object] | None,
    *,
    asynchronous: bool,
) -> Flow[core.Result]:
    """One statement for all rows. Atomic, whoever fails."""
    check_callback("on_progress", on_progress)
    source, each = _iterator(rows, asynchronous=asynchronous)
    hold.block.within = True
    operation = yield from started(blocks, hold)
    hold.block.carry()  # a task that `rows` makes would wait for itself
    try:
        told = 0
        exhausted, pending = False, iter(())
        while not exhausted:
            if not operation.stirred:
                yield News(operation)
            if on_progress is not None and (answered := operation.items_answered) > told:
                told = answered
                yield Call(partial(on_progress, answered))
            _check_open(hold)
            if operation.done():
                break
            if each and (exhausted := (yield Call(partial(operation.feed_rows, pending)))):
                row = yield Item(source)
                exhausted, pending = row is END, iter((row,))
            elif not each:
                exhausted = yield Call(partial(operation.feed_rows, source))
                if asynchronous:
                    flush()
                else:
                    yield Sent(operation)  # rows may be slow to come: the end of the connection is noticed between
        yield from ended(operation, flush)
        result: core.Result = operation.result()
        if on_progress is not None and (answered := operation.items_answered) > told:
            yield Call(partial(on_progress, answered))
    except BaseException as error:
        blame(error, operation, "executemany")
        raise
    finally:
        hold.block.drop()
        blocks.release(hold.block)
    return result


def _iterator(rows: Any, *, asynchronous: bool) -> tuple[Any, bool]:
    """Its iterator, and whether that is an asynchronous one."""
    if hasattr(rows, "__aiter__"):
        if not asynchronous:
            raise errors.InterfaceError("asynchronous rows can't be iterated here: use pgpoll.connect")
        return rows.__aiter__(), True
    try:
        return iter(rows), False
    except TypeError as error:
        raise errors.InterfaceError(f"rows must be iterable, not {type(rows).__name__}") from error
