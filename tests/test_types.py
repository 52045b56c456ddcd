"""Values of every type on a real server: what is sent arrives as that value, and what it has comes back as it is."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pgpoll import conninfo, core, errors
from pgpoll._values import Interval, RawJson
from test_codecs import GOLDEN
from values import ARRAYS, BPCHAR, CHAR, SOME_ENUM, UNKNOWN, D, label, same

Ask = Callable[..., core.Result]


@pytest.fixture(scope="module")
def ask(dsn: str) -> Iterator[Ask]:
    """Runs one statement and gives its result."""
    connection = core.Connection(conninfo.resolve(dsn))

    def run(operation: core.Operation[Any]) -> Any:
        assert connection.wait(operation, 10.0)
        return operation.result()

    run(connection.start_connect())
    yield lambda sql, *args: run(connection.start_execute(sql, args))
    run(connection.start_close())
    connection.close_fd()


# The server's names, without length limits: "character" is char(1).
NAMES = {BPCHAR: "bpchar", CHAR: '"char"'}


@pytest.mark.parametrize(
    ("oid", "value"), [each[:2] for each in GOLDEN if each[0] not in (UNKNOWN, SOME_ENUM)], ids=label
)
def test_value_goes_there_and_back(ask: Ask, oid: int, value: Any) -> None:
    name = NAMES.get(oid) or ask("select format_type($1, null)", oid).scalar()
    assert same(ask(f"select $1::{name}", value).scalar(), value)
    assert ask(f"select $1::{name} is null", value).scalar() is False
    if oid in ARRAYS:
        assert same(ask(f"select array[$1::{name}]", value).scalar(), [value])


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("12.3400", "numeric(10,4)", D("12.3400")),
        ("1e-16383", "numeric", D("1e-16383")),
        ("1e131071", "numeric", D("1" + "0" * 131_071)),
        ("NaN", "numeric", D("NaN")),
        ("-Infinity", "numeric", D("-Infinity")),
        ("NaN", "float8", math.nan),
        ("-0", "float8", -0.0),
        ("1 mon", "interval", Interval(1)),
        ("-24:00:00.000001", "interval", dt.timedelta(days=-1, microseconds=-1)),
        ("178956970 years 7 mons 2147483647 days 00:00:00.000001", "interval", Interval(2**31 - 1, 2**31 - 1, 1)),
        ("[0:1]={1,2}", "int4[]", [1, 2]),
        ("{{{1,NULL}},{{3,4}}}", "int8[]", [[[1, None]], [[3, 4]]]),
        ('{"a,b","\\"",NULL,"NULL",""}', "text[]", ["a,b", '"', None, "NULL", ""]),
        ("2001-02-03 04:05:06.000007+05:30", "timestamptz", dt.datetime(2001, 2, 2, 22, 35, 6, 7, dt.UTC)),
        ("12:00:00+15:59:59", "timetz", dt.time(12, tzinfo=dt.timezone(dt.timedelta(hours=16, seconds=-1)))),
        ("192.168.0.0/24", "inet", "192.168.0.0/24"),
        ("(1,2)", "point", "(1,2)"),
        ("[1,3)", "int4range", "[1,3)"),
        ("12.50", "money", "$12.50"),
    ],
    ids=label,
)
def test_value_of_the_server(ask: Ask, text: str, name: str, value: Any) -> None:
    assert same(ask(f"select $1::text::{name}", text).scalar(), value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("infinity", "date"),
        ("-infinity", "timestamptz"),
        ("10000-01-01", "date"),
        ("4713-01-01 BC", "date"),
        ("0001-12-31 23:59:59.999999 BC", "timestamp"),
        ("294276-12-31 23:59:59.999999", "timestamp"),
        ("24:00:00", "time"),
        ("infinity", "interval"),
    ],
)
def test_value_that_python_cannot_hold_is_named_as_the_server_does(ask: Ask, text: str, name: str) -> None:
    result = ask(f"select 1, $1::text::{name} as v, $1::text::{name}::text as t", text)
    with pytest.raises(errors.DataError, match=rf"row 0, column 1 \('v', {name}\): {name} {text} ") as caught:
        result.fetch()
    assert "::text" in str(caught.value)


def test_json_of_the_server(ask: Ask) -> None:
    row = ask("select $1::jsonb -> 'a' as a, $2::json ->> 0 as b, jsonb_typeof($3) as c", {"a": [1]}, ["x"], "text")[0]
    assert row == ([1], "x", "string")
    assert ask("select jsonb_typeof($1)", RawJson("null")).scalar() == "null"


def test_enum_domain_and_composite_are_text(ask: Ask) -> None:
    ask("create type pg_temp.mood as enum ('sad', 'happy')")
    ask("create domain pg_temp.positive as int4 check (value > 0)")
    assert ask("select $1::pg_temp.mood, array[$1::pg_temp.mood]", "happy")[0] == ("happy", "{happy}")
    assert ask("select $1::pg_temp.positive, row(1, 'a')", 7)[0] == (7, "(1,a)")


def test_all_types_of_the_catalogue_can_be_read(ask: Ask) -> None:
    """Whatever pg_type has, its NULL and its array's NULL come, and the type is named as the server names it."""
    rows = ask(
        "select t.oid, t.typname, e.typname as element from pg_type t left join pg_type e on e.oid = t.typelem"
        " where t.typtype in ('b', 'r', 'm') and t.typnamespace = 'pg_catalog'::regnamespace order by 1"
    )
    for row in rows.fetch():
        column = ask(f'select null::pg_catalog."{row.typname}"').columns[0]
        assert column.type_oid == row.oid
        if row.oid < 10_000:
            assert column.type_name == (f"{row.element}[]" if row.typname.startswith("_") else row.typname)
