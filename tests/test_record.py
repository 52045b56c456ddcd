"""Record and Result: what a row and a result are to Python. No server: rows come by a Session's dialogue."""

from __future__ import annotations

import collections.abc
import copy
import gc
import pickle
import struct
import sys
import threading
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import (
    INT4,
    INT8,
    TEXT,
    bind_complete,
    column,
    command_complete,
    data_row,
    described,
    int4,
    message,
    ready_for_query,
    row_description,
    started,
)
from peers import options
from pgpoll import core, errors

JSONB, INT4_ARRAY, SOME_ENUM = 3802, 1007, 16_500


def session() -> core.Session:
    made = core.Session(options())
    made.start_connect()
    made.outbound()
    made.receive(started())
    made.pump()
    return made


def result_of(columns: list[bytes], rows: list[bytes], tag: str | None = None) -> core.Result:
    """The result of these columns and DataRows, as execute leaves it."""
    made = session()
    operation = made.start_execute("select")
    made.receive(described(*columns))
    made.pump()
    made.outbound()
    end = command_complete(f"SELECT {len(rows)}" if tag is None else tag) + ready_for_query()
    made.receive(bind_complete() + b"".join(rows) + end)
    made.pump()
    result = operation.result()
    assert isinstance(result, core.Result)
    return result


def numbers(n: int) -> core.Result:
    return result_of([column("i")], [data_row(int4(i)) for i in range(n)])


def record(**values: Any) -> core.Record:
    return core._record(tuple(values), tuple(values.values()))


def doubled() -> core.Record:
    """A record with two columns of one name."""
    return core._record(("a", "b", "a"), (1, 2, 3))


# Record.


def test_record_is_a_sequence() -> None:
    row = record(a=1, b="x", c=None)
    assert len(row) == 3
    assert row[0] == 1
    assert row[-1] is None
    assert row[1:] == ("x", None)
    assert row[::-1] == (None, "x", 1)
    assert list(row) == [1, "x", None]
    assert tuple(row) == (1, "x", None)
    assert "x" in row
    assert 2 not in row
    a, *rest = row
    assert a == 1
    assert rest == ["x", None]
    assert list(reversed(row)) == [None, "x", 1]
    assert isinstance(row, collections.abc.Sequence)
    assert not isinstance(row, tuple)
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            row[wrong]
    with pytest.raises(TypeError):
        row[1.5]  # type: ignore[call-overload]
    match row:
        case [int(number), str(text), None]:
            assert (number, text) == (1, "x")
        case _:
            raise AssertionError("no sequence pattern")


def test_record_answers_by_name() -> None:
    row = record(a=1, count=2, index=3, b=4)
    assert row["a"] == row.a == 1
    assert row.count == 2
    assert row.index == 3
    assert tuple(row.keys()) == ("a", "count", "index", "b")
    assert row._asdict() == dict(row) == {"a": 1, "count": 2, "index": 3, "b": 4}
    with pytest.raises(KeyError, match="missing"):
        row["missing"]
    with pytest.raises(AttributeError, match="missing"):
        _ = row.missing
    assert not hasattr(record(a=1), "count")
    assert not hasattr(record(a=1), "_fields")


def test_keys_and_asdict_are_the_only_public_names() -> None:
    row = record(keys=1, _asdict=2, __len__=3)
    assert row["keys"] == 1
    assert row["_asdict"] == 2
    assert row["__len__"] == 3
    assert tuple(row.keys()) == ("keys", "_asdict", "__len__")
    assert len(row) == 3
    assert {name for name in dir(record()) if not name.startswith("__")} == {"keys", "_asdict"}
    assert "b" in dir(record(b=1))


def test_name_that_two_columns_have() -> None:
    row = doubled()
    assert row.b == 2
    assert list(row) == [1, 2, 3]
    assert tuple(row.keys()) == ("a", "b", "a")
    for ask, kind in (
        (lambda: row["a"], KeyError),
        (lambda: row.a, AttributeError),
        (row._asdict, ValueError),
        (lambda: dict(row), KeyError),
    ):
        with pytest.raises(kind, match="several"):
            ask()
    assert repr(row) == "<Record a=1 b=2 a=3>"


