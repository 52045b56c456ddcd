"""Types and values that tests of codecs share: OIDs of pg_type, and what it means that a value came back."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from typing import Any

from pgpoll import core

BOOL, BYTEA, CHAR, NAME, INT8, INT2, INT4, TEXT, OID, JSON = 16, 17, 18, 19, 20, 21, 23, 25, 26, 114
FLOAT4, FLOAT8, UNKNOWN, BPCHAR, VARCHAR, DATE, TIME, TIMESTAMP = 700, 701, 705, 1042, 1043, 1082, 1083, 1114
TIMESTAMPTZ, INTERVAL, TIMETZ, NUMERIC, UUID, JSONB = 1184, 1186, 1266, 1700, 2950, 3802
ARRAYS = {
    BOOL: 1000, BYTEA: 1001, CHAR: 1002, NAME: 1003, INT2: 1005, INT4: 1007, TEXT: 1009, BPCHAR: 1014, VARCHAR: 1015,
    INT8: 1016, FLOAT4: 1021, FLOAT8: 1022, OID: 1028, JSON: 199, DATE: 1182, TIME: 1183, TIMESTAMP: 1115,
    TIMESTAMPTZ: 1185, INTERVAL: 1187, TIMETZ: 1270, NUMERIC: 1231, UUID: 2951, JSONB: 3807,
}  # fmt: skip
SOME_ENUM = 16_500  # no builtin type: exchanged as text

UTC = dt.UTC
D = decimal.Decimal
U = uuid.UUID("12345678-9abc-def0-1234-56789abcdef0")


def zone(hours: float) -> dt.timezone:
    return dt.timezone(dt.timedelta(hours=hours))


def label(each: object) -> str:
    if isinstance(each, memoryview):  # its repr is its address
        each = bytes(each)
    return "large" if isinstance(each, int) and abs(each) > 10**30 else ascii(each)[:30]


def same(left: Any, right: Any) -> bool:
    """Equal and of one type, Decimal's scale, zero's sign and NaN included."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or left != left) and str(left) == str(right)


def encoded(oid: int, value: Any) -> bytes:
    """A parameter that is not NULL, as it is sent."""
    data = core._encode(oid, value)
    assert data is not None
    return data


def there_and_back(oid: int, value: Any) -> Any:
    return core._decode(oid, encoded(oid, value))
