"""Requests that succeed: new and known statements, prepare, scripts, many at once."""

from __future__ import annotations

from typing import Any

from backend import (
    BOOL,
    INT4,
    TEXT,
    bind_complete,
    close_complete,
    column,
    command_complete,
    data_row,
    described,
    empty_query,
    int4,
    no_data,
    parse_complete,
    ready_for_query,
    row_description,
    selected,
    started,
)
from dialogues.registry import dialogue
from script import Run, Script, where

NEW = ("Parse", "Describe", "Flush")
KNOWN = ("Bind", "Execute", "Sync")
COPY = ("Bind", "Execute", "Flush")
ONE = "select 1 as one"


def knows(sql: str = ONE, *, memory_only: bool = False, **changes: Any) -> Script:
    """A connected session that has executed `sql`, whose column is named one, with one row."""
    script = Script(memory_only=memory_only, **changes).connect().start("first", "execute", sql).expect(*NEW)
    return served(script.send(described("one")).expect(*KNOWN), "first")


def served(script: Script, label: str = "next", value: int = 1) -> Script:
    """What waits for its reply has one row."""
    return script.send(bind_complete(), selected(value), ready_for_query()).gives(label, [(value,)], "SELECT 1")


def forgetful(**changes: Any) -> Script:
    """The same, and its caller has dropped the operation, which holds the statement."""
    script = knows(**changes)
    script.checks.clear()
    return script.act(lambda run: run.forget("first"))


@dialogue
def new_statement() -> Script:
    sql = "select $1::int4 + 1, 'x'"
    return (
        Script()
        .connect()
        .start("a", "execute", sql, (41,))
        .expect(where("Parse", query=sql, types=[]), where("Describe", target="S", of=sql), "Flush")
        .send(described("sum", column("x", TEXT, -1), parameters=(INT4,)))
        .expect(
            where("Bind", portal="", of=sql, parameter_formats=[1], parameters=[int4(41)]),
            where("Execute", portal="", limit=0),
            "Sync",
        )
        .send(bind_complete(), data_row(int4(42), b"x"), command_complete("SELECT 1"), ready_for_query())
        .gives("a", [(42, "x")], "SELECT 1")
    )


@dialogue
def known_statement_in_one_flight() -> Script:
    return (
        knows()
        .start("again", "execute", ONE)
        .expect(where("Bind", of=ONE, parameters=[]), "Execute", "Sync")
        .send(bind_complete(), selected(7, 8, 9), ready_for_query())
        .gives("again", [(7,), (8,), (9,)], "SELECT 3")
    )


@dialogue
def arguments_of_a_known_statement() -> Script:
    sql = "select $1::int4, $2::text, $3::bool"
    types = (INT4, TEXT, BOOL)
    columns = ("a", column("b", TEXT, -1), column("c", BOOL, 1))
    rows = (data_row(None, None, None), data_row(int4(-1), "grün".encode(), b"\x01"), data_row(int4(5), b"", b"\x00"))
    script = Script().connect().start("nulls", "execute", sql, (None, None, None)).expect(*NEW)
    script.send(described(*columns, parameters=types))
    for label, args, sent, row in (
        ("nulls", None, [None, None, None], rows[0]),
        ("full", (-1, "grün", True), [int4(-1), "grün".encode(), b"\x01"], rows[1]),
        ("empty", (5, "", False), [int4(5), b"", b"\x00"], rows[2]),
    ):
        if args is not None:
            script.start(label, "execute", sql, args)
        script.expect(where("Bind", of=sql, parameters=sent), "Execute", "Sync")
        script.send(bind_complete(), row, command_complete("SELECT 1"), ready_for_query())
    return (
        script.gives("nulls", [(None, None, None)], "SELECT 1")
        .gives("full", [(-1, "grün", True)], "SELECT 1")
        .gives("empty", [(5, "", False)], "SELECT 1")
    )


@dialogue
def statement_without_rows() -> Script:
    return (
        Script()
        .connect()
        .start("a", "execute", "update t set x = 1")
        .expect(*NEW)
        .send(described())
        .expect(*KNOWN)
        .send(bind_complete(), command_complete("UPDATE 3"), ready_for_query())
        .gives("a", [], "UPDATE 3")
    )


