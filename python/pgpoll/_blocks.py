"""Who may use a connection now: the stack of live blocks, and the line of requests that wait for them.

A transaction owns its connection while it lasts. This file decides who is inside, who waits, and in which order they
go on; it knows neither asyncio nor threads, does no I/O and holds no handle of the connection.

- `Blocks.stack` holds the live blocks, outermost first; each but the first is a savepoint. While it is empty everybody
  may send, and nobody waits: the faces test its truth before anything else.
- A request may go if the innermost block is OPEN and the request was made through that block's handle (`via`), or by
  the task or thread that entered it (`who`), or in a context that carries it (`carried`). Everyone else stands in one
  line. Whenever the stack changes, everyone in the line who may go now is started, in order and each in its own
  context, before anyone is woken; a block among them becomes the innermost one and stops the rest.
- A block that is entered by `with` is LAZY: its first request begins it. One whose BEGIN has failed is FAILED, and
  refuses whatever is inside of it, until it is left. What is sent for a block, and what the answers mean, is in
  _commands.py; what makes all right again that a signal handler tore apart, in _mending.py.
- Nothing depends on resetting a context: an ENDED block counts for nothing wherever it is still carried.
- A channel (a stream outside of a transaction, a COPY, a batch: `Hold`) is a block too, the innermost one for as long
  as its operation runs. Nobody may send then: who is inside gets an error, all others wait.
- BEGIN, COMMIT and the like are not watched by the task that asked for them. Whoever waits for one may go away
  (`give_up`): what was not sent is not sent; a block whose start had been sent, and one whose end was not, is DOOMED:
  it stays on the stack without an owner and is rolled back in front of the line, again and at once.
- A COMMIT that was sent goes on without its task; what it came to stays unknown to that task (CommitUnknown).

The sync face holds its mutex, the asyncio face is in its loop's thread, whenever a method here is called.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pgpoll import errors
from pgpoll._commands import Commands
from pgpoll._turns import (
    CLOSED,
    DOOMED,
    ENDED,
    ENDING,
    FAILED,
    LAZY,
    LOST,
    NEW,
    OPEN,
    STARTING,
    WAITING,
    Control,
    Hold,
    Turn,
    name_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll import core
    from pgpoll._turns import Block

T = TypeVar("T")


class Engine(Protocol):
    """What a face does for its blocks."""

    def watch(self, operation: core.Operation[Any], done: Callable[[], None]) -> None:
        """Sends `operation`, whoever else waits, and calls `done` once when it is done."""

    def tell(self, operation: core.Operation[Any], done: Callable[[], None]) -> None:
        """Calls `done` once when `operation` is done, before whoever awaits a later one goes on."""

    def flush(self) -> None:
        """Something was started, or abandoned: what there is to send is to leave."""

    def attend(self, operation: core.Operation[Any]) -> None:
        """A channel has been opened: `Blocks.settle` is to be called when it is done."""

    def abort(self, why: str) -> None:
        """The connection can't go on: it ends now."""


