"""What is sent for blocks - BEGIN, SAVEPOINT, COMMIT, ROLLBACK, RELEASE - and what its answers mean.

- Of a block that is LAZY nothing is sent before the first request inside of it, which carries the BEGIN or SAVEPOINT
  of all that have not begun under its own Sync (core.Connection._start_behind). What can't carry it, a script or a
  channel, lets it go alone first (`open_alone`). Until BEGIN's CommandComplete has come nothing else of the block is
  written: where it fails the server skips what rode with it, and what came behind it would be no part of a
  transaction. Such a block is FAILED until it is left.
- A block leaves the stack when the reply to its end says so, by ReadyForQuery's status byte where it is the outermost.
- The commands are watched here, not by the task that asked for them. A block that is DOOMED stays on the stack without
  an owner and is rolled back (`clean`) in front of the line, again and at once.

Who may send, and who waits, is of _blocks.py: it is told when that may have changed (`advance`).

Sources: PostgreSQL manual, BEGIN, SAVEPOINT, ROLLBACK TO SAVEPOINT; "Message Flow" (ReadyForQuery).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pgpoll import errors
from pgpoll._turns import (
    COMMITTED,
    DOOMED,
    ENDING,
    FAILED,
    LAZY,
    LOST,
    NEW,
    OPEN,
    PREPARED,
    ROLLED_BACK,
    STARTING,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgpoll import core
    from pgpoll._blocks import Engine
    from pgpoll._turns import Block, Control

T = TypeVar("T")


class Commands:
    """The stack of one connection's blocks, and what is on its way at the server to change it."""

    def __init__(self, connection: core.Connection, engine: Engine, advance: Callable[..., None]) -> None:
        self.stack: list[Block] = []
        self.busy: dict[Block, core.Operation[Any]] = {}  # a command of theirs is on its way: the last one
        self._core = connection
        self._engine = engine
        self._advance = advance  # with the Control that was settled, where there is one
        self._serial = 0

    def begin(self, control: Control) -> None:
        """Put a block onto the stack, and send what begins it; of a lazy one nothing is sent yet."""
        block = control.block
        if not self.stack:
            if self._core.transaction_status in ("T", "E") and not self._core.in_flight:
                raise errors.InterfaceError("a transaction was begun by hand: end it first")
            command = block.begin
        elif block.options:
            raise errors.InterfaceError(
                "a transaction inside of another is a savepoint: it takes no isolation, readonly or deferrable"
            )
        else:
            self._serial += 1
            block.savepoint = f"pgpoll_{self._serial}"
            command = f"SAVEPOINT {block.savepoint}"
        block.begin = command
        if block.lazy:
            if self._core.closed:
                raise errors.InterfaceError("the connection is closed")
            block.state, control.decided = LAZY, True
            self.stack.append(block)
            return
        lazy, outermost = self._unbegun(), all(each.state is LAZY for each in self.stack)
        block.state = STARTING
        self.stack.append(block)  # first: what is sent must be known of
        try:
            operation = self._behind(lazy, outermost, partial(self._core.start_command, command))
        except Exception:
            block.state = NEW
            self.stack.remove(block)
            raise
        block.begun = True
        self._watch(control, [operation])

    def open(self, start: Callable[[], core.Operation[T]]) -> core.Operation[T]:
        """Start a request that carries what begins the blocks that have not begun. It may be such a command itself."""
        lazy = self._unbegun()
        return self._behind(lazy, len(lazy) == len(self.stack), start)

    def open_alone(self) -> None:
        """Begin what has not begun, for the sake of a request that can't carry it."""
        lazy = self._unbegun()
        *commands, last = (each.begin for each in lazy)
        start = partial(self._core.start_command, last)
        operations = self._core._start_behind(tuple(commands), len(lazy) == len(self.stack), start)
        self._opening(lazy, operations, rides=False)
        self._engine.flush()

    def finish(self, control: Control) -> bool:
        """End the innermost block as `control` says, or as the server's status leaves it no choice.

        False where it has to begin first, which is asked for: it is to be finished then.
        """
        block = control.block
        if block.state is LAZY and control.prepare:
            self.open_alone()
            return False
        if control.commit and block.state is FAILED:
            control.commit, control.spoiled = False, True
        if not block.begun:
            control.decided = True
            self.end(block, COMMITTED if control.commit else ROLLED_BACK)
            self._advance(control)
            return True
        status = self._core.transaction_status
        if status == "I" and not self._core.in_flight:
            self.end(block, "ended by hand inside of its block")
            if control.commit:
                control.error = block.refusal()
            control.decided = True
            self._advance(control)
            return True
        if control.commit and status == "E":
            control.commit, control.spoiled = False, True
        commands = (control.prepare,) if control.commit and control.prepare else _ending(block, commit=control.commit)
        before, block.state = block.state, ENDING  # first: what is sent must be known of
        try:
            control.operations.extend(map(self._core.start_command, commands))  # at once, whatever a signal does
        except Exception:
            block.state = before
            raise
        self._watch(control, control.operations)
        return True

    def unsend(self, control: Control) -> None:
        """Nothing of this start or end was sent: nor will it be."""
        for operation in control.operations:
            operation.abandon()
        control.decided = True
        self.busy.pop(control.block, None)

    def doom(self, block: Block) -> None:
        """It is to be rolled back, by `clean`, and is nobody's."""
        if block in self.stack:
            block.state, block.owner = DOOMED, None

    def clean(self) -> None:
        """Roll back the doomed blocks that are innermost, unless that is on its way."""
        depth = len(self.stack)
        while depth and self.stack[depth - 1].state is DOOMED:
            depth -= 1
        doomed = self.stack[depth:]
        if not doomed or any(block in self.busy for block in self.stack):
            return
        if not doomed[0].begun or (self._core.transaction_status == "I" and not self._core.in_flight):
            self.end(doomed[0], ROLLED_BACK)
            return
        try:
            operations = tuple(self._core.start_command(each) for each in _ending(doomed[0], commit=False))
        except errors.InterfaceError:
            return  # the connection has ended, or ends: lost() follows
        self.busy[doomed[0]] = operations[-1]
        self._engine.watch(operations[-1], partial(self._cleaned, doomed[0], operations))

    def end(self, block: Block, outcome: str) -> None:
        """It has left the server: it and all inside of it leave the stack."""
        while block in self.stack:
            self.stack[-1].end(outcome)
            self.stack.pop()

    def lost(self) -> None:
        """The connection has ended, and every block."""
        for block in self.stack:
            block.end(LOST)
        self.stack.clear()
        self.busy.clear()

    # -- within

    def _unbegun(self) -> list[Block]:
        """The blocks that have not begun, all of them innermost. Raises InterfaceError where they never can."""
        lazy = [block for block in self.stack if block.state is LAZY]
        if len(lazy) < len(self.stack) and not (outer := self.stack[-len(lazy) - 1]).begun:
            raise outer.refusal()
        return lazy

    def _behind(self, lazy: list[Block], outermost: bool, start: Callable[[], core.Operation[T]]) -> core.Operation[T]:
        *operations, operation = self._core._start_behind(tuple([each.begin for each in lazy]), outermost, start)
        self._opening(lazy, operations, rides=True)
        return operation

    def _opening(self, lazy: list[Block], operations: list[core.Operation[Any]], *, rides: bool) -> None:
        for block, operation in zip(lazy, operations, strict=True):
            block.state, block.begun = STARTING, True
            self.busy[block] = operation
            self._engine.tell(operation, partial(self._opened, block, operation, rides))

    def _opened(self, block: Block, operation: core.Operation[Any], rides: bool) -> None:
        """A block that was entered lazily has begun, or has not; where the connection has ended lost() follows."""
        if not self._core.closed:
            try:
                operation.result()
                if block.state is STARTING:
                    block.state = OPEN
            except errors.Error as error:
                if block.state is STARTING or block.state is DOOMED:
                    self._not_begun(block, error.with_traceback(None), sent=operation.written, rides=rides)
        self.busy.pop(block, None)  # not before: see _mending.mend
        if not self._core.closed:
            self._advance()

    def _watch(self, control: Control, operations: list[core.Operation[Any]]) -> None:
        control.operations, control.operation = operations, operations[-1]
        self.busy[control.block] = control.operation
        self._engine.watch(control.operation, partial(self._answered, control))

    def _answered(self, control: Control) -> None:
        """The server has answered a start or an end, or never will."""
        if control.decided:
            return
        control.tag, error = _outcome(control.operations)
        control.error, block, failed = error, control.block, error is not None
        if self._core.closed:  # lost() follows
            self.busy.pop(block, None)
            control.decided = True
            control.wake()
            return
        if block.state is STARTING and not failed:
            block.state = OPEN
        elif error is not None and block.state in (STARTING, DOOMED):
            self._not_begun(block, error, sent=control.sent, rides=False)
        elif block.state is ENDING:
            outcome = ROLLED_BACK
            if control.commit and not failed and control.tag != "ROLLBACK":
                outcome = PREPARED if control.prepare else COMMITTED
            # a savepoint that can't be rolled back to leaves its transaction in status E: nothing of it can last
            self._gone_or_doomed(block, outcome, gone=bool(block.savepoint) and not (control.commit and failed))
        self.busy.pop(block, None)
        control.decided = True  # not before: see _mending.mend
        self._advance(control)

    def _not_begun(self, block: Block, error: errors.Error, *, sent: bool, rides: bool) -> None:
        """BEGIN or SAVEPOINT has failed, or was never sent; `rides`: nor was then what it would have ridden with."""
        block.begun = sent and not block.savepoint and self._core.transaction_status != "I"
        if block.state is DOOMED:
            return  # clean() sees to it
        if rides and not sent:
            block.state = LAZY
        elif block.lazy:
            block.state, block.error, block.told = FAILED, error, rides
        elif block.begun:
            self.doom(block)
        else:
            self.end(block, "could not be started")

    def _gone_or_doomed(self, block: Block, outcome: str, *, gone: bool) -> None:
        if gone or self._core.transaction_status == "I":
            self.end(block, outcome)
        else:
            self.doom(block)

    def _cleaned(self, block: Block, operations: tuple[core.Operation[Any], ...]) -> None:
        if self.busy.get(block) is not operations[-1]:
            return
        if block.state is not DOOMED:
            self.busy.pop(block)
            return
        _, error = _outcome(operations)
        if block.savepoint or self._core.transaction_status == "I":
            self.end(block, ROLLED_BACK)
            self.busy.pop(block)
            self._advance()
        else:
            self.busy.pop(block)
            self._engine.abort(f"a transaction could not be rolled back: {error}")


def _outcome(operations: Sequence[core.Operation[Any]]) -> tuple[str, errors.Error | None]:
    """The last one's tag, and the first one's error that has one."""
    tag = ""
    for operation in operations:
        try:
            tag = str(operation.result() or "")
        except errors.Error as error:
            return "", error.with_traceback(None)
    return tag, None


def _ending(block: Block, *, commit: bool) -> tuple[str, ...]:
    if not block.savepoint:
        return ("COMMIT",) if commit else ("ROLLBACK",)
    release = f"RELEASE SAVEPOINT {block.savepoint}"
    return (release,) if commit else (f"ROLLBACK TO SAVEPOINT {block.savepoint}", release)
