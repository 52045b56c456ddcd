"""What the benchmark measures: each case names its query, its loops, its placements and the driver it is compared with.

Placements: SAME has client and backend on one CPU, which isolates the CPU cost of both; CROSS has each on its own CPU,
where the wake-ups between CPUs weigh most. Rows are measured CROSS, as a client of a real server would be.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

Kind = Literal["one", "tasks", "sync", "rows", "stream", "many", "memory"]
Loop = Literal["asyncio", "uvloop", "none"]
Placement = Literal["SAME", "CROSS", "FREE"]

TASKS = 100
EXCLUSIVE_CONNECTIONS = 10
"""Drivers with one request a connection get this many connections in the 100-task case, one task on each: more tasks
would only queue for them."""

STREAM_PREFETCH = 1000
"""Rows that each driver asks for at once in the stream case, inside of a transaction for those that need one."""

_MIXED = (
    "select i::int4 as id, 'row ' || i as name, i * 0.5::float8 as score,"
    " timestamptz '2024-01-01 00:00:00+00' + i * interval '1 second' as at from generate_series(1, {}) i"
)
_WIDE = (
    "select typname, typnamespace, typowner, typlen, typbyval, typcategory, typispreferred, typisdefined, typdelim,"
    " typrelid, typelem, typarray from pg_type where typtypmod = -1 and typisdefined"
)
_BYTEA = "select decode(repeat('5a', 1024), 'hex') as value from generate_series(1, 100)"
_ARRAYS = "select (select array_agg(v::int4) from generate_series(1, 1000) v) as value from generate_series(1, 100)"
_INTS = "select i::int4 as id from generate_series(1, {}) i"

MANY = 10_000
EMPTY_TABLE = "create temp table many (id int4, name text, score float8, at timestamptz)"
INSERT = "insert into many values ($1, $2, $3, $4)"
TRUNCATE = "truncate many"
INSERTED = "select * from many order by id"


def rows_of_many() -> list[tuple[int, str, float, dt.datetime]]:
    """What executemany gets."""
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    return [(i, f"row {i}", i * 0.5, start + dt.timedelta(seconds=i)) for i in range(MANY)]


@dataclass(frozen=True)
class Case:
    """One workload. `base` is the contender that ratios are taken against."""

    id: str
    title: str
    kind: Kind
    sql: str = ""
    loops: tuple[Loop, ...] = ("asyncio", "uvloop")
    placements: tuple[Placement, ...] = ("SAME", "CROSS")
    base: str = "asyncpg"
    most_rounds: int | None = None
    rows: int = 0
    """Rows of the result where that is fixed, for the memory case's bytes a row."""


@dataclass(frozen=True)
class Variant:
    """A case on one loop and in one placement: one block of the table."""

    case: Case
    loop: Loop
    placement: Placement

    @property
    def label(self) -> str:
        """For example "one-task, uvloop, SAME"."""
        parts = [self.case.id, *([self.loop] if self.loop != "none" else []), self.placement]
        return ", ".join(parts)


def _rows(name: str, title: str, sql: str, rows: int = 0) -> Case:
    return Case(name, title, "rows", sql, placements=("CROSS",), rows=rows)


CASES: tuple[Case, ...] = (
    Case("one-task", "one task, select $1::int4, one after another", "one"),
    Case(
        "tasks",
        f"select $1::int4; pgpoll: {TASKS} tasks on ONE connection;"
        f" others: {EXCLUSIVE_CONNECTIONS} connections, each held by one task",
        "tasks",
    ),
    Case(
        "sync",
        "blocking, select $1::int4, one after another; socket: the same bytes without a driver",
        "sync",
        loops=("none",),
        base="psycopg",
    ),
    _rows("rows-ints", "1,000 rows of one int4", _INTS.format(1000)),
    _rows("rows-wide", "pg_type, 12 columns", _WIDE),
    _rows("rows-bytea", "100 rows of 1 KB bytea", _BYTEA),
    _rows("rows-arrays", "100 rows of int4[1000]", _ARRAYS),
    _rows("rows-10k", "10,000 rows of (int, text, float8, timestamptz)", _MIXED.format(10_000)),
    _rows("rows-50k", "50,000 rows of (int, text, float8, timestamptz)", _MIXED.format(50_000)),
    Case(
        "rows-1m",
        "1,000,000 rows of (int, text, float8, timestamptz)",
        "rows",
        _MIXED.format(1_000_000),
        loops=("asyncio",),
        placements=("CROSS",),
        most_rounds=3,
    ),
    Case(
        "stream-1m",
        f"1,000,000 rows of (int, text, float8, timestamptz) one by one, {STREAM_PREFETCH} at a time;"
        " pgpoll: stream(); others: a cursor in a transaction",
        "stream",
        _MIXED.format(1_000_000),
        loops=("asyncio",),
        placements=("SAME", "CROSS"),
        most_rounds=3,
    ),
    Case(
        "executemany-10k",
        f"executemany: {MANY:,} rows of (int, text, float8, timestamptz) into a temporary table, emptied before",
        "many",
        INSERT,
        placements=("SAME", "CROSS"),
    ),
    Case(
        "memory",
        "memory that an untouched result of 1,000,000 ints holds (a new process each)",
        "memory",
        _INTS.format(1_000_000),
        loops=("asyncio",),
        placements=("FREE",),
        most_rounds=1,
        rows=1_000_000,
    ),
)


def variants(names: list[str] | None, *, quick: bool, full: bool, two_cpus: bool, uvloop: bool) -> list[Variant]:
    """The variants to run, those of one loop together so that a reader can compare.

    names: case ids, or None for all. quick leaves out 1,000,000 rows and row cases on uvloop; full adds rows SAME.
    Raises ValueError for an unknown name.
    """
    known = {case.id for case in CASES}
    if unknown := sorted(set(names or ()) - known):
        raise ValueError(f"no such case: {', '.join(unknown)}; there are {', '.join(c.id for c in CASES)}")
    chosen: list[Variant] = []
    for case in CASES:
        if names is not None and case.id not in names:
            continue
        if quick and names is None and case.id in ("rows-1m", "stream-1m"):
            continue
        placements = ("SAME", "CROSS") if full and case.kind == "rows" else case.placements
        for loop in case.loops:
            if loop == "uvloop" and (not uvloop or (quick and case.kind == "rows")):
                continue
            chosen += [Variant(case, loop, place) for place in placements if two_cpus or place != "CROSS"]
    return chosen