def test_record_is_immutable() -> None:
    row = record(a=1)
    for change in (
        lambda: setattr(row, "a", 2),
        lambda: setattr(row, "z", 2),
        lambda: delattr(row, "a"),
        lambda: row.__setitem__(0, 2),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()
    with pytest.raises(TypeError):
        type("Sub", (core.Record,), {})
    with pytest.raises(TypeError):
        core.Record()
    assert row == (1,)


VALUES = st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.booleans()


@given(st.lists(VALUES, max_size=20), st.lists(VALUES, max_size=20))
def test_record_equals_and_hashes_as_its_tuple(left: list[Any], right: list[Any]) -> None:
    def made(values: list[Any]) -> core.Record:
        return core._record(tuple(f"c{i}" for i in range(len(values))), tuple(values))

    row = made(left)
    assert row == tuple(left)
    assert tuple(left) == row
    assert hash(row) == hash(tuple(left))
    assert row != list(left)
    assert (row == made(right)) == (row == tuple(right)) == (left == right)
    assert {tuple(left): 1}[row] == 1  # type: ignore[index]


@given(st.lists(st.integers(0, 2), max_size=3), st.lists(st.integers(0, 2), max_size=3))
def test_record_orders_as_its_tuple(left: list[int], right: list[int]) -> None:
    names = ("x", "y", "z")
    a, b = core._record(names[: len(left)], tuple(left)), core._record(names[: len(right)], tuple(right))
    for one, other in ((a, b), (a, tuple(right)), (tuple(left), b)):
        assert (one < other, one <= other, one > other, one >= other) == (
            left < right, left <= right, left > right, left >= right,
        )  # fmt: skip
    with pytest.raises(TypeError):
        a < [1]  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize("row", [record(a=1, b="x"), record(j={"k": [1]}, n=None), record(), doubled()], ids=repr)
def test_record_is_pickled_and_copied(row: core.Record) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(row, protocol))
        assert back == row
        assert isinstance(back, core.Record)
        assert tuple(back.keys()) == tuple(row.keys())
    assert copy.copy(row) is row
    deep = copy.deepcopy(row)
    assert deep == row
    assert not row or "j" not in row or deep["j"] is not row["j"]


def test_pickle_of_nonsense_raises() -> None:
    for names, values in ((("a",), ()), ((1,), (1,)), (["a"], (1,)), (("a",), [1])):
        with pytest.raises((TypeError, ValueError)):
            core._record(names, values)  # type: ignore[arg-type]


def test_repr() -> None:
    assert repr(record(a=1, b="x")) == "<Record a=1 b='x'>"
    assert repr(record()) == "<Record>"
    items: list[Any] = []
    row = record(items=items)
    items.append(row)
    assert repr(row) == "<Record items=[<Record ...>]>"


def test_only_records_that_may_be_in_a_cycle_are_collected() -> None:
    """The collector never sees rows of atomic columns, so that a million of them start no collection."""
    columns = [column("i"), column("t", TEXT, -1), column("b", 17, -1), column("n", 1700, -1), column("e", SOME_ENUM)]
    assert not gc.is_tracked(result_of(columns, [data_row(int4(1), b"x", b"y", None, b"z")])[0])
    for oid, data in ((JSONB, b"\x01[]"), (INT4_ARRAY, struct.pack("!iiI", 0, 0, INT4))):
        row = result_of([column("j", oid, -1)], [data_row(data)])[0]
        assert gc.is_tracked(row)
        assert isinstance(row, core.Record)
        row[0].append(row)
        freed = threading.Event()

        class Flag(threading.Thread):
            def __del__(self, freed: threading.Event = freed) -> None:
                freed.set()

        row[0].append(Flag())
        del row
        gc.collect()
        assert freed.is_set()


