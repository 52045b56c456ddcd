"""What `want` asks of an execute: rows decoded as they arrive, the first row, its first value."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

import pgpoll
from peers import drive
from pgpoll import conninfo, core

MANY = "select i, repeat('x', 50) from generate_series(1, $1::int4) as t(i)"
BAD_DATE = (
    "select case when i = 15000 then '5000000-01-01'::date else '2020-01-01' end from generate_series(0, 19999) as t(i)"
)


@pytest.fixture
def conn(dsn: str) -> Iterator[core.Connection]:
    made = core.Connection(conninfo.resolve(dsn), pipeline=True)
    drive(made, made.start_connect())
    yield made
    made.terminate()
    made.close_fd()


@pytest.mark.parametrize("count", [0, 1, 2, 20_000])
def test_each_kind(conn: core.Connection, count: int) -> None:
    lazy = drive(conn, conn.start_execute(MANY, (count,)))
    rows = drive(conn, conn.start_execute(MANY, (count,), core.ROWS))
    first = drive(conn, conn.start_execute(MANY, (count,), core.ROW))
    value = drive(conn, conn.start_execute(MANY, (count,), core.VALUE))
    assert len(rows) == count
    assert rows == lazy.fetch()
    assert first == lazy.first()
    assert value == lazy.scalar()
    assert gc.is_tracked(rows)


def test_result_is_the_same_each_time(conn: core.Connection) -> None:
    operation = conn.start_execute(MANY, (5,), core.ROWS)
    rows = drive(conn, operation)
    assert operation.result() is rows


def test_a_statement_without_rows(conn: core.Connection) -> None:
    assert drive(conn, conn.start_execute("create temp table t (i int4)", (), core.ROWS)) == []
    assert drive(conn, conn.start_execute("insert into t values (1)", (), core.ROW)) is None
    assert drive(conn, conn.start_execute("", (), core.VALUE)) is None


def test_rows_without_columns(conn: core.Connection) -> None:
    assert drive(conn, conn.start_execute("select", (), core.ROWS)) == [()]
    with pytest.raises(pgpoll.InterfaceError, match="no columns"):
        drive(conn, conn.start_execute("select", (), core.VALUE))
    assert drive(conn, conn.start_execute("select 1", (), core.VALUE)) == 1


def test_a_value_that_cannot_be_decoded(conn: core.Connection) -> None:
    """Far behind the first rows, with others waiting behind it."""
    bad = conn.start_execute(BAD_DATE, (), core.ROWS)
    behind = [conn.start_execute("select $1::int4", (i,), core.VALUE) for i in range(10)]
    with pytest.raises(pgpoll.DataError, match="row 15000, column 0"):
        drive(conn, bad)
    with pytest.raises(pgpoll.DataError, match="row 15000, column 0"):
        bad.result()
    assert [drive(conn, each) for each in behind] == list(range(10))
    assert len(drive(conn, conn.start_execute(BAD_DATE, (), core.ROW))) == 1, "the others are dropped undecoded"


def test_the_servers_error_comes_before_a_bad_value(conn: core.Connection) -> None:
    sql = "select '5000000-01-01'::date, 1 / (20000 - i) from generate_series(1, 20000) t(i)"
    with pytest.raises(pgpoll.errors.DivisionByZero):
        drive(conn, conn.start_execute(sql, (), core.ROWS))


@pytest.mark.parametrize("want", [-1, 4, 1000])
def test_an_unknown_want(conn: core.Connection, want: Any) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="want must be"):
        conn.start_execute("select 1", (), want)
    with pytest.raises(TypeError):
        conn.start_execute("select 1", (), "rows")  # type: ignore[call-overload]
    assert conn.quiet


def test_rows_are_decoded_on_the_way(conn: core.Connection) -> None:
    """Before the last one has come, and nothing of them stays once they are abandoned."""
    sql = "select i, case when i = 100000 then pg_sleep(0.3)::text else 'x' end from generate_series(1, 100000) t(i)"
    drive(conn, conn.start_execute("select 1"))
    tracemalloc.start()
    operation = conn.start_execute(sql, (), core.ROWS)
    while tracemalloc.get_traced_memory()[0] < 1_000_000:
        conn.poll()
        assert not operation.done()
    operation.abandon()
    assert tracemalloc.get_traced_memory()[0] < 500_000
    tracemalloc.stop()
    assert drive(conn, conn.start_execute("select 7", (), core.VALUE)) == 7


@pytest.mark.parametrize("verb", ["fetchrow", "fetchval"])
async def test_the_first_of_many_keeps_no_others(dsn: str, verb: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        first = await getattr(conn, verb)(MANY, 50_000)
    assert first == ((1, "x" * 50) if verb == "fetchrow" else 1)
