"""Sessions in the middle of something, and how one must end that a hostile server speaks to."""

from __future__ import annotations

import resource

from backend import bind_complete, parse_complete
from dialogues.execute import NEW, ONE, knows
from peers import PASSWORD, Memory, options
from pgpoll import errors
from script import Run, Script, play


def executing(*data: bytes) -> Run:
    """`a` and `b` are on the wire, BindComplete and `data` have come."""
    run = play(knows())
    run.start("a", "execute", ONE)
    run.start("b", "execute", ONE)
    run.read(6)
    run.messages.clear()
    run.deliver(bind_complete() + b"".join(data))
    return run


def connecting() -> Run:
    run = Run(Memory(options()))
    return run.play(Script().start("connect", "connect").expect("StartupMessage"), 2)


def parsed() -> Run:
    run = play(Script().connect())
    run.start("a", "execute", "select $1::int4", (1,))
    run.expect(NEW)
    run.deliver(parse_complete())
    return run


def assert_protocol_error(run: Run, *texts: str) -> None:
    """The head has a ProtocolError that says what and where; the session is over; nothing of ours was sent for it."""
    assert run.client.ended, "the session goes on"
    told = [label for label in run.operations if run.outcome(label).kind == "raises"]
    assert told, "nobody was told"
    error = run.error(told[0])
    assert isinstance(error, errors.ProtocolError), repr(error)
    assert error.sqlstate == "08P01"
    for text in (*texts, "byte"):
        assert text in str(error), f"{str(error)!r} lacks {text!r}"
    run.assert_ended()
    for label in told[1:]:
        assert isinstance(run.error(label), errors.ConnectionLost)
    assert PASSWORD not in repr(error)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