@dialogue
def rows_of_no_columns() -> Script:
    return (
        Script()
        .connect()
        .start("a", "execute", "select from t")
        .expect(*NEW)
        .send(parse_complete(), described()[len(parse_complete()) : -len(no_data())], row_description())
        .expect(*KNOWN)
        .send(bind_complete(), data_row(), data_row(), command_complete("SELECT 2"), ready_for_query())
        .gives("a", [(), ()], "SELECT 2")
    )


@dialogue
def empty_statement() -> Script:
    return (
        Script()
        .connect()
        .start("a", "execute", "")
        .expect(*NEW)
        .send(described())
        .expect(*KNOWN)
        .send(bind_complete(), empty_query(), ready_for_query())
        .check(lambda run: nothing(run, "a"))
    )


def nothing(run: Run, label: str) -> None:
    rows, tag = run.outcome(label).value
    assert rows == []
    assert not tag


@dialogue
def no_rows_then_many() -> Script:
    numbers = list(range(40))
    return (
        knows()
        .start("none", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(), ready_for_query())
        .start("many", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(*numbers), ready_for_query())
        .gives("none", [], "SELECT 0")
        .gives("many", [(number,) for number in numbers], "SELECT 40")
    )


@dialogue
def prepared_then_executed() -> Script:
    sql = "select $1::int4"
    return (
        Script()
        .connect()
        .start("p", "prepare", sql)
        .expect(where("Parse", query=sql, types=[]), where("Describe", target="S", of=sql), "Flush")
        .send(described("int4", parameters=(INT4,)))
        .expect("Sync")
        .send(ready_for_query())
        .gives("p", [INT4], ["int4"])
        .act(lambda run: run.start("a", "execute", run.operations["p"].result(), (3,)))
        .expect(where("Bind", of=sql, parameters=[int4(3)]), "Execute", "Sync")
        .send(bind_complete(), selected(3), ready_for_query())
        .gives("a", [(3,)], "SELECT 1")
    )


@dialogue
def prepared_what_is_known() -> Script:
    """No byte leaves: the statement is there."""
    return knows().start("p", "prepare", ONE).gives("p", [], ["one"])


@dialogue
def script_of_several() -> Script:
    sql = "select 1; update t set x = 2; ; select 'a', null"
    return (
        Script()
        .connect()
        .start("s", "script", sql)
        .expect(where("Query", query=sql))
        .send(row_description("one"), data_row(b"1"), command_complete("SELECT 1"), command_complete("UPDATE 2"))
        .send(row_description(column("a", TEXT, -1), "b"), data_row(b"a", None), data_row(b"b", b""))
        .send(command_complete("SELECT 2"), ready_for_query())
        .gives("s", [([("1",)], "SELECT 1"), ([], "UPDATE 2"), ([("a", None), ("b", "")], "SELECT 2")])
    )


@dialogue
def script_of_nothing() -> Script:
    return (
        Script()
        .connect()
        .start("s", "script", "")
        .expect("Query")
        .send(empty_query(), ready_for_query())
        .check(lambda run: nothing_at_all(run, "s"))
    )


def nothing_at_all(run: Run, label: str) -> None:
    assert all(rows == [] and not tag for rows, tag in run.outcome(label).value)


@dialogue
def transaction_by_commands() -> Script:
    """BEGIN leaves in front of the request, in one flight; the status byte is the server's."""
    return (
        knows()
        .start("begin", "command", "BEGIN")
        .start("a", "execute", ONE)
        .start("commit", "command", "COMMIT")
        .expect("Parse", *KNOWN, *KNOWN, "Parse", *KNOWN)
        .send(parse_complete(), bind_complete(), command_complete("BEGIN"), ready_for_query("T"))
        .send(bind_complete(), selected(1), ready_for_query("T"))
        .send(parse_complete(), bind_complete(), command_complete("COMMIT"), ready_for_query("I"))
        .gives("begin", "BEGIN")
        .gives("a", [(1,)], "SELECT 1")
        .gives("commit", "COMMIT")
    )


@dialogue
def pipelined() -> Script:
    script = knows()
    labels = [f"p{i}" for i in range(5)]
    for label in labels:
        script.start(label, "execute", ONE)
    script.expect(*KNOWN * 5)
    for i, label in enumerate(labels):
        script.send(bind_complete(), selected(i, i + 100), ready_for_query())
        script.gives(label, [(i,), (i + 100,)], "SELECT 2")
    return script


