"""Which values a parameter of each type takes, and what is said of one that it does not take. No server."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import json
import math
import mmap
import struct
from collections.abc import Callable
from typing import Any

import pytest

from pgpoll import core, errors
from pgpoll._values import Interval, RawJson
from values import (
    ARRAYS,
    BOOL,
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
    NUMERIC,
    OID,
    SOME_ENUM,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    UTC,
    UUID,
    D,
    U,
    label,
    same,
    there_and_back,
)


class Number(enum.IntEnum):
    SEVEN = 7


class Mood(enum.Enum):
    HAPPY = "happy"


TAKEN: list[tuple[int, Any, Any]] = [
    (INT4, 3.0, 3),
    (INT4, D("3.00"), 3),
    (INT4, D("0E-999999"), 0),
    (INT8, Number.SEVEN, 7),
    (FLOAT8, 3, 3.0),
    (FLOAT8, 2**1000, float(2**1000)),
    (FLOAT8, D("0.5"), 0.5),
    (FLOAT4, 0.1, struct.unpack("!f", struct.pack("!f", 0.1))[0]),
    (NUMERIC, 7, D(7)),
    (NUMERIC, 1.1, D("1.1")),
    (NUMERIC, D("1E+3"), D(1000)),
    (TIMESTAMP, dt.date(2026, 11, 21), dt.datetime(2026, 11, 21)),
    (UUID, str(U), U),
    (UUID, "{123456789ABCDEF0123456789abcdef0}", U),
    (BYTEA, bytearray(b"ab"), b"ab"),
    (BYTEA, memoryview(b"abcdef")[::2], b"ace"),
    (1007, (1, 2), [1, 2]),
    (1007, [(1,), [2]], [[1], [2]]),
    (JSON, RawJson("[1, 2]"), [1, 2]),
    (JSONB, RawJson("null"), None),
    (JSONB, "null", "null"),
    (INTERVAL, Interval(days=-1), dt.timedelta(days=-1)),
    (INTERVAL, Interval(microseconds=86_400_000_000), dt.timedelta(days=1)),
    (SOME_ENUM, Mood.HAPPY, "happy"),
    (SOME_ENUM, 5, "5"),
    (SOME_ENUM, 0.1, "0.1"),
    (SOME_ENUM, D("1.50"), "1.50"),
    (SOME_ENUM, U, str(U)),
    (SOME_ENUM, ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
    (SOME_ENUM, dt.date(2026, 1, 2), "2026-01-02"),
]


@pytest.mark.parametrize(("oid", "value", "back"), TAKEN, ids=label)
def test_value_that_fits_without_loss_is_taken(oid: int, value: Any, back: Any) -> None:
    assert same(there_and_back(oid, value), back)


def test_none_is_null() -> None:
    for oid in (*ARRAYS, *ARRAYS.values(), SOME_ENUM):
        assert core._encode(oid, None) is None


class NotATime(dt.datetime):
    """As pandas' NaT: a datetime that is none."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


ME: list[Any] = []
ME.append(ME)

