"""COPY that its own verbs began: fed and taken, failed on both sides at every chunk, given up, of the wrong kind."""

from __future__ import annotations

import struct
from collections.abc import Callable

from backend import (
    bind_complete,
    command_complete,
    copy_data,
    copy_done,
    copy_in_response,
    copy_out_response,
    data_row,
    error_response,
    message,
    notice,
    parameter_description,
    parse_complete,
    ready_for_query,
    row_description,
)
from dialogues.execute import KNOWN, ONE, knows, served
from dialogues.registry import dialogue
from pgpoll import core, errors
from script import Run, Script

BEGUN = "Parse", "Bind", "Execute", "Flush"
TAKES = parse_complete() + bind_complete() + copy_in_response()
GIVES = parse_complete() + bind_complete() + copy_out_response()
CHUNKS = [b"1\n", b"2\n"]
FAILED = error_response("57014", "COPY from stdin failed: KeyError in the client")
BAD_LINE = error_response("22P02", "invalid input syntax", W="COPY t, line 2, column i")


def feed(script: Script, chunk: bytes, room: bool = True) -> Script:
    def fed(run: Run) -> None:
        assert run.operations["copy"].feed(chunk) is room

    return script.act(fed)


def act(script: Script, method: str, *args: object) -> Script:
    return script.act(lambda run: getattr(run.operations["copy"], method)(*args))


def copying_in(chunks: int) -> Script:
    """So many chunks were fed, with others waiting behind."""
    script = knows().start("copy", "copy_in", "copy t from stdin").start("next", "execute", ONE)
    script.expect(*BEGUN).send(TAKES)
    for chunk in CHUNKS[:chunks]:
        feed(script, chunk).expect("CopyData")
    return script


def each(make: Callable[[int], Script]) -> Callable[[int], Script]:
    """A dialogue for every number of chunks."""
    for count in range(len(CHUNKS) + 1):

        def one(count: int = count) -> Script:
            return make(count)

        one.__name__ = f"{make.__name__}_after_{count}"
        dialogue(one)
    return make


# -- in


@each
def copy_in_that_succeeds(chunks: int) -> Script:
    script = act(copying_in(chunks), "finish_feed").expect("CopyDone", "Sync")
    script.send(notice(), command_complete("COPY 3"), ready_for_query()).expect(*KNOWN)
    return served(script.gives("copy", [], "COPY 3"))


@each
def copy_in_that_the_server_fails(chunks: int) -> Script:
    """Its Sync leaves at once; what is fed from then on goes nowhere."""
    script = copying_in(chunks).send(BAD_LINE).expect("Sync", *KNOWN)
    script.check(lambda run: _line(run, 2))
    feed(script, b"late\n", room=False)
    act(script, "finish_feed").send(ready_for_query())
    return served(script.raises("copy", errors.InvalidTextRepresentation, "invalid input syntax"))


@each
def copy_in_that_the_client_fails(chunks: int) -> Script:
    script = act(copying_in(chunks), "fail_feed", "KeyError in the client").expect("CopyFail", "Sync")
    script.send(FAILED, ready_for_query()).expect(*KNOWN)
    return served(script.raises("copy", errors.QueryCanceled, "KeyError in the client"))


@each
def copy_in_that_is_given_up(chunks: int) -> Script:
    """Nothing follows before its end. CopyFail is to end it; a CancelRequest only where that takes long."""
    script = copying_in(chunks).abandon("copy").expect("CopyFail", "Sync")
    script.act(lambda run: _wish(run, core.GRACE)).send(FAILED, ready_for_query()).expect(*KNOWN)
    return served(script.cancelled("copy"))


@each
def copy_in_that_both_fail(chunks: int) -> Script:
    """The errors cross: the server discards CopyFail, and answers one Sync."""
    script = act(copying_in(chunks), "fail_feed", "KeyError in the client").expect("CopyFail", "Sync")
    script.send(BAD_LINE, ready_for_query()).expect(*KNOWN)
    return served(script.raises("copy", errors.InvalidTextRepresentation, "invalid input syntax"))


