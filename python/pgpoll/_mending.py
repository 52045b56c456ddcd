"""What makes blocks right again after an exception of a signal handler, which may strike anywhere within them.

It knows the innards of Blocks and Commands: a change there is to leave what `mend` can tell from a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgpoll import errors
from pgpoll._turns import DOOMED, ENDED, ENDING, FAILED, LAZY, OPEN, STARTING, Control, Hold, Turn

if TYPE_CHECKING:
    from pgpoll import core
    from pgpoll._blocks import Blocks


def mend(blocks: Blocks, watched: set[core.Operation[Any]], awaited: set[Any]) -> None:
    """Make right what was left in the middle of a change. Nobody is within; other threads wait for `awaited`.

    A change that was not made whole is taken back as far as that goes: a block whose BEGIN may be sent is rolled
    back. What is no more in `watched` after this is to be abandoned, and then `resume` called.
    """
    blocks._advancing = True  # nothing is started before that
    busy = blocks._commands.busy
    begun = {operation.sql for operation in blocks._core._unfinished() if operation.written}
    blocks._settled.clear()
    blocks.stack[:] = [block for block in blocks.stack if block.state is not ENDED]
    opening = [block for block in blocks.stack if block.lazy and block.state in (LAZY, STARTING)]
    if not all(block.state is STARTING and busy.get(block) in watched for block in opening):
        for block in opening:
            block.begun = block.begin in begun
            block.state = DOOMED if block.begun else LAZY
            watched.discard(busy.pop(block, None))
    for block, operation in tuple(busy.items()):
        if block in blocks.stack and operation in watched and block.state in (STARTING, ENDING, DOOMED):
            continue
        watched.discard(operation)
        del busy[block]
        if block not in blocks.stack:
            block.state = ENDED
    for block in tuple(blocks.stack):
        if block.state in (STARTING, ENDING) and block not in busy:
            block.begun = block.begun or block.begin in begun
            block.state, block.owner = DOOMED, None
        elif block.channel and block.within and block.operation not in awaited:
            blocks.release(block)
        elif not block.channel and block.owner is None and block.state in (LAZY, STARTING, OPEN, FAILED):
            block.state = DOOMED  # given up, and no further
    for turn in tuple(blocks._line):
        if turn.who is not None and turn not in awaited:
            blocks.give_up(turn)
    for turn in awaited:
        if isinstance(turn, Turn) and not turn.decided and turn not in blocks._line:
            _forgotten(blocks, turn, watched)


def resume(blocks: Blocks) -> None:
    """All is right again."""
    blocks._advancing = False
    blocks._advance()


def _forgotten(blocks: Blocks, turn: Turn, watched: set[core.Operation[Any]]) -> None:
    """Another thread's, which was taken from the line and got no further."""
    if isinstance(turn, Control) and turn.operations and turn.operations[-1] in watched:
        return
    if isinstance(turn, (Control, Hold)):
        blocks._doom(turn.block)
    turn.operation = None
    turn.error, turn.decided = errors.InterfaceError("interrupted while it was started"), True
    turn.wake()
