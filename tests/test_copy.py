"""COPY on a real server, asyncio face: sources, targets, records, and what may go wrong with each."""

# ruff: noqa: PT012 - what raises is the end of a block
from __future__ import annotations

import array
import asyncio
import contextlib
import contextvars
import dataclasses
import datetime as dt
import decimal
import enum
import gc
import io
import itertools
import os
import time
import uuid
from collections import OrderedDict, UserDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

import pgpoll
from pgpoll import core, errors, sync
from pgpoll._turns import carried

LINES = b"1\tone\n2\t\\N\n3\t\xc3\xa9\n"
ROWS = [(1, "one"), (2, None), (3, "é")]
IN = "copy t from stdin"
OUT = "copy (select * from t order by i) to stdout"


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> AsyncIterator[pgpoll.Connection]:
    await conn.execute("create temp table t (i int4, t text)")
    yield conn
    assert conn.transaction_status == "I"
    assert not conn._driver.blocks.stack


async def content(conn: pgpoll.Connection) -> list[Any]:
    return await conn.fetch("select * from t order by i")


async def asynchronous(items: Any) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


# -- copy_in


SOURCES: dict[str, Callable[[bytes, Path], Any]] = {
    "bytes": lambda data, _: data,
    "bytearray": lambda data, _: bytearray(data),
    "memoryview": lambda data, _: memoryview(data),
    "strided memoryview": lambda data, _: memoryview(b"".join(bytes((each, 0)) for each in data))[::2],
    "array": lambda data, _: array.array("B", data),
    "path": lambda data, path: (path.write_bytes(data), path)[1],
    "file": lambda data, _: io.BytesIO(data),
    "list": lambda data, _: [data[:5], data[5:], b""],
    "bytes one by one": lambda data, _: (bytes((each,)) for each in data),
    "mutable chunks": lambda data, _: (bytearray(data[at : at + 3]) for at in range(0, len(data), 3)),
    "asynchronous": lambda data, _: asynchronous([data[:5], memoryview(data)[5:]]),
    "asynchronous, one by one": lambda data, _: asynchronous(bytes((each,)) for each in data),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("times", [1, 9000])
async def test_sources(conn: pgpoll.Connection, tmp_path: Path, name: str, times: int) -> None:
    source = SOURCES[name](LINES * times, tmp_path / "source")
    result = await conn.copy_in(IN, source)
    assert (result.rowcount, result.tag, list(result)) == (3 * times, f"COPY {3 * times}", [])
    counted = await conn.fetch("select i, t, count(*) from t group by i, t order by i")
    assert counted == [(i, t, times) for i, t in ROWS]


async def test_an_empty_source_copies_nothing(conn: pgpoll.Connection) -> None:
    sources: list[Any] = [b"", [], io.BytesIO(), asynchronous([])]
    for source in sources:
        assert (await conn.copy_in(IN, source)).rowcount == 0


async def test_csv_and_binary(conn: pgpoll.Connection) -> None:
    await conn.copy_in("copy t from stdin (format csv, header)", b'i,t\n1,"a,b"\n2,\n')
    assert await content(conn) == [(1, "a,b"), (2, None)]
    binary = b"".join([chunk async for chunk in conn.copy_out("copy t to stdout (format binary)")])
    await conn.execute("truncate t")
    assert (await conn.copy_in("COPY t FROM STDIN (FORMAT binary)", binary)).rowcount == 2
    assert await content(conn) == [(1, "a,b"), (2, None)]


@pytest.mark.parametrize("source", ["1\tx\n", ["1\tx\n"], [b"1\tx\n", "2\ty\n"], io.StringIO, 5, [5], object(), None])
async def test_what_is_no_bytes_is_refused(conn: pgpoll.Connection, source: Any) -> None:
    with pytest.raises(pgpoll.InterfaceError, match=r"bytes"):
        await conn.copy_in(IN, io.StringIO("1\tx\n") if source is io.StringIO else source)
    with pytest.raises(pgpoll.InterfaceError, match=r"bytes"):
        await conn.copy_in(IN, asynchronous(source if isinstance(source, list) else [source]))
    assert await content(conn) == []


async def test_what_is_no_copy_is_refused_before_it_is_sent(conn: pgpoll.Connection) -> None:
    for sql in ("select 1", "", "insert into t values (1)", "-- copy\nselect 1"):
        with pytest.raises(pgpoll.InterfaceError, match="does not begin with COPY"):
            await conn.copy_in(sql, b"")
        with pytest.raises(pgpoll.InterfaceError, match="does not begin with COPY"):
            await anext(conn.copy_out(sql))
    assert await content(conn) == []
    assert (await conn.copy_in("/* a */ COPY t FROM STDIN", LINES)).rowcount == 3


async def test_the_wrong_kind(conn: pgpoll.Connection) -> None:
    for _ in range(2):
        with pytest.raises(pgpoll.InterfaceError, match="copy_out"):
            await conn.copy_in("copy t to stdout", LINES)
        with pytest.raises(pgpoll.InterfaceError, match="copy_in"):
            await anext(conn.copy_out(IN))
        with pytest.raises(pgpoll.InterfaceError, match="copy_out"):
            await conn.copy_in("copy (select repeat('x', 1000) from generate_series(1, 20000)) to stdout", LINES)
        with pytest.raises(errors.UndefinedTable):
            await conn.copy_in("copy nowhere from stdin", LINES)
        with pytest.raises(pgpoll.ProgrammingError, match="multiple commands"):
            await conn.copy_in("copy t from stdin; select 1", LINES)
    assert await content(conn) == []


class Mine(Exception):
    pass


def failing(data: bytes, chunks: int) -> Iterator[bytes]:
    for _ in range(chunks):
        yield data
    raise Mine("source")


@pytest.mark.parametrize("chunks", [0, 1, 2, 100])
async def test_a_source_that_fails_raises_its_own_error(conn: pgpoll.Connection, chunks: int) -> None:
    data = LINES * 1000
    for source in (failing(data, chunks), asynchronous(failing(data, chunks))):
        with pytest.raises(Mine) as caught:
            await conn.copy_in(IN, source)
        assert caught.value.__cause__ is None
        assert await content(conn) == []
    async with conn.transaction():
        with pytest.raises(Mine):
            async with conn.transaction():
                await conn.copy_in(IN, failing(data, chunks))
        assert await content(conn) == []


async def test_an_error_of_the_server_stops_the_source(conn: pgpoll.Connection) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for taken in itertools.count(1):
            yield b"x\ty\n" if taken == 3 else LINES * 1000

    for source in (endless(), asynchronous(endless())):
        with pytest.raises(errors.InvalidTextRepresentation) as caught:
            await conn.copy_in(IN, source)
        assert caught.value.copy_line == 6001
        assert "COPY t, line 6001, column i" in (caught.value.where or "")
        assert taken < 2000
        assert await content(conn) == []


async def test_an_error_at_the_end_is_the_requests_own(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table u (i int4 primary key deferrable initially deferred)")
    with pytest.raises(errors.UniqueViolation):
        await conn.copy_in("copy u from stdin", b"1\n1\n")
    with pytest.raises(errors.UniqueViolation):
        await conn.copy_records("u", [(1,), (1,)])
    assert await conn.fetch("select * from u") == []


async def test_a_source_can_not_use_its_own_connection(conn: pgpoll.Connection) -> None:
    """That wait would never end. Nor can a task that the source makes."""

    async def asking() -> AsyncIterator[bytes]:
        yield LINES
        await conn.fetchval("select 1")

    async def spawning() -> AsyncIterator[bytes]:
        yield LINES
        await asyncio.create_task(conn.execute("select 1"))

    for source in (asking(), spawning()):
        with pytest.raises(pgpoll.InterfaceError, match="COPY is open here"):
            await conn.copy_in(IN, source)
        assert await content(conn) == []


@pytest.mark.parametrize("verb", ["copy_in", "copy_records"])
async def test_cancelled_anywhere_all_or_nothing_is_copied(conn: pgpoll.Connection, verb: str) -> None:
    for turns in range(0, 120, 3):
        if verb == "copy_in":
            copy = conn.copy_in(IN, asynchronous([LINES * 5000] * 8))
        else:
            copy = conn.copy_records("t", ((i, "x" * 100) for i in range(12_000)))
        task = asyncio.create_task(copy)
        for _ in range(turns):
            await asyncio.sleep(0)
        asked = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == asked
        assert await conn.fetchval("select count(*) from t") in (0, 120_000 if verb == "copy_in" else 12_000)
        await conn.execute("truncate t")


@pytest.mark.parametrize("decoded", [False, True])
async def test_who_goes_on_with_it_is_inside_of_it(conn: pgpoll.Connection, decoded: bool) -> None:
    """Begun by another task: to wait for its end here, in the loop over it, would never end."""
    query = "select repeat('x', 1000) from generate_series(1, 20000)"
    copy: Any = conn.copy_out_records(query) if decoded else conn.copy_out(f"copy ({query}) to stdout")

    async def begin() -> object:
        return await anext(copy)

    await asyncio.create_task(begin())
    for _ in range(5000):
        await anext(copy)
        if copy._block in carried():
            break
    with pytest.raises(pgpoll.InterfaceError, match="a COPY is open here"):
        await conn.execute("select 1", timeout=2)
    await copy.aclose()
    assert await conn.fetchval("select 1", timeout=2) == 1


async def test_others_wait_for_its_end(conn: pgpoll.Connection) -> None:
    order: list[str] = []

    async def slow() -> AsyncIterator[bytes]:
        yield LINES
        await asyncio.sleep(0.05)
        order.append("source")

    async def stranger() -> None:
        assert await conn.fetchval("select count(*) from t") == 3
        order.append("stranger")

    copying = asyncio.create_task(conn.copy_in(IN, slow()))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(stranger(), context=contextvars.Context())
    await asyncio.gather(copying, waiting)
    assert order == ["source", "stranger"]


async def test_within_a_transaction(conn: pgpoll.Connection) -> None:
    async with conn.transaction() as tx:
        await tx.copy_in(IN, LINES)
        assert await conn.fetchval("select count(*) from t") == 3
        assert b"".join([chunk async for chunk in tx.copy_out(OUT)]) == LINES
        assert [tuple(each) async for each in tx.copy_out_records("select * from t order by i")] == ROWS
        async with tx.transaction():
            await conn.copy_records("t", [(4, "four")])
    assert await content(conn) == [*ROWS, (4, "four")]


async def test_the_timeout_covers_the_source(conn: pgpoll.Connection) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield LINES
        await asyncio.sleep(60)

    async def trickling() -> AsyncIterator[bytes]:
        while True:
            yield LINES
            await asyncio.sleep(0.01)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield LINES * 1000

    def blocking() -> Iterator[bytes]:
        while True:
            yield LINES
            time.sleep(0.005)

    for source in (stuck(), trickling(), endless(), blocking()):
        began = asyncio.get_running_loop().time()
        with pytest.raises(pgpoll.QueryTimeout):
            await conn.copy_in(IN, source, timeout=0.1)
        assert asyncio.get_running_loop().time() - began < 2
        assert await content(conn) == []

    with pytest.raises(pgpoll.QueryTimeout):
        await conn.copy_records("t", ((1, str(each)) for each in blocking()), timeout=0.1)
    assert await content(conn) == []

    async def of_its_own() -> AsyncIterator[bytes]:
        yield LINES
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await conn.copy_in(IN, of_its_own(), timeout=10)


async def test_the_timeout_covers_a_server_that_waits(conn: pgpoll.Connection, dsn: str) -> None:
    async with pgpoll.connect(dsn) as other:
        await other.execute("drop table if exists locked_by_a_test")
        await other.execute("create table locked_by_a_test (i int4)")
        try:
            async with other.transaction():
                await other.execute("lock table locked_by_a_test")
                with pytest.raises(pgpoll.QueryTimeout):
                    await conn.copy_in("copy locked_by_a_test from stdin", b"1\n", timeout=0.1)
                with pytest.raises(pgpoll.QueryTimeout):
                    await anext(conn.copy_out("copy locked_by_a_test to stdout", timeout=0.1))
                assert await conn.fetchval("select 1", timeout=5) == 1
        finally:
            await other.execute("drop table locked_by_a_test")


async def test_progress(conn: pgpoll.Connection) -> None:
    seen: list[tuple[int | None, int]] = []
    await conn.copy_in(IN, [LINES * 5000] * 3, on_progress=lambda rows, size: seen.append((rows, size)))
    assert len(seen) > 2
    assert seen[-1] == (None, len(LINES) * 15_000)
    seen.clear()
    await conn.copy_records("t", ((i, "x") for i in range(10_000)), on_progress=lambda *now: seen.append(now))
    assert seen[-1][0] == 10_000
    assert seen == sorted(seen)
    seen.clear()
    count = 0
    async for _ in conn.copy_out_records("select * from t", on_progress=lambda *now: seen.append(now)):
        count += 1
    assert count == 55_000 == seen[-1][0]
    with pytest.raises(Mine):
        await conn.copy_in(IN, LINES, on_progress=lambda *_: next(failing(b"", 0)))
    with pytest.raises(Mine):
        await anext(conn.copy_out(OUT, on_progress=lambda *_: next(failing(b"", 0))))
    assert await conn.fetchval("select count(*) from t") == 55_000


# -- copy_records


class Named(NamedTuple):
    i: int
    t: str | None


@dataclasses.dataclass
class Plain:
    t: str | None
    other: str
    i: int


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    i: int
    t: str | None


KINDS: dict[str, Callable[[int, str | None], Any]] = {
    "tuple": lambda i, t: (i, t),
    "list": lambda i, t: [i, t],
    "named tuple": Named,
    "dataclass": lambda i, t: Plain(t, "more", i),
    "dataclass with slots": Slotted,
    "dict": lambda i, t: {"t": t, "more": 1, "i": i},
    "ordered dict": lambda i, t: OrderedDict(t=t, i=i),
    "mapping": lambda i, t: UserDict({"t": t, "i": i}),
    "sequence": lambda i, t: _Sequence(i, t),
}


class _Sequence:
    def __init__(self, *values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: int) -> Any:
        return self.values[at]


@pytest.mark.parametrize("kind", KINDS)
async def test_kinds_of_records(conn: pgpoll.Connection, kind: str) -> None:
    make = KINDS[kind]
    records = [make(i, t) for i, t in ROWS]
    assert (await conn.copy_records("t", records)).tag == "COPY 3"
    assert (await conn.copy_records("t", asynchronous(records))).rowcount == 3
    assert (await conn.copy_records("t", iter(records), columns=["i", "t"])).rowcount == 3
    assert await content(conn) == sorted(ROWS * 3)


async def test_records_of_a_result(conn: pgpoll.Connection) -> None:
    await conn.copy_records("t", ROWS)
    await conn.copy_records("t", await conn.execute("select t, i + 10 as i from t"), columns=("t", "i"))
    assert await conn.fetchval("select count(*) from t where i > 10") == 3
    await conn.copy_records("t", [])
    await conn.copy_records("t", asynchronous([]))
    assert await conn.fetchval("select count(*) from t") == 6


async def test_types(conn: pgpoll.Connection) -> None:
    class Color(enum.Enum):
        RED = "red"

    await conn.execute("drop type if exists copied_color cascade")
    await conn.execute("create type copied_color as enum ('red', 'blue')")
    await conn.execute("drop domain if exists copied_small cascade")
    await conn.execute("create domain copied_small as int4 check (value < 100)")
    await conn.execute("drop domain if exists copied_smaller cascade")
    await conn.execute("create domain copied_smaller as copied_small")
    types = (
        "bool int2 int8 float4 numeric text varchar(9) bytea date timestamptz interval uuid json jsonb int4[] text[]"
    )
    names = [*types.split(), "copied_color", "copied_smaller", '"char"']
    columns = ", ".join(f"c{n} {each}" for n, each in enumerate(names))
    await conn.execute(f"create temp table wide ({columns})")
    at = dt.datetime(2026, 11, 21, 1, 2, 3, 456789, tzinfo=dt.UTC)
    values: tuple[Any, ...] = (True, -7, 2**60, 1.5, decimal.Decimal("12.3400"), "é", "short", b"\0\xff", at.date(), at)
    values += (dt.timedelta(days=1), uuid.UUID(int=7), {"k": [1, None]}, [1], [[1, 2], [3, None]], ["a", None])
    values += ("red", 42, "x")
    empty = (None,) * len(names)
    changed = (*values[:16], Color.RED, *values[17:])
    await conn.copy_records("wide", [values, empty, changed])
    got = await conn.fetch("select * from wide")
    assert [tuple(each) for each in got] == [values, empty, values]
    copied = [tuple(each) async for each in conn.copy_out_records("select * from wide")]
    assert copied == [values, empty, values]
    with pytest.raises(errors.CheckViolation):
        await conn.copy_records("wide", [(100,)], columns=["c17"])
    with pytest.raises(errors.InvalidTextRepresentation):
        await conn.copy_records("wide", [("green",)], columns=["c16"])
    await conn.execute("drop type copied_color cascade")
    await conn.execute("drop domain copied_small cascade")


async def test_no_columns_at_all(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="columns is empty"):
        await conn.copy_records("t", [()], columns=[])
    await conn.execute("create temp table nothing ()")
    assert (await conn.copy_records("nothing", [(), ()])).rowcount == 2
    assert await conn.fetchval("select count(*) from nothing") == 2


async def test_names_are_quoted(conn: pgpoll.Connection) -> None:
    schema, table = 'Sche"ma.x', 'ta"ble; drop'
    quoted = ".".join('"' + each.replace('"', '""') + '"' for each in (schema, table))
    await conn.execute("drop schema if exists " + quoted.split('."ta')[0] + " cascade")
    await conn.execute("create schema " + quoted.split('."ta')[0])
    await conn.execute(f'create table {quoted} ("a b" int4, "select" text, "x""y" int4)')
    await conn.copy_records(table, [(1, "x", 2)], schema=schema)
    await conn.copy_records(table, [{'x"y': 5, "a b": 4}], columns=['x"y', "a b"], schema=schema)
    assert await conn.fetch(f"select * from {quoted}") == [(1, "x", 2), (4, None, 5)]
    with pytest.raises(errors.UndefinedTable):
        await conn.copy_records(f"{schema}.{table}", [])
    await conn.execute("drop schema " + quoted.split('."ta')[0] + " cascade")


@pytest.mark.parametrize(
    "table", ["Mixed", "select", "user", "a b", "Ä", "1", "$1", "x.y", "'", '"', '"t"', "t;", "%s"]
)
async def test_names_of_tables_are_taken_to_the_letter(conn: pgpoll.Connection, table: str) -> None:
    quoted = '"' + table.replace('"', '""') + '"'
    await conn.execute(f"create temp table {quoted} ({quoted} int4)")
    await conn.copy_records(table, [(1,)])
    await conn.copy_records(table, [(2,)], columns=[table], schema="pg_temp")
    assert await conn.fetch(f"select * from {quoted}") == [(1,), (2,)]


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ({"table": "public.t"}, ["'public.t' is one identifier: pass the schema's name as schema="]),
        ({"table": "public.t", "schema": "public"}, []),
        ({"table": "Copied"}, ["'Copied' is taken to the letter: without quotes it would be 'copied'"]),
        (
            {"table": "copied", "schema": "Public"},
            ["'Public' is taken to the letter: without quotes it would be 'public'"],
        ),
        ({"table": '"copied"'}, ["'\"copied\"' is taken to the letter, quotes included"]),
        ({"table": "nosuch"}, []),
        ({"table": "copied", "schema": "nosuch"}, []),
    ],
)
async def test_a_table_that_is_not_there(conn: pgpoll.Connection, dsn: str, name: Any, notes: list[str]) -> None:
    await conn.execute("create temp table copied (a int4)")
    missing = (errors.UndefinedTable, errors.InvalidSchemaName)
    with pytest.raises(missing) as caught:
        await conn.copy_records(records=[(1,)], **name)
    assert getattr(caught.value, "__notes__", []) == notes
    with sync.connect(dsn) as blocking:
        with pytest.raises(missing) as told:
            blocking.copy_records(records=[(1,)], **name)
        assert getattr(told.value, "__notes__", []) == notes
    assert await conn.fetchval("select 1") == 1


