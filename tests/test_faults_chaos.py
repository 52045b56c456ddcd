"""Seeded schedules of a bad network before a real server: many tasks, connections that come and go, a token each.

PGPOLL_SCHEDULES: how many (default 1); PGPOLL_SCHEDULE_SECONDS: how long each lasts (default 1.5); PGPOLL_FIRST_SEED.
PGPOLL_SOAK_SECONDS: how long one with 200 tasks lasts, whose memory and descriptors must stay flat (default 2).
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

import pgpoll
from lasting import Lasting
from proxy import Faults
from sanity import Sanity, descriptors

FIRST_SEED = int(os.environ.get("PGPOLL_FIRST_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("PGPOLL_SCHEDULES", "1")))
SECONDS = float(os.environ.get("PGPOLL_SCHEDULE_SECONDS", "1.5"))
SOAK_SECONDS = float(os.environ.get("PGPOLL_SOAK_SECONDS", "2"))


class Weather:
    """Tasks that ask through proxies whose faults change with every connection."""

    def __init__(self, sane: Sanity, seed: int, proxies: int) -> None:
        self.sane = sane
        self.dice = random.Random(seed)
        self.proxies = [sane.through(Faults.random(self.dice)) for _ in range(proxies)]
        self.connecting = [asyncio.Lock() for _ in self.proxies]
        self.conns: dict[int, pgpoll.Connection] = {}
        self.counts: Counter[str] = Counter()
        self.lasting = Lasting(sane, self.dice)

    async def connected(self, which: int) -> pgpoll.Connection:
        async with self.connecting[which]:
            if which not in self.conns or self.conns[which].closed:
                self.proxies[which].heal(Faults.random(self.dice))
                changes = {"connect_timeout": 2, "max_pipeline": self.dice.choice([1, 9])}
                self.conns[which] = await pgpoll.connect(**self.sane.parameters(self.proxies[which], changes))
                self.counts["connections"] += 1
            return self.conns[which]

    async def request(self, conn: pgpoll.Connection, token: int) -> None:
        kind = self.dice.randrange(8)
        if kind >= 5:
            await self.lasting.request(conn, token)
            self.counts["lasting"] += 1
        elif kind == 0:
            rows = await conn.fetch("select $1::int8, repeat('x', 200) from generate_series(1, 50)", token, timeout=1)
            assert {row[0] for row in rows} == {token}
        elif kind == 1:
            async with conn.transaction() as tx:
                assert await tx.fetchval("select $1::int8", token, timeout=1) == token
        elif kind == 2:
            async with asyncio.timeout(self.dice.random() * 0.03):
                assert await conn.fetchval("select $1::int8, pg_sleep(0.005)", token) == token
        else:
            assert await conn.fetchval("select $1::int8", token, timeout=self.dice.choice([0.005, 1])) == token

    async def work(self, until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            try:
                await self.request(await self.connected(self.dice.randrange(len(self.proxies))), self.sane.token())
                self.counts["right"] += 1
            except (pgpoll.Error, TimeoutError) as error:
                self.sane.examine(error)
                self.counts["errors"] += 1
            await asyncio.sleep(self.dice.random() * 0.005)

    async def last(self, seconds: float, tasks: int) -> None:
        """Every request ends, in its own answer or in an error of ours; every lost connection can be replaced."""
        self.sane.blocking_allowed = True  # many tasks, and proxies that send 7 bytes at a time
        await self.lasting.begin()
        until = asyncio.get_running_loop().time() + seconds
        async with asyncio.timeout(seconds + 60), asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(self.work(until))
        for conn in self.conns.values():
            conn.terminate()
        for each in self.proxies:
            each.close()
        await self.lasting.settle()
        assert self.counts["right"] > 0
        assert self.counts["lasting"] > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
async def test_f01_f05_f66_a_bad_network(assert_sane: Sanity, seed: int) -> None:
    await Weather(assert_sane, seed, 4).last(SECONDS, 20)


def resident() -> int:
    """Bytes of memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(SOAK_SECONDS + 120)
async def test_f01_f05_f66_a_long_run(assert_sane: Sanity, record_property: Callable[[str, object], None]) -> None:
    """Two hundred tasks: neither memory nor descriptors grow once all that there is has been in use for a while."""
    weather = Weather(assert_sane, FIRST_SEED, 8)
    storm = asyncio.create_task(weather.last(SOAK_SECONDS, 200))
    samples: list[tuple[int, int]] = []
    while not storm.done():
        await asyncio.wait([storm], timeout=SOAK_SECONDS / 20)
        samples.append((resident() - weather.lasting.record_size(), descriptors().total()))
    await storm
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    memory, held = (median(each[0] for each in part) for part in (early, late))
    few, many = (max(each[1] for each in part) for part in (early, late))
    found = f"{memory / 2**20:.1f} MiB then {held / 2**20:.1f}; {few} descriptors then {many}; {dict(weather.counts)}"
    record_property("soak", found)
    print(found)
    assert held < memory * 1.05 + (4 << 20), found
    assert many <= few + 16, found  # each of eight connections may have one more on its way, to both sides of a proxy
