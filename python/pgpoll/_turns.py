"""What stands in a connection's line: a block (a transaction or savepoint), a request's turn, a block's start or end.

Plain data; _blocks.py has the rules.
"""

from __future__ import annotations

import enum
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pgpoll import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from pgpoll import core


class State(enum.Enum):
    """Where a block is in its life."""

    NEW = "has not been started"
    WAITING = "waits to be started"
    LAZY = "has not begun at the server"
    STARTING = "is being started"
    OPEN = "is open"
    ENDING = "is being ended"
    DOOMED = "is being rolled back"
    FAILED = "could not be started"
    ENDED = "has ended"


NEW, WAITING, LAZY, STARTING, OPEN, ENDING, DOOMED, FAILED, ENDED = State

COMMITTED = "committed"
PREPARED = "prepared"
ROLLED_BACK = "rolled back"
CLOSED = "closed: rolled back"
LOST = "the connection was lost: rolled back"

# All blocks that this context is inside of, of all connections, outermost first; ended ones may be among them.
_carried: ContextVar[tuple[Block, ...]] = ContextVar("pgpoll_blocks", default=())
carried = _carried.get


class Block:
    """One transaction, or savepoint, of one connection. Knows no connection, so a context that carries it pins none."""

    __slots__ = (
        *("begin", "begun", "channel", "error", "lazy", "maker", "operation", "options", "outcome", "owner"),
        *("savepoint", "state", "stays", "told", "warned", "where", "within"),
    )

    def __init__(self, begin: str, where: str, channel: str = "") -> None:
        self.begin = begin
        self.options = begin != "BEGIN"
        self.where = where
        self.channel = channel  # what owns the connection, alone: "stream", "COPY", "batch"; empty: a transaction
        self.operation: core.Operation[Any] | None = None  # a channel's
        self.state = NEW
        self.lazy = False  # its first request begins it
        self.begun = False  # its BEGIN or SAVEPOINT was sent and has not failed: there may be something to roll back
        self.error: errors.Error | None = None  # what BEGIN or SAVEPOINT came to, where it failed
        self.told = False  # that error, to whoever it was sent for
        self.outcome = ""  # how it ended, for messages
        self.owner: Any = None  # the task or thread that entered it
        self.maker: object | None = None  # of a transaction: the task that made it, where another may have started it
        self.savepoint = ""  # its name; empty for the outermost
        self.stays = False  # a channel: until it is released, also where its operation is done
        self.warned = False
        self.within = False  # a channel: of one verb, and nobody's once that has returned

    @property
    def live(self) -> bool:
        """Entered, and its end not asked for."""
        return self.owner is not None and self.state in (LAZY, OPEN, FAILED)

    @property
    def kind(self) -> str:
        """What to call it in messages."""
        return self.channel or "transaction"

    def end(self, outcome: str) -> None:
        """It is over, and keeps nothing alive where it is still carried."""
        self.state, self.outcome = ENDED, self.outcome or outcome
        self.owner = self.maker = self.operation = None

    def adopted_by(self, who: object) -> bool:
        """Whether it is `who`'s now, that made it: the task that started it was there for nothing else and has ended.

        As that of asyncio.wait_for() in Python 3.11. Whoever made it would wait for itself.
        """
        if who is None or self.maker is not who or self.owner is None or not self.owner.done():
            return False
        self.owner = who
        return True

    def carry(self) -> None:
        """Put it into the current context; what has ended is left out on this occasion."""
        chain = carried()
        _carried.set((*[block for block in chain if block.state is not ENDED], self) if chain else (self,))

    def drop(self) -> None:
        """Take it out of the current context where it is there; nothing depends on it."""
        if self in (chain := carried()):
            _carried.set(tuple([block for block in chain if block is not self and block.state is not ENDED]))

    def refusal(self) -> errors.Error:
        """What a request through this block's handle gets where it can never go."""
        if self.state is FAILED and self.error is not None and not self.told:
            self.told = True
            return self.error
        outcome = f": {self.outcome}" if self.outcome else ""
        if self.channel == "stream":
            return errors.InterfaceError(
                f"a stream is open here, since {self.where}: use transaction() or another connection"
            )
        if self.channel:
            return errors.InterfaceError(
                f"a {self.channel} is open here, since {self.where}: end it first, or use another connection"
            )
        if self.error is not None and not outcome:
            outcome = f": {self.error}"
        refused = errors.InterfaceError(f"the transaction entered at {self.where} {self.state.value}{outcome}")
        refused.__cause__ = self.error
        return refused


