#!/usr/bin/env python3
"""Counts the client's system calls a request with strace, the loop's own wait left out.

    python benchmarks/syscalls.py                        # pgpoll, asyncpg, psycopg
    python benchmarks/syscalls.py --drivers pgpoll --loop uvloop

Two runs of a child are traced for each workload, one with more requests than the other; the difference is what the
requests cost, so that start-up, connecting and closing do not count. Two columns: without and with the calls that wait
(epoll_wait, epoll_pwait, poll, ppoll, select). Needs strace (apt-get install strace).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cases import EXCLUSIVE_CONNECTIONS, TASKS
from contenders import ASYNC, SYNC
from database import database
from memory import DSN_VARIABLE

WAITS = {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"}
FEW, MANY = 2_000, 12_000
TIME_LIMIT = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", default="pgpoll,asyncpg,psycopg", help="default: %(default)s")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--dsn", help="default: an own server")
    parser.add_argument("--child", nargs=3, metavar=("DRIVER", "WORKLOAD", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        driver, workload, count = options.child
        return child(driver, workload, int(count), options.loop, os.environ[DSN_VARIABLE])
    if shutil.which("strace") is None:
        print("*** strace is not installed (apt-get install strace)", file=sys.stderr)
        return 2
    with database(options.dsn) as dsn:
        return report(options.drivers.split(","), options.loop, dsn)


def report(drivers: list[str], loop: str, dsn: str) -> int:
    """Print a line for each driver and workload; 1 if one could not be traced."""
    failed = 0
    print(f"client system calls a request, {loop}; mean over {MANY - FEW:,} requests")
    print(f"{'driver':<10}{'workload':<12}{'calls':>8}{'+ waits':>9}  which")
    for driver in drivers:
        for workload in ("one-task", "tasks", "sync"):
            if workload == "sync" and driver not in {kind.name for kind in SYNC}:
                continue
            try:
                counted = traced(driver, workload, MANY, loop, dsn)
                counted.subtract(traced(driver, workload, FEW, loop, dsn))
            except RuntimeError as error:
                print(f"{driver:<10}{workload:<12}  FAILED: {error}")
                failed = 1
                continue
            each = {name: number / (MANY - FEW) for name, number in counted.most_common() if number > 0}
            own = sum(share for name, share in each.items() if name not in WAITS)
            which = ", ".join(f"{name} {share:.3f}" for name, share in each.items() if share >= 0.001)
            print(f"{driver:<10}{workload:<12}{own:>8.3f}{sum(each.values()):>9.3f}  {which}")
    return failed


def traced(driver: str, workload: str, count: int, loop: str, dsn: str) -> Counter[str]:
    """How often each system call was made by a child that sends `count` requests."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "counts")
        command = ["strace", "-f", "-c", "-U", "name,calls", "-o", str(path), sys.executable, __file__, "--loop", loop]
        command += ["--child", driver, workload, str(count)]
        environment = os.environ | {DSN_VARIABLE: dsn}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        if done.returncode != 0 or not path.exists():
            raise RuntimeError((done.stderr.strip().splitlines() or ["strace gave nothing"])[-1])
        counted: Counter[str] = Counter()
        for line in path.read_text().splitlines():
            name, _, calls = line.strip().partition(" ")
            if calls.strip().isdigit() and name != "total":
                counted[name] = int(calls)
        return counted


def child(driver: str, workload: str, count: int, loop: str, dsn: str) -> int:
    """Send `count` requests; this is the process that is traced."""
    if workload == "sync":
        face = next(kind for kind in SYNC if kind.name == driver)()
        face.load()
        blocking = face.connect(dsn)
        blocking.fetchvals(count)
        blocking.close()
        return 0
    factory: Any = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(requests(driver, workload, count, dsn))
    return 0


async def requests(driver: str, workload: str, count: int, dsn: str) -> None:
    """The same work as the benchmark's case of that name."""
    contender = next(kind for kind in ASYNC if kind.name == driver)()
    contender.load()
    shared = workload == "one-task" or contender.shares_connection
    connections = [await contender.connect(dsn) for _ in range(1 if shared else EXCLUSIVE_CONNECTIONS)]
    tasks = 1 if workload == "one-task" else TASKS if shared else EXCLUSIVE_CONNECTIONS
    async with asyncio.TaskGroup() as group:
        for number in range(tasks):
            group.create_task(connections[number % len(connections)].fetchvals(count // tasks))
    for connection in connections:
        await connection.close()


if __name__ == "__main__":
    sys.exit(main())
