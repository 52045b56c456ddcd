"""faults.md row 69: anyio's cancel scopes around the verbs, on asyncio.

They cancel a task again in every turn of the loop until it has left the scope: whatever a cleanup awaits is cancelled,
too.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

import pgpoll
from sanity import Sanity

LONG = "select pg_sleep(20)"


async def in_a_transaction(conn: pgpoll.Connection) -> None:
    async with conn.transaction() as tx:
        await tx.execute("insert into scoped values (1)")
        await tx.execute(LONG)


async def in_a_savepoint(conn: pgpoll.Connection) -> None:
    async with conn.transaction() as tx, tx.transaction() as inner:
        await inner.execute("insert into scoped values (1)")
        await inner.execute(LONG)


async def in_the_line(conn: pgpoll.Connection) -> None:
    """Its owner is who waits within: what the block waits for is the query."""
    async with conn.transaction() as tx, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(tx.execute, LONG)


VERBS: dict[str, Callable[[pgpoll.Connection], Coroutine[Any, Any, object]]] = {
    "execute": lambda conn: conn.execute(LONG),
    "fetchval": lambda conn: conn.fetchval("select 1 from pg_sleep($1::float8)", 20),
    "timeout": lambda conn: conn.fetchval(LONG, timeout=30),
    "executescript": lambda conn: conn.executescript(f"select 1; {LONG}"),
    "transaction": in_a_transaction,
    "savepoint": in_a_savepoint,
    "group": in_the_line,
}


@pytest.mark.parametrize("verb", VERBS)
async def test_f69_scopes_of_anyio(assert_sane: Sanity, verb: str) -> None:
    conn = await assert_sane.connect()
    await conn.execute("create temp table scoped (i int4)")
    with assert_sane.at_once(0.4):
        with anyio.move_on_after(0.05) as scope:
            await VERBS[verb](conn)
        assert scope.cancelled_caught
        await assert_sane.ask(conn)
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await VERBS[verb](conn)
    with anyio.CancelScope() as outer, anyio.move_on_after(30) as inner:
        async with anyio.create_task_group() as group:
            group.start_soon(VERBS[verb], conn)
            await anyio.sleep(0.02)
            outer.cancel()
    assert outer.cancelled_caught
    assert not inner.cancelled_caught
    await assert_sane.until(lambda: not conn._driver.blocks.stack)
    assert conn.transaction_status == "I"
    assert await conn.fetchval("select count(*) from scoped") == 0


async def test_f69_a_scope_that_was_cancelled_before(assert_sane: Sanity) -> None:
    """Nothing is sent; within a shield the verbs work."""
    proxy = assert_sane.through()
    conn = await assert_sane.connect(proxy)
    await assert_sane.ask(conn)
    left = proxy.streams["client"]
    with anyio.CancelScope() as scope:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await assert_sane.ask(conn)
        answered = proxy.streams["client"]
        await anyio.lowlevel.checkpoint()
        await conn.execute(LONG)
    assert scope.cancelled_caught
    assert proxy.streams["client"] == answered > left


async def test_f69_connecting_in_a_scope(assert_sane: Sanity) -> None:
    """A CancelRequest may reach a backend before the query does, and nobody is left to send another: so it is short."""
    for seconds in (0, 0.0005, 0.002, 0.005, 0.01):
        with anyio.move_on_after(seconds):
            async with pgpoll.connect(**assert_sane.parameters(None, {})) as conn:
                await conn.execute("select pg_sleep(1)")


async def test_f69_a_commit_in_a_cancelled_scope(assert_sane: Sanity) -> None:
    """The end of the block is awaited in a shield: it commits."""
    conn = await assert_sane.connect()
    await conn.execute("create temp table scoped (i int4)")
    with anyio.CancelScope() as scope:
        tx = conn.transaction()
        await tx.start()
        await tx.execute("insert into scoped values (1)")
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await tx.commit()
    assert await conn.fetchval("select count(*) from scoped") == 1
