"""Who may use a connection (_blocks.py, _commands.py), against a fake core: no server, no loop, no thread.

`Desk` plays the core, the server and the face: commands are answered in order, when a test says so.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pgpoll import _flows, errors
from pgpoll._blocks import Blocks
from pgpoll._mending import mend, resume
from pgpoll._turns import Block, Control, State, Turn, begin_command, carried


class Who(str):
    """Whose name is itself, as a thread has one."""

    __slots__ = ()
    name = property(str.__str__)


ALICE, BOB, CAROL = Who("alice"), Who("bob"), Who("carol")


class Operation:
    def __init__(self, sql: str) -> None:
        self.sql = sql
        self.written = False
        self.abandoned = False
        self._done = False
        self._outcome: Any = None

    def done(self) -> bool:
        return self._done

    def finish(self, outcome: Any) -> None:
        self._done, self._outcome = True, outcome

    def result(self) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def abandon(self) -> None:
        self.abandoned = True


class Desk:
    def __init__(self) -> None:
        self.transaction_status = "I"
        self.closed = False
        self.why_closed = errors.ConnectionLost("lost")
        self.sent: list[Operation] = []
        self.log: list[str] = []
        self.savepoints: list[str] = []
        self.aborted = ""
        self._watched: list[tuple[Operation, Callable[[], None]]] = []
        self.blocks = Blocks(self, self)  # type: ignore[arg-type]

    # the core
    @property
    def in_flight(self) -> int:
        return len(self.sent)

    def _unfinished(self) -> list[Operation]:
        return list(self.sent)

    def start_command(self, sql: str) -> Operation:
        if self.closed:
            raise errors.InterfaceError("the connection is closed")
        self.sent.append(Operation(sql))
        return self.sent[-1]

    def _start_behind(
        self, commands: tuple[str, ...], outermost: bool, start: Callable[[], Operation]
    ) -> list[Operation]:
        assert outermost == (not any(block.begun for block in self.blocks.stack))
        before = len(self.sent)
        operation = start()
        self.sent[before:before] = ahead = [Operation(sql) for sql in commands]
        return [*ahead, operation]

    # the face
    def tell(self, operation: Operation, done: Callable[[], None]) -> None:
        self._watched.append((operation, done))

    def watch(self, operation: Operation, done: Callable[[], None]) -> None:
        self._watched.append((operation, done))

    def flush(self) -> None:
        pass

    def abort(self, why: str) -> None:
        self.aborted = why

    # the server
    def write(self) -> None:
        for each in self.sent:
            each.written = True

    def answer(self, count: int = -1, error: Exception | None = None) -> None:
        """The server answers the first `count` commands, or all; with `error` where given."""
        while self.sent and count:
            count -= 1
            operation = self.sent.pop(0)
            if operation.abandoned and not operation.written:
                continue
            operation.written = True
            self.log.append(operation.sql)
            operation.finish(error or self._execute(operation.sql))
            if error is not None and self.transaction_status == "T":
                self.transaction_status = "E"
            self._tell(operation)

    def _tell(self, operation: Operation) -> None:
        for watched, done in [each for each in self._watched if each[0] is operation]:
            self._watched.remove((watched, done))
            done()

    def _execute(self, sql: str) -> Any:
        words = sql.split()
        if words[0] == "BEGIN":
            self.transaction_status, self.savepoints = "T", []
        elif words[0] in ("COMMIT", "PREPARE") or sql == "ROLLBACK":
            failed = self.transaction_status == "E"
            self.transaction_status = "I"
            return "ROLLBACK" if failed else words[0]
        elif words[0] == "ROLLBACK" and words[-1] in self.savepoints:
            del self.savepoints[self.savepoints.index(words[-1]) + 1 :]
            self.transaction_status = "T"
        elif self.transaction_status == "E" or (words[0] == "RELEASE" and words[-1] not in self.savepoints):
            self.transaction_status = "E"
            return errors.InFailedSqlTransaction("current transaction is aborted")
        elif words[0] == "SAVEPOINT":
            self.savepoints.append(words[-1])
        elif words[0] == "RELEASE":
            del self.savepoints[self.savepoints.index(words[-1]) :]
        return words[0]

    # a task
    def start(self, who: str, via: Block | None = None, sql: str = "BEGIN", context: Any = None) -> Task:
        block = Block(sql, f"{who}.py:1")
        context = context or contextvars.Context()
        control = context.run(lambda: Control(block, via, who, 0.0, carried=carried()))
        return Task(self, control, _flows.start(self.blocks, control), context)

    def enter(self, who: str, via: Block | None = None, context: Any = None) -> Task:
        """As `async with` does: lazily."""
        block = Block("BEGIN", f"{who}.py:1")
        context = context or contextvars.Context()
        control = context.run(lambda: Control(block, via, who, 0.0, carried=carried()))
        self.blocks.enter(control, lazy=True)
        task = Task(self, control, _flows.entered(self.blocks, control), context)
        if control.decided:
            context.run(block.carry)
        return task

    def ask(self, who: str, name: str, via: Block | None = None, context: Any = None) -> Operation | Turn:
        """A request that BEGIN may ride with: its operation where it went at once."""
        begin: Any = lambda: self.start_command(name)  # noqa: E731
        held = (context or contextvars.Context()).run(carried)
        if (operation := self.blocks.start(begin, via, who, held)) is not None:
            return operation  # type: ignore[return-value]
        turn = Turn(begin, via, who, 0.0, carried=held, opens=True)
        self.blocks.line_up(turn)
        return turn

    def skip(self, operation: Operation) -> None:
        """It was given up, unsent; and with it what would have ridden in front of it."""
        index = self.sent.index(operation)
        gone = [each for each in self.sent[: index + 1] if each.sql.startswith(("BEGIN", "SAVEPOINT"))]
        self.sent = self.sent[index + 1 :]
        for each in gone:
            each.finish(errors.InterfaceError("the operation was abandoned"))
            self._tell(each)

    def end(self, task: Task, who: str, *, commit: bool = True, prepare: str = "") -> Task:
        block = task.control.block
        control = Control(block, block, who, 0.0, commit=commit, prepare=prepare)
        return Task(self, control, _flows.finish(self.blocks, control, self))  # type: ignore[arg-type]

    def request(self, who: str, name: str, via: Block | None = None, context: Any = None) -> Turn | None:
        """None: it went at once."""
        context = context or contextvars.Context()
        if self.blocks.admits(via, who, context.run(carried)):
            self.start_command(name)
            return None
        begin: Any = lambda: self.start_command(name)  # noqa: E731
        turn: Turn = context.run(
            lambda: Turn(begin, via, who, 0.0, carried=carried(), context=contextvars.copy_context())
        )
        self.blocks.line_up(turn)
        return turn

    @property
    def queued(self) -> list[str]:
        return [each.sql for each in self.sent]


class Task:
    """Runs one flow."""

    def __init__(self, desk: Desk, control: Control, flow: Any, context: Any = None) -> None:
        self.control = control
        self.context = context or contextvars.Context()
        self.ended = False
        self.error: BaseException | None = None
        self._flow = flow
        self._step(lambda: next(flow))
        control.wake = self._go_on
        if not self.ended and control.decided:
            self._go_on()

    def _go_on(self) -> None:
        error = self.control.error
        if error is not None:
            self.interrupt(error)
        else:
            self._step(lambda: self._flow.send(None))

    def interrupt(self, error: BaseException) -> None:
        self._step(lambda: self._flow.throw(error))

    def _step(self, step: Callable[[], Any]) -> None:
        try:
            self.context.run(step)
        except StopIteration:
            self.ended = True
            if self.control.operation is not None and self.control.block.state is State.OPEN:
                self.context.run(self.control.block.carry)
        except BaseException as error:  # noqa: BLE001
            self.ended, self.error = True, error


class Cancelled(BaseException):
    pass


@pytest.fixture
def desk() -> Desk:
    return Desk()


def opened(desk: Desk, who: str = ALICE, via: Block | None = None, context: Any = None) -> Task:
    task = desk.start(who, via, context=context)
    desk.answer()
    assert task.ended
    assert task.error is None
    return task


def ok(task: Task) -> bool:
    return task.ended and task.error is None


def test_nobody_waits_without_a_block(desk: Desk) -> None:
    assert desk.request(ALICE, "1") is None
    assert desk.request(BOB, "2") is None
    assert desk.queued == ["1", "2"]


def test_strangers_are_started_in_order_after_the_end(desk: Desk) -> None:
    alice = opened(desk)
    turns = [desk.request(who, f"{who} {n}") for n in range(3) for who in (BOB, CAROL)]
    assert all(turn is not None and not turn.decided for turn in turns)
    assert desk.request(ALICE, "inside") is None
    end = desk.end(alice, ALICE)
    assert desk.queued == ["inside", "COMMIT"]
    woken: list[int] = []

    def wake(n: int) -> None:
        assert len(desk.sent) == 6
        woken.append(n)

    for n, turn in enumerate(turns):
        assert turn is not None
        turn.wake = partial(wake, n)
    desk.answer(2)
    assert ok(end)
    assert desk.queued == ["bob 0", "carol 0", "bob 1", "carol 1", "bob 2", "carol 2"]
    assert woken == list(range(6)), "nobody is woken before all are started"
    assert not desk.blocks.stack


def test_who_went_away_and_could_not_say_so_yet_is_not_started(desk: Desk) -> None:
    """Its task was cancelled, or its time is up, and the loop has not come to it."""
    alice = opened(desk)
    left, stayed = desk.request(BOB, "left"), desk.request(CAROL, "stayed")
    block = desk.start(BOB)
    last = desk.request(CAROL, "last")
    assert left is not None
    assert stayed is not None
    assert last is not None
    left.gone = block.control.gone = lambda: True
    desk.end(alice, ALICE)
    desk.answer(1)
    assert desk.queued == ["stayed", "last"]
    assert not left.decided
    assert desk.blocks.give_up(left) is False
    block.interrupt(Cancelled())
    assert block.control.block.state is State.ENDED
    assert desk.blocks.oldest is None
    assert desk.queued == ["stayed", "last"]


@pytest.mark.parametrize("answered", [False, True])
def test_a_block_that_was_given_up_and_no_further(desk: Desk, answered: bool) -> None:
    """A signal handler has raised as it had lost its owner, and was not marked yet."""
    block = desk.start(ALICE).control.block
    desk.write()
    block.owner = None
    watched: Any = set(desk.sent)
    if answered:
        desk.answer()
    mend(desk.blocks, watched, set())
    resume(desk.blocks)
    if not answered:
        assert block.state is State.DOOMED
        desk.answer(1)
    assert desk.queued == ["ROLLBACK"]
    desk.answer()
    assert not desk.blocks.stack


def test_a_strangers_block_stops_the_run_and_owns(desk: Desk) -> None:
    alice = opened(desk)
    first = desk.request(BOB, "first")
    bob = desk.start(BOB)
    late = desk.request(CAROL, "late")
    assert first is not None
    assert late is not None
    desk.end(alice, ALICE)
    desk.answer(1)
    assert desk.queued == ["first", "BEGIN"]
    assert not late.decided
    assert desk.request(ALICE, "newcomer") is not None
    desk.answer()
    assert ok(bob)
    assert desk.request(BOB, "mine") is None
    desk.end(bob, BOB)
    desk.answer(2)
    assert desk.queued == ["late", "newcomer"]


def test_inside_by_handle_and_by_context(desk: Desk) -> None:
    alice = opened(desk)
    assert desk.request(BOB, "by handle", via=alice.control.block) is None
    assert desk.request(CAROL, "by context", context=alice.context.copy()) is None
    assert desk.request(CAROL, "stranger") is not None


def test_siblings_wait_for_each_others_nested_blocks(desk: Desk) -> None:
    alice = opened(desk)
    bob_context, carol_context = alice.context.copy(), alice.context.copy()
    bob = opened(desk, BOB, context=bob_context)
    waiting = desk.request(CAROL, "sibling", context=carol_context)
    stranger = desk.request("dave", "stranger")
    mine = desk.request(ALICE, "alice")
    assert waiting is not None
    assert mine is not None
    assert stranger is not None
    assert desk.request(BOB, "bob") is None
    carol = desk.start(CAROL, context=carol_context)
    end = desk.end(bob, BOB)
    desk.answer(2)
    assert ok(end)
    assert desk.queued == ["sibling", "alice", "SAVEPOINT pgpoll_2"]
    desk.answer()
    assert ok(carol)
    assert not stranger.decided
    # a child of the nested block that outlives it falls back to the outer one, and waits for carol's
    child = desk.request("child", "child", context=bob.context.copy())
    assert child is not None
    desk.end(carol, CAROL)
    desk.answer(1)
    assert desk.queued == ["child"]


def test_a_context_whose_blocks_have_ended_is_a_stranger(desk: Desk) -> None:
    alice = opened(desk)
    context = alice.context.copy()
    desk.end(alice, ALICE)
    desk.answer()
    opened(desk, BOB)
    assert desk.request(CAROL, "late", context=context) is not None


def test_the_handle_of_an_ended_block_raises(desk: Desk) -> None:
    alice = opened(desk)
    handle = alice.control.block
    waiting = desk.end(alice, ALICE)
    queued = desk.request(BOB, "too late", via=handle)
    assert queued is not None
    desk.answer()
    assert ok(waiting)
    assert isinstance(queued.error, errors.InterfaceError)
    with pytest.raises(errors.InterfaceError, match=r"alice\.py:1 has ended: committed"):
        desk.request(BOB, "too late", via=handle)
    with pytest.raises(errors.InterfaceError, match="has not been started"):
        desk.request(BOB, "too early", via=Block("BEGIN", "x"))


def test_ending_behind_ones_own_nested_block_raises_at_once(desk: Desk) -> None:
    alice = opened(desk)
    inner = opened(desk, ALICE)
    end = desk.end(alice, ALICE)
    assert isinstance(end.error, errors.InterfaceError)
    assert alice.control.block.state is State.OPEN
    desk.end(inner, ALICE)
    desk.answer()
    assert ok(desk.end(alice, ALICE)) is False
    desk.answer()
    assert desk.transaction_status == "I"


def test_ending_waits_for_anothers_nested_block(desk: Desk) -> None:
    alice = opened(desk)
    bob = opened(desk, BOB, via=alice.control.block)
    end = desk.end(alice, ALICE)
    assert not end.ended
    desk.end(bob, BOB)
    desk.answer(1)
    assert desk.queued == ["COMMIT"]
    desk.answer()
    assert ok(end)


def test_nested_takes_no_options(desk: Desk) -> None:
    alice = opened(desk)
    inner = desk.start(ALICE, sql="BEGIN READ ONLY")
    assert isinstance(inner.error, errors.InterfaceError)
    assert not desk.sent
    assert desk.blocks.stack == [alice.control.block]


def test_begin_by_hand_is_refused(desk: Desk) -> None:
    desk.transaction_status = "T"
    assert isinstance(desk.start(ALICE).error, errors.InterfaceError)
    assert not desk.blocks.stack


def test_cancelled_in_an_unsent_begin_leaves_nothing(desk: Desk) -> None:
    alice = desk.start(ALICE)
    stranger = desk.request(BOB, "next")
    alice.interrupt(Cancelled())
    assert isinstance(alice.error, Cancelled)
    assert desk.sent[0].abandoned
    assert stranger is not None
    assert stranger.decided
    desk.answer()
    assert desk.log == ["next"]


def test_cancelled_in_a_sent_begin_is_rolled_back_before_the_line(desk: Desk) -> None:
    alice = desk.start(ALICE)
    desk.write()
    stranger = desk.request(BOB, "next")
    alice.interrupt(Cancelled())
    assert isinstance(alice.error, Cancelled)
    assert stranger is not None
    assert not stranger.decided
    assert desk.request(ALICE, "again") is not None, "its former owner is a stranger now"
    desk.answer()
    assert desk.log == ["BEGIN", "ROLLBACK", "next", "again"]


def test_cancelled_when_begin_was_answered_but_not_told(desk: Desk) -> None:
    alice = desk.start(ALICE)
    alice.control.wake = lambda: None
    desk.answer()
    alice.interrupt(Cancelled())
    desk.answer()
    assert desk.log == ["BEGIN", "ROLLBACK"]
    assert not desk.blocks.stack


def test_cancelled_in_the_line(desk: Desk) -> None:
    alice = opened(desk)
    bob = desk.start(BOB)
    bob.interrupt(Cancelled())
    desk.end(alice, ALICE)
    desk.answer()
    assert desk.log == ["BEGIN", "COMMIT"]
    assert bob.control.block.state is State.ENDED


def test_an_unsent_commit_becomes_rollback(desk: Desk) -> None:
    alice = opened(desk)
    end = desk.end(alice, ALICE)
    stranger = desk.request(BOB, "next")
    cancelled = Cancelled()
    end.interrupt(cancelled)
    assert end.error is cancelled
    assert cancelled.__cause__ is None
    assert stranger is not None
    desk.answer()
    assert desk.log == ["BEGIN", "ROLLBACK", "next"]


def test_a_sent_commit_goes_on_and_is_unknown(desk: Desk) -> None:
    alice = opened(desk)
    end = desk.end(alice, ALICE)
    desk.write()
    stranger = desk.request(BOB, "next")
    cancelled = Cancelled()
    end.interrupt(cancelled)
    assert end.error is cancelled
    assert isinstance(cancelled.__cause__, errors.CommitUnknown)
    assert stranger is not None
    assert not stranger.decided
    desk.answer()
    assert desk.log == ["BEGIN", "COMMIT", "next"]


def test_a_commit_that_timed_out_is_unknown(desk: Desk) -> None:
    end = desk.end(opened(desk), ALICE)
    desk.write()
    end.interrupt(errors.QueryTimeout("timeout"))
    assert isinstance(end.error, errors.CommitUnknown)


def test_a_commit_whose_reply_is_lost_is_unknown(desk: Desk) -> None:
    end = desk.end(opened(desk), ALICE)
    desk.write()
    stranger = desk.request(BOB, "next")
    desk.closed = True
    desk.blocks.lost()
    desk.answer(error=errors.ConnectionLost("lost"))
    assert isinstance(end.error, errors.CommitUnknown)
    assert stranger is not None
    assert isinstance(stranger.error, errors.ConnectionLost)
    assert stranger.error.safe_to_retry
    assert not desk.blocks.stack


def test_a_block_in_status_e_is_rolled_back(desk: Desk) -> None:
    alice = opened(desk)
    desk.transaction_status = "E"
    end = desk.end(alice, ALICE)
    desk.answer()
    assert isinstance(end.error, errors.InFailedSqlTransaction)
    assert "rolled back" in str(end.error)
    assert desk.log == ["BEGIN", "ROLLBACK"]


def test_a_commit_answered_by_rollback_raises(desk: Desk) -> None:
    alice = opened(desk)
    end = desk.end(alice, ALICE)
    desk.transaction_status = "E"  # by a request that was ahead of COMMIT
    desk.answer()
    assert isinstance(end.error, errors.InFailedSqlTransaction)
    assert desk.log == ["BEGIN", "COMMIT"]


def test_a_failed_commit_raises_its_error_and_frees(desk: Desk) -> None:
    end = desk.end(opened(desk), ALICE)
    failed = errors.ForeignKeyViolation("deferred")
    desk.transaction_status = "I"
    desk.answer(error=failed)
    assert end.error is failed
    assert not desk.blocks.stack


def test_a_nested_block_in_status_e_spares_the_outer(desk: Desk) -> None:
    alice = opened(desk)
    inner = opened(desk, ALICE)
    desk.transaction_status = "E"
    end = desk.end(inner, ALICE)
    desk.answer()
    assert isinstance(end.error, errors.InFailedSqlTransaction)
    assert desk.transaction_status == "T"
    end = desk.end(alice, ALICE)
    desk.answer()
    assert ok(end)
    assert desk.log[2:] == ["ROLLBACK TO SAVEPOINT pgpoll_1", "RELEASE SAVEPOINT pgpoll_1", "COMMIT"]


def test_cancelled_in_a_sent_savepoint(desk: Desk) -> None:
    alice = opened(desk)
    inner = desk.start(ALICE)
    desk.write()
    inner.interrupt(Cancelled())
    mine = desk.request(ALICE, "mine")
    assert mine is not None
    desk.answer()
    assert desk.log == [
        "BEGIN",
        "SAVEPOINT pgpoll_1",
        "ROLLBACK TO SAVEPOINT pgpoll_1",
        "RELEASE SAVEPOINT pgpoll_1",
        "mine",
    ]
    assert desk.blocks.stack == [alice.control.block]


def test_cancelled_in_a_sent_release_keeps_the_outer_clean(desk: Desk) -> None:
    opened(desk)
    inner = opened(desk, ALICE)
    end = desk.end(inner, ALICE)
    desk.write()
    end.interrupt(Cancelled())
    desk.answer()
    assert desk.log[-1] == "RELEASE SAVEPOINT pgpoll_1"
    assert desk.transaction_status == "T"


def test_a_savepoint_that_fails_is_gone(desk: Desk) -> None:
    alice = opened(desk)
    desk.transaction_status = "E"
    inner = desk.start(ALICE)
    desk.answer()
    assert isinstance(inner.error, errors.InFailedSqlTransaction)
    assert desk.blocks.stack == [alice.control.block]


def test_an_outer_block_given_up_waits_for_the_inner_one(desk: Desk) -> None:
    alice = opened(desk)
    bob = opened(desk, BOB, via=alice.control.block)
    desk.blocks.doom(alice.control.block)
    assert not desk.sent, "bob's block is open, and another task's"
    stranger = desk.request(CAROL, "next")
    desk.end(bob, BOB)
    desk.answer()
    assert desk.log[-3:] == ["RELEASE SAVEPOINT pgpoll_1", "ROLLBACK", "next"]
    assert stranger is not None


def test_dooming_takes_ones_own_nested_blocks_along(desk: Desk) -> None:
    alice = opened(desk)
    opened(desk, ALICE)
    desk.blocks.doom(alice.control.block)
    desk.answer()
    assert desk.log[-1] == "ROLLBACK"
    assert not desk.blocks.stack


def test_ended_by_hand_inside(desk: Desk) -> None:
    alice = opened(desk)
    desk.transaction_status = "I"
    end = desk.end(alice, ALICE)
    assert isinstance(end.error, errors.InterfaceError)
    assert "by hand" in str(end.error)
    assert not desk.blocks.stack
    assert not desk.sent


def test_close_waits_for_the_line_and_refuses_newcomers(desk: Desk) -> None:
    alice = opened(desk)
    waiting = desk.request(BOB, "waiting")
    close = Turn(lambda: desk.start_command("close"), None, None, 0.0)  # type: ignore[arg-type, return-value]
    desk.blocks.close(close)
    with pytest.raises(errors.InterfaceError, match="closing"):
        desk.request(CAROL, "newcomer")
    assert desk.request(ALICE, "inside") is None
    assert waiting is not None
    end = desk.end(alice, ALICE)
    desk.answer(2)
    assert ok(end)
    assert desk.queued == ["waiting", "close"]


def test_the_owners_close_rolls_back(desk: Desk) -> None:
    alice = opened(desk)
    desk.request(BOB, "waiting")
    desk.blocks.retire(Turn(lambda: None, None, ALICE, 0.0))  # type: ignore[arg-type, return-value]
    desk.blocks.close(Turn(lambda: desk.start_command("close"), None, None, 0.0))  # type: ignore[arg-type, return-value]
    end = desk.end(alice, ALICE)
    assert isinstance(end.error, errors.InterfaceError)
    assert "closed: rolled back" in str(end.error)
    desk.answer()
    assert desk.log == ["BEGIN", "ROLLBACK", "waiting", "close"]


def test_a_rollback_that_fails_ends_the_connection(desk: Desk) -> None:
    alice = opened(desk)
    desk.blocks.doom(alice.control.block)
    desk.answer(error=errors.QueryCanceled("by hand"))
    assert "could not be rolled back" in desk.aborted


def test_the_complaint_names_the_owner_once(desk: Desk) -> None:
    opened(desk)
    desk.request(BOB, "waiting")
    complaint = desk.blocks.complaint(5)
    assert complaint is not None
    assert "alice" in complaint
    assert "alice.py:1" in complaint
    assert desk.blocks.complaint(5) is None


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ((None, None, None), "BEGIN"),
        (("serializable", None, None), "BEGIN ISOLATION LEVEL SERIALIZABLE"),
        (("repeatable_read", True, None), "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        (("READ COMMITTED", False, True), "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE DEFERRABLE"),
        ((None, None, False), "BEGIN NOT DEFERRABLE"),
    ],
)
def test_begin_command(options: tuple[Any, ...], command: str) -> None:
    assert begin_command(*options) == command


@pytest.mark.parametrize("options", [("chaos", None, None), ("serializable; drop", None, None), (None, 1, None)])
def test_wrong_options(options: tuple[Any, ...]) -> None:
    with pytest.raises(errors.InterfaceError):
        begin_command(*options)