def test_records_given_back_are_used_again() -> None:
    """Through the free lists, for every size they keep and some they don't, and none's value survives in another."""
    for size in (0, 1, 2, 15, 16, 17, 40):
        names = tuple(f"c{i}" for i in range(size))
        for turn in range(3):
            rows = [core._record(names, (turn * 10_000 + i,) * size) for i in range(2_000)]
            assert all(tuple(row) == (turn * 10_000 + i,) * size for i, row in enumerate(rows))
            del rows


def test_no_reference_is_lost() -> None:
    value = object()
    before = sys.getrefcount(value)
    row = record(a=value, b=value)
    list(row), row[0], row.a, row["b"], row._asdict(), row == (value, value), hash(row), copy.deepcopy, repr(row)
    iterator = iter(row)
    next(iterator)
    del row, iterator
    gc.collect()
    assert sys.getrefcount(value) == before


# Result.


def test_result_is_a_lazy_sequence() -> None:
    result = numbers(100)
    assert len(result) == 100
    assert result
    assert isinstance(result, collections.abc.Sequence)
    assert result[0] == (0,)
    assert result[99].i == result[-1].i == 99
    assert result[-100] == (0,)
    assert result[2:5] == [(2,), (3,), (4,)]
    assert isinstance(result[:], list)
    assert result[::-1][0] == (99,)
    assert result[:7] == [(i,) for i in range(7)]
    assert result[50:10] == []
    assert [row.i for row in result] == list(range(100)) == [row.i for row in result.fetch()]
    assert (7,) in result
    assert result.index((7,)) == 7
    assert result.count((7,)) == 1
    assert result[0] is not result[0]  # decoded when touched, and not kept
    for wrong in (100, -101):
        with pytest.raises(IndexError):
            result[wrong]
    with pytest.raises(TypeError):
        result["i"]  # type: ignore[call-overload]
    assert next(reversed(result)) == (99,)
    assert repr(result) == "<Result 'SELECT 100', 100 rows>"
    assert typing.get_args(core.Result[core.Record]) == (core.Record,)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000])
@pytest.mark.parametrize("cut", [1, 50, 4096])
def test_rows_of_any_number_in_any_chunks(n: int, cut: int) -> None:
    made = session()
    operation = made.start_execute("select")
    made.receive(described(column("i"), column("t", TEXT, -1)))
    made.pump()
    rows = [data_row(int4(i), b"x" * (i % 50)) for i in range(n)]
    data = bind_complete() + b"".join(rows) + command_complete(f"SELECT {n}") + ready_for_query()
    for at in range(0, len(data), cut):
        made.receive(data[at : at + cut])
        made.pump()
    result = operation.result()
    expected = [(i, "x" * (i % 50)) for i in range(n)]
    assert list(result) == expected == result.fetch() == [result[i] for i in range(n)] == result[0:]
    assert result[3:] == expected[3:]
    assert result[::3] == expected[::3]


def test_first_one_scalar() -> None:
    empty, single, many = numbers(0), numbers(1), numbers(2)
    assert empty.first() is None
    assert single.first() == (0,) == single.one()
    assert many.first() == (0,)
    assert empty.scalar() is None
    assert many.scalar() == 0
    assert empty.fetch() == []
    assert not empty
    for wrong in (empty, many):
        with pytest.raises(errors.InterfaceError, match=f"has {len(wrong)}"):
            wrong.one()
    assert result_of([column("i")], [data_row(None)]).scalar() is None
    nothing = session_result(described(), b"", "CREATE TABLE")
    assert nothing.scalar() is None
    assert nothing.first() is None
    assert nothing.columns == ()
    assert nothing.fetch() == []


def session_result(description: bytes, rows: bytes, tag: str) -> core.Result:
    made = session()
    operation = made.start_execute("select")
    made.receive(description)
    made.pump()
    made.receive(bind_complete() + rows + command_complete(tag) + ready_for_query())
    made.pump()
    result = operation.result()
    assert isinstance(result, core.Result)
    return result


