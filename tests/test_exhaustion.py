"""Each of Python's allocations fails once, in a process of its own: tests/exhaustion.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def play(*arguments: str) -> None:
    script = Path(__file__).with_name("exhaustion.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}\n{done.stderr[-4000:]}"


def test_each_allocation_of_a_session_fails() -> None:
    play()


def test_each_allocation_of_a_connection_fails(dsn: str) -> None:
    play(dsn)
