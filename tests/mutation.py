"""Values and DSNs disturbed at random, from a seed: what a decoder or conninfo makes of them.

A value's bytes, changed, are another value or a DataError; what is decoded is encoded and decoded to the same again.
A DSN, changed, gives Options or an InterfaceError that shows no password.

    python tests/mutation.py values 600      that many seconds, new seeds each time; with the module built under
    python tests/mutation.py conninfo 600    AddressSanitizer this is `scripts/fuzz values` and `scripts/fuzz conninfo`
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from pgpoll import conninfo, core, errors
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
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    UTC,
    UUID,
    VARCHAR,
    D,
    U,
    same,
    zone,
)

WHEN = dt.datetime(2024, 2, 29, 23, 59, 59, 999_999)

# Values to begin with, by the family of their decoder.
FAMILIES: dict[str, dict[int, list[Any]]] = {
    "numbers": {
        BOOL: [True, False],
        INT2: [-1, 32767],
        INT4: [0, -(2**31)],
        INT8: [2**63 - 1],
        OID: [2**32 - 1],
        FLOAT4: [1.5],
        FLOAT8: [0.1, float("nan")],
    },
    "numeric": {
        NUMERIC: [D(each) for each in ("0", "-12.3400", "1e30", "-1e-30", "NaN", "9999.9999", "123456789.000001")]
    },
    "text": {TEXT: ["", "é\U0001f40d", "x" * 40], VARCHAR: ["v"], BPCHAR: ["c "], NAME: ["pg_class"], CHAR: ["a"]},
    "bytes": {BYTEA: [b"", bytes(range(40))], UUID: [U]},
    "datetime": {
        DATE: [dt.date(1, 1, 1), WHEN.date()],
        TIME: [WHEN.time(), dt.time.min],
        TIMESTAMP: [WHEN, dt.datetime.min],
        TIMESTAMPTZ: [WHEN.replace(tzinfo=UTC)],
        TIMETZ: [dt.time(1, 2, 3, tzinfo=zone(-5.5))],
        INTERVAL: [Interval(months=-13, days=40, microseconds=-1)],
    },
    "json": {JSON: [{"a": [1, 2.5, None]}, "\ud7ff"], JSONB: [[], {"é": True}]},
    "arrays": {
        ARRAYS[INT4]: [[], [1, None, 3], [[1, 2], [3, 4]]],
        ARRAYS[TEXT]: [["a", None, ""]],
        ARRAYS[NUMERIC]: [[D("1.5"), None]],
        ARRAYS[TIMESTAMPTZ]: [[WHEN.replace(tzinfo=UTC)]],
        ARRAYS[JSONB]: [[{"a": 1}]],
        ARRAYS[BOOL]: [[[[True]]]],
    },
}

INTERESTING = [struct.pack("!i", each) for each in (-1, 0, 1, 2, 6, 7, 0x7FFFFFFF, -(2**31), 0x10000, 0x1FFFFFFF)]
INTERESTING += [b"\0", b"\xff", b"\x7f\xff", b"\x80\0", b"\xc0\0", b"\xd0\0", b"\xf0\0", b"\x27\x10", b"\xed\xa0\x80"]


def mutated(chance: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(8):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 2 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 3:
                del changed[at : at + chance.randrange(9)]
            case 4:
                changed[at:at] = chance.randbytes(chance.randrange(9))
            case 5:
                changed[at : at + chance.randrange(5)] = chance.choice(INTERESTING)
            case 6:
                piece = chance.choice(INTERESTING)
                changed[at : at + len(piece)] = piece
            case _:
                cut = chance.randrange(len(other) + 1)
                changed[at:] = other[cut:]
    return bytes(changed)


def check_value(oid: int, data: bytes) -> str:
    """How it ended: "refused" or "decoded"."""
    try:
        value = core._decode(oid, data)
    except errors.DataError:
        return "refused"
    try:
        again = core._encode(oid, value)
    except errors.DataError as error:
        raise AssertionError(f"{value!r} was decoded and can't be encoded: {error}") from None
    if again is None:
        assert value is None  # json's null
        return "decoded"
    assert same(core._decode(oid, again), value), f"{value!r} became {core._decode(oid, again)!r}"
    return "decoded"


def values(family: str, seed: int, cases: int) -> Counter[str]:
    chance = random.Random(f"{family} {seed}")
    pool = [(oid, core._encode(oid, each) or b"") for oid, some in FAMILIES[family].items() for each in some]
    ends: Counter[str] = Counter()
    for case in range(cases):
        oid, data = chance.choice(pool)
        data = mutated(chance, data, chance.choice(pool)[1])
        try:
            end = check_value(oid, data)
        except Exception as wrong:
            raise AssertionError(f"{family}, seed {seed}, case {case}: type {oid}, bytes {data.hex()}") from wrong
        ends[end] += 1
        if end == "decoded" and len(pool) < 1000:
            pool.append((oid, data))  # and goes on from there
    return ends


PASSWORD = "cAnArY"  # no piece of what is inserted is a piece of it
DSNS = [
    f"postgresql://ann:{PASSWORD}@[::1]:5433,h2:5434/shop?application_name=a%20b&connect_timeout=3",
    f"postgres://ann@%2Ftmp/db?password={PASSWORD}&sslmode=prefer",
    f"host=h1,h2 port=1,2 user='a b' password={PASSWORD} dbname=shop",
    f"user=ann password={PASSWORD} host=/tmp,@x hostaddr=,127.0.0.1 options='-c x=1' client_encoding=utf8",
]
PIECES = [*"@:/?&=%,[]'\\ #é\0\n+\udc80\u2028", "%00", "%zz", "%c3", "host=", "&port=0", ",", "::", "'' ", "\\'", "=="]


def mutated_dsn(chance: random.Random, dsn: str) -> str:
    # The password stays whole and one, so that it is known when it is shown.
    parts = dsn.partition(f"password={PASSWORD}" if "password" in dsn else f":{PASSWORD}")
    sides = [parts[0], parts[2]]
    for _ in range(chance.choice((1, 1, 2, 3))):
        side = chance.randrange(2)
        text = sides[side]
        at = chance.randrange(len(text) + 1)
        match chance.randrange(4):
            case 0:
                sides[side] = text[:at] + text[at + chance.randrange(6) :]
            case 1:
                sides[side] = text[:at] + chance.choice(PIECES) + text[at + 1 :]
            case 2:
                sides[side] = text[:at] + text[at - chance.randrange(8) :]
            case _:
                sides[side] = text[:at] + chance.choice(PIECES) + text[at:]
    return sides[0] + parts[1] + sides[1]


def check_dsn(dsn: str) -> str:
    try:
        options = conninfo.parse(dsn)
    except errors.InterfaceError as error:
        if "nAr" in str(error):
            raise AssertionError(f"the password is in: {error}") from error
        return "refused"
    assert "nAr" not in repr(options.password)
    assert options.user
    assert options.addresses
    for address in options.addresses:
        assert 1 <= address.port <= 65535
        if address.literal is not None and not address.literal.startswith(("/", "@")):
            ipaddress.ip_address(address.literal)
    for name, value in options.startup_parameters:
        assert "\0" not in name + value
    return "read"


def dsns(_: str, seed: int, cases: int) -> Counter[str]:
    chance = random.Random(f"conninfo {seed}")
    ends: Counter[str] = Counter()
    for case in range(cases):
        dsn = mutated_dsn(chance, chance.choice(DSNS))
        try:
            ends[check_dsn(dsn)] += 1
        except Exception as wrong:
            raise AssertionError(f"conninfo, seed {seed}, case {case}: {dsn!r}") from wrong
    return ends


def main(target: str, seconds: float) -> None:
    families: list[str] = list(FAMILIES) if target == "values" else [target]
    play: Callable[[str, int, int], Counter[str]] = values if target == "values" else dsns
    until = time.monotonic() + seconds
    total: dict[str, Counter[str]] = {each: Counter() for each in families}
    seed = start = time.time_ns() // 10**9
    while time.monotonic() < until:
        for family in families:
            total[family] += play(family, seed, 10_000)
        seed += 1
        print(f"seeds {start} to {seed - 1}:", {each: dict(ends) for each, ends in total.items()}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