async def test_columns_that_can_be_written(conn: pgpoll.Connection) -> None:
    await conn.execute(
        "create temp table g (id int4 generated always as identity, gone int4, a int4,"
        " twice int4 generated always as (a * 2) stored, b text default 'b')"
    )
    await conn.execute("alter table g drop column gone")
    await conn.copy_records("g", [(7, 1, "x")])
    await conn.copy_records("g", [(2,)], columns=["a"])
    assert await conn.fetch("select * from g") == [(7, 1, 2, "x"), (1, 2, 4, "b")]
    with pytest.raises(pgpoll.InterfaceError, match=r"'twice'.*generated"):
        await conn.copy_records("g", [(1,)], columns=["twice"])
    for name in ("gone", "nothing", "", "tableoid"):
        with pytest.raises(pgpoll.InterfaceError, match="has no column"):
            await conn.copy_records("g", [(1,)], columns=[name])
    with pytest.raises(pgpoll.InterfaceError, match="columns is a str"):
        await conn.copy_records("g", [(1,)], columns="a")
    await conn.execute("create temp table nothing ()")
    assert (await conn.copy_records("nothing", [(), ()])).rowcount == 2


async def test_a_changed_table_is_described_anew(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table changing (v int8)")
    await conn.copy_records("changing", [(1,)])
    await conn.execute("alter table changing drop column v")
    await conn.execute("alter table changing add v timestamptz")
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    await conn.copy_records("changing", [(at,)])
    assert await conn.fetch("select v from changing order by v") == [(at,), (None,)]
    assert [each.v async for each in conn.copy_out_records("select v from changing order by v")] == [at, None]
    await conn.execute("alter table changing alter v type int8 using 5")
    assert [each.v async for each in conn.copy_out_records("select v from changing order by v")] == [5, 5]


async def test_a_type_without_a_binary_codec_is_named(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table p (i int4, where_ point)")
    with pytest.raises(pgpoll.InterfaceError, match=r"'where_'.*point.*copy_in"):
        await conn.copy_records("p", [(1, "(1,2)")])
    await conn.copy_records("p", [(1,)], columns=["i"])


BAD: list[tuple[Any, str]] = [
    ((1, 5), r'record 3, column "t" \(text\) does not take this value of type int'),
    (("x", "y"), r'record 3, column "i" \(integer\).*type str'),
    ((2**31, "y"), r'record 3, column "i".*out of range'),
    ((1, "a\0b"), r'record 3, column "t".*NUL'),
    ((1,), "record 3 has 1 values, but 2"),
    ((1, "x", 2), "record 3 has 3 values, but 2"),
    ({"i": 1}, r'record 3 \(dict\) has no value for column "t"'),
    (UserDict(t="x"), r'record 3 \(UserDict\) has no value for column "i"'),
    ("ab", "record 3 is of type str"),
    (b"ab", "record 3 is of type bytes"),
    (5, "record 3 is of type int"),
    (None, "record 3 is of type NoneType"),
]


@pytest.mark.parametrize(("record", "text"), BAD)
async def test_a_bad_record_is_named_and_nothing_is_copied(conn: pgpoll.Connection, record: Any, text: str) -> None:
    records = [*ROWS[:2], record, (4, "four")]
    for source in (records, asynchronous(records)):
        with pytest.raises(pgpoll.DataError, match=text):
            await conn.copy_records("t", source)
        assert await content(conn) == []


@pytest.mark.parametrize("source", ["ab", b"ab", 5, None])
async def test_what_is_no_iterable_of_records(conn: pgpoll.Connection, source: Any) -> None:
    with pytest.raises(pgpoll.InterfaceError, match="records are an iterable"):
        await conn.copy_records("t", source)


async def test_records_that_fail_by_themselves(conn: pgpoll.Connection) -> None:
    def records() -> Iterator[tuple[int, str]]:
        yield from ((i, "x") for i in range(20_000))
        raise Mine("records")

    class Index:
        def __index__(self) -> int:
            raise Mine("index")

    class Broken(UserDict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise Mine(name)

    for source in (records(), asynchronous(records()), [Broken()]):
        with pytest.raises(Mine):
            await conn.copy_records("t", source)
    with pytest.raises(pgpoll.DataError) as caught:
        await conn.copy_records("t", [(Index(), "x")])
    assert isinstance(caught.value.__cause__, Mine)
    assert await content(conn) == []


async def test_the_records_line_of_a_servers_error(conn: pgpoll.Connection) -> None:
    await conn.execute("create temp table u (i int4 check (i <> 7))")
    with pytest.raises(errors.CheckViolation) as caught:
        await conn.copy_records("u", ((i,) for i in range(1, 100_000)))
    assert caught.value.copy_line == 7


@contextlib.contextmanager
def pipe(buffering: int) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Its two ends as files that do not block."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    with open(ends[0], "rb", buffering) as reader, open(ends[1], "wb", 0) as writer:
        yield reader, writer


async def test_a_file_that_does_not_block_is_no_source(conn: pgpoll.Connection) -> None:
    """Where it has nothing now there may be more later: that is not its end."""
    for buffering in (0, -1):
        with pipe(buffering) as (reader, writer):
            if buffering == 0:
                writer.write(LINES)
            with pytest.raises(BlockingIOError, match="blocks"):
                await conn.copy_in(IN, reader)
    assert await content(conn) == []


class AsyncFile:
    async def read(self, size: int) -> bytes:
        raise AssertionError

    async def write(self, data: bytes) -> int:
        raise AssertionError


@pytest.mark.filterwarnings("error")
async def test_a_file_with_coroutines_is_refused(conn: pgpoll.Connection) -> None:
    with pytest.raises(pgpoll.InterfaceError, match=r"AsyncFile.read\(\) is asynchronous: pass an iterable"):
        await conn.copy_in(IN, AsyncFile())
    with pytest.raises(pgpoll.InterfaceError, match=r"AsyncFile.write\(\) is asynchronous: iterate over copy_out\(\)"):
        await conn.copy_out("copy (select 1) to stdout", AsyncFile())
    gc.collect()
    assert await content(conn) == []


# -- copy_out


async def test_a_file_that_does_not_block_is_no_target(conn: pgpoll.Connection) -> None:
    """What finds no room would be lost."""
    with pipe(0) as (_, writer), pytest.raises(BlockingIOError, match="blocks"):
        await conn.copy_out("copy (select repeat('x', 999) from generate_series(1, 5000)) to stdout", writer)

    class Lazy:
        def write(self, data: Any) -> int:
            return 0

    with pytest.raises(BlockingIOError, match="blocks"):
        await conn.copy_out("copy (select 1) to stdout", Lazy())
    assert await content(conn) == []


async def test_targets(conn: pgpoll.Connection, tmp_path: Path) -> None:
    await conn.copy_records("t", ROWS)
    path = tmp_path / "out"
    result = await conn.copy_out(OUT, path)
    assert (result.rowcount, path.read_bytes()) == (3, LINES)
    file = io.BytesIO()
    assert (await conn.copy_out(OUT, file)).tag == "COPY 3"
    assert file.getvalue() == LINES
    with path.open("wb", buffering=0) as raw:
        await conn.copy_out("copy (select repeat('x', 999) from generate_series(1, 5000)) to stdout", raw)
    assert path.stat().st_size == 5_000_000
    await conn.copy_out("copy (select 1 where false) to stdout", path)
    assert path.read_bytes() == b""

    class Full:
        def write(self, data: Any) -> int:
            raise Mine("disk full")

    with pytest.raises(Mine):
        await conn.copy_out(OUT, Full())
    with pytest.raises(pgpoll.InterfaceError, match="can't write to str"):
        await conn.copy_out(OUT, "out.txt")
    path.write_bytes(b"precious")
    with pytest.raises(errors.UndefinedTable):
        await conn.copy_out("copy nowhere to stdout", path)
    assert path.read_bytes() == b"precious"


async def test_left_before_its_end(conn: pgpoll.Connection) -> None:
    """Broken out of, closed, dropped, cancelled: the connection is of use at once, and what ran has been cancelled."""
    endless = "copy (select repeat('x', 1000), generate_series(1, 100000000)) to stdout"
    began = asyncio.get_running_loop().time()
    async with conn.copy_out(endless) as chunks:
        async for _ in chunks:
            break
    assert await conn.fetchval("select 1") == 1
    chunks = conn.copy_out(endless)
    await anext(chunks)
    await chunks.aclose()
    await chunks.aclose()
    assert [each async for each in chunks] == []
    assert await conn.fetchval("select 2") == 2
    async for _ in conn.copy_out(endless):
        break
    gc.collect()
    assert await conn.fetchval("select 3") == 3
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            async for _ in conn.copy_out(endless):
                pass
    assert await conn.fetchval("select 4") == 4
    assert asyncio.get_running_loop().time() - began < 10
    conn.copy_out(endless)  # never begun


async def test_a_consumer_can_not_use_its_own_connection(conn: pgpoll.Connection) -> None:
    async with conn.copy_out("copy (select generate_series(1, 1000000)) to stdout") as chunks:
        async for _ in chunks:
            with pytest.raises(pgpoll.InterfaceError, match="COPY is open here"):
                await conn.fetchval("select 1")
            break
    assert await conn.fetchval("select 1") == 1


async def test_a_slow_consumer_makes_the_server_wait(conn: pgpoll.Connection) -> None:
    size = 0
    async with conn.copy_out("copy (select repeat('x', 999) from generate_series(1, 20000)) to stdout") as chunks:
        async for chunk in chunks:
            size += len(chunk)
            assert len(chunk) <= 2 << 20
            if size < 10_000_000:
                await asyncio.sleep(0.01)
    assert size == 20_000_000
    assert chunks.result is not None
    assert chunks.result.rowcount == 20_000


async def test_an_error_half_way(conn: pgpoll.Connection) -> None:
    """What had come is given out before it is raised."""
    query = "select 1000 / (1000 - i) from generate_series(1, 2000) i"
    size = 0
    with pytest.raises(errors.DivisionByZero):
        async for chunk in conn.copy_out(f"copy ({query}) to stdout"):
            size += chunk.count(b"\n")
    assert size == 999
    count = 0
    with pytest.raises(errors.DivisionByZero):
        async for _ in conn.copy_out_records(query):
            count += 1
    assert count == 999


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select * from t order by i", ROWS),
        ("select * from t order by i -- all\n;", ROWS),
        ("copy t to stdout", ROWS),
        (" COPY  t (t, i)  TO STDOUT ; ", [(t, i) for i, t in ROWS]),
        ("copy (select i from t order by i) to stdout", [(1,), (2,), (3,)]),
        ("values (1, 'a'), (2, null)", [(1, "a"), (2, None)]),
        ("select 1 as a, 2 as a", [(1, 2)]),
        ("select '10.0.0.1'::inet as a, null::point, 5 as a", [("10.0.0.1", None, 5)]),
        ("insert into t values (9, 'nine') returning t, i", [("nine", 9)]),
        ("insert into t values (9, 'nine') returning point(i, 1), t", [("(9,1)", "nine")]),
        ("-- gone\n delete from t where i < 3 returning '::1'::inet, i ;", [("::1", 1), ("::1", 2)]),
        (" /* all of\nit */ -- as it is\n copy t to stdout", ROWS),
        ("select from t", [(), (), ()]),
        ("select 1 where false", []),
    ],
)
async def test_records_of_queries(conn: pgpoll.Connection, sql: str, expected: list[Any]) -> None:
    await conn.copy_records("t", ROWS)
    records = [each async for each in conn.copy_out_records(sql)]
    assert [tuple(each) for each in records] == expected
    assert all(isinstance(each, core.Record) for each in records)


async def test_queries_that_can_not_be_copied(conn: pgpoll.Connection) -> None:
    for sql in ("create temp table u ()", "insert into t values (1)", ""):
        with pytest.raises(pgpoll.Error):
            await anext(conn.copy_out_records(sql))
    for wrong in (5, None, b"select 1"):
        with pytest.raises(pgpoll.InterfaceError, match="sql must be str, not"):
            await anext(conn.copy_out_records(wrong))  # type: ignore[arg-type]
    with pytest.raises(pgpoll.ProgrammingError, match="parameter"):
        await anext(conn.copy_out_records("select $1::int4"))
    with pytest.raises(pgpoll.ProgrammingError):
        await anext(conn.copy_out_records("select 1); drop table t; select (1"))
    with pytest.raises(pgpoll.DataError, match="infinity"):
        await anext(conn.copy_out_records("select 'infinity'::date as d"))
    assert await content(conn) == []


async def test_large_values(conn: pgpoll.Connection) -> None:
    large = "é" * 3_000_000
    await conn.copy_records("t", [(1, large), (2, large)])
    assert [each.t == large async for each in conn.copy_out_records("select * from t")] == [True, True]


async def test_it_is_observed(dsn: str) -> None:
    seen: list[Any] = []
    async with pgpoll.connect(dsn, on_request=seen.append) as conn:
        await conn.execute("create temp table t (i int4, t text)")
        await conn.copy_in(IN, LINES)
        async for _ in conn.copy_out(OUT):
            pass
    assert [each.sql for each in seen][1:] == [IN, OUT]
    assert all(each.error is None and each.finished >= each.queued for each in seen)


def copied(seen: list[pgpoll.RequestRecord]) -> list[tuple[int, str | None]]:
    """The rows and the error of each COPY."""
    copies = [each for each in seen if (each.sql or "").lower().startswith("copy ")]
    return [(each.rows, None if each.error is None else type(each.error).__name__) for each in copies]


async def test_its_record_has_the_rows_of_its_tag(dsn: str) -> None:
    """In both directions; of one that has failed, or was given up, none is known."""
    seen: list[pgpoll.RequestRecord] = []
    many = "copy (select generate_series(1, 1000000)) to stdout"
    async with pgpoll.connect(dsn, on_request=seen.append) as conn:
        await conn.execute("create temp table t (i int4, t text)")
        await conn.copy_in(IN, LINES)
        await conn.copy_in(IN, b"")
        await conn.copy_records("t", ((n, None) for n in range(12_345)))
        assert [chunk async for chunk in conn.copy_out(OUT)]
        assert len([each async for each in conn.copy_out_records("select i from t")]) == 12_348
        with pytest.raises(errors.InvalidTextRepresentation):
            await conn.copy_in(IN, b"1\ta\nx\tb\n")
        async for _ in conn.copy_out(many):
            break
        async with conn.transaction() as tx:
            await tx.copy_out(many, io.BytesIO())
    assert copied(seen) == [
        *((3, None), (0, None), (12_345, None), (12_348, None), (12_348, None)),
        *((0, "InvalidTextRepresentation"), (0, None), (1_000_000, None)),
    ]


def test_its_record_has_the_rows_of_its_tag_blocking(dsn: str) -> None:
    seen: list[pgpoll.RequestRecord] = []
    with sync.connect(dsn, on_request=seen.append) as conn:
        conn.execute("create temp table t (i int4, t text)")
        conn.copy_in(IN, LINES)
        assert list(conn.copy_out(OUT))
        assert list(conn.copy_out_records("select i from t"))
    assert copied(seen) == [(3, None)] * 3
