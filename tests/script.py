"""Dialogues as data: what the caller starts, what the server expects and what it sends, one line a step.

    Script().connect() \\
        .start("a", "execute", "select 1") \\
        .expect("Parse", "Describe", "Flush").send(described("one")) \\
        .expect(where("Bind", of="select 1"), "Execute", "Sync") \\
        .send(bind_complete(), selected(1), ready_for_query()) \\
        .gives("a", [(1,)], "SELECT 1")

`expect` names *all* messages that have left since the last one; an end with a message unread fails too. The same
script is played in memory against `core.Session` (Memory: whole, byte by byte, split at any offset), over a socket
against `core.Connection` (Wire), or by a server in a thread (FakeServer; the caller's steps are left out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import pgpoll
from backend import FrontendMessage, FrontendReader, started
from peers import Cut, Memory, Peer, options
from pgpoll import core, errors

# What a step asks of a message that has left.


@dataclass(frozen=True)
class where:  # noqa: N801 - reads as a word within a script
    """A message of this name with these fields. `of=` asks for the statement that this text was parsed as."""

    name: str
    fields: dict[str, Any]

    def __init__(self, name: str, /, **fields: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "fields", fields)

    def matches(self, message: FrontendMessage, statements: dict[str, str]) -> bool:
        wanted = dict(self.fields)
        if "of" in wanted:
            wanted["name" if self.name in ("Describe", "Close") else "statement"] = statements.get(wanted.pop("of"))
        return message.name == self.name and all(message[key] == value for key, value in wanted.items())


Matcher = str | where


@dataclass(frozen=True)
class Outcome:
    """How an operation ended: its value as plain data, or its error's class and text."""

    kind: str  # "gives", "raises", "cancelled", "pending"
    value: Any = None


@dataclass
class Act:
    what: Callable[[Run], None]


@dataclass
class Expect:
    matchers: tuple[Matcher, ...]


@dataclass
class Send:
    parts: tuple[bytes | Callable[[Run], bytes], ...]


class Script:
    """A dialogue. `memory_only` marks one whose steps only `core.Session` has."""

    def __init__(self, *, memory_only: bool = False, **changes: Any) -> None:
        self.steps: list[Act | Expect | Send] = []
        self.checks: list[Callable[[Run], None]] = []
        self.memory_only = memory_only
        self.changes = changes

    def act(self, what: Callable[[Run], None]) -> Self:
        self.steps.append(Act(what))
        return self

    def start(self, label: str, verb: str, *args: Any) -> Self:
        return self.act(lambda run: run.start(label, verb, *args))

    def abandon(self, label: str) -> Self:
        return self.act(lambda run: run.abandon(label))

    def takes(self, label: str, *rows: tuple[Any, ...], at_most: int | None = None) -> Self:
        """Of a stream: these rows have come, and no others were taken before; `at_most` so many are asked for."""
        return self.act(lambda run: run.take(label, list(rows), at_most))

    def grant(self, label: str, rows: int) -> Self:
        return self.act(lambda run: run.grant(label, rows))

    def expect(self, *matchers: Matcher) -> Self:
        self.steps.append(Expect(matchers))
        return self

    def send(self, *parts: bytes | Callable[[Run], bytes]) -> Self:
        self.steps.append(Send(parts))
        return self

    def connect(self, data: bytes | None = None) -> Self:
        """Start-up with a server that trusts us."""
        return self.start("connect", "connect").expect("StartupMessage").send(started() if data is None else data)

    def merged(self) -> Script:
        """The same with neighbouring sends made one: replies that share a segment."""
        copy = Script(memory_only=self.memory_only, **self.changes)
        copy.checks = self.checks
        for step in self.steps:
            if isinstance(step, Send) and copy.steps and isinstance(copy.steps[-1], Send):
                copy.steps[-1] = Send(copy.steps[-1].parts + step.parts)
            else:
                copy.steps.append(step)
        return copy

    # What must be true when the last step is done.

    def check(self, what: Callable[[Run], None]) -> Self:
        self.checks.append(what)
        return self

    def gives(self, label: str, *value: Any) -> Self:
        """`label` succeeds: with (rows, tag) for execute, a list of them for script, None for others."""
        expected = Outcome("gives", value if len(value) > 1 else value[0] if value else None)
        return self.check(lambda run: run.assert_outcome(label, expected))

    def raises(self, label: str, kind: type[BaseException], text: str = "") -> Self:
        return self.check(lambda run: run.assert_raises(label, kind, text))

    def cancelled(self, *labels: str) -> Self:
        def all_cancelled(run: Run) -> None:
            for label in labels:
                run.assert_outcome(label, Outcome("cancelled"))

        return self.check(all_cancelled)


