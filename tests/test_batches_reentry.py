"""A batch's argument, or an executemany's row, whose encoding uses the same batch."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

import pgpoll
from peers import drive
from pgpoll import conninfo, core, sync

ASKED = "select $1::int4, $2::timestamptz"
AT = dt.datetime(2026, 1, 1)


class Zone(dt.tzinfo):
    """UTC, which runs `then` where it is first asked for."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.then = then

    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        then, self.then = self.then, lambda: None
        then()
        return dt.timedelta(0)

    def dst(self, _: dt.datetime | None) -> None:
        """Unknown."""

    def tzname(self, _: dt.datetime | None) -> str:
        return "UTC"


def at(then: Callable[[], object]) -> dt.datetime:
    return AT.replace(tzinfo=Zone(then))


def nested(add: Callable[[int, dt.datetime], Any], depth: int) -> list[Any]:
    """Items of 0, 1, ... `depth`, of which each is added while the one before it is encoded."""
    items: list[Any] = []

    def one(number: int) -> None:
        items.append((number, add(number, at(lambda: one(number + 1) if number < depth else None))))

    one(0)
    return items


async def test_an_item_that_adds_items(conn: pgpoll.Connection) -> None:
    """Each is numbered as it is sent: the inner ones first."""
    await conn.execute(ASKED, 0, at(lambda: None))
    async with conn.batch() as batch:
        first = batch.fetchval("select -1::int4")
        items = nested(lambda number, when: batch.fetchval(ASKED, number, when), 3)
        last = batch.fetchval("select -2::int4")
    assert [(await first, first.number), (await last, last.number)] == [(-1, 0), (-2, 5)]
    assert [(number, item.number) for number, item in items] == [(3, 1), (2, 2), (1, 3), (0, 4)]
    for number, item in items:
        assert await item == number


@pytest.mark.parametrize("left", [False, True])
async def test_an_item_of_a_new_statement_that_adds_one(conn: pgpoll.Connection, left: bool) -> None:
    """It is encoded when the statement is described: behind those that were added meanwhile, or when it is too late."""
    inner: list[Any] = []

    async def run() -> None:
        async with conn.batch() as batch:
            outer = batch.fetchval(ASKED, 1, at(lambda: inner.append(batch.fetchval("select 3::int4"))))
            last = batch.fetchval("select 2::int4")
            if not left:
                await asyncio.sleep(0.1)
        for item, number in ((outer, 0), (last, 1), (inner[0], 2)):
            assert (item.number, await item) == (number, number + 1)

    if left:
        with pytest.raises(pgpoll.InterfaceError, match="the batch has ended") as caught:
            await run()
        assert caught.value.item == 0
        assert not inner
    else:
        await run()
    assert await conn.fetchval("select 7") == 7


def test_an_item_that_adds_items_blocking(blocking: sync.Connection) -> None:
    blocking.execute(ASKED, 0, at(lambda: None))
    with blocking.batch() as batch:
        items = nested(lambda number, when: batch.fetchval(ASKED, number, when), 70)
        last = batch.fetchval("select -2::int4")
    assert last.result() == -2
    assert sorted(item.number for _, item in items) == list(range(71))
    assert [item.result() for _, item in items] == [number for number, _ in items]


async def test_the_item_that_fails_is_told_by_its_number(conn: pgpoll.Connection) -> None:
    divide = "select 1 / $1::int4, $2::timestamptz"
    await conn.execute(divide, 1, at(lambda: None))
    inner: list[Any] = []
    with pytest.raises(pgpoll.DataError, match="division by zero") as caught:
        async with conn.batch() as batch:
            outer = batch.execute(divide, 0, at(lambda: inner.append(batch.fetchval("select 1"))))
    assert caught.value.item == outer.number == 1
    with pytest.raises(pgpoll.DataError):
        await outer
    with pytest.raises(pgpoll.OperationalError):
        await inner[0]


def test_what_ends_the_batch(dsn: str) -> None:
    """Its argument's own encoding: nothing is added behind that."""
    conn = core.Connection(conninfo.resolve(dsn), pipeline=True)
    drive(conn, conn.start_connect())
    drive(conn, conn.start_execute(ASKED, (0, at(lambda: None))))
    for way, message in (("end", "the batch has ended"), ("abandon", "the batch has ended")):
        batch = conn.start_batch()
        assert batch.add("select 1") == 0
        with pytest.raises(pgpoll.InterfaceError, match=message):
            batch.add(ASKED, (1, at(getattr(batch, way))))
        if way == "end":
            drive(conn, batch)
            assert batch.item(0).scalar() == 1
            with pytest.raises(pgpoll.InterfaceError, match="no such item"):
                batch.item(1)
    assert drive(conn, conn.start_execute("select 7")).scalar() == 7
    drive(conn, conn.start_close())
    conn.close_fd()


def test_rows_that_are_fed_while_they_are_encoded(dsn: str) -> None:
    conn = core.Connection(conninfo.resolve(dsn), pipeline=True)
    drive(conn, conn.start_connect())
    many = conn.start_executemany("select $1::int4, $2::timestamptz")
    rows = iter([(1, at(lambda: None))])
    while not many.feed_rows(rows):
        conn.poll()

    def again() -> None:
        with pytest.raises(pgpoll.InterfaceError, match="its rows are being taken"):
            many.feed_rows(iter([(9, at(lambda: None))]))

    while not many.feed_rows(more := iter([(2, at(again)), (3, at(lambda: None))])):
        assert not list(more)
        conn.poll()
    many.end()
    assert [row[0] for row in drive(conn, many)] == [1, 2, 3]
    drive(conn, conn.start_close())
    conn.close_fd()