class Turn:
    """A request's place in the line. `wake` is called once, when it is decided: started (`operation`) or refused.

    `gone()` says that nobody waits any more, though they have not given it up yet: it is not started then.
    """

    operation: core.Operation[Any] | None = None
    error: BaseException | None = None
    decided = False
    wake: Callable[[], None] = staticmethod(lambda: None)
    gone: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(
        self,
        start: Callable[[], core.Operation[Any]],
        via: Block | None,
        who: object,
        since: float,
        *,
        carried: tuple[Block, ...] = (),
        context: Context | None = None,
        opens: bool = False,
    ) -> None:
        self.start = start
        self.opens = opens  # whether BEGIN can be sent in front of it, under its Sync
        self.via = via
        self.who = who
        self.carried = carried
        self.context = context  # where `start` runs once it has waited; None: anywhere
        self.since = since


class Hold(Turn):
    """The turn of a channel: an operation that owns the connection while it runs. Nobody else may send meanwhile."""

    def __init__(
        self,
        channel: str,
        where: str,
        start: Callable[[], core.Operation[Any]],
        via: Block | None,
        who: object,
        since: float,
        *,
        carried: tuple[Block, ...] = (),
        context: Context | None = None,
    ) -> None:
        super().__init__(start, via, who, since, carried=carried, context=context)
        self.block = Block("", where, channel)


class Control(Turn):
    """The start or the end of a block: decided when the server has answered. `tag` is the last command's then."""

    spoiled = False  # a COMMIT was asked for, and the status forbade it
    tag = ""

    def __init__(
        self,
        block: Block,
        via: Block | None,
        who: object,
        since: float,
        *,
        carried: tuple[Block, ...] = (),
        commit: bool = False,
        prepare: str = "",
    ) -> None:
        super().__init__(_unstartable, via, who, since, carried=carried)
        self.block = block
        self.commit = commit
        self.prepare = prepare  # of a commit: the PREPARE TRANSACTION that is sent instead
        self.operations: list[core.Operation[Any]] = []

    @property
    def sent(self) -> bool:
        """Whether a byte of it may have left."""
        return any(operation.written for operation in self.operations)


def name_of(who: Any) -> str:
    """What a task or a thread is called in messages."""
    return f"task {who.get_name()!r}" if hasattr(who, "get_name") else f"thread {who.name!r}"


def _unstartable() -> core.Operation[Any]:
    raise AssertionError("a block is started by Blocks")


# -- what transaction() takes

_LEVELS = ("serializable", "repeatable read", "read committed", "read uncommitted")


def begin_command(isolation: str | None, readonly: bool | None, deferrable: bool | None) -> str:
    """The BEGIN of these options; InterfaceError where one is wrong."""
    if isolation is None and readonly is None and deferrable is None:
        return "BEGIN"
    words = ["BEGIN"]
    if isolation is not None:
        level = " ".join(str(isolation).lower().replace("_", " ").split())
        if level not in _LEVELS:
            raise errors.InterfaceError(f"isolation {isolation!r} is not one of {', '.join(_LEVELS)}")
        words.append(f"ISOLATION LEVEL {level.upper()}")
    for name, value, yes, no in (
        ("readonly", readonly, "READ ONLY", "READ WRITE"),
        ("deferrable", deferrable, "DEFERRABLE", "NOT DEFERRABLE"),
    ):
        if value is not None:
            if not isinstance(value, bool):
                raise errors.InterfaceError(f"{name} must be True, False or None, not {value!r}")
            words.append(yes if value else no)
    return " ".join(words)


def caller() -> str:
    """file:line of the first frame outside of this package."""
    frame = sys._getframe(1).f_back
    while frame is not None and frame.f_globals.get("__name__", "").startswith("pgpoll."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"
