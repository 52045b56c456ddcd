"""A transaction of one cached statement, one after another, on one connection: microseconds each, wall and client CPU.

    python benchmarks/block.py [--dsn DSN] [--count N] [--rounds N] [--loop asyncio|uvloop] [--placement SAME|CROSS]

Contenders take turns; the median of the rounds counts, and of the per-round ratios to asyncpg, or psycopg's blocking
face. pgpoll needs two flights (BEGIN rides in front of the statement), asyncpg and psycopg three. Placements as in
run.py.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cases import Placement
from placement import Placer

SQL = "select 1::int4"


def measured(run: Callable[[], object], count: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.perf_counter() - wall) / count * 1e6, (time.process_time() - cpu) / count * 1e6


async def pgpoll_asyncio(dsn: str) -> tuple[Callable[[int], Awaitable[None]], Any]:
    import pgpoll

    conn = await pgpoll.connect(dsn)

    async def many(count: int) -> None:
        for _ in range(count):
            async with conn.transaction():
                assert await conn.fetchval(SQL) == 1

    return many, conn


async def asyncpg_asyncio(dsn: str) -> tuple[Callable[[int], Awaitable[None]], Any]:
    import asyncpg

    conn = await asyncpg.connect(dsn)

    async def many(count: int) -> None:
        for _ in range(count):
            async with conn.transaction():
                assert await conn.fetchval(SQL) == 1

    return many, conn


async def psycopg_asyncio(dsn: str) -> tuple[Callable[[int], Awaitable[None]], Any]:
    import psycopg

    conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0)

    async def many(count: int) -> None:
        cursor = conn.cursor()
        for _ in range(count):
            async with conn.transaction():
                await cursor.execute(SQL)
                row = await cursor.fetchone()
                assert row is not None
                assert row[0] == 1

    return many, conn


def pgpoll_sync(dsn: str) -> tuple[Callable[[int], None], Any]:
    import pgpoll.sync

    conn = pgpoll.sync.connect(dsn)

    def many(count: int) -> None:
        for _ in range(count):
            with conn.transaction():
                assert conn.fetchval(SQL) == 1

    return many, conn


def psycopg_sync(dsn: str) -> tuple[Callable[[int], None], Any]:
    import psycopg

    conn = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)

    def many(count: int) -> None:
        cursor = conn.cursor()
        for _ in range(count):
            with conn.transaction():
                row = cursor.execute(SQL).fetchone()
                assert row is not None
                assert row[0] == 1

    return many, conn


CONTENDERS = (("pgpoll", pgpoll_asyncio), ("asyncpg", asyncpg_asyncio), ("psycopg", psycopg_asyncio))
BLOCKING = (("pgpoll", pgpoll_sync), ("psycopg", psycopg_sync))


def backend_pid(conn: Any) -> int:
    if hasattr(conn, "get_server_pid"):
        return int(conn.get_server_pid())
    return int(conn.backend_pid if hasattr(conn, "backend_pid") else conn.info.backend_pid)


def report(placement: Placement, times: dict[str, list[tuple[float, float]]]) -> None:
    for name, found in times.items():
        base = times.get("psycopg, blocking" if name.endswith("blocking") else f"asyncpg,{name.split(',')[1]}", found)
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        ratios = [statistics.median(b[i] / f[i] for b, f in zip(base, found, strict=True)) for i in (0, 1)]
        print(f"{placement} {name:20} {wall:8.1f} us wall {ratios[0]:5.2f}x {cpu:8.1f} us CPU {ratios[1]:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dsn", default=os.environ.get("PGPOLL_DSN", ""))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--placement", choices=("SAME", "CROSS"), action="append")
    given = parser.parse_args()
    placer = Placer()
    placer.pin_client()
    loop = asyncio.new_event_loop()
    if given.loop == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
    runs: dict[str, Callable[[], object]] = {}
    pids: list[int] = []
    ends: list[Callable[[], object]] = []
    for name, connect in CONTENDERS:
        if importlib.util.find_spec(name) is not None:
            many, conn = loop.run_until_complete(connect(given.dsn))
            runs[f"{name}, {given.loop}"] = lambda many=many: loop.run_until_complete(many(given.count))  # type: ignore[misc]
            pids.append(backend_pid(conn))
            ends.append(lambda conn=conn: loop.run_until_complete(conn.close()))  # type: ignore[misc]
    for name, connect_sync in BLOCKING:
        if importlib.util.find_spec(name) is not None:
            many_sync, conn = connect_sync(given.dsn)
            runs[f"{name}, blocking"] = lambda many=many_sync: many(given.count)  # type: ignore[misc]
            pids.append(backend_pid(conn))
            ends.append(conn.close)
    for placement in given.placement or (["SAME", "CROSS"] if placer.two_cpus else ["SAME"]):
        reached = placer.pin_backends(pids, placement)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(given.rounds + 1):
            for name, run in runs.items():
                times[name].append(measured(run, given.count))
        report(reached, {name: found[1:] for name, found in times.items()})  # the first warms up
    for end in ends:
        end()


if __name__ == "__main__":
    main()
