"""Abandoned requests at each moment of their lives (D5), and cancelling at the server (D6)."""

from __future__ import annotations

from backend import (
    INT4,
    bind_complete,
    command_complete,
    data_row,
    described,
    empty_query,
    error_response,
    int4,
    parse_complete,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.execute import KNOWN, NEW, ONE, knows
from dialogues.registry import dialogue
from pgpoll import core, errors
from script import Run, Script, where

STRAY = error_response("57014", "canceling statement due to user request")


@dialogue
def abandoned_unsent() -> Script:
    """It waits behind a description: no byte of it ever leaves."""
    return (
        knows()
        .start("new", "execute", "select 2 as two")
        .start("gone", "execute", ONE)
        .start("gone too", "script", "select 'never'")
        .expect(*NEW)
        .abandon("gone")
        .abandon("gone too")
        .send(described("two"))
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .gives("new", [(2,)], "SELECT 1")
        .cancelled("gone", "gone too")
    )


@dialogue
def abandoned_before_any_answer() -> Script:
    """Parse, Describe, Flush have left: its Sync leaves at once, no Bind ever, and the statement is known after."""
    return (
        Script()
        .connect()
        .start("gone", "execute", ONE)
        .expect(*NEW)
        .abandon("gone")
        .expect("Sync")
        .send(described("one"), ready_for_query())
        .start("next", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .cancelled("gone")
        .gives("next", [(1,)], "SELECT 1")
    )


@dialogue
def abandoned_while_described() -> Script:
    """Half of the description is in."""
    return (
        knows()
        .start("gone", "execute", "select $1::int4 as x", (1,))
        .start("next", "execute", ONE)
        .expect(*NEW)
        .send(parse_complete())
        .abandon("gone")
        .expect("Sync")
        .send(described("x", parameters=(INT4,))[len(parse_complete()) :], ready_for_query())
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .start("known", "execute", "select $1::int4 as x", (5,))
        .expect(where("Bind", parameters=[int4(5)]), "Execute", "Sync")
        .send(bind_complete(), selected(5), ready_for_query())
        .cancelled("gone")
        .gives("next", [(1,)], "SELECT 1")
        .gives("known", [(5,)], "SELECT 1")
    )


@dialogue
def abandoned_while_its_parse_fails() -> Script:
    return (
        knows()
        .start("gone", "execute", "selec")
        .expect(*NEW)
        .abandon("gone")
        .expect("Sync")
        .send(error_response("42601", "syntax error"), ready_for_query())
        .start("next", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .cancelled("gone")
        .gives("next", [(1,)], "SELECT 1")
    )


@dialogue
def abandoned_when_sent() -> Script:
    """Each of a pipeline in turn, before, amid and behind its rows; the neighbours have their own answers."""
    script = knows()
    labels = ["a", "b", "c", "d"]
    for label in labels:
        script.start(label, "execute", ONE)
    script.expect(*KNOWN * 4).abandon("b")
    script.send(bind_complete(), selected(1), ready_for_query())
    script.send(bind_complete(), selected(2, 2, 2), ready_for_query())
    script.send(bind_complete(), data_row(int4(3))).abandon("c")
    script.send(data_row(int4(3)), command_complete("SELECT 2")).send(ready_for_query())
    script.send(bind_complete(), selected(4), ready_for_query())
    return script.gives("a", [(1,)], "SELECT 1").gives("d", [(4,)], "SELECT 1").cancelled("b", "c")


@dialogue
def abandoned_behind_its_last_row() -> Script:
    return (
        knows()
        .start("gone", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(1))
        .abandon("gone")
        .send(ready_for_query())
        .start("next", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .cancelled("gone")
        .gives("next", [(2,)], "SELECT 1")
    )


@dialogue
def abandoned_and_failing() -> Script:
    return (
        knows()
        .start("gone", "execute", ONE)
        .start("next", "execute", ONE)
        .expect(*KNOWN * 2)
        .abandon("gone")
        .send(bind_complete(), data_row(int4(1)), error_response(), ready_for_query())
        .send(bind_complete(), selected(2), ready_for_query())
        .cancelled("gone")
        .gives("next", [(2,)], "SELECT 1")
    )


@dialogue
def abandoned_after_its_error() -> Script:
    """The ErrorResponse is in, ReadyForQuery is not."""
    return (
        knows()
        .start("gone", "execute", ONE)
        .start("next", "execute", ONE)
        .expect(*KNOWN * 2)
        .send(bind_complete(), error_response())
        .abandon("gone")
        .send(ready_for_query(), bind_complete(), selected(2), ready_for_query())
        .cancelled("gone")
        .gives("next", [(2,)], "SELECT 1")
    )


@dialogue
def abandoned_script() -> Script:
    return (
        knows()
        .start("gone", "script", "select 1; select 2")
        .expect("Query")
        .send(row_description("one"), data_row(b"1"), command_complete("SELECT 1"))
        .abandon("gone")
        .send(row_description("two"), data_row(b"2"), command_complete("SELECT 1"), ready_for_query())
        .start("next", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .cancelled("gone")
        .gives("next", [(1,)], "SELECT 1")
    )


@dialogue
def abandoned_all() -> Script:
    script = knows()
    for i in range(5):
        script.start(f"g{i}", "execute", ONE)
    script.expect(*KNOWN * 5)
    for i in reversed(range(5)):
        script.abandon(f"g{i}")
    for i in range(5):
        script.send(bind_complete(), selected(i), ready_for_query())
    return script.cancelled(*[f"g{i}" for i in range(5)])


# At the server.


def wishes(run: Run, expected: int) -> None:
    assert run.client.cancel_wanted() == expected


def running_and_abandoned() -> Script:
    """Alone at the head and abandoned; the face has begun to cancel it, a stranger waits."""
    return (
        knows(memory_only=True)
        .act(lambda run: wishes(run, core.NONE))
        .start("gone", "execute", ONE)
        .expect(*KNOWN)
        .act(lambda run: wishes(run, core.NONE))
        .abandon("gone")
        .act(lambda run: wishes(run, core.NOW))
        .act(lambda run: run.client.cancel_started())
        .act(lambda run: wishes(run, core.NONE))
        .start("next", "execute", ONE)
        .expect()
    )


def served_after_the_drain(script: Script, *answer: bytes) -> Script:
    return (
        script.expect(where("Query", query=""))
        .send(*answer, ready_for_query())
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .act(lambda run: wishes(run, core.NONE))
        .cancelled("gone")
        .gives("next", [(2,)], "SELECT 1")
    )


@dialogue
def cancelled_at_the_server() -> Script:
    """The socket ends first, then the error comes."""
    script = running_and_abandoned().act(lambda run: run.client.cancel_ended())
    return served_after_the_drain(script.expect().send(STRAY, ready_for_query()), empty_query())


@dialogue
def cancelled_before_the_socket_ends() -> Script:
    script = running_and_abandoned().send(STRAY, ready_for_query()).expect()
    return served_after_the_drain(script.act(lambda run: run.client.cancel_ended()), empty_query())


@dialogue
def cancelled_too_late() -> Script:
    """It was done already: the 57014 hits the empty query instead of the stranger's."""
    script = running_and_abandoned().send(bind_complete(), selected(1), ready_for_query()).expect()
    return served_after_the_drain(script.act(lambda run: run.client.cancel_ended()), STRAY)


@dialogue
def cancelled_too_late_and_lost() -> Script:
    """It was done already, and the server ignored the CancelRequest."""
    script = running_and_abandoned().act(lambda run: run.client.cancel_ended())
    script.send(bind_complete(), selected(1), ready_for_query())
    return served_after_the_drain(script, empty_query())


@dialogue
def grace_while_others_are_on_the_wire() -> Script:
    """An abandoned head with a living one behind it gets a second; when that one leaves too: now."""
    return (
        knows(memory_only=True)
        .start("gone", "execute", ONE)
        .start("living", "execute", ONE)
        .expect(*KNOWN * 2)
        .abandon("gone")
        .act(lambda run: wishes(run, core.GRACE))
        .abandon("living")
        .act(lambda run: wishes(run, core.NOW))
        .send(bind_complete(), selected(1), ready_for_query())
        .act(lambda run: wishes(run, core.NOW))
        .send(bind_complete(), selected(2), ready_for_query())
        .act(lambda run: wishes(run, core.NONE))
        .cancelled("gone", "living")
    )


@dialogue
def described_behind_a_cancelled_head() -> Script:
    """What is on the wire behind it may be described, but its Bind waits for the end of the cancel socket."""
    return (
        knows(memory_only=True)
        .start("gone", "execute", ONE)
        .start("new", "execute", "select 2 as two")
        .expect(*KNOWN, *NEW)
        .abandon("gone")
        .act(lambda run: wishes(run, core.GRACE))
        .act(lambda run: run.client.cancel_started())
        .send(STRAY, ready_for_query())
        .send(described("two"))
        .expect()
        .act(lambda run: run.client.cancel_ended())
        .act(lambda run: run.client.pump())
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .expect(where("Query", query=""))
        .send(empty_query(), ready_for_query())
        .cancelled("gone")
        .gives("new", [(2,)], "SELECT 1")
    )


@dialogue
def nothing_follows_an_abandoned_head() -> Script:
    """No other request is written behind it, though nobody cancels it."""
    return (
        knows()
        .start("gone", "execute", ONE)
        .expect(*KNOWN)
        .abandon("gone")
        .start("next", "execute", ONE)
        .expect()
        .send(bind_complete(), selected(1), ready_for_query())
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .cancelled("gone")
        .gives("next", [(2,)], "SELECT 1")
    )


@dialogue
def commands_are_never_cancelled_by_themselves() -> Script:
    """BEGIN, COMMIT and their like (D6)."""
    return (
        knows(memory_only=True)
        .start("gone", "command", "COMMIT")
        .expect("Parse", *KNOWN)
        .abandon("gone")
        .act(lambda run: wishes(run, core.NONE))
        .send(parse_complete(), bind_complete(), command_complete("COMMIT"), ready_for_query())
        .cancelled("gone")
    )


@dialogue
def somebody_elses_cancel() -> Script:
    """A 57014 that no CancelRequest of ours asked for is the request's own error."""
    return (
        knows()
        .start("a", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), STRAY, ready_for_query())
        .raises("a", errors.QueryCanceled, "user request")
    )
