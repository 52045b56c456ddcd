"""f32: every backend message at every state. What is no answer there closes the connection, and nobody else's reply."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backend import fatal
from peers import Memory, options
from pgpoll import errors
from script import Run
from states import ANYWHERE, MESSAGES, held_by_a_cancel, states, terminated

STATES = states()
CELLS = [(name, kind) for name in STATES for kind in MESSAGES]


def assert_closed_with_protocol_error(run: Run, kind: str) -> None:
    """The head is told what the message was and where; the others that it cost them the connection."""
    told = [label for label in run.operations if run.outcome(label).kind == "raises"]
    run.assert_ended()
    pending = [label for label in told if isinstance(run.error(label), errors.ProtocolError)]
    assert len(pending) <= 1
    for label in pending:
        assert kind in str(run.error(label))
        assert "byte" in str(run.error(label))
    for label in set(told) - set(pending):
        error = run.error(label)
        while error.__cause__ is not None:
            assert isinstance(error.__cause__, errors.Error)
            error = error.__cause__


def test_the_matrix_has_every_backend_message() -> None:
    """As the wire layer knows them, and three bytes that begin none."""
    header = (Path(__file__).parent.parent / "src" / "wire" / "backend.hpp").read_text()
    names = re.findall(r"^  (\w+) = '.',$", header, re.MULTILINE)
    assert len(names) == 24
    assert {"".join(map(str.capitalize, name.split("_"))) for name in names} == set(list(MESSAGES)[:24])


@pytest.mark.parametrize(("name", "kind"), CELLS)
def test_f32_every_message_at_every_state(name: str, kind: str) -> None:
    state = STATES[name]
    run = state.reached()
    finished = {label for label in run.operations if run.operations[label].done()}
    run.deliver(MESSAGES[kind])
    run.drain()
    if kind in ANYWHERE:
        assert not run.client.ended
        assert {label for label in run.operations if run.operations[label].done()} == finished
    elif kind in state.answers:
        assert not any(isinstance(error_or_none(run, label), errors.ProtocolError) for label in run.operations)
    else:
        assert run.client.ended, f"{kind} was taken when {name}"
        assert_closed_with_protocol_error(run, kind)
        waiting = [label for label in run.operations if label not in finished | run.abandoned]
        assert all(run.outcome(label).kind == "raises" for label in waiting)


def error_or_none(run: Run, label: str) -> BaseException | None:
    return run.error(label) if run.outcome(label).kind == "raises" else None


@pytest.mark.parametrize("name", STATES)
def test_fatal_is_legal_at_every_state(name: str) -> None:
    """The head gets it, unless it has its own error already or was abandoned; the others have it as their cause."""
    run = STATES[name].reached()
    unfinished = [label for label, each in run.operations.items() if not each.done()]
    run.deliver(fatal("57P01", "terminating connection"))
    run.assert_ended()
    for place, label in enumerate(unfinished):
        if label in run.abandoned or name == "arguments refused":
            continue
        error = run.error(label)
        if place > 0:
            assert isinstance(error, errors.ConnectionLost)
        assert isinstance(error if place == 0 else error.__cause__, errors.AdminShutdown)


@pytest.mark.parametrize("name", STATES)
def test_garbage_type_bytes_at_every_state(name: str) -> None:
    """f33: all 256 first bytes with a short body: an outcome or a pgpoll error, never a hang at end of file."""
    for byte in range(256):
        run = STATES[name].reached()
        run.deliver(bytes([byte]) + b"\0\0\0\x04")
        run.client.eof()
        run.client.pump()
        run.assert_ended()


@pytest.mark.parametrize("kind", MESSAGES)
def test_nothing_matters_behind_terminate(kind: str) -> None:
    """Whatever still comes is dropped; what begins no message ends it early. The connection is closed either way."""
    run = Run(Memory(options())).play(terminated(), 99)
    run.deliver(MESSAGES[kind])
    assert run.client.ended == kind.startswith("message")
    run.client.eof()
    run.client.pump()
    run.assert_ended()
    assert run.outcome("close").kind == "gives"


@pytest.mark.parametrize("kind", MESSAGES)
def test_what_arrives_while_bind_waits_for_a_cancel(kind: str) -> None:
    """It is looked at once the CancelRequest's socket has ended; a fatal error is told, a violation closes."""
    run = Run(Memory(options())).play(held_by_a_cancel(), 99)
    run.deliver(MESSAGES[kind])
    assert not run.operations["a"].done()
    run.client.cancel_ended()
    run.client.pump()
    run.drain()
    assert run.client.ended != (kind in ANYWHERE | {"BindComplete", "ErrorResponse"})
    run.client.eof()
    run.client.pump()
    run.assert_ended()
    assert run.outcome("a").kind == "raises"
