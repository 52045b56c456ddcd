"""U2: whatever is started, abandoned, cancelled and failed in whatever order, each request gets its own answer.

Random programs against a server that keeps the protocol's rules; every answer carries the number that was asked with.
A failure names its seed: `PGPOLL_MODEL_SEEDS=17 pytest tests/test_session_model.py` replays one, `=0:5000` runs many;
`python tests/test_session_model.py 0:100000` does so alone, and counts.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from dialogues.asynchronous import NOISE
from model_callers import Batch, Caller, CopyIn, CopyOut, Cursor, Fetch, Series, Stream
from model_channels import ChannelServer
from peers import options
from pgpoll import core, errors
from script import error_of, plain

ACTIONS = 120
BLOCK = 50  # seeds in one test
# Every tenth program cancels an abandoned head though somebody waits behind it. Whether that one may get the 57014.
GRACE_EVERY = 10
INNOCENT_MAY_BE_HIT = True
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


def seeds_of(text: str) -> range:
    """ "17" is one seed, "0:300" the first 300."""
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


SEEDS = seeds_of(os.environ.get("PGPOLL_MODEL_SEEDS", "0:2000"))


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
class Program:
    """One random run. `client` is driven by it alone; the server works when it says so."""

    seed: int
    choose: random.Random = field(init=False)
    client: core.Session = field(init=False)
    server: ChannelServer = field(default_factory=ChannelServer)
    asked: list[Asked] = field(default_factory=list)
    on_the_way: bytearray = field(default_factory=bytearray)  # to the client
    cancelling: str = ""  # "sent", "struck"
    cancels: int = 0
    handed: list[core.Operation] = field(default_factory=list)
    failing: str = ""  # what the next request rides with fails
    outermost: set[core.Operation] = field(default_factory=set)  # refused, unsent, where a transaction is open
    queries: dict[int, str] = field(default_factory=dict)  # what was described besides, by the request's place
    raised: int = 0
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

    # What a caller does.

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

    # What goes on meanwhile.

    def send(self) -> None:
        self.server.feed(bytes(self.client.outbound()))

    def work(self) -> None:
        slow = self.server.running and not self.server.cancel and self.choose.random() < 0.95
        if self.server.busy and not slow:
            self.server.work()
        for message in self.server.answer:
            if self.choose.random() < 0.03:
                self.on_the_way += NOISE
            self.on_the_way += message
        self.server.answer.clear()

    def receive(self) -> None:
        size = self.choose.choice([1, 3, 7, 40, 10_000])
        data, self.on_the_way = bytes(self.on_the_way[:size]), self.on_the_way[size:]
        self.client.receive(data)
        self.client.pump()
        self.drain()

    def notify(self) -> None:
        """Another session's."""
        self.raised += 1
        self.server.notify(str(self.raised))

    def cancel(self) -> None:
        """The face's part of D6, slowly: send, strike, see the end of the cancel socket."""
        if self.cancelling == "sent":
            self.server.cancel = True
            self.cancelling = "struck"
        elif self.cancelling == "struck":
            self.client.cancel_ended()
            self.client.pump()
            self.cancelling = ""
        elif self.client.cancel_wanted() in (core.NOW, core.GRACE if self.grace else core.NOW):
            self.client.cancel_started()
            self.cancels += 1
            self.cancelling = "sent"

    def drain(self) -> None:
        while (done := self.client.next_completed()) is not None:
            self.handed.append(done)

    # The whole.

    def run(self) -> None:
        steps: list[Callable[[], None]] = [self.start, self.send, self.work, self.receive, self.abandon, self.cancel]
        steps += [self.go_on, self.notify]
        weights = [6, 6, 20, 14, 2, 4, 6, 5]
        for _ in range(ACTIONS):
            self.choose.choices(steps, weights)[0]()
            if self.choose.random() < (0.02 if self.kinds is KINDS else 0.01):
                self.abandon_all()
        self.finish()

    def finish(self) -> None:
        for _ in range(20_000):
            if all(each.over() for each in self.asked) and not self.busy():
                break
            self.go_on()
            self.send()
            self.work()
            self.receive()
            self.cancel()
        self.drain()
        self.hear()

    def busy(self) -> bool:
        return bool(self.on_the_way or self.server.busy or self.server.answer or self.cancelling)

    def judge(self) -> None:
        assert not self.client.ended, "the session ended"
        for place, each in enumerate(self.asked):
            assert each.operation.done(), f"request {place} hangs"
            if isinstance(each.caller, Batch):
                self.judge_lasting(place, each.operation, each.caller)
            assert each.caller is None or each.caller.holds(self.server), f"request {place}: {each.caller}"
            if each.abandoned:
                continue
            assert sum(each.operation is done for done in self.handed) == 1, f"request {place} was not handed out once"
            right = is_right(each) or unsent(each) or self.is_of_its_place(each)
            assert right or self.may_be_hit(each.operation), f"request {place}: {each.caller or each.expected}"
        self.judge_effects()
        assert self.heard == self.server.told, "notifications"
        assert self.grace or all(hit == "" or self.was_abandoned(hit) for hit in self.server.hits), self.server.hits

    def judge_effects(self) -> None:
        """Nothing runs twice, nor inside of a transaction that began behind it; what was told is what stands."""
        found = Counter(each.number for each in self.server.effects + self.server.undone)
        assert all(count == 1 for count in found.values()), f"ran twice: {found.most_common(1)}"
        for effect in self.server.effects + self.server.undone:
            assert effect.transaction < effect.number, f"{effect} ran inside of a transaction that began behind it"
        stands = {each.number for each in self.server.effects if each.durable}
        in_transactions = {each.number for each in self.server.effects + self.server.undone if each.transaction}
        for each in self.asked:
            if not each.inserts or each.abandoned:
                continue
            if not failed(each.operation):
                assert each.number in stands | in_transactions, f"{each.number} was told as done, and is not"
            else:
                assert each.number not in stands, f"{each.number} was told to have failed, and stands"

    def is_of_its_place(self, each: Asked) -> bool:
        """Errors and successes that are due to a transaction that began before, or that hindered a second attempt."""
        in_transaction = each.number > self.first_begin
        reads = isinstance(each.caller, Stream) and each.caller.series.known
        if isinstance(each.caller, Fetch):
            reads = each.caller.cursor.series.known
            if each.caller.is_gone(each.operation, self.server):
                return True
        try:
            each.operation.result()
        except errors.InterfaceError:
            return in_transaction and each.operation in self.outermost and not each.operation.written
        except errors.FeatureNotSupported:
            return (each.inserts or reads) and "alter" in self.kinds
        except errors.InFailedSqlTransaction:
            return in_transaction
        except errors.Error:
            return False
        return in_transaction and str(each.expected).startswith("fail sync")

    def judge_lasting(self, place: int, operation: core.Operation, batch: Batch) -> None:
        """All of a batch lasts, or nothing; which, its outcome says where somebody waited for it."""
        unique = [sql for sql, _ in batch.added if sql.startswith(("rows 2", "tag"))]
        lasting = [self.server.lasting[sql] for sql in unique]
        assert not any(lasting) or (all(each == 1 for each in lasting) and batch.ended), f"batch {place}: {lasting}"
        if (
            unique
            and operation.done()
            and not any(each.operation is operation and each.abandoned for each in self.asked)
        ):
            assert all(lasting) == (operation.failed_item is None and not failed(operation)), f"batch {place}"

    def may_be_hit(self, operation: core.Operation) -> bool:
        return INNOCENT_MAY_BE_HIT and self.grace and getattr(error_of(operation), "sqlstate", None) == "57014"

    def was_abandoned(self, sql: str) -> bool:
        return any(
            each.abandoned
            for place, each in enumerate(self.asked)
            if sql in (each.operation.sql, self.queries.get(place))
            or (isinstance(each.caller, Batch) and any(item == sql for item, _ in each.caller.added))
        )


