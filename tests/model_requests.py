"""The requests of random programs: what is asked for, and what must become of it (test_session_model.py)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from model_callers import Batch, Caller, CopyIn, CopyOut, Cursor, Fetch, Series, Stream
from peers import options
from pgpoll import core, errors

# Every tenth program cancels an abandoned head though somebody waits behind it.
GRACE_EVERY = 10
KINDS = ["new", "known", "echo", "echo", "script", "command", "prepare", "bad", "fail", "fail", "batch"]
# Every fourth program has transactions instead of batches, and effects that must be durable once told as done.
TRANSACTIONS_EVERY = 4
OF_TRANSACTIONS = ["insert", "insert", "insert echo", "insert echo", "insert echo", "begin", "end", "end", "alter"]
OF_TRANSACTIONS += ["stream", "copy in", "copy out", "cursor", "cursor"]
# And every fourth has channels, and hears what others notify.
CHANNELS = [
    "stream",
    "stream",
    "stream",
    "copy in",
    "copy in",
    "copy out",
    "copy out",
    "wrong copy",
    "listen",
    "listen",
]


END = ("COMMIT", "ROLLBACK")
OURS = ("payload",)  # NOISE's


@dataclass
class Asked:
    """One request and what must become of it."""

    operation: core.Operation
    expected: object
    abandoned: bool = False
    number: int = 0
    inserts: bool = False
    rides_with: core.Operation | None = None  # in front of that one; it is unsent where that is
    caller: Caller | None = None  # of what lasts

    def over(self) -> bool:
        return self.operation.done() and (self.caller is None or self.caller.ended or self.abandoned)


@dataclass
class Requests:
    """What callers ask for at random, and go on with."""

    seed: int
    choose: random.Random = field(init=False)
    client: core.Session = field(init=False)
    asked: list[Asked] = field(default_factory=list)
    handed: list[core.Operation] = field(default_factory=list)
    failing: str = ""  # what the next request rides with fails
    outermost: set[core.Operation] = field(default_factory=set)  # refused, unsent, where a transaction is open
    queries: dict[int, str] = field(default_factory=dict)  # what was described besides, by the request's place
    heard: list[str] = field(default_factory=list)  # notifications

    def __post_init__(self) -> None:
        self.choose = random.Random(self.seed)
        self.grace = self.seed % GRACE_EVERY == GRACE_EVERY - 1
        self.kinds = KINDS
        if self.seed % TRANSACTIONS_EVERY == TRANSACTIONS_EVERY - 1:
            self.kinds = [each for each in KINDS if each != "batch"] + OF_TRANSACTIONS
        elif self.seed % TRANSACTIONS_EVERY == 1:
            self.kinds = KINDS + CHANNELS
        self.first_begin = 1 << 30  # its number
        pipeline, cache = self.choose.choice([1, 2, 1000]), self.choose.choice([1, 3, 100])
        self.client = core.Session(options(max_pipeline=pipeline, statement_cache_size=cache))
        self.client.keep_notifications(True)
        self.client.start_connect()

    def start(self) -> None:
        """One task, or many at once."""
        for _ in range(self.choose.choice([1, 1, 1, 1, 1, 1, 1, 12])):
            self.start_one()

    def start_one(self) -> None:
        number = len(self.asked) + 1000
        kind = self.choose.choice(self.kinds)
        count = self.choose.choice([0, 1, 2, 30])
        match kind:
            case "new":
                sql = f"rows {count} of {number}"
                self.ask(self.opened(self.client.start_execute, sql), ([(number,)] * count, f"SELECT {count}"))
            case "known":
                number = self.choose.randrange(3)
                sql = f"rows {count} of {number}"
                self.ask(self.opened(self.client.start_execute, sql), ([(number,)] * count, f"SELECT {count}"))
            case "echo":
                self.ask(self.opened(self.client.start_execute, "echo", (number,)), ([(number,)], "SELECT 1"))
            case "script":
                sql = f"rows {count} of {number};tag {number}"
                rows = [(str(number),)] * count
                self.ask(self.client.start_script(sql), [(rows, f"SELECT {count}"), ([], f"TAG {number}")])
            case "command":
                self.ask(self.opened(self.client.start_command, f"tag {number}"), f"TAG {number}")
            case "prepare":
                self.ask(self.opened(self.client.start_prepare, f"rows {count} of {number}"), [])
            case "batch":
                self.start_batch(number)
            case "bad":
                self.ask_badly()
            case "insert":
                self.ask(self.client.start_execute(f"insert {number}"), ([], "INSERT 0 1"), inserts=True)
            case "insert echo":
                self.ask(self.client.start_execute("insert echo", (number,)), ([], "INSERT 0 1"), inserts=True)
            case "begin":
                self.begin(f"begin {number}", number)
            case "end":
                word = self.choose.choice(["commit", "rollback"])
                self.ask(self.client.start_command(f"{word} {number}"), END)
            case "alter":
                self.ask(self.client.start_command(f"alter {number}"), f"TAG {number}")
            case "stream":
                self.start_stream(Series.chosen(number, self.choose))
            case "cursor":
                self.open_cursor(Series.chosen(number, self.choose))
            case "copy in":
                self.start_copy_in(number)
            case "copy out":
                pieces = self.choose.choice([0, 1, 2, 9])
                fails = self.choose.randrange(pieces + 1) if self.choose.random() < 0.3 else None
                reader = CopyOut(number, pieces, fails)
                self.ask_lasting(self.client.start_copy_out(reader.sql, self.described_too()), reader)
            case "wrong copy":
                start, wrong = self.client.start_copy_in, f"copy to 2 of {number}"
                if self.choose.random() < 0.5:
                    start, wrong = self.client.start_copy_out, f"copy from {number}"
                wrong = self.choose.choice([wrong, f"copy away {number}"])
                self.ask(start(wrong, self.described_too()), errors.InterfaceError)
            case "listen":
                word = self.choose.choice(["listen", "listen", "unlisten"])
                self.ask(self.client.start_command(f"{word} {number}"), word.upper())
            case "fail":
                sql = self.choose.choice(["fail parse", "fail bind", "fail execute", "fail late", "fail sync", "copy"])
                self.ask_to_fail(f"{sql} {number}", copy=sql == "copy")

    def ask(self, operation: core.Operation, expected: object, *, inserts: bool = False) -> None:
        number = len(self.asked) + 1000
        self.asked.append(Asked(operation, self.failing or expected, number=number, inserts=inserts))
        self.failing = ""

    def begin(self, sql: str, number: int) -> None:
        self.first_begin = min(self.first_begin, number)
        match self.choose.randrange(3):
            case 0:
                self.ask(self.client.start_command(sql), "BEGIN")
            case 1:
                self.ask(self.client.start_execute(sql), ([], "BEGIN"))
            case _:
                self.ask(self.client.start_script(sql), [([], "BEGIN")])

    def opened(self, start: Callable[..., core.Operation], *args: Any) -> core.Operation:
        """Some begin a block: with commands in front of them, one of which may fail, and all that follow with it."""
        self.failing = ""
        if self.choose.random() < 0.8:
            return start(*args)
        number = 500_000 + len(self.asked)
        commands = [f"tag {number + n}" for n in range(self.choose.choice([1, 1, 2]))]
        if self.choose.random() < 0.2:
            commands[self.choose.randrange(len(commands))] = f"fail execute {number}"
        outermost = self.choose.random() < 0.5
        *opening, operation = self.client._start_behind(tuple(commands), outermost, lambda: start(*args))
        for each, sql in zip(opening, commands, strict=True):
            if sql.startswith("fail"):
                self.failing = sql
            place = len(self.asked) + 1000
            self.asked.append(Asked(each, self.failing or sql.upper(), number=place, rides_with=operation))
        if outermost:
            self.outermost.update((*opening, operation))
        return operation

    def start_batch(self, number: int) -> None:
        """Known, new and failing statements; its items are added by and by."""
        planned: list[tuple[str, tuple[object, ...], object]] = []
        for item in range(self.choose.choice([0, 1, 2, 5, 20])):
            unique = number * 1000 + item
            kind = self.choose.choice(["new", "new", "echo", "echo", "known", "tag"])
            if self.choose.random() < 0.05:
                kind = self.choose.choice(["fail parse", "fail bind", "fail execute", "fail late", "fail sync", "bad"])
            match kind:
                case "new":
                    planned.append((f"rows 2 of {unique}", (), ([(unique,)] * 2, "SELECT 2")))
                case "echo":
                    planned.append(("echo", (unique,), ([(unique,)], "SELECT 1")))
                case "known":
                    planned.append(("rows 1 of 1", (), ([(1,)], "SELECT 1")))
                case "tag":
                    planned.append((f"tag {unique}", (), ([], f"TAG {unique}")))
                case "bad":
                    planned.append(("echo", ("no number",), errors.DataError))
                case _:
                    planned.append((f"{kind} {unique}", (), f"{kind} {unique}"))
        self.ask_lasting(self.client.start_batch(), Batch(planned))

    def ask_lasting(self, operation: core.Operation, caller: Caller, *, inserts: bool = False) -> None:
        self.asked.append(Asked(operation, None, number=len(self.asked) + 1000, inserts=inserts, caller=caller))

    def start_stream(self, series: Series) -> None:
        credit = self.choose.choice([None, 1, 2, 10])
        self.ask_lasting(self.client.start_stream(series.sql, series.args, credit), Stream(series, credit))

    def open_cursor(self, series: Series) -> None:
        """Each fetch is asked for when the one before it has told that there is more."""
        name = f"cursor {series.number}"

        def fetch(caller: Fetch, opened: core.Operation, limit: int) -> None:
            taken = len(caller.cursor.taken)
            self.ask_lasting(self.client._start_fetch(opened, limit, taken), caller)

        cursor = Cursor(name, series, fetch, lambda: self.client._close_portal(name))
        limit = self.choose.choice([1, 2, 10])
        self.ask_lasting(self.client._start_open(series.sql, series.args, name, limit), Fetch(cursor, limit))

    def start_copy_in(self, number: int) -> None:
        pieces = self.choose.choice([0, 1, 2, 9])
        fails = self.choose.choice(["end", "1", "2", "9"]) if self.choose.random() < 0.3 else None
        caller = CopyIn(number, pieces, "finish" if self.choose.random() < 0.7 else "fail", fails)
        self.ask_lasting(self.client.start_copy_in(caller.sql, self.described_too()), caller, inserts=True)

    def described_too(self) -> str:
        """What a COPY asks for besides."""
        if self.choose.random() < 0.7:
            return ""
        query = f"rows 1 of {len(self.asked) + 1000}"
        self.queries[len(self.asked)] = query
        return query

    def go_on(self) -> None:
        """Whoever has asked for something that lasts does something about it."""
        for each in list(self.asked):
            if each.caller is not None and not each.caller.ended and not each.abandoned:
                each.caller.go_on(each.operation, self.choose)
                self.drain()
        self.hear()

    def hear(self) -> None:
        self.heard += [
            payload or "lost" for channel, payload, _ in self.client.take_notifications() if payload not in OURS
        ]

    def ask_badly(self) -> None:
        """A wrong argument raises at once where the statement is known, else it ends the operation."""
        try:
            operation = self.opened(self.client.start_execute, "echo", ("no number",))
        except errors.Error:
            return
        self.ask(operation, errors.Error)

    def ask_to_fail(self, sql: str, *, copy: bool) -> None:
        execute = self.choose.random() < 0.5
        operation = self.opened(self.client.start_execute, sql) if execute else self.client.start_script(sql)
        self.ask(operation, errors.InterfaceError if copy else sql)

    def abandon(self) -> None:
        waiting = [each for each in self.asked if not (each.abandoned or each.operation.done() or each.rides_with)]
        if waiting:
            each = self.choose.choice(waiting)
            each.abandoned = True
            if isinstance(each.caller, Fetch) and self.choose.random() < 0.5:
                each.operation._spare()
                each.caller.cursor.close()
            else:
                each.operation.abandon()

    def abandon_all(self) -> None:
        for _ in self.asked:
            self.abandon()

    def drain(self) -> None:
        while (done := self.client.next_completed()) is not None:
            self.handed.append(done)
