"""U2: whatever is started, abandoned, cancelled and failed in whatever order, each request gets its own answer.

Random programs against a server that keeps the protocol's rules; every answer carries the number that was asked with.
A failure names its seed: `PGPOLL_MODEL_SEEDS=17 pytest tests/test_session_model.py` replays one, `=0:5000` runs many;
`python tests/test_session_model.py 0:100000` does so alone, and counts.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from dialogues.asynchronous import NOISE
from model_callers import Batch, Fetch, Stream
from model_channels import ChannelServer
from model_requests import END, KINDS, Asked, Requests
from pgpoll import core, errors
from script import error_of, plain

ACTIONS = 120
BLOCK = 50  # seeds in one test
# Where an abandoned head is cancelled though somebody waits behind it: whether that one may get the 57014.
INNOCENT_MAY_BE_HIT = True


def seeds_of(text: str) -> range:
    """ "17" is one seed, "0:300" the first 300."""
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


SEEDS = seeds_of(os.environ.get("PGPOLL_MODEL_SEEDS", "0:2000"))


@dataclass
class Program(Requests):
    """One random run. `client` is driven by it alone; the server works when it says so."""

    server: ChannelServer = field(default_factory=ChannelServer)
    on_the_way: bytearray = field(default_factory=bytearray)  # to the client
    cancelling: str = ""  # "sent", "struck"
    cancels: int = 0
    raised: int = 0

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
