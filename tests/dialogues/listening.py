"""LISTEN and what it brings: NotificationResponses are kept in order while somebody wants them, and else dropped."""

from __future__ import annotations

from backend import (
    bind_complete,
    command_complete,
    data_row,
    error_response,
    int4,
    notification,
    parse_complete,
    ready_for_query,
    selected,
)
from dialogues.execute import KNOWN, ONE, knows
from dialogues.registry import dialogue
from pgpoll import errors
from script import Run, Script, where

Told = tuple[str, str | None, int]


def keeps(script: Script) -> Script:
    return script.act(lambda run: run.client.keep_notifications(True))


def takes(script: Script, *told: Told) -> Script:
    def compare(run: Run) -> None:
        assert run.client.take_notifications(0) == []
        assert run.client.take_notifications(1) == list(told[:1])
        assert run.client.take_notifications() == list(told[1:])
        assert run.client.take_notifications() == []

    return script.check(compare)


def commanded(tag: str) -> bytes:
    return parse_complete() + bind_complete() + command_complete(tag)


@dialogue
def listening() -> Script:
    """Requests go on meanwhile; the server delivers before ReadyForQuery, or whenever it is idle."""
    script = (
        keeps(knows())
        .start("listen", "command", 'LISTEN "a ""b"')
        .start("one", "execute", ONE)
        .expect(where("Parse", statement="", query='LISTEN "a ""b"'), "Bind", "Execute", "Sync", *KNOWN)
        .send(commanded("LISTEN"), notification('a "b', "first", 1), ready_for_query())
        .send(bind_complete(), data_row(int4(7)), notification('a "b', "second", 2), data_row(int4(8)))
        .send(command_complete("SELECT 2"), notification('a "b', "third", 3), ready_for_query())
        .send(notification("other", "", -1))
        .start("unlisten", "command", 'UNLISTEN "a ""b"')
        .expect("Parse", "Bind", "Execute", "Sync")
        .send(notification('a "b', "fifth", 5), commanded("UNLISTEN"), ready_for_query())
        .gives("listen", "LISTEN")
        .gives("one", [(7,), (8,)], "SELECT 2")
        .gives("unlisten", "UNLISTEN")
    )
    told = ("first", 1), ("second", 2), ("third", 3)
    return takes(script, *(('a "b', payload, pid) for payload, pid in told), ("other", "", -1), ('a "b', "fifth", 5))


@dialogue
def listen_is_refused() -> Script:
    """A hot standby."""
    return (
        keeps(knows())
        .start("listen", "command", 'LISTEN "a"')
        .start("one", "execute", ONE)
        .expect("Parse", "Bind", "Execute", "Sync", *KNOWN)
        .send(parse_complete(), bind_complete(), error_response("25006", "cannot execute LISTEN during recovery"))
        .send(ready_for_query(), bind_complete(), selected(1), ready_for_query())
        .raises("listen", errors.ReadOnlySqlTransaction)
        .gives("one", [(1,)], "SELECT 1")
    )


@dialogue
def an_abandoned_listen_is_answered() -> Script:
    """No CancelRequest is wanted for it."""
    return (
        knows()
        .start("listen", "command", 'LISTEN "a"')
        .expect("Parse", "Bind", "Execute", "Sync")
        .abandon("listen")
        .start("unlisten", "command", 'UNLISTEN "a"')
        .send(commanded("LISTEN"), ready_for_query())
        .expect("Parse", "Bind", "Execute", "Sync")
        .send(commanded("UNLISTEN"), ready_for_query())
        .cancelled("listen")
        .gives("unlisten", "UNLISTEN")
        .check(lambda run: check(run.client.cancel_wanted() == 0))
    )


@dialogue
def nobody_listens() -> Script:
    script = knows().send(notification("a", "x")).start("one", "execute", ONE).expect(*KNOWN)
    return takes(
        script.send(bind_complete(), notification("a"), selected(1), ready_for_query()).gives("one", [(1,)], "SELECT 1")
    )


@dialogue
def nobody_listens_any_more() -> Script:
    script = keeps(knows()).send(notification("a", "x") * 3)
    return takes(script.act(lambda run: run.client.keep_notifications(False)).send(notification("a", "y")))


def check(what: bool) -> None:
    assert what