@dialogue
def copy_in_that_fails_at_its_end() -> Script:
    script = act(copying_in(2), "finish_feed").expect("CopyDone", "Sync")
    script.send(error_response("23505", "duplicate key"), ready_for_query()).expect(*KNOWN)
    return served(script.raises("copy", errors.UniqueViolation, "duplicate key"))


@dialogue
def copy_in_given_up_at_its_end() -> Script:
    script = act(copying_in(2), "finish_feed").expect("CopyDone", "Sync").abandon("copy")
    script.send(command_complete("COPY 2"), ready_for_query()).expect(*KNOWN)
    return served(script.cancelled("copy"))


@dialogue
def copy_in_given_up_before_it_began() -> Script:
    """The server may wait for a lock: a CancelRequest at once; and where it begins all the same, CopyFail."""
    script = knows().start("copy", "copy_in", "copy t from stdin").expect(*BEGUN).abandon("copy")
    script.act(lambda run: _wish(run, core.NOW)).send(TAKES).expect("CopyFail", "Sync")
    script.send(FAILED, ready_for_query()).cancelled("copy").start("next", "execute", ONE).expect(*KNOWN)
    return served(script)


@dialogue
def copy_in_that_never_began() -> Script:
    script = knows().start("copy", "copy_in", "copy t from stdin").start("next", "execute", ONE).expect(*BEGUN)
    script.send(error_response("42P01", "no such table")).expect("Sync", *KNOWN).send(ready_for_query())
    return served(script.raises("copy", errors.UndefinedTable, "no such table"))


@dialogue
def copy_in_of_what_gives_data() -> Script:
    script = knows().start("copy", "copy_in", "copy t to stdout").start("next", "execute", ONE).expect(*BEGUN)
    script.send(GIVES, copy_data(), copy_done(), command_complete("COPY 1")).expect("Sync", *KNOWN)
    return served(script.send(ready_for_query()).raises("copy", errors.InterfaceError, "copy_out"))


@dialogue
def copy_in_of_a_file_of_the_servers() -> Script:
    script = knows().start("copy", "copy_in", "copy t from '/f'").start("next", "execute", ONE).expect(*BEGUN)
    script.send(parse_complete(), bind_complete(), command_complete("COPY 1")).expect("Sync", *KNOWN)
    return served(script.send(ready_for_query()).raises("copy", errors.InterfaceError, "execute()"))


@dialogue
def copy_in_with_a_description() -> Script:
    script = knows().start("copy", "copy_in", "copy t from stdin", "select i from t")
    script.expect("Parse", "Describe", *BEGUN)
    script.send(parse_complete(), parameter_description(), row_description("i"), TAKES)
    act(script, "finish_feed").expect("CopyDone", "Sync").send(command_complete("COPY 0"), ready_for_query())
    return script.gives("copy", [], "COPY 0")


@dialogue
def copy_in_completed_while_it_is_fed() -> Script:
    return copying_in(1).send(command_complete("COPY 1")).raises("copy", errors.ProtocolError, "CommandComplete")


@dialogue
def copy_in_completed_though_it_failed() -> Script:
    script = act(copying_in(1), "fail_feed", "why").expect("CopyFail", "Sync")
    return script.send(command_complete("COPY 1")).raises("copy", errors.ProtocolError, "CommandComplete")


# -- out


def copying_out(chunks: int) -> Script:
    script = knows().start("copy", "copy_out", "copy t to stdout").start("next", "execute", ONE)
    script.expect(*BEGUN).send(GIVES).expect("Sync")
    for chunk in CHUNKS[:chunks]:
        script.send(copy_data(chunk))
    return script


def take(script: Script, expected: bytes) -> Script:
    def taken(run: Run) -> None:
        assert run.operations["copy"].take_data() == expected

    return script.act(taken)


@each
def copy_out_that_succeeds(chunks: int) -> Script:
    script = take(copying_out(chunks), b"".join(CHUNKS[:chunks]))
    script.send(notice(), copy_data(b"last\n"), copy_done(), command_complete("COPY 9"), ready_for_query())
    return served(take(script, b"last\n").expect(*KNOWN).gives("copy", [], "COPY 9"))


