"""f79: what the child of a fork gets where something is open that lasts; see forked.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import LOOPS

PROGRAM = Path(__file__).with_name("forked.py")


@pytest.mark.parametrize("face", [*LOOPS, "sync"])
def test_f79_fork_while_something_is_open(dsn: str, face: str) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(PROGRAM), dsn, face]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert len(done.stdout.split()) >= 12
