"""The multi-step verbs, written once: generators that yield what they wait for, and are run by both faces.

A flow yields a Lookup (getaddrinfo's answer comes back), a Control (it is decided), a Turn that was told to `Blocks.go`
(its operation has been started), News (see there), an Item or a Call (comes back); where that fails its error is raised
at the yield. Where the waiting ends early - the task is cancelled, a timeout runs out, Ctrl-C - the face throws that in
there.

    resolve       options with names -> options with addresses
    started       a request's operation, when it was its turn
    answered      and its result
    start         BEGIN or SAVEPOINT
    finish        COMMIT, ROLLBACK or RELEASE, and what became of it: nothing rolled back looks committed (D19), and a
                  COMMIT without a reply is CommitUnknown (D20)
    leave         the end of `with`: one of the above by how the body ended
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from pgpoll import conninfo, errors
from pgpoll._turns import COMMITTED, DOOMED, ENDED, ENDING, PREPARED, ROLLED_BACK

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll import core
    from pgpoll._blocks import Blocks
    from pgpoll._turns import Block, Control, Turn

T = TypeVar("T")


LONGEST = 1e9  # seconds: more than that some clocks don't take


def seconds(timeout: Any) -> float:
    """A timeout, looked at before anything is started. InterfaceError for what is no number of seconds."""
    try:
        if not isinstance(timeout, (bool, str, bytes)) and (number := float(timeout)) == number:
            return min(number, LONGEST)
    except (TypeError, ValueError, OverflowError):
        pass
    raise errors.InterfaceError(f"timeout must be a number of seconds or None, not {timeout!r}")


def allowed(timeout: Any) -> float:
    """As `seconds`; QueryTimeout where there is no time at all: nothing is sent then."""
    if (number := seconds(timeout)) > 0:
        return number
    error = errors.QueryTimeout(f"the request was given {number:g} s")
    error.safe_to_retry = True
    raise error


def timed_out(timeout: float | None, what: str = "the request") -> errors.QueryTimeout:
    """What is raised once so many seconds are over."""
    return errors.QueryTimeout(f"{what} took longer than {timeout:g} s")


def check_callback(name: str, callback: Any) -> None:
    """InterfaceError where it can't be called."""
    if callback is not None and not callable(callback):
        raise errors.InterfaceError(f"{name} must be callable or None, not {type(callback).__name__}")


class Lookup(NamedTuple):
    """Resolve this name: what getaddrinfo gives for stream sockets."""

    host: str


class News(NamedTuple):
    """Wait until this operation has stirred, or is done."""

    operation: core.Operation[Any]


class Sent(NamedTuple):
    """Something was fed to this operation: let it leave, and everyone else go on, but wait for nothing."""

    operation: core.Operation[Any]


class Item(NamedTuple):
    """The next item of an iterator, in the asyncio face also of an asynchronous one; END where there is none."""

    source: Any


class Call(NamedTuple):
    """What this gives, which runs a caller's code and may take its time."""

    function: Callable[[], Any]


END: Any = object()


Step: TypeAlias = "Lookup | Control | Turn | News | Sent | Item | Call"
Flow: TypeAlias = Generator[Step, Any, T]


def resolve(options: conninfo.Options) -> Flow[conninfo.Options]:
    """The options with every host name looked up. Raises OperationalError where no host has an address."""
    found: dict[str, Any] = {}
    for name in conninfo.unresolved(options):
        try:
            found[name] = yield Lookup(name)
        except (OSError, UnicodeError) as error:
            found[name] = error
    return conninfo.with_addresses(options, found) if found else options


def started(blocks: Blocks, turn: Turn) -> Flow[core.Operation[Any]]:
    """The operation of a request, or of a channel (a Hold), once its turn has come."""
    try:
        blocks.go(turn)
        operation: core.Operation[Any] = yield turn
    except BaseException as error:
        if error is not turn.error:
            blocks.give_up(turn)
        raise
    return operation


def answered(blocks: Blocks, turn: Turn) -> Flow[Any]:
    """The result of a request, once its turn has come."""
    try:
        operation = yield from started(blocks, turn)
        while not operation.done():
            yield News(operation)
    except BaseException:
        blocks.give_up(turn)
        raise
    return operation.result()


def start(blocks: Blocks, control: Control) -> Flow[None]:
    """Begin the block. Leaves no trace where it fails: what had been sent is rolled back in front of all others."""
    _ask(blocks, control, blocks.enter)
    yield from entered(blocks, control)


def entered(blocks: Blocks, control: Control) -> Flow[None]:
    """The wait for that; or, of a block that is begun by its first request, for its turn."""
    try:
        yield control
    except BaseException as error:
        if error is not control.error:
            blocks.give_up(control)
        raise


def finish(blocks: Blocks, control: Control, connection: core.Connection) -> Flow[None]:
    """End the block as `control` says. Raises what makes a COMMIT something else."""
    commit = control.commit
    verb = "PREPARE TRANSACTION" if control.prepare else "COMMIT"
    _ask(blocks, control, blocks.leave)
    try:
        yield control
    except BaseException as error:
        if error is control.error:
            if control.commit and control.sent and connection.closed:
                raise _unknown(f"the connection was lost before {verb} was answered", control) from error
            raise
        if blocks.give_up(control):
            unknown = _unknown(f"the wait for {verb}'s answer was given up", control)
            if isinstance(error, errors.QueryTimeout):
                raise unknown from error
            error.__cause__ = unknown
        raise
    if control.spoiled or (commit and control.tag == "ROLLBACK"):
        what = "to its savepoint" if control.block.savepoint else "as a whole"
        raise errors.InFailedSqlTransaction(
            f"the transaction entered at {control.block.where} had failed: rolled back {what}, not "
            f"{'prepared' if control.prepare else 'committed'}"
        ) from control.block.error


def leave(blocks: Blocks, block: Block, raised: Exception | None, end: Callable[[bool], Flow[None]]) -> Flow[None]:
    """The end of a `with` block whose body raised `raised`, or nothing; `end(commit)` is the flow that ends it.

    What the body raised is never replaced: a rollback that fails is noted on it. Where the body raised what is no
    Exception (the task is cancelled, a generator closed, Ctrl-C) the faces do not come here: they doom the block, and
    the driver rolls it back without the task.
    """
    if raised is None:
        if block.state is ENDED and block.outcome in (COMMITTED, PREPARED, ROLLED_BACK):
            return  # ended by hand
        try:
            yield from end(True)
        finally:
            blocks.doom(block)  # where it could not even be tried
    elif block.state not in (ENDING, DOOMED, ENDED):
        try:
            yield from end(False)
        except errors.Error as error:
            blocks.doom(block)
            if not isinstance(error, errors.ConnectionLost):
                raised.add_note(f"(the rollback failed as well: {error})")


def _ask(blocks: Blocks, control: Control, way: Callable[[Control], None]) -> None:
    """Ask for a start or an end: `way` is blocks.enter, or blocks.leave."""
    try:
        way(control)
    except errors.Error:
        raise  # nothing has changed
    except BaseException:
        blocks.give_up(control)
        raise


def _unknown(why: str, control: Control) -> errors.CommitUnknown:
    what = "prepared" if control.prepare else "committed"
    return errors.CommitUnknown(f"{why}: the transaction may be {what} or not")
