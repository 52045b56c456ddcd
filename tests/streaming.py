"""What a process holds while it streams: a child of its own, so that only the stream counts.

    python tests/streaming.py DSN FACE PREFETCH ROWS PAUSE

FACE is async or sync, PREFETCH a number or None, PAUSE the seconds that the consumer sleeps after every 100 rows.
Prints one JSON object: `rows`, `seconds`, and `peak`, the bytes by which the resident set grew at most.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

import pgpoll
from pgpoll import sync

SQL = (
    "select i::int4 as id, 'row ' || i as name, i * 0.5::float8 as score,"
    " timestamptz '2024-01-01 00:00:00+00' + i * interval '1 second' as at"
    " from (select generate_series(1, $1::int4) as i) as t"
)


def measured(dsn: str, face: str, prefetch: int | None, rows: int, pause: float, seconds: float) -> dict[str, Any]:
    """In a process of its own, which may take so long."""
    command = [sys.executable, __file__, dsn, face, str(prefetch), str(rows), str(pause)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def resident(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024


def begin() -> tuple[int, float]:
    """The baseline; the highest mark begins anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return resident("VmRSS"), time.monotonic()


def told(before: tuple[int, float], rows: int) -> dict[str, Any]:
    return {"rows": rows, "seconds": time.monotonic() - before[1], "peak": resident("VmHWM") - before[0]}


async def stream_async(dsn: str, prefetch: int | None, rows: int, pause: float) -> dict[str, Any]:
    async with pgpoll.connect(dsn) as conn:
        assert len([row async for row in conn.stream(SQL, 10, prefetch=prefetch)]) == 10
        before, count = begin(), 0
        async for row in conn.stream(SQL, rows, prefetch=prefetch):
            count += 1
            assert row[0] == count
            if pause and count % 100 == 0:
                await asyncio.sleep(pause)
        return told(before, count)


def stream_sync(dsn: str, prefetch: int | None, rows: int, pause: float) -> dict[str, Any]:
    with sync.connect(dsn) as conn:
        assert len(list(conn.stream(SQL, 10, prefetch=prefetch))) == 10
        before, count = begin(), 0
        for row in conn.stream(SQL, rows, prefetch=prefetch):
            count += 1
            assert row[0] == count
            if pause and count % 100 == 0:
                time.sleep(pause)
        return told(before, count)


def main() -> None:
    dsn, face, prefetch, rows, pause = sys.argv[1:]
    if cpu := os.environ.get("PGPOLL_CPU"):
        os.sched_setaffinity(0, {int(cpu)})
    how = None if prefetch == "None" else int(prefetch), int(rows), float(pause)
    print(json.dumps(stream_sync(dsn, *how) if face == "sync" else asyncio.run(stream_async(dsn, *how))))


if __name__ == "__main__":
    main()