@pytest.mark.parametrize(
    ("tag", "rowcount"),
    [
        ("SELECT 3", 3),
        ("INSERT 0 2", 2),
        ("UPDATE 0", 0),
        ("CREATE TABLE", None),
        ("BEGIN", None),
        ("SELECT 9223372036854775807", 2**63 - 1),
        ("SELECT 9223372036854775808", None),
        ("SELECT -1", None),
        ("SELECT 1x", None),
        ("", None),
        ("7", 7),
    ],
)
def test_rowcount_is_the_tags_last_number(tag: str, rowcount: int | None) -> None:
    result = session_result(described(), b"", tag)
    assert result.tag == tag
    assert result.rowcount == rowcount


def test_columns() -> None:
    result = result_of(
        [column("a"), column("b", 1043, -1, 14), column("c", INT4_ARRAY, -1), column("d", SOME_ENUM)],
        [data_row(int4(1), b"x", None, b"happy")],
    )
    assert [c.name for c in result.columns] == ["a", "b", "c", "d"]
    assert result[0] == (1, "x", None, "happy")
    assert [c.type_name for c in result.columns] == ["int4", "varchar", "int4[]", str(SOME_ENUM)]
    assert [c.type_oid for c in result.columns] == [INT4, 1043, INT4_ARRAY, SOME_ENUM]
    assert (result.columns[1].typmod, result.columns[0].size, result.columns[0].table_oid) == (14, 4, 0)
    assert [c.format for c in result.columns] == [1, 1, 1, 0]
    assert "name='a', type_name='int4'" in repr(result.columns[0])
    assert result.columns is result.columns


def test_simple_protocol_gives_text() -> None:
    made = session()
    operation = made.start_script("select 1")
    row = row_description(column("i"), column("j", JSONB, -1)) + data_row(b"1", None) + command_complete("SELECT 1")
    made.receive(row + ready_for_query())
    made.pump()
    (result,) = operation.result()
    assert result[0] == ("1", None)
    assert result.columns[0].type_name == "int4"
    assert result.columns[0].format == 0


def test_rows_without_columns() -> None:
    empty_row = message(b"T", b"\0\0")
    description = described("x").replace(row_description("x"), empty_row)
    result = session_result(description, data_row() * 2, "SELECT 2")
    assert result.fetch() == [(), ()]
    assert repr(result[0]) == "<Record>"
    assert result.columns == ()
    with pytest.raises(errors.InterfaceError):
        result.scalar()


def test_bad_value_is_named_when_it_is_touched() -> None:
    good, bad = data_row(int4(1), b"ok"), data_row(int4(2), b"\xff")
    result = result_of([column("i"), column("t", TEXT, -1)], [good, bad, good])
    assert result[0] == result[2] == (1, "ok")
    assert result.scalar() == 1
    for touch in (lambda: result[1], result.fetch, lambda: list(result), lambda: result[1:2]):
        with pytest.raises(errors.DataError, match=r"row 1, column 1 \('t', text\): text that is not UTF-8") as caught:
            touch()
        assert isinstance(caught.value.__cause__, UnicodeDecodeError)
    rows = iter(result)
    assert next(rows) == (1, "ok")
    with pytest.raises(errors.DataError):
        next(rows)
    assert next(rows) == (1, "ok")
    with pytest.raises(errors.DataError, match="row 0, column 0"):
        result_of([column("i", INT8)], [data_row(int4(1))]).scalar()


def test_column_name_that_is_not_utf8() -> None:
    result = result_of([column(b"\xffname")], [data_row(int4(1))])
    assert result.columns[0].name == "\\xffname"
    assert result[0]["\\xffname"] == 1


def test_result_outlives_its_session_and_is_read_by_many_threads() -> None:
    result = numbers(5_000)
    gc.collect()
    sums: list[int] = []
    threads = [threading.Thread(target=lambda: sums.append(sum(row.i for row in result))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum(range(5_000))] * 4


def test_iterator_keeps_its_result() -> None:
    rows = iter(numbers(3))
    gc.collect()
    assert [row.i for row in rows] == [0, 1, 2]
    assert list(rows) == []
