"""Runs one variant of a case: opens every contender, verifies it, then measures all of them in interleaved rounds.

A round runs each contender once, for about `Settings.slice` seconds, in an order that rotates from round to round; so a
slow moment of the machine falls on all of them. A ratio is the median of the per-round ratios to the base contender.
Each sample has wall-clock seconds and the client's CPU seconds (user and system, all threads) for a counted number of
operations. An operation is one request, or one fetch of the whole result in the row cases, one walk through
it in the stream case.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import statistics
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cases import EMPTY_TABLE, EXCLUSIVE_CONNECTIONS, INSERTED, TASKS, TRUNCATE, Placement, Variant, rows_of_many
from contenders import Connection, Contender, SyncConnection, SyncContender, WrongValue
from placement import Placer

PATIENCE = 60.0
"""Seconds after which one sample of a contender on asyncio counts as hung."""

Tick = Callable[[str], None]
Body = Callable[[int], Awaitable[int]]


@dataclass(frozen=True)
class Settings:
    """What is the same for all cases: rounds, and the seconds a contender runs in each."""

    dsn: str
    rounds: int
    slice: float


@dataclass(frozen=True)
class Sample:
    """One contender in one round."""

    operations: int
    wall: float
    cpu: float


@dataclass
class Measured:
    """What one contender did in one variant; `error` where it failed, and then no samples count."""

    contender: str
    samples: list[Sample] = field(default_factory=list)
    error: str | None = None
    bytes_a_row: float | None = None
    peak_bytes_a_row: float | None = None

    def wall(self) -> float:
        """Median seconds an operation."""
        return statistics.median(s.wall / s.operations for s in self.samples)

    def cpu(self) -> float:
        """Median client CPU seconds an operation."""
        return statistics.median(s.cpu / s.operations for s in self.samples)


@dataclass
class Outcome:
    """One variant's result; `placement` is the one that was reached."""

    variant: Variant
    placement: Placement
    measured: list[Measured]

    def of(self, contender: str) -> Measured | None:
        """The named contender's result, where it has one."""
        return next((m for m in self.measured if m.contender == contender and m.error is None), None)

    def ratios(self, contender: str, what: str = "wall") -> list[float]:
        """Per-round ratios base / contender of "wall" or "cpu": above 1 is better. Empty if either failed."""
        mine, base = self.of(contender), self.of(self.variant.case.base)
        if mine is None or base is None:
            return []
        pairs = zip(mine.samples, base.samples, strict=True)
        return [(getattr(b, what) / b.operations) / (getattr(m, what) / m.operations) for m, b in pairs]

    def ratio(self, contender: str, what: str = "wall") -> float | None:
        """The median of `ratios`."""
        values = self.ratios(contender, what)
        return statistics.median(values) if values else None


def run_async(
    variant: Variant, contenders: Sequence[Contender], settings: Settings, placer: Placer, tick: Tick
) -> Outcome:
    """Measure a variant on asyncio or uvloop."""
    factory: Any = importlib.import_module("uvloop").new_event_loop if variant.loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_AsyncRun(variant, settings, placer, tick).run(contenders))


class _AsyncRun:
    def __init__(self, variant: Variant, settings: Settings, placer: Placer, tick: Tick) -> None:
        self._variant, self._settings, self._placer, self._tick = variant, settings, placer, tick
        self._rounds = min(settings.rounds, variant.case.most_rounds or settings.rounds)
        self._placement: Placement = variant.placement
        self._digests: dict[str, tuple[int, int, str]] = {}
        self._open: list[Connection] = []

    async def run(self, contenders: Sequence[Contender]) -> Outcome:
        measured = [Measured(contender.name) for contender in contenders]
        bodies: dict[str, tuple[Body, int]] = {}
        for contender, result in zip(contenders, measured, strict=True):
            try:
                async with asyncio.timeout(PATIENCE):
                    bodies[contender.name] = await self._prepare(contender)
            except Exception as error:
                result.error = describe(error)
        self._compare(measured)
        for round_number in range(self._rounds):
            for result in rotated(measured, round_number):
                self._tick(result.contender)
                if result.error is not None:
                    continue
                body, count = bodies[result.contender]
                try:
                    async with asyncio.timeout(PATIENCE):
                        result.samples.append(await _sample(body, count))
                except Exception as error:
                    result.error = describe(error)
        for connection in self._open:
            try:
                async with asyncio.timeout(5):
                    await connection.close()
            except Exception as error:
                print(f"close failed: {describe(error)}")
        return Outcome(self._variant, self._placement, measured)

    async def _prepare(self, contender: Contender) -> tuple[Body, int]:
        """Connect, pin, verify, and find how many operations fill a slice."""
        case = self._variant.case
        many = case.kind == "tasks" and not contender.shares_connection
        connections = [await contender.connect(self._settings.dsn) for _ in range(EXCLUSIVE_CONNECTIONS if many else 1)]
        self._open += connections
        pids = [await connection.backend_pid() for connection in connections]
        if self._placer.pin_backends(pids, self._variant.placement) == "FREE":
            self._placement = "FREE"
        body: Body
        if case.kind == "rows":
            self._digests[contender.name] = digest(connections[0], await connections[0].fetch(case.sql))
            body = _FetchBody(connections[0], case.sql)
        elif case.kind == "stream":
            body = _StreamBody(connections[0], case.sql)
        elif case.kind == "many":
            await connections[0].fetch(EMPTY_TABLE)
            body = _ManyBody(connections[0], case.sql)
            await body(1)
            self._digests[contender.name] = digest(connections[0], await connections[0].fetch(INSERTED))
        elif case.kind == "tasks":
            tasks = connections * TASKS if contender.shares_connection else connections
            body = _TasksBody(tasks)
        else:
            body = _SequentialBody(connections[0])
        return body, await _calibrate(body, self._settings.slice)

    def _compare(self, measured: list[Measured]) -> None:
        """Mark those whose rows differ from the base's, or from the first contender's where there is no base."""
        if not self._digests:
            return
        reference = self._variant.case.base if self._variant.case.base in self._digests else next(iter(self._digests))
        for result in measured:
            mine = self._digests.get(result.contender)
            if mine is not None and mine[:2] != self._digests[reference][:2]:
                result.error = (
                    f"WRONG VALUES: {mine[0]} rows, first {mine[2]}; {reference}: {self._digests[reference][2]}"
                )


