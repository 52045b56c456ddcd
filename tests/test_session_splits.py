"""However a dialogue's bytes arrive its outcome is the same, and wherever it breaks off everybody is told, once.

Every recorded dialogue is replayed whole, merged, byte by byte and in every two-way split; and it is broken off after
every step, and after every byte, in every way that a connection may end. How often is printed at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backend import error_response, message
from conftest import replays
from dialogues import DIALOGUES
from peers import Memory, options
from pgpoll import errors
from script import Act, Run, Send, play


def outcomes(run: Run) -> tuple[object, ...]:
    """All that a caller and a server could tell two runs apart by."""
    order = [next(label for label, each in run.operations.items() if each is done) for done in run.finished]
    sent = [(each.name, sorted(each.fields)) for each in run.seen]
    return run.outcomes(), order, sent, run.client.transaction_status, dict(run.client.parameters)


@pytest.mark.parametrize("name", DIALOGUES)
def test_any_chunking_has_the_same_outcome(name: str, record_property: Callable[[str, object], None]) -> None:
    whole = play(DIALOGUES[name]())
    expected = outcomes(whole)
    assert isinstance(whole.peer, Memory)
    replays["whole"] += 1
    assert outcomes(play(DIALOGUES[name]().merged())) == expected
    replays["merged"] += 1
    assert outcomes(play(DIALOGUES[name](), "bytes")) == expected
    replays["byte by byte"] += 1
    splits = range(1, whole.peer.offset)
    for cut in splits:
        assert outcomes(play(DIALOGUES[name](), cut)) == expected, f"split at byte {cut}"
    replays["two-way splits"] += len(splits)
    record_property("splits", len(splits))


def end_of_file(run: Run) -> None:
    run.client.eof()
    run.client.pump()


def loss(run: Run) -> None:
    run.client.fail("connection reset by peer")


def unknown_message(run: Run) -> None:
    run.client.receive(message(b"\x21"))
    run.client.pump()


def web_server(run: Run) -> None:
    """f10: HTTP on the port."""
    run.client.receive(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    run.client.pump()


def zeros(run: Run) -> None:
    run.client.receive(bytes(64))
    run.client.pump()


def error_and_end_of_file(run: Run) -> None:
    run.client.receive(error_response("57P02", "crash of another server process", "FATAL"))
    run.client.pump()
    end_of_file(run)


BREAKS = [end_of_file, loss, unknown_message, web_server, zeros, error_and_end_of_file]


def break_off(run: Run, how: Callable[[Run], None]) -> None:
    if not run.client.ended:
        how(run)
    if not run.client.ended:  # it waits for the end of its cancel socket before it reads on
        run.client.cancel_ended()
        run.client.pump()
    run.assert_ended()
    for label, outcome in run.outcomes().items():
        assert outcome.kind in ("gives", "raises", "cancelled"), (label, outcome)


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("name", DIALOGUES)
def test_broken_off_after_every_step(name: str, how: Callable[[Run], None]) -> None:
    steps = len(DIALOGUES[name]().steps)
    for step in range(1, steps + 1):
        script = DIALOGUES[name]()
        if not any(isinstance(each, Act) for each in script.steps[:step]):
            continue
        run = Run(Memory(options(**script.changes))).play(script, step)
        break_off(run, how)
        replays[f"{how.__name__} after a step".replace("_", " ")] += 1


@pytest.mark.parametrize("how", [end_of_file, loss])
@pytest.mark.parametrize("name", DIALOGUES)
def test_broken_off_after_every_byte(name: str, how: Callable[[Run], None]) -> None:
    """f01, f28: FIN after byte k of the server's stream, for every k."""
    total = Run(Memory(options(**DIALOGUES[name]().changes)))
    script = DIALOGUES[name]()
    for number, step in enumerate(script.steps):
        size = sent_size(total, step)
        for cut in range(1, size):
            run, again = replay(name, number)
            run.client.receive(data_of(run, again)[:cut])
            run.client.pump()
            break_off(run, how)
            replays[f"{how.__name__} after a byte".replace("_", " ")] += 1
        total.step(step)


def replay(name: str, steps: int) -> tuple[Run, Send]:
    """A fresh run up to a step, and that step."""
    script = DIALOGUES[name]()
    run = Run(Memory(options(**script.changes))).play(script, steps)
    step = script.steps[steps]
    assert isinstance(step, Send)
    return run, step


def data_of(run: Run, step: Send) -> bytes:
    return b"".join(part if isinstance(part, bytes) else part(run) for part in step.parts)


def sent_size(run: Run, step: object) -> int:
    return len(data_of(run, step)) if isinstance(step, Send) else 0


def test_an_error_of_a_broken_connection_is_a_pgpoll_error_with_its_reason() -> None:
    run = play(DIALOGUES["trust"]())
    run.start("a", "execute", "select 1")
    run.start("b", "execute", "select 1")
    unknown_message(run)
    assert isinstance(run.error("a"), errors.ProtocolError)
    assert isinstance(run.error("b"), errors.ConnectionLost)
    assert run.error("b").__cause__ is not None
