"""What the random programs' callers do with requests that last: each goes on by and by, and knows what it must get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from model_channels import SERIES, STEP, ChannelServer, piece
from pgpoll import core, errors
from script import error_of, plain


@dataclass
class Caller:
    ended: bool = field(default=False, init=False)  # it has nothing more to do

    def go_on(self, operation: core.Operation, choose: Random) -> None:
        raise NotImplementedError

    def right(self, operation: core.Operation) -> bool:
        """Whether the outcome is the one of its request."""
        raise NotImplementedError

    def holds(self, server: ChannelServer) -> bool:
        """Whether what it has so far may be, whatever became of it."""
        return True


def raised(operation: core.Operation, sql: str) -> bool:
    """It has failed as its SQL told it to."""
    error = error_of(operation)
    return getattr(error, "sqlstate", None) == "P0001" and str(error) == sql


@dataclass
class Batch(Caller):
    """What is planned for a batch, and what must come of it: values, or the first item that fails."""

    planned: list[tuple[str, tuple[object, ...], object]]
    added: list[tuple[str, object]] = field(default_factory=list)
    values: list[object] | None = None

    def go_on(self, operation: core.Operation, choose: Random) -> None:
        """A few items more, or the end."""
        for _ in range(choose.choice([1, 1, 3, 30])):
            if not self.planned:
                operation.end()
                self.ended = True
                return
            sql, args, expected = self.planned.pop(0)
            try:
                number = operation.add(sql, args)
            except errors.DataError:  # its statement is known: nothing was added
                assert expected is errors.DataError
                continue
            assert number == len(self.added)
            self.added.append((sql, expected))

    def right(self, operation: core.Operation) -> bool:
        failing = [k for k, (_, each) in enumerate(self.added) if each is errors.DataError or isinstance(each, str)]
        late = [k for k in failing if self.added[k][0].startswith("fail sync")]
        failing = [k for k in failing if k not in late] or late
        if failing:
            first = self.added[failing[0]][1]
            error = error_of(operation)
            named = first is errors.DataError and isinstance(error, errors.DataError)
            told = getattr(error, "sqlstate", None) == "P0001" and str(error) in {self.added[k][1] for k in failing}
            return (named or told) and operation.failed_item == (None if failing == late else failing[0])
        if self.values is None:
            self.values = [plain(operation.item(k)) for k in range(len(self.added))]
        return self.values == [each for _, each in self.added]


@dataclass
class Series:
    """What the server knows by that number."""

    number: int
    count: int = SERIES
    fails: int | None = None
    known: bool = False  # asked for with its number as the argument

    @property
    def sql(self) -> str:
        fails = "" if self.fails is None else f" failing {self.fails}"
        return "series of" if self.known else f"series {self.count} of {self.number}{fails}"

    @property
    def args(self) -> tuple[int, ...]:
        return (self.number,) if self.known else ()

    def rows(self) -> list[int]:
        last = self.count if self.fails is None else self.fails
        return [self.number * STEP + place for place in range(last)]

    @staticmethod
    def chosen(number: int, choose: Random) -> Series:
        if choose.random() < 0.4:
            return Series(number, known=True)
        count = choose.choice([0, 1, 2, 5, 30])
        return Series(number, count, choose.randrange(count + 1) if choose.random() < 0.2 else None)


@dataclass
class Stream(Caller):
    """Takes its rows in parts; never has more than it has granted."""

    series: Series
    granted: int | None  # None: without a limit
    taken: list[int] = field(default_factory=list)

    def go_on(self, operation: core.Operation, choose: Random) -> None:
        done = operation.done()
        rows = operation.take_rows(choose.choice([None, 1, 3]))
        self.taken += [row[0] for row in rows]
        if not done and self.granted is not None and choose.random() < 0.5:
            more = choose.choice([1, 1, 2, 7])
            operation.grant(more)
            self.granted += more
        self.ended = done and not rows

    def right(self, operation: core.Operation) -> bool:
        while rows := operation.take_rows():
            self.taken += [row[0] for row in rows]
        if self.taken != self.series.rows():
            return False
        if self.series.fails is not None:
            return raised(operation, self.series.sql)
        return str(operation.result()).startswith("SELECT ")

    def holds(self, server: ChannelServer) -> bool:
        whole = self.series.rows()
        in_order = self.taken == whole[: len(self.taken)]
        return in_order and (self.granted is None or server.given[self.series.number] <= self.granted)


@dataclass
class Cursor:
    """A portal that is read by several requests; gone where its transaction is."""

    name: str
    series: Series
    fetch: Callable[[Fetch, core.Operation, int], None]  # asks for so many rows more
    close: Callable[[], None]
    taken: list[int] = field(default_factory=list)


@dataclass
class Fetch(Caller):
    cursor: Cursor
    limit: int
    rows: list[int] = field(default_factory=list)

    def go_on(self, operation: core.Operation, choose: Random) -> None:
        if not operation.done():
            return
        self.ended = True
        try:
            more = operation.result()
        except errors.Error:
            return
        self.rows = [row[0] for row in operation.take_rows()]
        self.cursor.taken += self.rows
        if more and choose.random() < 0.8:
            limit = choose.choice([1, 2, 10])
            self.cursor.fetch(Fetch(self.cursor, limit), operation, limit)
        elif choose.random() < 0.5:
            self.cursor.close()

    def right(self, operation: core.Operation) -> bool:
        whole = self.cursor.series.rows()
        if self.cursor.taken != whole[: len(self.cursor.taken)]:
            return False
        try:
            more = operation.result()
        except errors.Error:
            return raised(operation, self.cursor.series.sql)
        return bool(more == (len(self.rows) == self.limit))

    def is_gone(self, operation: core.Operation, server: ChannelServer) -> bool:
        if self.cursor.name not in server.missed:
            return False
        try:
            operation.result()
        except errors.Error as error:
            return getattr(error, "sqlstate", None) == "34000"
        return False


@dataclass
class CopyIn(Caller):
    """Feeds `planned` pieces, then `end`s: "finish" or "fail"."""

    number: int
    planned: int
    end: str
    fails: str | None  # the piece that the server refuses, or "end"
    fed: list[bytes] = field(default_factory=list)

    @property
    def sql(self) -> str:
        return f"copy from {self.number}" + (f" failing {self.fails}" if self.fails is not None else "")

    def go_on(self, operation: core.Operation, choose: Random) -> None:
        for _ in range(choose.choice([1, 1, 2, 20])):
            if operation.stopped or operation.done():
                self.ended = True
                return
            if not operation.feeds:
                return
            if len(self.fed) < self.planned:
                self.fed.append(piece(self.number, len(self.fed)))
                operation.feed(self.fed[-1])
                continue
            if self.end == "finish":
                operation.finish_feed()
            else:
                operation.fail_feed("the source has failed")
            self.ended = True
            return

    def refused(self) -> bool:
        if self.fails is None:
            return False
        return self.end == "finish" if self.fails == "end" else len(self.fed) >= int(self.fails)

    def right(self, operation: core.Operation) -> bool:
        if self.refused():
            return raised(operation, self.sql)
        if self.end == "fail":
            return getattr(error_of(operation), "sqlstate", None) == "57014"
        return bool(plain(operation.result()) == ([], f"COPY {self.planned}"))

    def holds(self, server: ChannelServer) -> bool:
        """All or nothing, once."""
        return server.copied[self.number] in ([], [piece(self.number, place) for place in range(self.planned)])


@dataclass
class CopyOut(Caller):
    number: int
    count: int
    fails: int | None
    taken: bytes = b""

    @property
    def sql(self) -> str:
        return f"copy to {self.count} of {self.number}" + (f" failing {self.fails}" if self.fails is not None else "")

    def go_on(self, operation: core.Operation, choose: Random) -> None:
        self.ended = operation.done()
        self.taken += operation.take_data()

    def whole(self) -> bytes:
        return b"".join(piece(self.number, place) for place in range(self.count if self.fails is None else self.fails))

    def right(self, operation: core.Operation) -> bool:
        self.taken += operation.take_data()
        if self.taken != self.whole():
            return False
        return raised(operation, self.sql) if self.fails is not None else plain(operation.result())[1] == self.tag

    @property
    def tag(self) -> str:
        return f"COPY {self.count}"

    def holds(self, server: ChannelServer) -> bool:
        return self.whole().startswith(self.taken)
