"""SERIALIZABLE on a real hot standby, where BEGIN fails: what rides behind it must not run by itself.

The session's own settings tell: they would outlast a request that was committed for want of a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pgpoll
import server as _server
from pgpoll import errors

REFUSED = "serializable mode in a hot standby"
SET = "select set_config('application_name', $1, false)"
NAME = "select current_setting('application_name')"


@pytest.fixture(scope="module")
def standby() -> Iterator[str]:
    with _server.HotStandby() as running:
        yield running.dsn


@pytest.mark.parametrize("cached", [False, True])
async def test_what_rides_behind_begin_does_not_run(standby: str, cached: bool) -> None:
    async with pgpoll.connect(standby) as conn:
        assert await conn.fetchval("select pg_is_in_recovery()")
        if cached:
            await conn.execute(SET, "before")
        before = await conn.fetchval(NAME)
        with pytest.raises(errors.FeatureNotSupported, match=REFUSED):
            async with conn.transaction(isolation="serializable") as tx:
                await tx.execute(SET, "autocommitted")
        assert await conn.fetchval(NAME) == before


@pytest.mark.parametrize("verb", ["stream", "copy_out", "executemany", "batch", "script", "start"])
async def test_nothing_of_the_block_runs(standby: str, verb: str) -> None:
    """Whatever comes first, and what follows it though its error was swallowed."""
    async with pgpoll.connect(standby) as conn:
        before = await conn.fetchval(NAME)
        with pytest.raises(errors.InFailedSqlTransaction):
            await swallowing(conn, verb)
        assert await conn.fetchval(NAME) == before


async def swallowing(conn: pgpoll.Connection, verb: str) -> None:
    async with conn.transaction(isolation="serializable") as tx:
        with pytest.raises(errors.FeatureNotSupported, match=REFUSED):
            await first(tx, verb)
        with pytest.raises(errors.InterfaceError, match=REFUSED):
            await tx.execute(SET, "autocommitted")


async def first(tx: pgpoll.Transaction, verb: str) -> None:
    match verb:
        case "stream":
            async for _ in tx.stream(SET, "autocommitted", prefetch=1):
                pass
        case "copy_out":
            async for _ in tx.copy_out(
                "copy (select set_config('application_name', 'autocommitted', false)) to stdout"
            ):
                pass
        case "executemany":
            await tx.executemany(SET, [("autocommitted",)] * 3)
        case "batch":
            async with tx.batch() as batch:
                batch.execute(SET, "autocommitted")
        case "script":
            await tx.executescript("set application_name to 'autocommitted'")
        case _:
            async with tx.transaction() as nested:
                await nested.execute(SET, "autocommitted")


async def test_other_isolation_goes_on(standby: str) -> None:
    async with pgpoll.connect(standby) as conn:
        async with conn.transaction(isolation="repeatable read", readonly=True) as tx:
            assert await tx.fetchval("show transaction_isolation") == "repeatable read"
            rows = [row[0] async for row in tx.stream("select generate_series(1, 10)", prefetch=3)]
        assert rows == list(range(1, 11))


def test_what_rides_behind_begin_does_not_run_sync(standby: str) -> None:
    with pgpoll.sync.connect(standby) as conn:
        before = conn.fetchval(NAME)
        with (
            pytest.raises(errors.FeatureNotSupported, match=REFUSED),
            conn.transaction(isolation="serializable") as tx,
        ):
            tx.execute(SET, "autocommitted")
        assert conn.fetchval(NAME) == before