class Blocks:
    """The stack and the line of one connection."""

    def __init__(self, connection: core.Connection, engine: Engine, max_queued: int | None = None) -> None:
        self._commands = Commands(connection, engine, self._advance)
        self.stack = self._commands.stack  # the same list, for as long as they last
        self.closing = False
        self._max_queued = max_queued
        self._core = connection
        self._engine = engine
        self._line: dict[Turn, None] = {}
        self._settled: list[Turn] = []
        self._advancing = False
        self._again = False

    # -- requests

    def admits(self, via: Block | None, who: object, carried: tuple[Block, ...]) -> bool:
        """Whether such a request may go now. Raises InterfaceError where it never may."""
        if via is not None and via.state in (NEW, ENDED):
            raise via.refusal()
        if not self.stack:
            return not self.closing and via is None
        top = self.stack[-1]
        inside = top is via or (who is not None and top.owner is who) or top in carried or top.adopted_by(who)
        if inside and (top.channel or top.state is FAILED):
            raise top.refusal()
        return top.state is OPEN and inside

    def opens(self, via: Block | None, who: object, carried: tuple[Block, ...]) -> bool:
        """Whether such a request is the first one inside of a block that has not begun."""
        if not self.stack or (top := self.stack[-1]).state is not LAZY:
            return False
        return top is via or (who is not None and top.owner is who) or top in carried

    def start(
        self, start: Callable[[], core.Operation[T]], via: Block | None, who: object, carried: tuple[Block, ...] = ()
    ) -> core.Operation[T] | None:
        """The operation of a request that BEGIN may ride with, if it may go now. Raises as `admits`, and as `start`."""
        if self.opens(via, who, carried):
            return self._commands.open(start)
        return start() if self.admits(via, who, carried) else None

    def inside(self, turn: Turn) -> list[Block]:
        """The live blocks that this request belongs to, outermost first."""
        return [
            block
            for block in self.stack
            if block is turn.via or (turn.who is not None and block.owner is turn.who) or block in turn.carried
        ]

    def check_cancel(self, turn: Turn) -> None:
        """InterfaceError where what runs is part of a block that the maker of `turn` is not inside of."""
        if self.stack and not any(self.inside(turn)):
            top = self.stack[-1]
            way = "end that" if top.channel else "use its handle's cancel()"
            raise errors.InterfaceError(f"what runs is part of the {top.kind} entered at {top.where}: {way}")

    def check_outside(self, turn: Turn, what: str) -> None:
        """InterfaceError where the maker of `turn` is inside of a block."""
        for block in self.inside(turn):
            raise errors.InterfaceError(f"{what} can't be used inside of the {block.kind} entered at {block.where}")

    def line_up(self, turn: Turn) -> None:
        """Let it wait for its turn. Raises InterfaceError where the connection takes no more, BusyError for now."""
        if self.closing and not any(self.inside(turn)):
            raise errors.InterfaceError(f"the connection is {'closed' if self._core.closed else 'closing'}")
        if self._max_queued is not None and (queued := len(self._line) + self._core.in_flight) >= self._max_queued:
            raise errors.BusyError(f"client is busy: {queued} requests are queued")
        if self.opens(turn.via, turn.who, turn.carried):
            self._commands.open_alone()
        self._line[turn] = None

    def go(self, turn: Turn) -> None:
        """Start it now, or let it wait for its turn. Raises what its start raises, and as `line_up`."""
        about = turn.via, turn.who, turn.carried
        if self.admits(*about) or (turn.opens and self.opens(*about)):
            self._start(turn)
        else:
            self.line_up(turn)

    def go_unowned(self, turn: Turn) -> None:
        """As `go`, for what the driver does by itself and nobody waits for: a stranger's, refused only by the core."""
        if self.stack:
            self._line[turn] = None
        elif not self.closing:
            self._start(turn)

    def go_now(self, turn: Turn) -> bool:
        """Start it where it may go at once; else nothing has happened, and False."""
        if self.stack and self.stack[-1].channel:
            return False
        if not self.admits(turn.via, turn.who, turn.carried):
            return False
        try:
            self._start(turn)
        except errors.InterfaceError:  # too many are queued, or the connection has ended: whoever waits for it is told
            return False
        return True

    def release(self, block: Block) -> None:
        """A channel's operation is done, or nobody wants it any more: what is left of it, the core sees to."""
        if block.operation is not None and not block.operation.done():
            block.operation.abandon()
            self._engine.flush()
        if block in self.stack:
            self._commands.end(block, "closed")
            self._advance()

    def settle(self) -> None:
        """The channel that has just ended owns nothing any more, whether its owner knows it or not."""
        if not self.stack or self.stack[-1].stays:
            return
        if (channel := self.stack[-1].operation) is not None and channel.done():
            self._commands.end(self.stack[-1], "ended")
            self._advance()

    def in_line(self, turn: Turn) -> bool:
        """Whether it waits."""
        return turn in self._line

    @property
    def waiting(self) -> int:
        """How many wait in line."""
        return len(self._line)

    @property
    def oldest(self) -> Turn | None:
        """Who has waited longest."""
        return next(iter(self._line), None)

    def complaint(self, seconds: float) -> str | None:
        """What to log when someone has waited so long; None where that was said already, or nobody is to blame."""
        if not self.stack or not self._line or (top := self.stack[-1]).warned:
            return None
        top.warned = True
        owner = f"owned by {name_of(top.owner)}" if top.owner is not None else "without an owner"
        what = f"{top.kind} entered at {top.where}"
        return (
            f"{len(self._line)} request(s) have waited up to {seconds:.0f} s for the {what}, {owner}, which "
            f"{top.state.value}"
        )

    # -- starts and ends

    def enter(self, control: Control, *, lazy: bool = False) -> None:
        """Begin a block now, or line up for it; a lazy one is begun by its first request."""
        block = control.block
        if block.state is not NEW:
            raise errors.InterfaceError(f"the transaction entered at {block.where} {block.state.value}: make a new one")
        block.owner, block.lazy = control.who, lazy
        about = control.via, control.who, control.carried
        if self.admits(*about) or self.opens(*about):
            self._commands.begin(control)
        else:
            block.state = WAITING
            try:
                self.line_up(control)
            except Exception:
                block.state = NEW
                raise

    def leave(self, control: Control) -> None:
        """End a block now, or line up behind the other tasks' blocks inside of it.

        Raises InterfaceError, nothing changed, where it isn't open, or where that wait would be for oneself.
        """
        block = control.block
        if block.state is ENDED and block.outcome == LOST:
            raise _retryable(errors.ConnectionLost(f"the transaction entered at {block.where} has ended: {LOST}"))
        if not _live(block):
            raise block.refusal()
        if control.prepare and block.savepoint:
            raise errors.InterfaceError(
                "a transaction inside of another is a savepoint: only the outermost is prepared"
            )
        top = self.stack[-1]
        if top is block:
            if block.state is STARTING or not self._commands.finish(control):
                self._line[control] = None
        elif top.channel and (top.owner is control.who or top in control.carried):
            self.release(top)  # left behind, not closed: it ends here
            self.leave(control)
        elif top.owner is not None and top.owner is control.who and _live(top):
            raise errors.InterfaceError(f"the transaction entered at {top.where}, inside of this one, is still open")
        else:
            self._line[control] = None

    def doom(self, block: Block) -> None:
        """Roll it back without a task; what its owner opened inside of it goes with it."""
        if block not in self.stack or block.state is ENDING:
            return
        owner = block.owner
        for each in self.stack[self.stack.index(block) :]:
            if each is block or (_live(each) and owner is not None and each.owner is owner):
                self._doom(each)
        self._advance()

    def give_up(self, turn: Turn) -> bool:
        """Whoever waited for `turn` has gone away. True: a COMMIT was sent, and may or may not take effect."""
        if turn in self._line:
            del self._line[turn]
            if isinstance(turn, Control):
                if turn.block in self.stack:
                    self._doom(turn.block)
                else:
                    turn.block.state = ENDED
            self._advance()
            return False
        if not isinstance(turn, Control):
            if isinstance(turn, Hold):
                self.release(turn.block)
            elif turn.operation is not None:
                turn.operation.abandon()
            return False
        block = turn.block
        if turn.decided:  # and the news never reached its task
            if _live(block) and turn.error is None:
                self.doom(block)
            return turn.commit and turn.sent and turn.error is None
        block.owner = None
        if turn.sent:
            if block.state is STARTING:
                self._doom(block)
            return turn.commit
        if block.state is STARTING and not turn.operations:
            return False  # torn from its start: _mending.mend sees to it
        if block.state is STARTING:
            self._commands.unsend(turn)
            self._commands.end(block, "never started")
        else:
            self._commands.unsend(turn)
            self._doom(block)
        self._advance()
        return False

    def close(self, turn: Turn) -> None:
        """Take no more strangers, and put `turn` at the line's end, as a stranger's."""
        self.closing = True
        self._line[turn] = None
        self._advance()

    def retire(self, turn: Turn) -> None:
        """Roll back what the maker of `turn` is inside of: the connection is being closed by it."""
        for block in self.inside(turn):
            if _live(block):
                self._doom(block)
                block.outcome = CLOSED
        self._advance()

    def lost(self) -> None:
        """The connection has ended: everyone in line is told, and no block is live any more."""
        self._commands.lost()
        line, self._line = self._line, {}
        for turn in line:
            if isinstance(turn, Control) and turn.block.state is WAITING:
                turn.block.state = ENDED
            turn.error, turn.decided = self._lost(), True
        for turn in line:
            turn.wake()

    @property
    def operations(self) -> set[core.Operation[Any] | None]:
        """The channels', which run on between requests."""
        return {block.operation for block in self.stack}

    # -- within

    def _lost(self) -> errors.Error:
        cause = self._core.why_closed
        if isinstance(cause, errors.ConnectionLost):
            error = errors.ConnectionLost(str(cause))
            error.__cause__ = cause.__cause__
        else:
            error = errors.ConnectionLost(f"the connection was lost: {cause}")
            error.__cause__ = cause
        return _retryable(error)

    def _doom(self, block: Block) -> None:
        if block.channel:
            self.release(block)
        else:
            self._commands.doom(block)

    def _advance(self, settled: Control | None = None) -> None:
        """Start everyone who may go now, in order; then wake them, and last those whose control was settled."""
        if not self._line and not self._advancing and not (self.stack and self.stack[-1].state is DOOMED):
            if settled is not None:
                settled.wake()
            return
        if settled is not None:
            self._settled.append(settled)
        self._again = True
        if self._advancing:
            return
        self._advancing = True
        started: list[Turn] = []
        try:
            while self._again:
                self._again = False
                self._commands.clean()
                self._run(started)
        finally:
            self._advancing = False
            settling, self._settled = self._settled, []
            self._engine.flush()
            for turn in dict.fromkeys((*started, *settling)):
                turn.wake()

    def _run(self, started: list[Turn]) -> None:
        for turn in tuple(self._line):
            if turn not in self._line or turn.gone():
                continue  # withdrawn by what a start ran, or soon
            try:
                if not self._may_go(turn):
                    continue
                del self._line[turn]
                self._start(turn)
            except BaseException as error:
                self._line.pop(turn, None)
                turn.decided = True
                if isinstance(turn, Control) and turn.block.state is WAITING:
                    turn.block.state = ENDED
                started.append(turn)
                if not isinstance(error, Exception):
                    turn.error = errors.InterfaceError("interrupted while it was started")
                    if isinstance(turn, (Control, Hold)):
                        self._doom(turn.block)
                    raise
                turn.error = error
            else:
                if turn.decided:
                    started.append(turn)

    def _may_go(self, turn: Turn) -> bool:
        if isinstance(turn, Control) and turn.block.state is not WAITING:
            if not _live(turn.block):
                raise turn.block.refusal()
            return self.stack[-1] is turn.block and turn.block.state is not STARTING
        if turn.via is None and not self.stack:
            return True  # also while closing: it was accepted before
        about = turn.via, turn.who, turn.carried
        if self.admits(*about):
            return True
        if not self.opens(*about):
            return False
        if turn.opens or isinstance(turn, Control):
            return True
        self._commands.open_alone()
        return False

    def _start(self, turn: Turn) -> None:
        if isinstance(turn, Control):
            if turn.block.state is WAITING:
                try:
                    self._commands.begin(turn)
                except BaseException:
                    turn.block.state = ENDED
                    raise
            elif not self._commands.finish(turn):
                self._line[turn] = None
        else:
            start = turn.start if turn.context is None else partial(turn.context.run, turn.start)
            opens = bool(self.stack) and self.stack[-1].state is LAZY
            operation = self._commands.open(start) if opens else start()
            if isinstance(turn, Hold):
                block = turn.block
                block.state, block.owner, block.operation = OPEN, turn.who, operation
                self.stack.append(block)
                self._engine.attend(operation)
            turn.operation, turn.decided = operation, True


def _live(block: Block) -> bool:
    """Whether its owner is within it."""
    return block.state in (OPEN, LAZY, FAILED) or (block.state is STARTING and block.lazy)


def _retryable(error: errors.Error) -> errors.Error:
    error.safe_to_retry = True
    return error