class _SequentialBody:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def __call__(self, count: int) -> int:
        await self._connection.fetchvals(count)
        return count


class _TasksBody:
    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    async def __call__(self, count: int) -> int:
        each = max(1, count // len(self._connections))
        async with asyncio.TaskGroup() as group:
            for connection in self._connections:
                group.create_task(connection.fetchvals(each))
        return each * len(self._connections)


class _FetchBody:
    def __init__(self, connection: Connection, sql: str) -> None:
        self._connection, self._sql = connection, sql

    async def __call__(self, count: int) -> int:
        for _ in range(count):
            await self._connection.fetch(self._sql)
        return count


class _StreamBody:
    def __init__(self, connection: Connection, sql: str) -> None:
        self._connection, self._sql = connection, sql
        self._rows = 0

    async def __call__(self, count: int) -> int:
        for _ in range(count):
            rows = await self._connection.stream(self._sql)
            if not rows or rows != (self._rows or rows):
                raise WrongValue(f"{rows} rows, and {self._rows} before")
            self._rows = rows
        return count


class _ManyBody:
    def __init__(self, connection: Connection, sql: str) -> None:
        self._connection, self._sql, self._rows = connection, sql, rows_of_many()

    async def __call__(self, count: int) -> int:
        for _ in range(count):
            await self._connection.fetch(TRUNCATE)
            await self._connection.executemany(self._sql, self._rows)
        return count


async def _sample(body: Body, count: int) -> Sample:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    operations = await body(count)
    return Sample(operations, time.perf_counter() - wall, time.process_time() - cpu)


async def _calibrate(body: Body, seconds: float) -> int:
    count = 1
    while True:
        sample = await _sample(body, count)
        if sample.wall >= seconds / 4:
            return max(1, round(seconds * sample.operations / sample.wall))
        count *= 4


def run_sync(
    variant: Variant, contenders: Sequence[SyncContender], settings: Settings, placer: Placer, tick: Tick
) -> Outcome:
    """Measure a variant of the blocking faces."""
    measured = [Measured(contender.name) for contender in contenders]
    placement, opened, counts = variant.placement, dict[str, SyncConnection](), dict[str, int]()
    for contender, result in zip(contenders, measured, strict=True):
        try:
            connection = opened[contender.name] = contender.connect(settings.dsn)
            if placer.pin_backends([connection.backend_pid()], variant.placement) == "FREE":
                placement = "FREE"
            counts[contender.name] = _calibrate_sync(connection, settings.slice)
        except Exception as error:
            result.error = describe(error)
    for round_number in range(settings.rounds):
        for result in rotated(measured, round_number):
            tick(result.contender)
            if result.error is None:
                try:
                    result.samples.append(_sample_sync(opened[result.contender], counts[result.contender]))
                except Exception as error:
                    result.error = describe(error)
    for connection in opened.values():
        connection.close()
    return Outcome(variant, placement, measured)


def _sample_sync(connection: SyncConnection, count: int) -> Sample:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    connection.fetchvals(count)
    return Sample(count, time.perf_counter() - wall, time.process_time() - cpu)


def _calibrate_sync(connection: SyncConnection, seconds: float) -> int:
    count = 4
    while (sample := _sample_sync(connection, count)).wall < seconds / 4:
        count *= 4
    return max(1, round(seconds * count / sample.wall))


def rotated(items: list[Measured], by: int) -> list[Measured]:
    """The list, begun at another place each round."""
    start = by % len(items) if items else 0
    return items[start:] + items[:start]


def describe(error: BaseException) -> str:
    """An error in one line; of a group, its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, WrongValue):
        return f"WRONG VALUES: {error}"
    return " ".join("".join(traceback.format_exception_only(error)).split())[:300]


def digest(connection: Connection, rows: Sequence[Any]) -> tuple[int, int, str]:
    """Row count, a hash of every value in order, and the first row's text; equal for equal results."""
    total, first = 0, ""
    for row in rows:
        values = tuple(_comparable(value) for value in connection.values(row))
        first = first or repr(values)[:120]
        total = hash((total, values))
    return len(rows), total, first


def _comparable(value: Any) -> Any:
    """A value as all drivers can give it: lists as tuples, PostgreSQL's "char" (bytes of asyncpg) as text."""
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    if isinstance(value, bytes) and len(value) == 1:
        return value.decode("latin-1")
    return value
