"""Requests that fail at each place an error may come from; who is behind them is served."""

from __future__ import annotations

from backend import (
    INT4,
    bind_complete,
    command_complete,
    data_row,
    described,
    error_response,
    int4,
    parse_complete,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.execute import KNOWN, NEW, ONE, knows
from dialogues.registry import dialogue
from pgpoll import errors
from script import Script, where


@dialogue
def error_at_parse() -> Script:
    """The writer is free again only behind the Sync; what waits leaves with it."""
    return (
        knows()
        .start("bad", "execute", "selec")
        .start("good", "execute", ONE)
        .expect(*NEW)
        .send(error_response("42601", "syntax error", P="1", R="scanner_yyerror"))
        .expect("Sync", *KNOWN)
        .send(ready_for_query(), bind_complete(), selected(1), ready_for_query())
        .raises("bad", errors.SyntaxError, "syntax error")
        .gives("good", [(1,)], "SELECT 1")
    )


@dialogue
def failed_parse_is_not_known() -> Script:
    return (
        knows()
        .start("bad", "execute", "select * from later")
        .expect(*NEW)
        .send(error_response("42P01", "no such table"))
        .expect("Sync")
        .send(ready_for_query())
        .start("good", "execute", "select * from later")
        .expect(*NEW)
        .send(described("one"))
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .raises("bad", errors.UndefinedTable)
        .gives("good", [(1,)], "SELECT 1")
    )


@dialogue
def error_at_describe() -> Script:
    """Parsed, so it is there; what a Describe of it can say is another matter (25P02 aside, servers don't do this)."""
    return (
        Script()
        .connect()
        .start("bad", "execute", "select 1 as one")
        .expect(*NEW)
        .send(parse_complete(), error_response("25P02", "current transaction is aborted"))
        .expect("Sync")
        .send(ready_for_query("E"))
        .raises("bad", errors.InFailedSqlTransaction)
    )


@dialogue
def error_at_bind() -> Script:
    return (
        knows()
        .start("bad", "execute", ONE)
        .expect(*KNOWN)
        .send(error_response("22P03", "incorrect binary data format"), ready_for_query())
        .start("good", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .raises("bad", errors.InvalidBinaryRepresentation)
        .gives("good", [(2,)], "SELECT 1")
    )


@dialogue
def error_at_execute() -> Script:
    return (
        Script()
        .connect()
        .start("bad", "execute", "select 1/0 as x")
        .expect(*NEW)
        .send(described("x"))
        .expect(*KNOWN)
        .send(bind_complete(), error_response(D="detail", H="hint", P="9"), ready_for_query())
        .raises("bad", errors.DivisionByZero, "division by zero")
    )


@dialogue
def error_after_rows() -> Script:
    return (
        knows()
        .start("bad", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), data_row(int4(1)), data_row(int4(2)), error_response(), ready_for_query())
        .raises("bad", errors.DivisionByZero)
    )


@dialogue
def error_at_sync() -> Script:
    """A deferred constraint: CommandComplete has come, and still it fails."""
    return (
        Script()
        .connect()
        .start("bad", "execute", "insert into t values (1)")
        .expect(*NEW)
        .send(described())
        .expect(*KNOWN)
        .send(bind_complete(), command_complete("INSERT 0 1"))
        .send(error_response("23503", "violates foreign key constraint", n="t_fkey"), ready_for_query())
        .raises("bad", errors.ForeignKeyViolation, "violates")
    )


@dialogue
def error_in_the_middle_of_a_script() -> Script:
    return (
        Script()
        .connect()
        .start("bad", "script", "select 1; select 1/0; select 2")
        .expect("Query")
        .send(row_description("one"), data_row(b"1"), command_complete("SELECT 1"), row_description("x"))
        .send(error_response(), ready_for_query())
        .start("good", "script", "select 3")
        .expect("Query")
        .send(row_description("three"), data_row(b"3"), command_complete("SELECT 1"), ready_for_query())
        .raises("bad", errors.DivisionByZero)
        .gives("good", [([("3",)], "SELECT 1")])
    )


@dialogue
def error_of_a_command() -> Script:
    """BEGIN within a transaction is a warning, but a COMMIT may fail."""
    return (
        knows()
        .start("bad", "command", "COMMIT")
        .start("good", "execute", ONE)
        .expect("Parse", *KNOWN, *KNOWN)
        .send(parse_complete(), bind_complete(), error_response("40001", "could not serialize"), ready_for_query())
        .send(bind_complete(), selected(1), ready_for_query())
        .raises("bad", errors.SerializationFailure)
        .gives("good", [(1,)], "SELECT 1")
    )


@dialogue
def error_in_the_middle_of_a_pipeline() -> Script:
    """f73: for every k of n, only the k-th fails."""
    script = knows()
    count = 4
    for k in range(count):
        for i in range(count):
            script.start(f"{k}.{i}", "execute", ONE)
        script.expect(*KNOWN * count)
        for i in range(count):
            if i == k:
                script.send(bind_complete(), data_row(int4(i)), error_response(), ready_for_query())
                script.raises(f"{k}.{i}", errors.DivisionByZero)
            else:
                script.send(bind_complete(), selected(i), ready_for_query())
                script.gives(f"{k}.{i}", [(i,)], "SELECT 1")
    return script


@dialogue
def errors_of_neighbours() -> Script:
    """Two that fail in one segment: each has its own error."""
    return (
        knows()
        .start("a", "execute", ONE)
        .start("b", "execute", ONE)
        .start("c", "execute", ONE)
        .expect(*KNOWN * 3)
        .send(
            bind_complete() + error_response("22012", "first") + ready_for_query(),
            error_response("22P03", "second") + ready_for_query(),
            bind_complete() + selected(3) + ready_for_query(),
        )
        .raises("a", errors.DivisionByZero, "first")
        .raises("b", errors.InvalidBinaryRepresentation, "second")
        .gives("c", [(3,)], "SELECT 1")
    )


@dialogue
def bad_argument_of_a_new_statement() -> Script:
    """It is known only when the description is there: no Bind is sent, and the statement stays known."""
    sql = "select $1::int4"
    return (
        Script()
        .connect()
        .start("bad", "execute", sql, ("not a number",))
        .start("good", "execute", sql, (2,))
        .expect(*NEW)
        .send(described("int4", parameters=(INT4,)))
        .expect("Sync", where("Bind", of=sql, parameters=[int4(2)]), "Execute", "Sync")
        .send(ready_for_query(), bind_complete(), selected(2), ready_for_query())
        .raises("bad", errors.Error)
        .gives("good", [(2,)], "SELECT 1")
    )


@dialogue
def wrong_number_of_arguments() -> Script:
    """f44: found before Bind."""
    return (
        Script()
        .connect()
        .start("bad", "execute", "select $1::int4", (1, 2))
        .expect(*NEW)
        .send(described("int4", parameters=(INT4,)))
        .expect("Sync")
        .send(ready_for_query())
        .raises("bad", errors.Error)
    )


@dialogue
def several_statements_given_to_execute() -> Script:
    return (
        knows()
        .start("bad", "execute", "select 1; select 2")
        .start("good", "execute", ONE)
        .expect(*NEW)
        .send(
            error_response("42601", "cannot insert multiple commands into a prepared statement", R="exec_parse_message")
        )
        .expect("Sync", *KNOWN)
        .send(ready_for_query(), bind_complete(), selected(1), ready_for_query())
        .raises("bad", errors.SyntaxError, "multiple commands")
        .check(lambda run: run.assert_hint("bad", "executescript"))
        .gives("good", [(1,)], "SELECT 1")
    )


@dialogue
def error_while_preparing() -> Script:
    return (
        knows()
        .start("bad", "prepare", "selec")
        .expect(*NEW)
        .send(error_response("42601", "syntax error"))
        .expect("Sync")
        .send(ready_for_query())
        .start("good", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .raises("bad", errors.SyntaxError)
        .gives("good", [(1,)], "SELECT 1")
    )
