"""NoticeResponse, ParameterStatus and NotificationResponse may come between any two messages."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from backend import (
    TEXT,
    bind_complete,
    column,
    command_complete,
    data_row,
    described,
    empty_query,
    error_response,
    int4,
    notice,
    notification,
    parameter_status,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.execute import KNOWN, NEW, ONE, knows
from dialogues.registry import dialogue
from pgpoll import errors
from script import Script


def messages(data: bytes) -> Iterator[bytes]:
    while data:
        size = 1 + struct.unpack_from("!I", data, 1)[0]
        yield data[:size]
        data = data[size:]


NOISE = notice() + parameter_status("TimeZone", "Europe/Berlin") + notification("events", "payload")


def noisy(*data: bytes) -> bytes:
    """All three before each message, and behind the last."""
    return b"".join(NOISE + each for each in messages(b"".join(data))) + NOISE


@dialogue
def noise_in_a_new_statement() -> Script:
    return (
        Script()
        .connect()
        .start("a", "execute", "select 1 as one")
        .expect(*NEW)
        .send(noisy(described("one")))
        .expect(*KNOWN)
        .send(noisy(bind_complete(), selected(1, 2, 3), ready_for_query()))
        .gives("a", [(1,), (2,), (3,)], "SELECT 3")
    )


@dialogue
def noise_between_pipelined_requests() -> Script:
    return (
        knows()
        .start("a", "execute", ONE)
        .start("b", "execute", ONE)
        .start("c", "execute", ONE)
        .expect(*KNOWN * 3)
        .send(noisy(bind_complete(), selected(1), ready_for_query()))
        .send(noisy(bind_complete(), data_row(int4(2)), error_response(), ready_for_query()))
        .send(noisy(bind_complete(), selected(3), ready_for_query()))
        .gives("a", [(1,)], "SELECT 1")
        .raises("b", errors.DivisionByZero)
        .gives("c", [(3,)], "SELECT 1")
    )


@dialogue
def noise_in_a_script() -> Script:
    return (
        Script()
        .connect()
        .start("s", "script", "select 'a'; ; commit")
        .expect("Query")
        .send(
            noisy(row_description(column("a", TEXT, -1)), data_row(b"a"), data_row(b"b"), command_complete("SELECT 2"))
        )
        .send(noisy(command_complete("COMMIT"), ready_for_query()))
        .start("empty", "script", "")
        .expect("Query")
        .send(noisy(empty_query(), ready_for_query()))
        .gives("s", [([("a",), ("b",)], "SELECT 2"), ([], "COMMIT")])
    )


@dialogue
def noise_while_idle() -> Script:
    return (
        knows()
        .send(NOISE * 3)
        .start("a", "execute", ONE)
        .expect(*KNOWN)
        .send(bind_complete(), selected(1), ready_for_query())
        .gives("a", [(1,)], "SELECT 1")
    )


@dialogue
def noise_behind_an_error() -> Script:
    return (
        Script()
        .connect()
        .start("bad", "execute", "selec")
        .expect(*NEW)
        .send(noisy(error_response("42601", "syntax error")))
        .expect("Sync")
        .send(noisy(ready_for_query()))
        .raises("bad", errors.SyntaxError)
    )


@dialogue
def noise_while_an_abandoned_reply_is_drained() -> Script:
    return (
        knows()
        .start("gone", "execute", ONE)
        .start("next", "execute", ONE)
        .expect(*KNOWN * 2)
        .abandon("gone")
        .send(noisy(bind_complete(), selected(1, 2, 3), ready_for_query()))
        .send(noisy(bind_complete(), selected(4), ready_for_query()))
        .cancelled("gone")
        .gives("next", [(4,)], "SELECT 1")
    )
