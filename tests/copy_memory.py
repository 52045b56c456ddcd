"""What COPY of many rows takes of memory: usage: copy_memory.py async|sync DSN ROWS. Prints MiB over the baseline.

Peaks of the resident set (VmHWM, reset before each part); a process of its own, so that nobody else's memory counts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pgpoll
from pgpoll import sync

SLOW_CHUNKS = 100
WIDE = "repeat('x', 1000)"


def status(field: str) -> float:
    """MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


class Peaks:
    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}

    def begin(self) -> None:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        self.baseline = status("VmRSS")

    def end(self, part: str) -> None:
        self.peaks[part] = round(status("VmHWM") - self.baseline, 1)


def records(rows: int) -> Iterator[tuple[int, str]]:
    return ((i, "some text") for i in range(rows))


def chunks(rows: int, pause: Callable[[], object] = lambda: None) -> Iterator[bytes]:
    for at in range(0, rows, 1000):
        pause()
        yield b"".join(b"%d\tsome text\n" % i for i in range(at, at + 1000))


def blocking(dsn: str, rows: int) -> Peaks:
    peaks = Peaks()
    with sync.connect(dsn) as conn:
        conn.execute("create temp table t (i int4, t text)")
        conn.copy_records("t", records(1000))

        def part(name: str, body: Callable[[], int], expected: int) -> None:
            peaks.begin()
            count = body()
            assert count == expected, (name, count)
            peaks.end(name)

        part("copy_records", lambda: conn.copy_records("t", records(rows)).rowcount or 0, rows)
        part("copy_out_records", lambda: sum(1 for _ in conn.copy_out_records("select * from t")), rows + 1000)
        part("copy_out", lambda: sum(each.count(b"\n") for each in conn.copy_out("copy t to stdout")), rows + 1000)
        conn.execute("truncate t")
        part("copy_in", lambda: conn.copy_in("copy t from stdin", chunks(rows)).rowcount or 0, rows)
        part("slow consumer", lambda: slow_consumer(conn), SLOW_CHUNKS)
        slow = chunks(100_000, lambda: time.sleep(0.002))
        part("slow producer", lambda: conn.copy_in("copy t from stdin", slow).rowcount or 0, 100_000)
    return peaks


def slow_consumer(conn: sync.Connection) -> int:
    """A hundred times slower than the server."""
    with conn.copy_out(f"copy (select {WIDE}, generate_series(1, 10000000)) to stdout") as out:
        for number, _ in enumerate(out, 1):
            time.sleep(0.01)
            if number == SLOW_CHUNKS:
                return number
    return 0


async def asynchronous(dsn: str, rows: int) -> Peaks:
    peaks = Peaks()
    async with pgpoll.connect(dsn) as conn:
        await conn.execute("create temp table t (i int4, t text)")
        await conn.copy_records("t", records(1000))

        async def part(name: str, body: Any, expected: int) -> None:
            peaks.begin()
            count = await body
            assert count == expected, (name, count)
            peaks.end(name)

        async def rowcount(result: Any) -> Any:
            return (await result).rowcount

        async def decoded() -> int:
            count = 0
            async for _ in conn.copy_out_records("select * from t"):
                count += 1
            return count

        async def raw() -> int:
            return sum([each.count(b"\n") async for each in conn.copy_out("copy t to stdout")])

        async def slow() -> int:
            number = 0
            async with conn.copy_out(f"copy (select {WIDE}, generate_series(1, 10000000)) to stdout") as out:
                async for _ in out:
                    await asyncio.sleep(0.01)
                    if (number := number + 1) == SLOW_CHUNKS:
                        break
            return number

        async def producer() -> Any:
            for chunk in chunks(100_000):
                await asyncio.sleep(0.002)
                yield chunk

        await part("copy_records", rowcount(conn.copy_records("t", records(rows))), rows)
        await part("copy_out_records", decoded(), rows + 1000)
        await part("copy_out", raw(), rows + 1000)
        await conn.execute("truncate t")
        await part("copy_in", rowcount(conn.copy_in("copy t from stdin", chunks(rows))), rows)
        await part("slow consumer", slow(), SLOW_CHUNKS)
        await part("slow producer", rowcount(conn.copy_in("copy t from stdin", producer())), 100_000)
    return peaks


def main(face: str, dsn: str, rows: int) -> None:
    peaks = blocking(dsn, rows) if face == "sync" else asyncio.run(asynchronous(dsn, rows))
    print(json.dumps(peaks.peaks))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
