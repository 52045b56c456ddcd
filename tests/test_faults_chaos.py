"""Seeded schedules of a bad network before a real server: many tasks, connections that come and go, a token each.

PGPOLL_SCHEDULES: how many (default 1); PGPOLL_SCHEDULE_SECONDS: how long each lasts (default 1.5); PGPOLL_FIRST_SEED.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import pytest

import pgpoll
from proxy import Faults
from sanity import Sanity

FIRST_SEED = int(os.environ.get("PGPOLL_FIRST_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("PGPOLL_SCHEDULES", "1")))
SECONDS = float(os.environ.get("PGPOLL_SCHEDULE_SECONDS", "1.5"))
TASKS = 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
async def test_f01_f05_f66_a_bad_network(
    assert_sane: Sanity, seed: int, record_property: Callable[[str, object], None]
) -> None:
    """Every request ends, in its own answer or in an error of ours; every lost connection can be replaced."""
    dice = random.Random(seed)
    assert_sane.blocking_allowed = True  # twenty tasks, and a proxy that sends 7 bytes at a time
    loop = asyncio.get_running_loop()
    proxies = [assert_sane.through(Faults.random(dice)) for _ in range(4)]
    conns: dict[int, pgpoll.Connection] = {}
    counts = {"right": 0, "errors": 0, "connections": 0}
    until = loop.time() + SECONDS
    connecting = [asyncio.Lock() for _ in proxies]

    async def connected(which: int) -> pgpoll.Connection:
        async with connecting[which]:
            if which not in conns or conns[which].closed:
                proxies[which].heal(Faults.random(dice))
                conns[which] = await pgpoll.connect(
                    **assert_sane.parameters(
                        proxies[which], {"connect_timeout": 2, "max_pipeline": dice.choice([1, 9])}
                    )
                )
                counts["connections"] += 1
            return conns[which]

    async def request(conn: pgpoll.Connection, token: int) -> None:
        kind = dice.randrange(5)
        if kind == 0:
            rows = await conn.fetch("select $1::int8, repeat('x', 200) from generate_series(1, 50)", token, timeout=1)
            assert {row[0] for row in rows} == {token}
        elif kind == 1:
            async with conn.transaction() as tx:
                assert await tx.fetchval("select $1::int8", token, timeout=1) == token
        elif kind == 2:
            async with asyncio.timeout(dice.random() * 0.03):
                assert await conn.fetchval("select $1::int8, pg_sleep(0.005)", token) == token
        else:
            assert await conn.fetchval("select $1::int8", token, timeout=dice.choice([0.005, 1])) == token

    async def work() -> None:
        while loop.time() < until:
            try:
                await request(await connected(dice.randrange(len(proxies))), assert_sane.token())
                counts["right"] += 1
            except (pgpoll.Error, TimeoutError) as error:
                assert_sane.examine(error)
                counts["errors"] += 1
            await asyncio.sleep(dice.random() * 0.005)

    async with asyncio.timeout(SECONDS + 60), asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(work())
    for conn in conns.values():
        conn.terminate()
    assert counts["right"] > 0
    record_property("counts", str(counts))
    print(seed, counts)
