"""A connection that is lost while a batch, or the rows of executemany, are still being made: their maker is told.

And batches whose time is up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

import pgpoll
from pgpoll import sync

SECONDS = 3.0


def kill(dsn: str, pid: int) -> None:
    with sync.connect(dsn) as admin:
        admin.execute("select pg_terminate_backend($1)", pid)


def slow(dsn: str, pid: int) -> Iterator[tuple[int]]:
    """Rows without end, one in 5 ms; the backend dies behind the tenth."""
    until = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < until:
        if number == 10:
            kill(dsn, pid)
        time.sleep(0.005)
        yield (number,)
        number += 1
    pytest.fail("nobody has noticed")


def test_slow_rows(dsn: str) -> None:
    with sync.connect(dsn) as conn:
        with pytest.raises(pgpoll.OperationalError):
            conn.executemany("select $1::int4", slow(dsn, conn.backend_pid))
        assert conn.closed


def test_slow_items(dsn: str) -> None:
    with sync.connect(dsn) as conn:
        batch = conn.batch()
        with pytest.raises(pgpoll.OperationalError), batch:  # noqa: PT012
            for (number,) in slow(dsn, conn.backend_pid):
                batch.execute("select $1::int4", number)
        assert conn.closed


def test_the_end_of_a_batch_takes_too_long(dsn: str) -> None:
    with sync.connect(dsn) as conn:
        began = time.monotonic()
        with pytest.raises(pgpoll.QueryTimeout), conn.batch(timeout=0.2) as batch:
            item = batch.execute("select pg_sleep(20)")
        assert time.monotonic() - began < 3
        with pytest.raises(pgpoll.OperationalError, match="given up"):
            item.result()
        assert conn.fetchval("select 1") == 1


def test_a_batch_waits_no_longer_than_it_may(dsn: str) -> None:
    with sync.connect(dsn) as conn, conn.transaction():
        errors: list[BaseException] = []

        def stranger() -> None:
            try:
                with conn.batch(timeout=0.1):
                    pytest.fail("it was entered")
            except pgpoll.QueryTimeout as error:
                errors.append(error)

        thread = threading.Thread(target=stranger)
        thread.start()
        thread.join(5)
        assert len(errors) == 1


async def test_items_in_a_loop(dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        batch = conn.batch()
        with pytest.raises(pgpoll.OperationalError):  # noqa: PT012
            async with batch:
                first = batch.execute("select 1")
                for (number,) in slow(dsn, conn.backend_pid):
                    batch.execute("select $1::int4", number)
                    await asyncio.sleep(0)
        assert conn.closed
        with pytest.raises(pgpoll.OperationalError):
            await first