@dialogue
def answers_in_one_segment() -> Script:
    """All replies arrive at once, with the next description behind them."""
    return (
        knows()
        .start("a", "execute", ONE)
        .start("b", "script", "select 2")
        .start("c", "execute", ONE)
        .expect(*KNOWN, "Query")
        .send(
            bind_complete() + selected(1) + ready_for_query(),
            row_description("two") + data_row(b"2") + command_complete("SELECT 1") + ready_for_query(),
        )
        .expect(*KNOWN)
        .send(bind_complete(), selected(3), ready_for_query())
        .gives("a", [(1,)], "SELECT 1")
        .gives("b", [([("2",)], "SELECT 1")])
        .gives("c", [(3,)], "SELECT 1")
    )


@dialogue
def queued_behind_a_description() -> Script:
    """The writer is kept until the description is there; the same text queued meanwhile is not parsed again."""
    return (
        knows()
        .start("new", "execute", "select 2 as two")
        .start("same", "execute", "select 2 as two")
        .start("other", "execute", ONE)
        .expect(*NEW)
        .send(described("two"))
        .expect(
            *KNOWN, where("Bind", of="select 2 as two"), "Execute", "Sync", where("Bind", of=ONE), "Execute", "Sync"
        )
        .send(bind_complete(), selected(2), ready_for_query())
        .send(bind_complete(), selected(3), ready_for_query())
        .send(bind_complete(), selected(4), ready_for_query())
        .gives("new", [(2,)], "SELECT 1")
        .gives("same", [(3,)], "SELECT 1")
        .gives("other", [(4,)], "SELECT 1")
    )


@dialogue
def several_new_statements() -> Script:
    texts = [f"select {i} as column_{i}" for i in range(3)]
    script = Script().connect()
    for text in texts:
        script.start(text, "execute", text)
    script.expect(*NEW)
    for i, text in enumerate(texts):
        script.send(described(f"column_{i}"))
        script.expect(where("Bind", of=text), "Execute", "Sync", *(NEW if i < 2 else ()))
        script.send(bind_complete(), selected(i), ready_for_query()).gives(text, [(i,)], "SELECT 1")
    return script


@dialogue
def queued_before_the_connection_is_there() -> Script:
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .start("a", "execute", ONE)
        .send(started())
        .expect(*NEW)
        .send(described("one"))
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .gives("a", [(1,)], "SELECT 1")
    )


@dialogue
def evicted_statement_is_closed() -> Script:
    """A cache of one: the old statement's Close leaves with the new one's Parse, once nobody holds it."""
    return (
        forgetful(statement_cache_size=1)
        .start("two", "execute", "select 2 as two")
        .expect(where("Close", target="S", of=ONE), *NEW)
        .send(close_complete(), described("two"))
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .gives("two", [(2,)], "SELECT 1")
    )


@dialogue
def statement_beyond_the_cache_is_closed() -> Script:
    """A cache of one, and a handle: when that is dropped the oldest statement's Close rides with the next request."""
    first, second = "select 1 as handle", "select 2 as two"
    return (
        Script(statement_cache_size=1)
        .connect()
        .start("handle", "prepare", first)
        .expect(*NEW)
        .send(described("handle"))
        .expect("Sync")
        .send(ready_for_query())
        .start("two", "execute", second)
        .expect(*NEW)
        .send(described("two"))
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .start("held", "execute", second)
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .act(lambda run: run.forget("handle"))
        .start("again", "execute", second)
        .start("pipelined", "execute", second)
        .expect(where("Close", target="S", of=first), *KNOWN, *KNOWN)
        .send(close_complete(), bind_complete(), selected(2), ready_for_query())
        .send(bind_complete(), selected(2), ready_for_query())
        .gives("two", [(2,)], "SELECT 1")
        .gives("held", [(2,)], "SELECT 1")
        .gives("again", [(2,)], "SELECT 1")
        .gives("pipelined", [(2,)], "SELECT 1")
    )


@dialogue
def one_at_a_time() -> Script:
    """max_pipeline=1: nothing leaves before the reply is in."""
    return (
        knows(max_pipeline=1)
        .start("a", "execute", ONE)
        .start("b", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .gives("a", [(1,)], "SELECT 1")
        .gives("b", [(2,)], "SELECT 1")
    )