REFUSED: list[tuple[int, Any, str]] = [
    (BOOL, 1, "bool"),
    (BOOL, "true", "str"),
    (INT4, "1", "str"),
    (INT4, True, "bool"),
    (INT4, 1.5, "float"),
    (INT4, math.nan, "float"),
    (INT4, math.inf, "float"),
    (INT4, D("1.5"), "Decimal"),
    (INT4, D("1E+999999"), "Decimal"),
    (INT4, D("1E-999999"), "Decimal"),
    (INT4, D("NaN"), "Decimal"),
    (INT4, D("sNaN"), "Decimal"),
    (INT2, 2**15, "int"),
    (INT4, 2**31, "int"),
    (INT8, 2**63, "int"),
    (INT8, -(2**63) - 1, "int"),
    (INT8, 10**100, "int"),
    (OID, -1, "int"),
    (FLOAT8, 2**53 + 1, "int"),
    (FLOAT8, 10**400, "int"),
    (FLOAT8, D("0.1"), "Decimal"),
    (FLOAT8, True, "bool"),
    (FLOAT8, "1", "str"),
    (FLOAT4, 1e39, "float"),
    (FLOAT4, 1e-60, "float"),
    (FLOAT4, 2**24 + 1, "int"),
    (NUMERIC, True, "bool"),
    (NUMERIC, "1", "str"),
    (NUMERIC, D("1E-16384"), "Decimal"),
    (NUMERIC, D("1E+131072"), "Decimal"),
    (NUMERIC, 1 << 1_000_000, "int"),
    (TEXT, 1, "int"),
    (TEXT, b"a", "bytes"),
    (TEXT, "a\0b", "str"),
    (TEXT, "a\ud800b", "str"),
    (TEXT, "\ud800" * 100_000, "str"),
    (SOME_ENUM, "a\0b", "str"),
    (SOME_ENUM, b"a", "bytes"),
    (SOME_ENUM, True, "bool"),
    (SOME_ENUM, [1], "list"),
    (SOME_ENUM, dt.timedelta(1), "timedelta"),
    (CHAR, "ab", "str"),
    (CHAR, "\u00e9", "str"),
    (CHAR, "\0", "str"),
    (BYTEA, "a", "str"),
    (BYTEA, [1], "list"),
    (UUID, "1234", "str"),
    (UUID, 7, "int"),
    (DATE, dt.datetime(2026, 1, 1), "datetime"),
    (DATE, "2026-01-01", "str"),
    (TIME, dt.time(tzinfo=UTC), "time"),
    (TIMETZ, dt.time(), "time"),
    (TIMESTAMP, dt.datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
    (TIMESTAMPTZ, dt.datetime(2026, 1, 1), "datetime"),
    (TIMESTAMPTZ, dt.date(2026, 1, 1), "date"),
    (TIMESTAMP, NotATime(2026, 1, 1), "NotATime"),
    (INTERVAL, 1, "int"),
    (INTERVAL, Interval(2**31), "Interval"),
    (INTERVAL, Interval(microseconds=2**63), "Interval"),
    (INTERVAL, Interval(days=1.5), "Interval"),  # type: ignore[arg-type]
    (JSON, {1, 2}, "set"),
    (JSON, math.nan, "float"),
    (JSON, ME, "list"),
    (JSON, "\ud800", "str"),
    (1007, 1, "int"),
    (1007, "{1}", "str"),
    (1007, [[1], [2, 3]], "list"),
    (1007, [[1], 2], "list"),
    (1007, [1, [2]], "list"),
    (1007, [[1], None], "list"),
    (1007, [[]], "list"),
    (1007, [1, "a"], "list"),
    (1007, [[[[[[[1]]]]]]], "list"),
    (1007, ME, "list"),
]
NAMES = {
    BOOL: "bool", INT2: "int2", INT4: "int4", INT8: "int8", OID: "oid", FLOAT4: "float4", FLOAT8: "float8",
    TEXT: "text", NUMERIC: "numeric", CHAR: "char", BYTEA: "bytea", UUID: "uuid", DATE: "date", TIME: "time",
    TIMETZ: "timetz", TIMESTAMP: "timestamp",
    TIMESTAMPTZ: "timestamptz", INTERVAL: "interval", JSON: "json", 1007: "int4[]",
    SOME_ENUM: str(SOME_ENUM),
}  # fmt: skip


@pytest.mark.parametrize(("oid", "value", "kind"), REFUSED, ids=label)
def test_value_that_does_not_fit_is_refused(oid: int, value: Any, kind: str) -> None:
    with pytest.raises(errors.DataError) as caught:
        core._encode(oid, value)
    assert "$1" in str(caught.value)
    assert f"({NAMES[oid]})" in str(caught.value)
    assert kind in str(caught.value)


def test_hint_where_naive_and_aware_are_mixed() -> None:
    with pytest.raises(errors.DataError, match="naive"):
        core._encode(TIMESTAMPTZ, dt.datetime(2026, 1, 1))
    with pytest.raises(errors.DataError, match="aware"):
        core._encode(TIMESTAMP, dt.datetime(2026, 1, 1, tzinfo=UTC))


def test_error_does_not_show_the_value() -> None:
    for oid in ARRAYS:
        with pytest.raises(errors.DataError) as caught:
            core._encode(oid, {"secret": {1}})
        assert "secret" not in str(caught.value)
    with pytest.raises(errors.DataError) as caught:
        core._encode(TEXT, "secret\0secret")
    assert "secret" not in str(caught.value)


class Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __index__(self) -> int:
        raise self.error


def test_exception_of_the_callers_code() -> None:
    with pytest.raises(errors.DataError) as caught:
        core._encode(INT4, Raising(KeyError("mine")))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(errors.DataError) as caught:
        core._encode(JSON, {1, 2})
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(KeyboardInterrupt):
        core._encode(INT4, Raising(KeyboardInterrupt()))


@pytest.mark.parametrize("change", [list.clear, lambda items: items.append(1), lambda items: items.extend([1] * 1000)])
def test_list_that_changes_while_it_is_encoded(change: Callable[[list[Any]], None]) -> None:
    class Changing:
        def __index__(self) -> int:
            change(items)
            return 1

    items: list[Any] = [Changing(), 2, 3]
    with pytest.raises(errors.DataError):
        core._encode(1007, items)


def test_value_of_more_than_a_message_is_refused_before_it_is_copied() -> None:
    with (
        mmap.mmap(-1, 1 << 31) as sparse,
        memoryview(sparse) as view,
        pytest.raises(errors.InterfaceError, match="GiB"),
    ):
        core._encode(BYTEA, view)


def test_json_is_utf8_and_compact() -> None:
    assert (
        core._encode(JSON, {"\u00e9": [1, 2]})
        == json.dumps({"\u00e9": [1, 2]}, ensure_ascii=False, separators=(",", ":")).encode()
    )