@each
def copy_out_that_the_server_fails(chunks: int) -> Script:
    """What had come before can still be taken."""
    script = copying_out(chunks).send(error_response("22012", "division by zero"), ready_for_query())
    script = take(script, b"".join(CHUNKS[:chunks])).expect(*KNOWN)
    return served(script.raises("copy", errors.DivisionByZero, "division"))


@each
def copy_out_that_is_given_up(chunks: int) -> Script:
    script = copying_out(chunks).abandon("copy").act(lambda run: _wish(run, core.NOW))
    script.send(copy_data(), copy_done(), command_complete("COPY 9"), ready_for_query()).expect(*KNOWN)
    return served(take(script, b"").cancelled("copy"))


@dialogue
def copy_out_given_up_before_it_began() -> Script:
    script = knows().start("copy", "copy_out", "copy t to stdout").expect(*BEGUN).abandon("copy")
    script.send(GIVES, copy_data()).expect("Sync").send(copy_done(), command_complete("COPY 1"), ready_for_query())
    return served(script.cancelled("copy").start("next", "execute", ONE).expect(*KNOWN))


@dialogue
def copy_out_of_what_takes_data() -> Script:
    script = knows().start("copy", "copy_out", "copy t from stdin").start("next", "execute", ONE).expect(*BEGUN)
    script.send(TAKES).expect("CopyFail", "Sync", *KNOWN).send(FAILED, ready_for_query())
    return served(script.raises("copy", errors.InterfaceError, "copy_in"))


@dialogue
def copy_out_with_a_description() -> Script:
    script = knows().start("copy", "copy_out", "copy (select i from t) to stdout", "select i from t")
    script.expect("Parse", "Describe", *BEGUN)
    script.send(parse_complete(), parameter_description(), row_description("i"), GIVES).expect("Sync")
    script.send(copy_done(), command_complete("COPY 0"), ready_for_query())
    return script.gives("copy", [], "COPY 0")


# -- f50: responses that are none


def _violates(name: str, verb: str, text: str, *answer: bytes) -> None:
    def made() -> Script:
        script = knows().start("copy", verb, "copy t ...").expect(*BEGUN).send(parse_complete(), bind_complete())
        if answer[0][:1] == b"H" and len(answer) > 1:
            script.send(answer[0]).expect("Sync").send(*answer[1:])
        else:
            script.send(*answer)
        return script.raises("copy", errors.ProtocolError, text)

    made.__name__ = name
    dialogue(made)


_violates("copy_in_of_65535_columns", "copy_in", "columns", message(b"G", struct.pack("!bH", 0, 65_535)))
_violates("copy_in_of_an_unknown_format", "copy_in", "format", copy_in_response(2, 2))
_violates(
    "copy_in_of_an_unknown_format_of_a_column", "copy_in", "format", message(b"G", struct.pack("!bHhh", 1, 2, 1, 2))
)
_violates("copy_in_of_a_binary_column_in_text", "copy_in", "format", message(b"G", struct.pack("!bHh", 0, 1, 1)))
_violates("copy_in_cut_short", "copy_in", "too early", message(b"G", struct.pack("!bHh", 0, 2, 0)))
_violates("copy_out_of_an_unknown_format", "copy_out", "format", copy_out_response(1, 2))
_violates("copy_data_before_copy_out_response", "copy_out", "CopyData", copy_data(), copy_out_response())
_violates(
    "copy_done_without_command_complete",
    "copy_out",
    "ReadyForQuery",
    copy_out_response(),
    copy_done(),
    ready_for_query(),
)
_violates("copy_done_with_a_body", "copy_out", "CopyDone", copy_out_response(), message(b"c", b"x"))
_violates("a_row_within_copy_out", "copy_out", "DataRow", copy_out_response(), data_row(b"1"))
_violates("copy_data_while_we_feed", "copy_in", "CopyData", copy_in_response(), copy_data())


def _line(run: Run, number: int) -> None:
    error = run.error("copy")
    assert isinstance(error, errors.DatabaseError)
    assert error.copy_line == number


def _wish(run: Run, wish: int) -> None:
    assert run.client.cancel_wanted() == wish
