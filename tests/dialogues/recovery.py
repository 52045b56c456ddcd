"""Requests that run a second time: their statement was dropped (D15), or another's CancelRequest struck them (D6)."""

from __future__ import annotations

from backend import (
    INT4,
    TEXT,
    bind_complete,
    close_complete,
    column,
    command_complete,
    data_row,
    described,
    error_response,
    int4,
    no_data,
    parse_complete,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.execute import KNOWN, NEW, ONE, knows
from dialogues.registry import dialogue
from pgpoll import errors
from script import Run, Script, where

AGAIN = (where("Close", target="S", of=ONE), where("Parse", query=ONE), "Describe", "Flush")
STALE = error_response("0A000", "cached plan must not change result type")
GONE = error_response("26000", "prepared statement does not exist")
CANCELED = error_response("57014", "canceling statement due to user request")
UNNAMED = ("Parse", "Bind", "Describe", "Execute", "Sync")


def described_again() -> bytes:
    return close_complete() + described("one")


def given(script: Script, label: str, value: int) -> Script:
    script.send(bind_complete(), selected(value), ready_for_query())
    return script.gives(label, [(value,)], "SELECT 1")


@dialogue
def cached_plan_changed() -> Script:
    """Two on the wire fail; the second attempts are the front of what is unsent, and describe it once."""
    script = knows(max_pipeline=2).start("a", "execute", ONE).start("b", "execute", ONE).start("c", "execute", ONE)
    script.expect(*KNOWN * 2).send(STALE, ready_for_query()).expect(*AGAIN)
    script.send(STALE, ready_for_query()).send(described_again()).expect(*KNOWN * 2)
    given(given(script, "a", 7), "b", 8).expect(*KNOWN)
    return given(script, "c", 9)


@dialogue
def statement_dropped_under_us() -> Script:
    script = knows().start("a", "execute", ONE).expect(*KNOWN).send(GONE, ready_for_query()).expect(*AGAIN)
    return given(script.send(described_again()).expect(*KNOWN), "a", 7)


@dialogue
def a_statement_closed_by_one_that_could_not_parse_it_again() -> Script:
    """What "b" has described is gone with the Close of "c": the second attempt of "a" does not rely on it."""
    script = knows().start("a", "execute", ONE).expect(*KNOWN).send(STALE)
    script.start("b", "execute", ONE).expect(*AGAIN).abandon("b").expect("Sync")
    script.start("c", "execute", ONE).expect(*AGAIN).abandon("c").expect("Sync")
    script.send(ready_for_query(), described_again(), ready_for_query()).expect()
    script.send(close_complete(), CANCELED, ready_for_query()).expect(*AGAIN)
    return given(script.send(described_again()).expect(*KNOWN), "a", 7)


@dialogue
def second_attempt_with_other_parameters() -> Script:
    """The arguments are encoded anew, for the types that hold now."""
    sql = "select $1 as one"
    script = Script().connect().start("first", "execute", sql, (5,)).expect(*NEW)
    script.send(described("one", parameters=(INT4,))).expect(*KNOWN)
    script.send(bind_complete(), selected(5), ready_for_query()).start("a", "execute", sql, (6,)).expect(*KNOWN)
    script.send(STALE, ready_for_query()).expect("Close", *NEW)
    script.send(close_complete(), described("one", parameters=(20,)))
    script.expect(where("Bind", parameters=[b"\0" * 7 + b"\6"]), "Execute", "Sync")
    return given(script, "a", 6)


@dialogue
def a_second_attempt_is_the_last() -> Script:
    script = knows().start("a", "execute", ONE).expect(*KNOWN).send(STALE, ready_for_query()).expect(*AGAIN)
    script.send(described_again()).expect(*KNOWN).send(STALE, ready_for_query())
    return script.raises("a", errors.FeatureNotSupported, "cached plan")


@dialogue
def cached_plan_changed_in_a_transaction() -> Script:
    """A plain error: the transaction is lost. Whoever comes later prepares it again, and closes the old one first."""
    script = knows().start("a", "execute", ONE).expect(*KNOWN).send(STALE, ready_for_query("E"))
    script.raises("a", errors.FeatureNotSupported, "cached plan")
    script.start("rollback", "command", "ROLLBACK").expect("Parse", *KNOWN)
    script.send(parse_complete(), bind_complete(), command_complete("ROLLBACK"), ready_for_query())
    script.start("b", "execute", ONE).expect(*AGAIN).send(described_again()).expect(*KNOWN)
    return given(script, "b", 7)


@dialogue
def cached_plan_changed_before_somebodys_begin() -> Script:
    """A second attempt would run inside of that transaction, and be lost with it: so there is none."""
    script = knows().start("a", "execute", ONE).start("begin", "command", "BEGIN").expect(*KNOWN, "Parse", *KNOWN)
    script.send(STALE, ready_for_query(), parse_complete(), bind_complete(), command_complete("BEGIN"))
    return script.send(ready_for_query("T")).raises("a", errors.FeatureNotSupported, "cached plan").expect()


@dialogue
def cached_plan_changed_before_a_new_statement() -> Script:
    """One that is being described will write its Bind first: nobody runs behind what may begin a transaction."""
    script = knows().start("a", "execute", ONE).start("begin", "execute", "begin").expect(*KNOWN, *NEW)
    script.send(STALE, ready_for_query(), described()).expect(*KNOWN)
    script.send(bind_complete(), command_complete("BEGIN"), ready_for_query("T")).gives("begin", [], "BEGIN")
    return script.raises("a", errors.FeatureNotSupported, "cached plan").expect()


@dialogue
def same_code_from_the_statement_itself() -> Script:
    """After BindComplete it is the statement's own error."""
    script = knows().start("a", "execute", ONE).expect(*KNOWN).send(bind_complete(), STALE, ready_for_query())
    script.raises("a", errors.FeatureNotSupported, "cached plan").start("b", "execute", ONE).expect(*KNOWN)
    return given(script, "b", 7)


@dialogue
def abandoned_before_its_second_attempt() -> Script:
    script = knows().start("a", "execute", ONE).start("b", "execute", ONE).expect(*KNOWN * 2)
    script.send(STALE, ready_for_query()).expect(*AGAIN).abandon("a").expect("Sync")
    script.send(STALE, ready_for_query(), described_again(), ready_for_query()).cancelled("a").expect(*KNOWN)
    return given(script, "b", 8)


@dialogue
def name_is_taken() -> Script:
    """A pooler's backend knows the name, from somebody else: closed, then parsed."""
    script = Script().connect().start("a", "execute", ONE).expect(*NEW)
    script.send(error_response("42P05", "prepared statement already exists")).expect("Sync").send(ready_for_query())
    return given(script.expect(*AGAIN).send(described_again()).expect(*KNOWN), "a", 7)


@dialogue
def name_is_taken_while_preparing() -> Script:
    script = Script().connect().start("a", "prepare", ONE).expect(*NEW)
    script.send(error_response("42P05", "prepared statement already exists")).expect("Sync").send(ready_for_query())
    script.expect(*AGAIN).send(described_again()).expect("Sync").send(ready_for_query()).gives("a", [], ["one"])
    return given(script.start("b", "execute", ONE).expect(*KNOWN), "b", 7)


@dialogue
def failed_after_it_was_parsed() -> Script:
    """The server has the statement, we have no description: whoever comes next closes it first."""
    script = Script().connect().start("a", "execute", ONE).expect(*NEW)
    script.send(parse_complete(), CANCELED).expect("Sync").send(ready_for_query())
    script.raises("a", errors.QueryCanceled, "canceling").start("b", "execute", ONE).expect(*AGAIN)
    return given(script.send(described_again()).expect(*KNOWN), "b", 7)


@dialogue
def canceled_while_it_was_parsed() -> Script:
    """Whether it was stored before that, nobody can know."""
    script = Script().connect().start("a", "execute", ONE).expect(*NEW)
    script.send(CANCELED).expect("Sync").send(ready_for_query())
    script.raises("a", errors.QueryCanceled, "canceling").start("b", "execute", ONE).expect(*AGAIN)
    return given(script.send(described_again()).expect(*KNOWN), "b", 7)


@dialogue
def name_is_taken_before_somebodys_begin() -> Script:
    """Nobody writes behind an error that a second attempt mends, so nothing stands in its way."""
    script = Script().connect().start("a", "execute", ONE).start("begin", "command", "BEGIN").expect(*NEW)
    script.send(error_response("42P05", "prepared statement already exists")).expect("Sync").send(ready_for_query())
    script.expect(*AGAIN).send(described_again()).expect(*KNOWN, "Parse", *KNOWN)
    given(script, "a", 7).send(parse_complete(), bind_complete(), command_complete("BEGIN"), ready_for_query("T"))
    return script.gives("begin", "BEGIN")


def all_dropped(tag: str) -> Script:
    """What the caller dropped by hand is prepared again; nothing has to fail first."""
    script = knows().start("discard", "script", tag).expect("Query")
    script.send(command_complete(tag), ready_for_query()).start("a", "execute", ONE).expect(*NEW)
    return given(script.send(described("one")).expect(*KNOWN), "a", 7)


@dialogue
def discard_all() -> Script:
    return all_dropped("DISCARD ALL")


@dialogue
def deallocate_all() -> Script:
    return all_dropped("DEALLOCATE ALL")


@dialogue
def discarded_while_others_wait() -> Script:
    """They were encoded for a statement that is gone when their turn comes."""
    script = knows().start("discard", "script", "DISCARD ALL").start("a", "execute", ONE).start("b", "execute", ONE)
    script.expect("Query").send(command_complete("DISCARD ALL"), ready_for_query()).expect(*NEW)
    script.send(described("one")).expect(*KNOWN * 2)
    return given(given(script, "a", 7), "b", 8)


# Struck by a CancelRequest that was meant for another.


def struck(verb: str = ONE) -> Script:
    """Abandoned, and another behind it on the wire; the CancelRequest's socket is open."""
    script = knows(verb, memory_only=True).start("gone", "execute", verb).start("next", "execute", verb)
    script.expect(*KNOWN * 2).abandon("gone").act(lambda run: run.client.cancel_started())
    return script.send(bind_complete(), selected(1), ready_for_query()).cancelled("gone")


def socket_ended(run: Run) -> None:
    run.client.cancel_ended()
    run.client.pump()


@dialogue
def innocent_runs_again() -> Script:
    script = struck().send(bind_complete(), CANCELED, ready_for_query()).expect()
    script.act(socket_ended).expect(where("Query", query=""))
    script.send(error_response("57014"), ready_for_query()).expect("Bind", "Execute", "Sync")
    return given(script, "next", 8)


@dialogue
def innocent_struck_before_it_was_bound() -> Script:
    """Nothing of it can have run, whatever it is."""
    script = struck("vacuum").send(CANCELED, ready_for_query())
    script.act(socket_ended).expect("Query")
    script.send(error_response("57014"), ready_for_query()).expect(*KNOWN)
    return given(script, "next", 8)


def struck_and_told(script: Script) -> Script:
    return script.raises("next", errors.QueryCanceled, "canceling")


@dialogue
def innocent_with_rows() -> Script:
    return struck_and_told(struck().send(bind_complete(), data_row(int4(1)), CANCELED, ready_for_query()))


@dialogue
def innocent_that_is_no_query() -> Script:
    return struck_and_told(struck("call p()").send(bind_complete(), CANCELED, ready_for_query()))


@dialogue
def innocent_in_a_transaction() -> Script:
    return struck_and_told(struck().send(bind_complete(), CANCELED, ready_for_query("E")))


@dialogue
def innocent_long_after() -> Script:
    script = struck().act(lambda run: run.client.cancel_too_old())
    return struck_and_told(script.send(bind_complete(), CANCELED, ready_for_query()))


@dialogue
def its_own_timeout() -> Script:
    timeout = error_response("57014", "canceling statement due to statement timeout")
    return struck_and_told(struck().send(bind_complete(), timeout, ready_for_query()))


@dialogue
def cancelled_by_hand() -> Script:
    """Nobody was abandoned: whoever runs is meant."""
    script = knows(memory_only=True).start("next", "execute", ONE).expect(*KNOWN)
    script.act(lambda run: run.client.cancel_started())
    return struck_and_told(script.send(bind_complete(), CANCELED, ready_for_query()))


# statement_cache_size=0: no names on the server, as a pooler in transaction mode needs it.


def nameless() -> Script:
    """A description is kept all the same."""
    script = Script(statement_cache_size=0).connect().start("first", "execute", ONE)
    script.expect(where("Parse", statement="", query=ONE), where("Describe", target="S"), "Flush")
    script.send(described("one")).expect(where("Bind", statement=""), "Execute", "Sync")
    return given(script, "first", 1)


def portal(*columns: bytes | str) -> bytes:
    return parse_complete() + bind_complete() + row_description(*columns)


@dialogue
def unnamed_statements() -> Script:
    """Known ones are one flight each, and pipelined like any other."""
    script = nameless().start("a", "execute", ONE).start("b", "execute", ONE)
    script.expect(*UNNAMED * 2)
    for label, value in (("a", 7), ("b", 8)):
        script.send(portal(column("one", code=1)), selected(value), ready_for_query())
        script.gives(label, [(value,)], "SELECT 1")
    return script


@dialogue
def unnamed_statement_with_parameters() -> Script:
    """It is parsed with the types that its arguments were encoded for."""
    sql = "update t set i = $1"
    script = Script(statement_cache_size=0).connect()
    for label, expected in (("first", NEW), ("second", ())):
        script.start(label, "execute", sql, (5,))
        if expected:
            script.expect(where("Parse", types=[]), "Describe", "Flush")
            script.send(described(parameters=(INT4,))).expect(*KNOWN)
            script.send(bind_complete())
        else:
            script.expect(where("Parse", types=[INT4]), where("Bind", parameters=[int4(5)]), *UNNAMED[2:])
            script.send(parse_complete(), bind_complete(), no_data())
        script.send(command_complete("UPDATE 1"), ready_for_query()).gives(label, [], "UPDATE 1")
    return script


@dialogue
def unnamed_statement_that_has_changed() -> Script:
    """Rows are decoded by the description that came; the old one is not used again."""
    script = nameless().start("a", "execute", ONE).expect(*UNNAMED)
    script.send(portal(column("one", TEXT, -1, code=1)), data_row(b"x"), command_complete("SELECT 1"))
    script.send(ready_for_query()).gives("a", [("x",)], "SELECT 1").start("b", "execute", ONE).expect(*NEW)
    return given(script.send(described("one")).expect(*KNOWN), "b", 7)


@dialogue
def unnamed_statement_with_other_columns() -> Script:
    """The server refuses the result formats: once again, with Describe."""
    script = nameless().start("a", "execute", ONE).expect(*UNNAMED)
    script.send(parse_complete(), error_response("08P01", "bind message has 1 result formats"), ready_for_query())
    script.expect(*NEW).send(described("one", "two")).expect(*KNOWN)
    script.send(bind_complete(), data_row(int4(1), int4(2)), command_complete("SELECT 1"), ready_for_query())
    return script.gives("a", [(1, 2)], "SELECT 1")
