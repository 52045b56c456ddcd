"""Codecs without a server: golden bytes of PostgreSQL's own send functions, every truncation, and properties."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgpoll import core, errors
from pgpoll._values import Interval
from values import (
    ARRAYS,
    BOOL,
    BPCHAR,
    BYTEA,
    CHAR,
    DATE,
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    INTERVAL,
    JSON,
    JSONB,
    NAME,
    NUMERIC,
    OID,
    SOME_ENUM,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    UNKNOWN,
    UTC,
    UUID,
    VARCHAR,
    D,
    U,
    label,
    same,
    there_and_back,
    zone,
)

# What the server's send functions give for these values, and what must be sent for them.
GOLDEN: list[tuple[int, Any, str]] = [
    (BOOL, True, "01"),
    (BOOL, False, "00"),
    (INT2, -(2**15), "8000"),
    (INT2, 2**15 - 1, "7fff"),
    (INT4, -(2**31), "80000000"),
    (INT4, 258, "00000102"),
    (INT8, 2**63 - 1, "7fffffffffffffff"),
    (INT8, -(2**63) + 1, "8000000000000001"),
    (OID, 2**32 - 1, "ffffffff"),
    (FLOAT4, 1.5, "3fc00000"),
    (FLOAT4, struct.unpack("!f", bytes.fromhex("3dcccccd"))[0], "3dcccccd"),
    (FLOAT4, -math.inf, "ff800000"),
    (FLOAT8, 0.1, "3fb999999999999a"),
    (FLOAT8, 5e-324, "0000000000000001"),
    (NUMERIC, D("0"), "0000000000000000"),
    (NUMERIC, D("12.3400"), "0002000000000004000c0d48"),
    (NUMERIC, D("-0.00001234"), "0001fffe4000000804d2"),
    (NUMERIC, D("10000"), "00010001000000000001"),
    (NUMERIC, D("99999999.9999"), "0003000100000004270f270f270f"),
    (NUMERIC, D("100000000000000000000"), "00010005000000000001"),
    (NUMERIC, D("0.000"), "0000000000000003"),
    (
        NUMERIC,
        D("123456789012345678901234567890.123456789"),
        "000b000700000009000c0d801ed204d2162e23340d801ed204d2162e2328",
    ),
    (NUMERIC, D("-1"), "00010000400000000001"),
    (NUMERIC, D("0.00010001"), "0002ffff0000000800010001"),
    (TEXT, "h\u00e9\U0001f600", "68c3a9f09f9880"),
    (TEXT, "", ""),
    (VARCHAR, "abc", "616263"),
    (BPCHAR, "ab ", "616220"),
    (NAME, "ab", "6162"),
    (UNKNOWN, "ab", "6162"),
    (CHAR, "a", "61"),
    (CHAR, "\\200", "80"),
    (CHAR, "", "00"),
    (BYTEA, b"\x00\xff\x10", "00ff10"),
    (BYTEA, b"", ""),
    (UUID, U, "123456789abcdef0123456789abcdef0"),
    (JSON, {"a": [1, None]}, "7b2261223a5b312c6e756c6c5d7d"),
    (JSONB, "x", "01227822"),
    (DATE, dt.date(2000, 1, 1), "00000000"),
    (DATE, dt.date(2026, 11, 21), "0000265d"),
    (DATE, dt.date.min, "fff4dbf9"),
    (DATE, dt.date.max, "002c95d3"),
    (DATE, dt.date(2000, 2, 29), "0000003b"),
    (DATE, dt.date(1999, 12, 31), "ffffffff"),
    (TIME, dt.time(), "0000000000000000"),
    (TIME, dt.time.max, "000000141dd75fff"),
    (TIMETZ, dt.time(1, 2, 3, 4, tzinfo=zone(2)), "00000000dde878c4ffffe3e0"),
    (TIMETZ, dt.time(12, tzinfo=zone(-5.5)), "0000000a0eebb00000004d58"),
    (TIMETZ, dt.time(12, tzinfo=UTC), "0000000a0eebb00000000000"),
    (TIMESTAMP, dt.datetime(2000, 1, 1), "0000000000000000"),
    (TIMESTAMP, dt.datetime(1999, 12, 31, 23, 59, 59, 999999), "ffffffffffffffff"),
    (TIMESTAMP, dt.datetime.min, "ff1fe2ffc59c6000"),
    (TIMESTAMP, dt.datetime.max, "0380e70b913b7fff"),
    (TIMESTAMPTZ, dt.datetime(2026, 11, 21, 1, 2, 3, 456789, UTC), "000303bdad6d5115"),
    (TIMESTAMPTZ, dt.datetime(1970, 1, 1, tzinfo=UTC), "fffca2fec4c82000"),
    (INTERVAL, dt.timedelta(days=1, hours=2, minutes=3, seconds=4, microseconds=5), "00000001b81ee6050000000100000000"),
    (INTERVAL, dt.timedelta(hours=-1), "ffffffff296c5c000000000000000000"),
    (INTERVAL, dt.timedelta(days=-1, microseconds=-1), "ffffffffffffffffffffffff00000000"),
    (INTERVAL, dt.timedelta(), "00000000000000000000000000000000"),
    (INTERVAL, Interval(14, 3, 4_000_000), "00000000003d0900000000030000000e"),
    (INTERVAL, Interval(-1), "000000000000000000000000ffffffff"),
    (INTERVAL, Interval(0, 2**31 - 1), "00000000000000007fffffff00000000"),
    (1007, [], "000000000000000000000017"),
    (1007, [1, 2], "00000001000000000000001700000002000000010000000400000001" + "0000000400000002"),
    (
        1007,
        [[1, 2], [3, None]],
        (
            "000000020000000100000017000000020000000100000002000000010000000400000001"
            "00000004000000020000000400000003ffffffff"
        ),
    ),
    (1009, ["a", None, ""], "00000001000000010000001900000003000000010000000161ffffffff00000000"),
    (1005, [[[[[[1]]]]]], "000000060000000000000015" + "0000000100000001" * 6 + "000000020001"),
    (
        1231,
        [D("1.50"), None],
        "0000000100000001000006a400000002000000010000000c000200000000000200011388ffffffff",
    ),
    (1185, [dt.datetime(2026, 11, 21, tzinfo=UTC)], "0000000100000000000004a0000000010000000100000008000303bccf7de000"),
    (1000, [True, False], "000000010000000000000010000000020000000100000001010000000100"),
    (2951, [U], "0000000100000000000" + "00b86000000010000000100000010123456789abcdef0123456789abcdef0"),
    (1001, [b"\x00\xff"], "00000001000000000000001100000001000000010000000200ff"),
    (SOME_ENUM, "happy", "6861707079"),
]

# What the server sends for values that have no Python value, and what the error must name.
BEYOND_PYTHON = [
    (DATE, "7fffffff", "date infinity"),
    (DATE, "80000000", "date -infinity"),
    (DATE, "002c95d4", "10000-01-01"),
    (DATE, "fff4dbf8", "0001-12-31 BC"),
    (DATE, "ffda97cd", "4713-01-01 BC"),
    (DATE, "7fda970c", "5874897-12-31"),
    (TIMESTAMP, "7fffffffffffffff", "timestamp infinity"),
    (TIMESTAMPTZ, "8000000000000000", "timestamptz -infinity"),
    (TIMESTAMP, "7fffff5bb3b29fff", "294276-12-31 23:59:59.999999"),
    (TIMESTAMP, "fd0f7fbdaf17e000", "4713-01-01 00:00:00.000000 BC"),
    (TIMESTAMP, "7ffffffffffffffe", "timestamp"),
    (TIMESTAMP, "8000000000000001", "timestamp"),
    (TIME, "000000141dd76000", "24:00:00"),
    (INTERVAL, "7fffffffffffffff7fffffff7fffffff", "interval infinity"),
    (INTERVAL, "80000000000000008000000080000000", "interval -infinity"),
]


@pytest.mark.parametrize(("oid", "value", "data"), GOLDEN, ids=label)
def test_golden(oid: int, value: Any, data: str) -> None:
    assert core._encode(oid, value) == bytes.fromhex(data)
    assert same(core._decode(oid, bytes.fromhex(data)), value)


def test_golden_of_floats_that_equal_nothing_or_too_much() -> None:
    assert math.isnan(there_and_back(FLOAT8, math.nan))
    assert str(core._decode(FLOAT8, bytes.fromhex("8000000000000000"))) == "-0.0"
    for text, data in (
        ("NaN", "00000000c0000000"),
        ("Infinity", "00000000d0000020"),
        ("-Infinity", "00000000f0000020"),
    ):
        assert str(core._decode(NUMERIC, bytes.fromhex(data))) == text
        assert core._encode(NUMERIC, D(text)) == core._encode(NUMERIC, float(text))
        assert str(there_and_back(NUMERIC, D(text))) == text
    # jsonb comes with its own spaces, and json as it was written
    assert (
        core._decode(JSONB, b'\x01{"a": [1, null]}') == core._decode(JSON, b' {"a" :\n[1,null]} ') == {"a": [1, None]}
    )


@pytest.mark.parametrize(("oid", "data", "text"), BEYOND_PYTHON)
def test_value_that_python_cannot_hold(oid: int, data: str, text: str) -> None:
    with pytest.raises(errors.DataError) as caught:
        core._decode(oid, bytes.fromhex(data))
    assert text in str(caught.value)
    assert "::text" in str(caught.value)


def test_array_lower_bounds_are_not_kept() -> None:
    data = bytes.fromhex("000000010000000000000017000000020000000500000004000000010000000400000002")
    assert core._decode(1007, data) == [1, 2]


# Wrong bytes.

ANY_LENGTH = {TEXT, VARCHAR, BPCHAR, NAME, UNKNOWN, BYTEA, SOME_ENUM}


@pytest.mark.parametrize(("oid", "value", "data"), GOLDEN, ids=label)
def test_every_truncation_and_a_byte_too_many(oid: int, value: Any, data: str) -> None:
    whole = bytes.fromhex(data)
    for size in range(len(whole)):
        if oid in ANY_LENGTH:
            continue
        with pytest.raises(errors.DataError):
            core._decode(oid, whole[:size])
    if oid not in ANY_LENGTH:
        with pytest.raises(errors.DataError):
            core._decode(oid, whole + b"\x00")


def array(dimensions: int, flags: int, oid: int, lengths: list[int], body: bytes = b"") -> bytes:
    return struct.pack("!iiI", dimensions, flags, oid) + b"".join(struct.pack("!ii", n, 1) for n in lengths) + body


BROKEN = {
    "text that is not UTF-8": (TEXT, b"a\xff"),
    "overlong": (TEXT, b"\xc0\x80"),
    "surrogate": (TEXT, b"\xed\xa0\x80"),
    "NUL": (TEXT, b"a\x00b"),
    "one NUL": (TEXT, b"\x00"),
    "NUL after eight": (TEXT, b"12345678\x00"),
    "dimensions -1": (1007, array(-1, 0, INT4, [])),
    "dimensions 7": (1007, array(7, 0, INT4, [1] * 7)),
    "dimensions 2**31-1": (1007, array(2**31 - 1, 0, INT4, [])),
    "dimension -1": (1007, array(1, 0, INT4, [-1])),
    "dimension 10**8": (1007, array(1, 0, INT4, [10**8])),
    "dimensions whose product overflows": (1007, array(6, 0, INT4, [2**31 - 1] * 6)),
    "dimension 0 beside a large one": (1007, array(2, 0, INT4, [0, 2**31 - 1], b"\0")),
    "large dimension before 0": (1007, array(2, 0, INT4, [2**31 - 1, 0])),
    "flags 2": (1007, array(0, 2, INT4, [])),
    "element length -2": (1007, array(1, 0, INT4, [1], struct.pack("!i", -2))),
    "element too long": (1007, array(1, 0, INT4, [1], struct.pack("!ii", 5, 1))),
    "element of the wrong size": (1007, array(1, 0, INT4, [1], struct.pack("!ih", 2, 1))),
    "element type is an array": (1007, array(1, 0, 1007, [1], struct.pack("!ii", 4, 1))),
    "element type is another": (1007, array(1, 0, OID, [1], struct.pack("!ii", 4, 1))),
    "numeric digit 10000": (NUMERIC, struct.pack("!HhHHH", 1, 0, 0, 0, 10_000)),
    "numeric digits 65535": (NUMERIC, struct.pack("!HhHH", 65_535, 0, 0, 0)),
    "numeric sign": (NUMERIC, struct.pack("!HhHHH", 1, 0, 0x1234, 0, 1)),
    "numeric scale": (NUMERIC, struct.pack("!HhHHH", 1, 0, 0, 0x4000, 1)),
    "jsonb version 2": (JSONB, b"\x02{}"),
    "jsonb without version": (JSONB, b""),
    "json": (JSON, b"{"),
    "json nested 100,000 deep": (JSON, b"[" * 100_000 + b"]" * 100_000),
    "json of a huge int": (JSON, b"1" * 100_000),
    "timetz zone": (TIMETZ, struct.pack("!qi", 0, 86_400)),
    "time -1": (TIME, struct.pack("!q", -1)),
    "time beyond the day": (TIME, struct.pack("!q", 86_400_000_001)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_value(name: str) -> None:
    oid, data = BROKEN[name]
    with pytest.raises(errors.DataError):
        core._decode(oid, data)


@pytest.mark.parametrize("oid", [*ARRAYS, *ARRAYS.values(), UNKNOWN, SOME_ENUM])
@given(data=st.binary(max_size=64))
def test_any_bytes_give_a_value_or_data_error(oid: int, data: bytes) -> None:
    with contextlib.suppress(errors.DataError):
        core._decode(oid, data)


@pytest.mark.parametrize(
    ("oid", "data"),
    [
        (NUMERIC, struct.pack("!HhHH", 32_767, 32_766, 0, 0) + b"\x27\x0f" * 32_767),
        (NUMERIC, struct.pack("!HhHHH", 1, -32_768, 0, 16_383, 1)),
        (JSON, b"[" + b"1," * 500_000 + b"1]"),
        (TEXT, "\u00e9".encode() * 500_000),
        (1007, array(1, 0, INT4, [250_000], b"\xff" * 1_000_000)),
    ],
    ids=label,
)
def test_large_values_take_no_quadratic_time(oid: int, data: bytes) -> None:
    start = time.perf_counter()
    core._decode(oid, data)
    assert time.perf_counter() - start < 1


# Properties: what is sent comes back.


def timezones() -> st.SearchStrategy[dt.timezone]:
    return st.integers(-57_599, 57_599).map(lambda s: dt.timezone(dt.timedelta(seconds=s)) if s else UTC)


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=None).filter(
    lambda d: -9_000 < d.adjusted() < 9_000
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)
VALUES: dict[int, st.SearchStrategy[Any]] = {
    BOOL: st.booleans(),
    BYTEA: st.binary(),
    CHAR: st.characters(min_codepoint=1, max_codepoint=127),
    NAME: TEXTS,
    INT2: st.integers(-(2**15), 2**15 - 1),
    INT4: st.integers(-(2**31), 2**31 - 1),
    INT8: st.integers(-(2**63), 2**63 - 1),
    OID: st.integers(0, 2**32 - 1),
    FLOAT4: st.floats(width=32),
    FLOAT8: st.floats(),
    TEXT: TEXTS,
    BPCHAR: TEXTS,
    VARCHAR: TEXTS,
    DATE: st.dates(),
    TIME: st.times(),
    TIMETZ: st.times(timezones=timezones()),
    TIMESTAMP: st.datetimes(),
    TIMESTAMPTZ: st.datetimes(timezones=st.just(UTC)),
    INTERVAL: st.timedeltas(),
    UUID: st.uuids(),
    JSON: JSON_VALUES.filter(lambda value: value is not None),
    JSONB: JSON_VALUES.filter(lambda value: value is not None),
}


@pytest.mark.parametrize("oid", VALUES)
@given(data=st.data())
def test_round_trip(oid: int, data: st.DataObject) -> None:
    value = data.draw(VALUES[oid])
    assert same(there_and_back(oid, value), value)


@given(DECIMALS)
def test_round_trip_of_numeric_keeps_the_scale(value: D) -> None:
    back = there_and_back(NUMERIC, value)
    assert back == value
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    assert back.as_tuple().exponent == min(exponent, 0)  # numeric writes 1E+3 as 1000


@given(st.integers(-(10**5000), 10**5000) | st.integers(-(2**64), 2**64))
def test_numeric_takes_an_int_of_any_size(value: int) -> None:
    assert there_and_back(NUMERIC, value) == D(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numeric_takes_a_float_as_it_is_written(value: float) -> None:
    assert there_and_back(NUMERIC, value) == D(repr(value))


INT32 = st.integers(-(2**31), 2**31 - 1)


@given(INT32.filter(bool), INT32, st.integers(-(2**63) + 1, 2**63 - 2))  # all at their ends is infinity
def test_round_trip_of_interval_with_months(months: int, days: int, microseconds: int) -> None:
    value = Interval(months, days, microseconds)
    assert there_and_back(INTERVAL, value) == value


@given(st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=timezones()))
def test_timestamptz_comes_back_in_utc(value: dt.datetime) -> None:
    back = there_and_back(TIMESTAMPTZ, value)
    assert back == value
    assert back.tzinfo is UTC


def nested(shape: list[int], leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    strategy = leaf
    for length in reversed(shape):
        strategy = st.lists(strategy, min_size=length, max_size=length)
    return strategy


@pytest.mark.parametrize("oid", [oid for oid in VALUES if oid not in (JSON, JSONB)])
@given(data=st.data())
def test_round_trip_of_arrays(oid: int, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    value = data.draw(nested(shape, st.none() | VALUES[oid]))
    assert same(there_and_back(ARRAYS[oid], value), value)


@pytest.mark.parametrize("oid", [JSON, JSONB])
def test_array_of_json_has_one_dimension_of_any_values(oid: int) -> None:
    value: list[Any] = [[1, [2]], {"a": []}, None, "x", 1.5, []]
    assert there_and_back(ARRAYS[oid], value) == value
