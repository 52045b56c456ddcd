"""faults.md row 24: a machine that has been up for 126 years, by a time namespace. Needs root and util-linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 4_000_000_000  # the kernel takes at most some 4.6e9

PROGRAM = """
import asyncio, sys, time
import pgpoll
from pgpoll import sync

dsn, shifted, factory = sys.argv[1], float(sys.argv[2]), sys.argv[3]

def within(began, least, most):
    took = time.monotonic() - began
    assert least <= took <= most, took

async def face():
    assert time.monotonic() > shifted
    async with pgpoll.connect(dsn, connect_timeout=5) as conn:
        assert await conn.fetchval("select $1::int4 from pg_sleep(0.05)", 1, timeout=5) == 1
        for seconds in (0.05, 0.2):
            began = time.monotonic()
            try:
                await conn.execute("select pg_sleep(20)", timeout=seconds)
            except pgpoll.QueryTimeout:
                within(began, seconds - 0.01, seconds + 1)
            else:
                raise AssertionError
        began = time.monotonic()
        behind = [asyncio.create_task(conn.execute("select pg_sleep($1::float8)", s)) for s in (20, 0)]
        await asyncio.sleep(0.05)
        behind[0].cancel()  # the grace is a second
        await behind[1]
        within(began, 0.5, 4)

def blocking():
    with sync.connect(dsn) as conn:
        assert conn.fetchval("select 1", timeout=5) == 1
        began = time.monotonic()
        try:
            conn.execute("select pg_sleep(20)", timeout=0.2)
        except pgpoll.QueryTimeout:
            within(began, 0.19, 1)
        else:
            raise AssertionError
        assert conn.fetchval("select 2", timeout=5) == 2

if factory == "uvloop":
    import uvloop
    uvloop.run(face())
elif factory == "asyncio":
    asyncio.run(face())
else:
    blocking()
print("right")
"""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a time namespace needs root and util-linux"
)


@needs_root
@pytest.mark.parametrize("face", ["asyncio", "uvloop", "sync"])
def test_f24_a_very_long_uptime(dsn: str, face: str) -> None:
    """Deadlines, graces and timers are exact where the monotonic clock is large."""
    shift = ["unshare", "--time", "--monotonic", str(SECONDS), "--boottime", str(SECONDS), "--fork"]
    done = subprocess.run(
        [*shift, sys.executable, "-c", PROGRAM, dsn, str(SECONDS), face],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
    assert done.stderr == ""
