#!/usr/bin/env python3
"""COPY of records in and out, pgpoll beside asyncpg and psycopg, on asyncio.

    python benchmarks/copying.py                       # 1,000,000 rows of (int4, text, float8, timestamptz), 5 rounds
    python benchmarks/copying.py --rows 100000 --rounds 3 --placement SAME

In: `copy_records` from a list of tuples, asyncpg's `copy_records_to_table`, psycopg's binary `write_row` after
set_types. Out: `copy_out_records`, psycopg's binary `rows()` after set_types, and asyncpg's `fetch` of the same query,
for it decodes no COPY. The contenders run one after another in each round, in an order that rotates; printed are
medians, and medians of the per-round ratios to asyncpg. CPU is the client's, user and system. Placements as in run.py.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import gc
import importlib
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cases import Placement
from database import database
from placement import Placer

TABLE = "create temp table copied (id int4, name text, score float8, at timestamptz)"
COLUMNS = ["id", "name", "score", "at"]
TYPES = ["int4", "text", "float8", "timestamptz"]
QUERY = "select * from copied"
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)

Body = Callable[[], Awaitable[int]]


def records(count: int) -> list[tuple[int, str, float, dt.datetime]]:
    """Rows as those of run.py's cases."""
    return [(i, f"row {i}", i * 0.5, START + dt.timedelta(seconds=i)) for i in range(1, count + 1)]


async def pgpoll_bodies(dsn: str, rows: list[Any]) -> tuple[int, Body, Body, Body]:
    """The backend's process id; clearing the table, COPY in, COPY out."""
    conn: Any = await importlib.import_module("pgpoll").connect(dsn)
    await conn.execute(TABLE)

    async def clear() -> int:
        await conn.execute("truncate copied")
        return 0

    async def copy_in() -> int:
        return int((await conn.copy_records("copied", rows)).rowcount)

    async def copy_out() -> int:
        count = 0
        async for _ in conn.copy_out_records(QUERY):
            count += 1
        return count

    return conn.backend_pid, clear, copy_in, copy_out


async def asyncpg_bodies(dsn: str, rows: list[Any]) -> tuple[int, Body, Body, Body]:
    """As pgpoll_bodies."""
    conn: Any = await importlib.import_module("asyncpg").connect(dsn)
    await conn.execute(TABLE)

    async def clear() -> int:
        await conn.execute("truncate copied")
        return 0

    async def copy_in() -> int:
        tag: str = await conn.copy_records_to_table("copied", records=rows)
        return int(tag.split()[1])

    async def copy_out() -> int:
        return len(await conn.fetch(QUERY))

    return conn.get_server_pid(), clear, copy_in, copy_out


async def psycopg_bodies(dsn: str, rows: list[Any]) -> tuple[int, Body, Body, Body]:
    """As pgpoll_bodies."""
    psycopg: Any = importlib.import_module("psycopg")
    assert psycopg.pq.__impl__ in ("binary", "c"), "psycopg runs without its C implementation"
    conn: Any = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    await conn.execute(TABLE)

    async def clear() -> int:
        await conn.execute("truncate copied")
        return 0

    async def copy_in() -> int:
        async with conn.cursor() as cursor:
            async with cursor.copy("copy copied from stdin (format binary)") as copy:
                copy.set_types(TYPES)
                for row in rows:
                    await copy.write_row(row)
            return int(cursor.rowcount)

    async def copy_out() -> int:
        count = 0
        async with conn.cursor() as cursor, cursor.copy(f"copy ({QUERY}) to stdout (format binary)") as copy:
            copy.set_types(TYPES)
            async for _ in copy.rows():
                count += 1
        return count

    return conn.info.backend_pid, clear, copy_in, copy_out


CONTENDERS = {"pgpoll": pgpoll_bodies, "asyncpg": asyncpg_bodies, "psycopg": psycopg_bodies}


async def timed(body: Body, expected: int) -> tuple[float, float]:
    """Wall and client CPU seconds of one run, whose number of rows is checked."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    count = await body()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert count == expected, (count, expected)
    return wall, cpu


async def measure(dsn: str, rows: list[Any], rounds: int, placement: Placement, placer: Placer) -> None:
    """Prints one table."""
    bodies = {name: await make(dsn, rows) for name, make in CONTENDERS.items()}
    reached = placer.pin_backends([each[0] for each in bodies.values()], placement)
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    names = list(bodies)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            _, clear, copy_in, copy_out = bodies[name]
            await clear()
            seen.setdefault(("in", name), []).append(await timed(copy_in, len(rows)))
            seen.setdefault(("out", name), []).append(await timed(copy_out, len(rows)))
    print(f"\n{len(rows):,} rows, {reached}, {rounds} rounds; ratios are asyncpg's time by the contender's")
    print(f"{'COPY':5}{'driver':10}{'rows/s':>12}{'wall':>8}{'CPU ns/row':>12}{'CPU':>8}")
    for (what, name), samples in sorted(seen.items()):
        base = seen[what, "asyncpg"]
        wall, cpu = (statistics.median(each[i] for each in samples) for i in (0, 1))
        ratios = [statistics.median(b[i] / s[i] for b, s in zip(base, samples, strict=True)) for i in (0, 1)]
        print(
            f"{what:5}{name:10}{len(rows) / wall:12,.0f}{ratios[0]:7.2f}x{cpu / len(rows) * 1e9:12.0f}{ratios[1]:7.2f}x"
        )


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", help="a server to use; else one of its own is started")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--placement", choices=("SAME", "CROSS"), action="append")
    options = parser.parse_args()
    placer = Placer()
    rows = records(options.rows)
    with database(options.dsn) as dsn:
        placer.pin_client()
        for placement in options.placement or (["CROSS", "SAME"] if placer.two_cpus else ["SAME"]):
            asyncio.run(measure(dsn, rows, options.rounds, placement, placer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
