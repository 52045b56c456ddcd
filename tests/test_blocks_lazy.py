"""Blocks that their first request begins (_commands.py), against the fake core of test_blocks.py."""

from __future__ import annotations

from typing import Any

import pytest

from pgpoll import errors
from pgpoll._turns import Hold, State, Turn
from test_blocks import ALICE, BOB, CAROL, Cancelled, Desk, Operation, Task, ok

FAILED = errors.FeatureNotSupported("cannot use serializable mode in a hot standby")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def asked(desk: Desk, who: str, name: str, **how: Any) -> Operation:
    operation = desk.ask(who, name, **how)
    assert isinstance(operation, Operation)
    return operation


def waits(desk: Desk, who: str, name: str, **how: Any) -> Turn:
    turn = desk.ask(who, name, **how)
    assert isinstance(turn, Turn)
    assert not turn.decided
    return turn


def state(task: Task) -> State:
    return task.control.block.state


def test_it_owns_from_its_entry_on(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    assert ok(alice)
    assert state(alice) is State.LAZY
    stranger = waits(desk, BOB, "stranger")
    assert desk.queued == []
    asked(desk, ALICE, "first")
    assert desk.queued == ["BEGIN", "first"]
    mine = waits(desk, ALICE, "second")
    desk.answer(1)
    assert mine.decided, "at BEGIN's own answer"
    assert desk.queued == ["first", "second"]
    assert state(alice) is State.OPEN
    end = desk.end(alice, ALICE)
    desk.answer()
    assert ok(end)
    assert stranger.decided
    assert desk.log == ["BEGIN", "first", "second", "COMMIT", "stranger"]


@pytest.mark.parametrize("commit", [True, False])
def test_an_empty_one_ends_at_once(desk: Desk, commit: bool) -> None:
    alice = desk.enter(ALICE)
    stranger = waits(desk, BOB, "stranger")
    assert ok(desk.end(alice, ALICE, commit=commit))
    assert stranger.decided
    assert desk.queued == ["stranger"]
    assert alice.control.block.outcome == ("committed" if commit else "rolled back")


def test_nested_ones_begin_together(desk: Desk) -> None:
    alice, inner = desk.enter(ALICE), desk.enter(ALICE)
    asked(desk, ALICE, "first")
    assert desk.queued == ["BEGIN", "SAVEPOINT pgpoll_1", "first"]
    desk.answer(1)
    assert (state(alice), state(inner)) == (State.OPEN, State.STARTING)
    desk.answer()
    assert ok(desk.end(inner, ALICE)) is False
    assert desk.queued == ["RELEASE SAVEPOINT pgpoll_1"]


def test_a_block_that_is_started_by_hand_begins_those_around_it(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    inner = desk.start(ALICE)
    assert desk.queued == ["BEGIN", "SAVEPOINT pgpoll_1"]
    desk.answer()
    assert ok(inner)
    assert state(alice) is State.OPEN


def test_what_cannot_carry_it_waits_for_it(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    inner = desk.enter(ALICE)
    script = desk.request(ALICE, "script")
    assert script is not None
    other = waits(desk, ALICE, "other")
    assert desk.queued == ["BEGIN", "SAVEPOINT pgpoll_1"]
    desk.answer(1)
    assert not script.decided
    desk.answer(1)
    assert script.decided
    assert other.decided
    assert desk.queued == ["script", "other"]
    assert (state(alice), state(inner)) == (State.OPEN, State.OPEN)


def test_a_channel_waits_for_it(desk: Desk) -> None:
    desk.enter(ALICE)
    start: Any = lambda: desk.start_command("COPY")  # noqa: E731
    hold = Hold("COPY", "alice.py:2", start, None, ALICE, 0.0)
    desk.attend = lambda _: None  # type: ignore[attr-defined]
    desk.blocks.go(hold)
    assert desk.queued == ["BEGIN"]
    desk.answer(1)
    assert hold.decided
    assert desk.queued == ["COPY"]
    assert desk.blocks.stack[-1] is hold.block


def test_lazy_blocks_in_line(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    bob = desk.enter(BOB)
    assert state(bob) is State.WAITING
    desk.end(alice, ALICE)
    assert ok(bob)
    assert state(bob) is State.LAZY
    carol = waits(desk, CAROL, "stranger")
    asked(desk, BOB, "first", via=bob.control.block)
    desk.end(bob, BOB)
    desk.answer()
    assert desk.log == ["BEGIN", "first", "COMMIT", "stranger"]
    assert carol.decided


def test_given_up_in_line_or_before_it_was_told(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    bob, carol = desk.enter(BOB), desk.enter(CAROL)
    bob.interrupt(Cancelled())
    assert state(bob) is State.ENDED
    carol.control.wake = lambda: None
    desk.end(alice, ALICE)
    assert state(carol) is State.LAZY
    carol.interrupt(Cancelled())
    assert not desk.blocks.stack
    assert desk.queued == []


# The first request is given up.


def test_unsent(desk: Desk) -> None:
    """The block has not begun, and the next request inside of it begins it."""
    alice = desk.enter(ALICE)
    first = asked(desk, ALICE, "first")
    second = waits(desk, ALICE, "second")
    desk.skip(first)
    assert desk.queued == ["BEGIN", "second"]
    assert second.decided
    desk.answer()
    assert state(alice) is State.OPEN
    assert desk.log == ["BEGIN", "second"]


def test_unsent_and_doomed(desk: Desk) -> None:
    alice, inner = desk.enter(ALICE), desk.enter(ALICE)
    first = asked(desk, ALICE, "first")
    stranger = waits(desk, BOB, "stranger")
    desk.blocks.doom(inner.control.block)
    desk.blocks.doom(alice.control.block)
    desk.skip(first)
    assert stranger.decided
    desk.answer()
    assert desk.log == ["stranger"], "there is nothing to roll back"


def test_sent_and_doomed(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    asked(desk, ALICE, "first")
    desk.write()
    desk.blocks.doom(alice.control.block)
    waits(desk, BOB, "stranger")
    desk.answer()
    assert desk.log == ["BEGIN", "first", "ROLLBACK", "stranger"]


def test_a_savepoint_that_was_sent_and_doomed(desk: Desk) -> None:
    desk.enter(ALICE)
    asked(desk, ALICE, "first")
    desk.answer()
    inner = desk.enter(ALICE)
    asked(desk, ALICE, "inner")
    desk.write()
    desk.blocks.doom(inner.control.block)
    desk.answer()
    savepoint = "SAVEPOINT pgpoll_1"
    assert desk.log[2:] == [savepoint, "inner", f"ROLLBACK TO {savepoint}", f"RELEASE {savepoint}"]


def test_a_savepoint_that_failed_and_is_doomed(desk: Desk) -> None:
    """ROLLBACK TO is sent only where SAVEPOINT's own answer came."""
    alice = desk.enter(ALICE)
    asked(desk, ALICE, "first")
    desk.answer()
    desk.transaction_status = "E"
    inner = desk.enter(ALICE)
    asked(desk, ALICE, "inner")
    desk.write()
    desk.blocks.doom(inner.control.block)
    desk.answer()
    assert desk.log[2:] == ["SAVEPOINT pgpoll_1", "inner"]
    assert desk.blocks.stack == [alice.control.block]


def test_doomed_before_it_began(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    stranger = waits(desk, BOB, "stranger")
    desk.blocks.doom(alice.control.block)
    assert stranger.decided
    assert desk.queued == ["stranger"]


def test_doomed_under_anothers_block(desk: Desk) -> None:
    """Which can't begin any more: it is no part of a transaction, and nothing of it is sent."""
    alice = desk.enter(ALICE)
    bob = desk.enter(BOB, via=alice.control.block)
    desk.blocks.doom(alice.control.block)
    with pytest.raises(errors.InterfaceError, match="is being rolled back"):
        desk.ask(BOB, "first")
    with pytest.raises(errors.InterfaceError, match="is being rolled back"):
        desk.request(BOB, "script")
    assert ok(desk.end(bob, BOB, commit=False))
    assert not desk.blocks.stack
    assert desk.queued == []


# BEGIN fails.


def refused(desk: Desk) -> None:
    """BEGIN, and with it what rode with it."""
    desk.write()
    while desk.sent:
        desk.answer(1, FAILED)


@pytest.mark.parametrize("commit", [True, False])
def test_all_inside_is_refused_until_it_is_left(desk: Desk, commit: bool) -> None:
    alice, inner = desk.enter(ALICE), desk.enter(ALICE)
    asked(desk, ALICE, "first")
    second, stranger = waits(desk, ALICE, "second"), waits(desk, BOB, "stranger")
    refused(desk)
    assert isinstance(second.error, errors.InterfaceError)
    assert second.error.__cause__ is FAILED
    for each in (desk.ask, desk.request):
        with pytest.raises(errors.InterfaceError, match="hot standby"):
            each(ALICE, "third")
    with pytest.raises(errors.InterfaceError, match="hot standby"):
        desk.enter(ALICE)
    assert not stranger.decided
    end = desk.end(inner, ALICE, commit=commit)
    assert isinstance(end.error, errors.InFailedSqlTransaction) is commit
    end = desk.end(alice, ALICE, commit=commit)
    assert isinstance(end.error, errors.InFailedSqlTransaction) is commit
    if commit:
        assert end.error is not None
        assert end.error.__cause__ is FAILED
    assert stranger.decided
    desk.answer()
    assert desk.log[-1] == "stranger"
    assert "ROLLBACK" not in desk.log


def test_an_end_that_waits_for_begin(desk: Desk) -> None:
    for commit in (True, False):
        alice = desk.enter(ALICE)
        asked(desk, BOB, "first", via=alice.control.block)
        end = desk.end(alice, ALICE, commit=commit)
        assert not end.ended
        refused(desk)
        assert isinstance(end.error, errors.InFailedSqlTransaction) is commit
        assert not desk.blocks.stack


def test_an_end_that_waits_for_begin_is_given_up(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    asked(desk, BOB, "first", via=alice.control.block)
    end = desk.end(alice, ALICE)
    cancelled = Cancelled()
    end.interrupt(cancelled)
    assert cancelled.__cause__ is None, "no COMMIT was sent"
    desk.answer()
    assert desk.log == ["BEGIN", "first", "ROLLBACK"]


def test_lost_before_it_began(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    asked(desk, ALICE, "first")
    mine, stranger = waits(desk, ALICE, "mine"), waits(desk, BOB, "stranger")
    desk.closed = True
    desk.answer(error=errors.ConnectionLost("lost"))
    assert not mine.decided, "they are told what has happened"
    desk.blocks.lost()
    assert isinstance(mine.error, errors.ConnectionLost)
    assert isinstance(stranger.error, errors.ConnectionLost)
    assert state(alice) is State.ENDED
    with pytest.raises(errors.InterfaceError, match="closed"):
        desk.enter(ALICE)


# Two-phase commit.


def test_what_is_prepared_begins_first(desk: Desk) -> None:
    alice = desk.enter(ALICE)
    end = desk.end(alice, ALICE, prepare="PREPARE TRANSACTION 'x'")
    assert desk.queued == ["BEGIN"]
    desk.answer()
    assert ok(end)
    assert desk.log == ["BEGIN", "PREPARE TRANSACTION 'x'"]
    assert alice.control.block.outcome == "prepared"


def test_a_savepoint_is_not_prepared(desk: Desk) -> None:
    desk.enter(ALICE)
    inner = desk.enter(ALICE)
    end = desk.end(inner, ALICE, prepare="PREPARE TRANSACTION 'x'")
    assert isinstance(end.error, errors.InterfaceError)
    assert state(inner) is State.LAZY
