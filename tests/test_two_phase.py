"""Two-phase commit: a block that ends by PREPARE TRANSACTION, and what finishes it, from whatever connection."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

import pgpoll
import pgpoll.sync
from backend import bind_complete, command_complete, parse_complete, ready_for_query
from dialogues.begin import begun
from fake_server import FakeServer
from pgpoll import errors
from pgpoll._two_phase import quoted
from script import Run, Script, where
from server import Server

_numbers = itertools.count()


@pytest.fixture
async def conn(server: Server) -> AsyncIterator[pgpoll.Connection]:
    """On the server of our own, which allows ten prepared transactions."""
    async with pgpoll.connect(server.dsn) as connection:
        await connection.execute("create table if not exists two_phase (i int4)")
        await connection.execute("truncate two_phase")
        yield connection
    async with pgpoll.connect(server.dsn) as connection:
        for each in await connection.prepared_transactions():
            await connection.rollback_prepared(each.gid)


@pytest.fixture(scope="module")
def without() -> Iterator[str]:
    """A server that allows none."""
    with Server(max_prepared_transactions="0") as running:
        yield running.dsn


@pytest.fixture
def gid() -> str:
    return f"pgpoll {os.getpid()} {next(_numbers)}"


async def count(conn: pgpoll.Connection) -> int:
    value: int = await conn.fetchval("select count(*) from two_phase")
    return value


async def gids(conn: pgpoll.Connection) -> list[str]:
    return [each.gid for each in await conn.prepared_transactions()]


async def test_prepared_here_and_committed_there(conn: pgpoll.Connection, server: Server, gid: str) -> None:
    async with conn.transaction() as tx:
        await tx.execute("insert into two_phase values (1)")
        await tx.prepare_transaction(gid)
        with pytest.raises(pgpoll.InterfaceError, match="prepared"):
            await tx.execute("select 1")
    assert conn.transaction_status == "I"
    assert await count(conn) == 0
    await conn.close()
    async with pgpoll.connect(server.dsn) as other:
        (found,) = await other.prepared_transactions()
        assert (found.gid, found.owner) == (gid, "postgres")
        assert abs(found.prepared - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
        assert found.transaction > 0
        await other.commit_prepared(gid)
        assert await other.prepared_transactions() == []
        assert await count(other) == 1


async def test_rolled_back(conn: pgpoll.Connection, gid: str) -> None:
    tx = conn.transaction(isolation="serializable")
    await tx.start()
    await tx.execute("insert into two_phase values (1)")
    await tx.prepare_transaction(gid)
    await conn.rollback_prepared(gid)
    assert await count(conn) == 0
    for finish in (conn.commit_prepared, conn.rollback_prepared):
        with pytest.raises(errors.UndefinedObject, match="does not exist"):
            await finish(gid)


def test_sync(server: Server, gid: str) -> None:
    with pgpoll.sync.connect(server.dsn) as conn:
        conn.execute("create table if not exists two_phase (i int4)")
        conn.execute("truncate two_phase")
        for finish, left in ((conn.rollback_prepared, 0), (conn.commit_prepared, 1)):
            with conn.transaction() as tx:
                conn.execute("insert into two_phase values (1)")
                tx.prepare_transaction(gid)
            assert [each.gid for each in conn.prepared_transactions()] == [gid]
            finish(gid)
            assert conn.fetchval("select count(*) from two_phase") == left
        with pytest.raises(pgpoll.InterfaceError, match="inside of the transaction"), conn.transaction():
            conn.commit_prepared(gid)


@pytest.mark.parametrize("gid", ["it's", "a\\b", "\\'; drop table two_phase; --", "\U0001f600" * 49, "x" * 199, " "])
@pytest.mark.parametrize("conforming", ["on", "off"])
async def test_quoting(conn: pgpoll.Connection, gid: str, conforming: str) -> None:
    await conn.execute("set escape_string_warning = off")
    await conn.execute(f"set standard_conforming_strings = {conforming}")
    async with conn.transaction() as tx:
        await tx.execute("insert into two_phase values (1)")
        await tx.prepare_transaction(gid)
    assert await gids(conn) == [gid]
    await conn.commit_prepared(gid)
    assert await count(conn) == 1


@pytest.mark.parametrize("gid", [7, None, b"x", "a\0b", "x" * 200, "\U0001f600" * 50, "\ud800"])
async def test_what_is_no_gid(conn: pgpoll.Connection, gid: str) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="gid"):
        quoted(gid)
    async with conn.transaction() as tx:
        await tx.execute("insert into two_phase values (1)")
        with pytest.raises(pgpoll.InterfaceError, match="gid"):
            await tx.prepare_transaction(gid)
    assert await count(conn) == 1, "it goes on"
    for finish in (conn.commit_prepared, conn.rollback_prepared):
        with pytest.raises(pgpoll.InterfaceError, match="gid"):
            await finish(gid)


async def test_an_empty_one(conn: pgpoll.Connection, gid: str) -> None:
    """A coordinator counts on it: BEGIN is sent for its sake."""
    async with conn.transaction() as tx:
        await tx.prepare_transaction(gid)
    assert await gids(conn) == [gid]


async def test_one_that_has_failed(conn: pgpoll.Connection, gid: str) -> None:
    with pytest.raises(errors.InFailedSqlTransaction, match="not prepared"):
        async with conn.transaction() as tx:
            with pytest.raises(errors.DivisionByZero):
                await tx.execute("select 1/0")
            await tx.prepare_transaction(gid)
    with pytest.raises(errors.InFailedSqlTransaction, match="not prepared"):
        async with conn.transaction() as tx:
            task = asyncio.create_task(tx.execute("select 1/0"))
            await asyncio.sleep(0)
            await tx.prepare_transaction(gid)
    with contextlib.suppress(pgpoll.Error):
        await task
    assert await gids(conn) == []
    assert conn.transaction_status == "I"


async def test_a_name_that_is_taken(conn: pgpoll.Connection, gid: str) -> None:
    for taken in (False, True):
        with pytest.raises(errors.DuplicateObject) if taken else contextlib.nullcontext():
            async with conn.transaction() as tx:
                await tx.execute("insert into two_phase values (1)")
                await tx.prepare_transaction(gid)
        assert conn.transaction_status == "I"
    await conn.commit_prepared(gid)
    assert await count(conn) == 1


async def test_a_nested_one(conn: pgpoll.Connection, gid: str) -> None:
    async with conn.transaction() as tx:
        async with tx.transaction() as inner:
            await inner.execute("insert into two_phase values (1)")
            with pytest.raises(pgpoll.InterfaceError, match="savepoint"):
                await inner.prepare_transaction(gid)
            with pytest.raises(pgpoll.InterfaceError, match="still open"):
                await tx.prepare_transaction(gid)
        await tx.prepare_transaction(gid)
    assert await gids(conn) == [gid]


async def test_finishing_inside_of_a_transaction(conn: pgpoll.Connection, gid: str) -> None:
    async with conn.transaction() as tx:
        for finish in (conn.commit_prepared, conn.rollback_prepared):
            with pytest.raises(pgpoll.InterfaceError, match="inside of the transaction"):
                await finish(gid)
        await tx.execute("insert into two_phase values (1)")
    assert await count(conn) == 1


async def test_where_the_server_allows_none(without: str, gid: str) -> None:
    async with pgpoll.connect(without) as conn:
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="disabled") as caught:
            async with conn.transaction() as tx:
                await tx.execute("create table two_phase (i int4)")
                await tx.prepare_transaction(gid)
        assert "max_prepared_transactions" in (caught.value.hint or "")
        assert conn.transaction_status == "I"
        assert await conn.fetchval("select to_regclass('two_phase')") is None
        assert await conn.prepared_transactions() == []


async def test_cancelled_at_any_turn(conn: pgpoll.Connection, gid: str) -> None:
    """It is prepared or rolled back; where it was sent and not answered, that is what the error says."""
    turns, task = 0, None

    async def body(gid: str) -> None:
        async with conn.transaction() as tx:
            await tx.execute("insert into two_phase values (1)")
            await tx.prepare_transaction(gid)

    while task is None or task.cancelled():
        task = asyncio.create_task(body(name := f"{gid} {turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        error, cause = None, None
        try:
            await task
        except asyncio.CancelledError as cancelled:
            error, cause = cancelled, cancelled.__cause__
        is_prepared = name in await gids(conn)
        if cause is not None:
            assert isinstance(cause, pgpoll.CommitUnknown)
            assert "prepared or not" in str(cause)
        else:
            assert is_prepared == (error is None)
        assert conn.transaction_status == "I"
        if is_prepared:  # the server holds but a few
            await conn.rollback_prepared(name)
        turns += 1
    assert is_prepared


async def test_the_answer_is_lost() -> None:
    prepare = (where("Parse", query="PREPARE TRANSACTION 'x'"), "Bind", "Execute", "Sync")
    script = Script().connect().expect("Parse", "Bind", "Execute", "Sync").send(begun(), ready_for_query("T"))
    with FakeServer(script.expect(*prepare).send(parse_complete(), bind_complete())) as server:
        conn = await pgpoll.connect(host="127.0.0.1", port=server.port, user="u")
        with pytest.raises(pgpoll.CommitUnknown, match=r"PREPARE TRANSACTION was answered.*prepared or not"):
            async with conn.transaction() as tx:
                await tx.prepare_transaction("x")


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_given_up_once_it_was_sent(how: str) -> None:
    """It goes on, and is never cancelled at the server; strangers wait for its answer."""
    given_up = threading.Event()

    def answer(_: Run) -> bytes:
        assert given_up.wait(10)
        return begun("PREPARE TRANSACTION") + ready_for_query()

    script = Script().connect().expect("Parse", "Bind", "Execute", "Sync").send(begun(), ready_for_query("T"))
    script.expect("Parse", "Bind", "Execute", "Sync").send(answer)
    script.expect("Query").send(command_complete("SELECT 1"), ready_for_query()).expect("Terminate")
    with FakeServer(script) as server:
        async with pgpoll.connect(host="127.0.0.1", port=server.port, user="u") as conn:
            tx = conn.transaction()
            await tx.start()
            if how == "timeout":
                with pytest.raises(pgpoll.CommitUnknown, match=r"given up.*prepared or not"):
                    await tx.prepare_transaction("x", timeout=0.05)
            else:
                task = asyncio.create_task(tx.prepare_transaction("x"))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
                assert isinstance(caught.value.__cause__, pgpoll.CommitUnknown)
            assert conn._core.cancel_wanted() == 0
            stranger = asyncio.create_task(conn.executescript("select 1"))
            await asyncio.sleep(0.01)
            assert conn._driver.blocks.waiting == 1
            given_up.set()
            await stranger
