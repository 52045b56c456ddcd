"""The server that the benchmark runs against: the one that a DSN names, or an own one, as the tests start it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SERVER_MODULE = Path(__file__).resolve().parents[1] / "tests" / "server.py"


@contextlib.contextmanager
def database(dsn: str | None) -> Iterator[str]:
    """The DSN to measure against; an own server lives as long as the block and is reached over its Unix socket.

    Raises RuntimeError where an own server does not start.
    """
    if dsn is not None:
        yield dsn
        return
    spec = importlib.util.spec_from_file_location("tests_server", SERVER_MODULE)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{SERVER_MODULE} is missing; give --dsn")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Server(autovacuum="off", jit="off") as running:
        yield running.socket_dsn