def failed(operation: core.Operation) -> bool:
    try:
        operation.result()
    except errors.Error:
        return True
    return False


def is_right(each: Asked) -> bool:
    if each.caller is None:
        return matches(each.operation, each.expected)
    try:
        return each.caller.right(each.operation)
    except errors.Error:
        return False


def unsent(each: Asked) -> bool:
    """It never left: it rides with what was given up, or has arguments that do not fit."""
    if each.operation.written:
        return False
    return each.rides_with is not None or isinstance(error_of(each.operation), errors.DataError)


def matches(operation: core.Operation, expected: object) -> bool:
    try:
        value = plain(operation.result())
    except errors.Error as error:
        if isinstance(expected, type):
            return isinstance(error, expected)
        return getattr(error, "sqlstate", None) == "P0001" and str(error) == expected
    if expected is END:
        return value in END
    if isinstance(value, tuple) and isinstance(value[0], list) and expected == []:
        return value[0] == []  # a PreparedStatement without parameters
    return bool(value == expected)


def play(seed: int) -> Program:
    """One program to its end, and one request more, which shows that the connection is usable."""
    program = Program(seed)
    program.run()
    program.judge()
    program.ask(program.client.start_execute("echo", (424242,)), ([(424242,)], "SELECT 1"))
    program.finish()
    program.judge()
    return program


@pytest.mark.parametrize("first", SEEDS[::BLOCK])
def test_every_request_gets_its_own_answer(first: int) -> None:
    for seed in range(first, min(first + BLOCK, SEEDS.stop)):
        try:
            play(seed)
        except BaseException as error:
            error.add_note(f"PGPOLL_MODEL_SEEDS={seed} replays this program")
            raise


def main() -> None:
    counts: Counter[str] = Counter()
    for seed in seeds_of(sys.argv[1]):
        try:
            program = play(seed)
        except AssertionError as error:
            counts["mismatches"] += 1
            print(f"seed {seed}: {error}", flush=True)
            continue
        counts["programs"] += 1
        counts["requests"] += len(program.asked)
        counts["abandoned"] += sum(each.abandoned for each in program.asked)
        counts["cancels"] += program.cancels
        counts["hits"] += len(program.server.hits)
        counts["hits of a drain"] += program.server.hits.count("")
    print(dict(counts, mismatches=counts["mismatches"]))


if __name__ == "__main__":
    main()
