"""The portals of a transaction: rows in parts, each a request of its own (see dialogues/stream.py)."""

from __future__ import annotations

from backend import (
    bind_complete,
    close_complete,
    column,
    command_complete,
    copy_in_response,
    described,
    error_response,
    no_data,
    parameter_description,
    parse_complete,
    portal_suspended,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.abandon import wishes
from dialogues.execute import KNOWN, NEW, ONE, knows
from dialogues.recovery import UNNAMED
from dialogues.registry import dialogue
from dialogues.stream import DONE, rows
from pgpoll import core, errors
from script import Run, Script, where


def begun() -> Script:
    script = knows().start("begin", "command", "BEGIN").expect("Parse", *KNOWN)
    script.send(parse_complete(), bind_complete(), command_complete("BEGIN"), ready_for_query("T"))
    return script.gives("begin", "BEGIN")


def opened(limit: int = 2) -> Script:
    script = begun().act(lambda run: open_portal(run, "open", ONE, limit))
    script.expect(where("Bind", portal="p", of=ONE), where("Execute", portal="p", limit=limit), "Sync")
    return script.gives("open", True)


def open_portal(run: Run, label: str, sql: str, limit: int) -> None:
    run.operations[label] = run.client._start_open(sql, (), "p", limit)


def fetch(run: Run, label: str, limit: int) -> None:
    run.operations[label] = run.client._start_fetch(run.operations["open"], limit, 2)


def fetching(script: Script, label: str = "more", limit: int = 2) -> Script:
    return script.act(lambda run: fetch(run, label, limit)).expect(where("Execute", portal="p", limit=limit), "Sync")


def closing(script: Script) -> Script:
    """Nobody is told of it, and nobody waits for it."""
    script.act(lambda run: run.client._close_portal("p")).start("next", "execute", ONE)
    script.expect(where("Close", target="P", name="p"), "Sync", *KNOWN)
    script.send(close_complete(), ready_for_query("T"), bind_complete(), selected(9), ready_for_query("T"))
    return script.gives("next", [(9,)], "SELECT 1")


@dialogue
def portal_in_parts() -> Script:
    script = opened().send(bind_complete(), rows(1, 2), portal_suspended(), ready_for_query("T"))
    script.takes("open", (1,), (2,)).start("between", "execute", ONE).expect(*KNOWN)
    script.send(bind_complete(), selected(5), ready_for_query("T")).gives("between", [(5,)], "SELECT 1")
    fetching(script).send(rows(3, 4), portal_suspended(), ready_for_query("T")).takes("more", (3,), at_most=1)
    fetching(script, "last").send(rows(5), DONE, ready_for_query("T")).takes("last", (5,)).takes("more", (4,))
    return closing(script.gives("more", True).gives("last", False))


@dialogue
def portal_of_a_new_statement() -> Script:
    sql = "select 2 as two"
    script = begun().act(lambda run: open_portal(run, "open", sql, 3)).expect(*NEW).send(described("two"))
    script.expect(where("Bind", portal="p", of=sql), where("Execute", portal="p", limit=3), "Sync")
    script.send(bind_complete(), rows(1), DONE, ready_for_query("T")).takes("open", (1,))
    return closing(script.gives("open", False))


@dialogue
def portal_of_an_unnamed_statement() -> Script:
    script = knows(statement_cache_size=0).act(lambda run: open_portal(run, "open", ONE, 3))
    script.expect("Parse", where("Bind", portal="p"), where("Describe", target="P", name="p"), *UNNAMED[-2:])
    script.send(
        parse_complete(), bind_complete(), row_description(column("one", code=1)), rows(1), DONE, ready_for_query()
    )
    return script.takes("open", (1,)).gives("open", False)


@dialogue
def portal_that_is_gone() -> Script:
    script = opened().send(bind_complete(), rows(1, 2), portal_suspended(), ready_for_query("T"))
    fetching(script).send(error_response("34000", 'portal "p" does not exist'), ready_for_query("E"))
    return script.takes("open", (1,), (2,)).raises("more", errors.InvalidCursorName)


@dialogue
def more_rows_of_a_portal_than_were_asked_for() -> Script:
    script = begun().act(lambda run: open_portal(run, "open", ONE, 1)).expect("Bind", "Execute", "Sync")
    return script.send(bind_complete(), rows(1, 2)).raises("open", errors.ProtocolError, "more rows")


@dialogue
def portal_suspended_before_its_limit() -> Script:
    script = begun().act(lambda run: open_portal(run, "open", ONE, 3)).expect("Bind", "Execute", "Sync")
    return script.send(bind_complete(), rows(1, 2), portal_suspended()).raises("open", errors.ProtocolError, "before")


@dialogue
def copy_by_a_portal() -> Script:
    sql = "copy t from stdin"
    script = begun().act(lambda run: open_portal(run, "open", sql, 2)).expect(*NEW)
    script.send(parse_complete(), parameter_description(), no_data()).expect("Bind", "Execute", "Flush")
    script.send(bind_complete(), copy_in_response()).expect("CopyFail", "Sync")
    script.send(error_response("57014", "COPY from stdin failed"), ready_for_query("E"))
    return script.raises("open", errors.InterfaceError, "copy_in")


@dialogue
def copy_by_a_portal_of_a_query() -> Script:
    """A server that awaits data swallows a Sync, and this one has left; but no query ends in COPY."""
    script = begun().act(lambda run: open_portal(run, "open", ONE, 2)).expect("Bind", "Execute", "Sync")
    return script.send(bind_complete(), copy_in_response()).raises("open", errors.ProtocolError, "CopyInResponse")


@dialogue
def copy_by_a_fetch() -> Script:
    return fetch_in_flight().send(copy_in_response()).raises("more", errors.ProtocolError, "CopyInResponse")


def fetch_in_flight() -> Script:
    script = opened().send(bind_complete(), rows(1, 2), portal_suspended(), ready_for_query("T"))
    return fetching(script.takes("open", (1,), (2,)))


@dialogue
def fetch_abandoned() -> Script:
    """Somebody waited for it: it is cancelled, though its transaction fails by that."""
    script = fetch_in_flight().abandon("more").act(lambda run: wishes(run, core.NOW))
    return closing(script.send(rows(3), DONE, ready_for_query("T")).cancelled("more"))


@dialogue
def fetch_spared() -> Script:
    """Nobody waits for it any more, and nothing is cancelled for that."""
    script = fetch_in_flight().act(lambda run: spare(run, "more")).act(lambda run: wishes(run, core.NONE))
    script.act(lambda run: run.client._close_portal("p")).expect().send(rows(3), DONE, ready_for_query("T"))
    script.expect(where("Close", target="P", name="p"), "Sync").send(close_complete(), ready_for_query("T"))
    return script.cancelled("more")


def spare(run: Run, label: str) -> None:
    run.abandoned.add(label)
    run.operations[label]._spare()
