"""The memory case: what a driver's complete, untouched result holds, measured in a process of its own.

    PGPOLL_BENCHMARK_DSN=... python benchmarks/memory.py CONTENDER SQL ROWS

prints one JSON object: `held`, the growth of the resident set while the result is alive, and `peak`, the growth of its
highest mark, both in bytes a row. One small query runs first, so that imports, codecs and buffers do not count.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cases import Variant
from contenders import ASYNC, Contender
from measure import Measured, Outcome, Settings, Tick, describe

TIME_LIMIT = 120.0
DSN_VARIABLE = "PGPOLL_BENCHMARK_DSN"


def run_memory(variant: Variant, contenders: Sequence[Contender], settings: Settings, tick: Tick) -> Outcome:
    """Measure each contender in a child process; times are not taken."""
    measured = [Measured(contender.name) for contender in contenders]
    for result in measured:
        tick(result.contender)
        command = [sys.executable, __file__, result.contender, variant.case.sql, str(variant.case.rows)]
        environment = os.environ | {DSN_VARIABLE: settings.dsn}  # a DSN may hold a password: not for ps to show
        try:
            child = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
            )
            if child.returncode != 0:
                result.error = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1][:300]
                continue
            answer = json.loads(child.stdout)
            result.bytes_a_row, result.peak_bytes_a_row = answer["held"], answer["peak"]
        except (subprocess.TimeoutExpired, ValueError) as error:
            result.error = describe(error)
    return Outcome(variant, "FREE", measured)


def resident() -> int:
    """Bytes of this process's resident set."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def highest() -> int:
    """Bytes of this process's largest resident set so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


async def hold(contender: Contender, dsn: str, sql: str, rows: int) -> dict[str, float]:
    """Fetch `sql` and weigh its result while it is alive."""
    connection = await contender.connect(dsn)
    await connection.hold("select i::int4 from generate_series(1, 10) i")
    gc.collect()
    before, peak_before = resident(), highest()
    result = await connection.hold(sql)
    gc.collect()
    answer = {"held": (resident() - before) / rows, "peak": (highest() - peak_before) / rows}
    del result
    await connection.close()
    return answer


def main() -> None:
    name, sql, rows = sys.argv[1:]
    contender = next(kind for kind in ASYNC if kind.name == name)()
    contender.load()
    print(json.dumps(asyncio.run(hold(contender, os.environ[DSN_VARIABLE], sql, int(rows)))))


if __name__ == "__main__":
    main()