@dataclass
class Run:
    """One playing of a script: its operations by label, what has finished, what the server has seen."""

    peer: Peer
    operations: dict[str, core.Operation] = field(default_factory=dict)
    abandoned: set[str] = field(default_factory=set)
    finished: list[core.Operation] = field(default_factory=list)
    statements: dict[str, str] = field(default_factory=dict)  # SQL text -> name, as parsed
    seen: list[FrontendMessage] = field(default_factory=list)
    memo: dict[str, Any] = field(default_factory=dict)
    reader: FrontendReader = field(default_factory=FrontendReader)
    messages: list[FrontendMessage] = field(default_factory=list)  # arrived, not yet expected

    @property
    def client(self) -> Any:
        return self.peer.client

    def start(self, label: str, verb: str, *args: Any) -> None:
        assert label not in self.operations
        self.operations[label] = getattr(self.client, f"start_{verb}")(*args)

    def abandon(self, label: str) -> None:
        self.abandoned.add(label)
        self.operations[label].abandon()

    def take(self, label: str, expected: list[tuple[Any, ...]], at_most: int | None) -> None:
        taken = self.operations[label].take_rows(at_most)
        assert [tuple(row) for row in taken] == expected

    def grant(self, label: str, rows: int) -> None:
        self.operations[label].grant(rows)
        if isinstance(self.client, core.Session):
            self.client.pump()

    def deliver(self, data: bytes) -> None:
        """The server sends this."""
        self.peer.deliver(data)
        self.drain()

    def forget(self, label: str) -> None:
        """Drops the operation, as a caller does who has its result."""
        operation = self.operations.pop(label)
        assert operation.done()
        self.finished = [each for each in self.finished if each is not operation]

    def last(self) -> FrontendMessage:
        """The message that was expected last: what a computed `send` answers."""
        return self.seen[-1]

    def read(self, wanted: int) -> None:
        while True:
            data = self.peer.received(wanted - len(self.messages) if wanted > len(self.messages) else 0)
            if not data:
                return
            self.reader.feed(data)
            self.messages.extend(self.reader)

    def expect(self, matchers: tuple[Matcher, ...]) -> None:
        self.read(len(matchers))
        got, self.messages = self.messages, []
        for each in got:
            if each.name == "Parse":
                self.statements[each["query"]] = each["statement"]
        wanted = [where(each) if isinstance(each, str) else each for each in matchers]
        agree = len(wanted) == len(got) and all(
            each.matches(message, self.statements) for each, message in zip(wanted, got, strict=True)
        )
        assert agree, f"expected {list(matchers)}\n     got {got}"
        self.seen.extend(got)

    def drain(self) -> None:
        while (done := self.client.next_completed()) is not None:
            assert done.done(), "handed out before it was finished"
            assert not any(done is each for each in self.finished), "handed out twice"
            self.finished.append(done)

    def step(self, step: Act | Expect | Send) -> None:
        match step:
            case Act(what):
                what(self)
            case Expect(matchers):
                self.expect(matchers)
            case Send(parts):
                self.deliver(b"".join(part if isinstance(part, bytes) else part(self) for part in parts))
        self.drain()

    def play(self, script: Script, steps: int | None = None) -> Self:
        """Plays the script, or its first steps; the outcomes are judged only where it was played whole."""
        for step in script.steps[:steps]:
            self.step(step)
        if steps is None:
            self.expect(())
            assert not self.reader.buffer, "half a message has left"
            for check in script.checks:
                check(self)
            self.assert_finished_once(pending_allowed=True)
        return self

    # Judging.

    def outcome(self, label: str) -> Outcome:
        operation = self.operations[label]
        if not operation.done():
            return Outcome("pending")
        if label in self.abandoned:
            return Outcome("cancelled")
        try:
            return Outcome("gives", plain(operation.result()))
        except pgpoll.Error as error:
            return Outcome("raises", (type(error).__name__, str(error)))

    def outcomes(self) -> dict[str, Outcome]:
        return {label: self.outcome(label) for label in self.operations}

    def assert_outcome(self, label: str, expected: Outcome) -> None:
        assert self.outcome(label) == expected, f"{label}: {self.outcome(label)}, expected {expected}"

    def assert_raises(self, label: str, kind: type[BaseException], text: str) -> None:
        assert self.operations[label].done(), f"{label} is pending"
        error = error_of(self.operations[label])
        assert isinstance(error, kind), f"{label}: {error!r}, expected {kind.__name__}"
        assert text.lower() in str(error).lower(), f"{label}: {str(error)!r} lacks {text!r}"

    def error(self, label: str) -> pgpoll.Error:
        """The error of an operation that has failed."""
        error = error_of(self.operations[label])
        assert isinstance(error, pgpoll.Error)
        return error

    def assert_hint(self, label: str, text: str) -> None:
        hint = getattr(self.error(label), "hint", None) or ""
        assert text in hint, f"{label}: the hint {hint!r} lacks {text!r}"

    def assert_finished_once(self, *, pending_allowed: bool = False) -> None:
        """Every operation has ended, was handed out once if somebody waits, and never if it was abandoned."""
        self.drain()
        for label, operation in self.operations.items():
            handed = sum(operation is each for each in self.finished)
            if label in self.abandoned:
                assert pending_allowed or operation.done(), f"{label} (abandoned) has not ended"
                continue  # it may have been handed out before it was abandoned
            assert pending_allowed or operation.done(), f"{label} has not ended"
            assert handed == operation.done(), f"{label} was handed out {handed} times"

    def assert_ended(self) -> None:
        """The session is over, everybody knows, and nothing can be started any more."""
        assert self.client.ended, "the session goes on"
        self.assert_finished_once()
        self.outcomes()  # raises what is no pgpoll.Error
        for late in ("execute", "prepare", "script"):
            try:
                getattr(self.client, f"start_{late}")("select 1")
            except errors.InterfaceError:
                continue
            raise AssertionError(f"start_{late} was accepted by a session that has ended")


def plain(value: Any) -> Any:
    """A result as data that can be compared: (rows, tag), and lists of it; (parameter types, column names)."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, core.Result):
        return [tuple(row) for row in value], value.tag
    if isinstance(value, core.PreparedStatement):
        names = None if value.columns is None else [each.name for each in value.columns]
        return [each.type_oid for each in value.parameters], names
    return value


def error_of(operation: core.Operation) -> BaseException:
    try:
        value = operation.result()
    except pgpoll.Error as error:
        return error
    raise AssertionError(f"no error, but {plain(value)}")


def play(script: Script, cut: Cut = "whole", steps: int | None = None) -> Run:
    """Plays in memory."""
    return Run(Memory(options(**script.changes), cut)).play(script, steps)
