"""Every state that a session can be in while the server speaks, and the messages that are an answer there."""

from __future__ import annotations

from dataclasses import dataclass

from backend import (
    authentication_ok,
    backend_key_data,
    bind_complete,
    cleartext,
    close_complete,
    command_complete,
    copy_both_response,
    copy_data,
    copy_done,
    copy_in_response,
    copy_out_response,
    data_row,
    described,
    empty_query,
    error_response,
    int4,
    md5,
    message,
    negotiate_protocol_version,
    no_data,
    notice,
    notification,
    parameter_description,
    parameter_status,
    parse_complete,
    portal_suspended,
    ready_for_query,
    row_description,
    sasl,
)
from dialogues.execute import COPY, KNOWN, NEW, ONE, forgetful, knows
from dialogues.startup import scram_final, scram_until_proof
from peers import Memory, options
from script import Run, Script

# One well-formed message of every type of the protocol, by its name in the manual, and three bytes that begin none.
MESSAGES = {
    "Authentication": authentication_ok(),
    "BackendKeyData": backend_key_data(),
    "BindComplete": bind_complete(),
    "CloseComplete": close_complete(),
    "CommandComplete": command_complete("SELECT 1"),
    "CopyBothResponse": copy_both_response(),
    "CopyData": copy_data(),
    "CopyDone": copy_done(),
    "CopyInResponse": copy_in_response(),
    "CopyOutResponse": copy_out_response(),
    "DataRow": data_row(int4(7)),
    "EmptyQueryResponse": empty_query(),
    "ErrorResponse": error_response(),
    "FunctionCallResponse": message(b"V", b"\xff\xff\xff\xff"),
    "NegotiateProtocolVersion": negotiate_protocol_version(),
    "NoData": no_data(),
    "NoticeResponse": notice(),
    "NotificationResponse": notification(),
    "ParameterDescription": parameter_description(),
    "ParameterStatus": parameter_status("TimeZone", "UTC"),
    "ParseComplete": parse_complete(),
    "PortalSuspended": portal_suspended(),
    "ReadyForQuery": ready_for_query(),
    "RowDescription": row_description("one"),
    "message 0x00": message(b"\x00"),
    "message 0x21": message(b"\x21"),
    "message 0xff": message(b"\xff"),
}
ANYWHERE = {"NoticeResponse", "NotificationResponse", "ParameterStatus"}


@dataclass(frozen=True)
class State:
    """How to get there, and which types are an answer; anything else breaks the protocol."""

    script: Script
    answers: frozenset[str]

    def reached(self) -> Run:
        run = Run(Memory(options(**self.script.changes)))
        return run.play(self.script, len(self.script.steps))


def state(script: Script, *answers: str) -> State:
    return State(script, frozenset(answers))


def connecting() -> Script:
    return Script().start("connect", "connect").expect("StartupMessage")


def new() -> Script:
    return Script().connect().start("a", "execute", ONE).expect(*NEW)


def bound() -> Script:
    """Two on the wire: what the head's reply must not become is the second's."""
    return knows().start("a", "execute", ONE).start("b", "execute", ONE).expect(*KNOWN * 2)


def bound_without_columns() -> Script:
    return new().send(described()).expect(*KNOWN).send(bind_complete())


def simple() -> Script:
    return knows().start("a", "script", "select 1; select 2").expect("Query")


def copy_sent() -> Script:
    return knows().start("a", "execute", "copy t from stdin").expect(*NEW).send(described()).expect(*COPY)


def copying_in() -> Script:
    return copy_sent().send(bind_complete(), copy_in_response()).expect("CopyFail", "Sync")


def copying_out() -> Script:
    return copy_sent().send(bind_complete(), copy_out_response())


def evicting() -> Script:
    """A cache of one: Close of the old statement leaves in front of the new one's Parse."""
    script = forgetful(statement_cache_size=1).start("a", "execute", "select 2 as two")
    return script.expect("Close", *NEW)


def copying_in_simply() -> Script:
    return simple().send(copy_in_response()).expect("CopyFail")


def copying_out_simply() -> Script:
    return simple().send(copy_out_response())


def beginning() -> Script:
    return knows().start("a", "command", "BEGIN").expect("Parse", *KNOWN)


def terminated() -> Script:
    """Terminate has left: whatever the server still says is of no interest."""
    return knows().start("close", "close").expect("Terminate")


def held_by_a_cancel() -> Script:
    """It is described, and its Bind waits for the end of the CancelRequest's socket, beneath it the wire is silent."""
    script = knows().start("gone", "execute", ONE).start("a", "execute", "select 2 as two").expect(*KNOWN, *NEW)
    script.abandon("gone").act(lambda run: run.client.cancel_started())
    return script.send(bind_complete(), error_response("57014"), ready_for_query(), described("two")).expect()


def draining_a_cancel() -> Script:
    script = knows().start("gone", "execute", ONE).expect(*KNOWN).abandon("gone")
    script.act(lambda run: run.client.cancel_started()).act(lambda run: run.client.cancel_ended())
    return script.send(bind_complete(), error_response("57014"), ready_for_query()).expect("Query")


def states() -> dict[str, State]:
    row = data_row(int4(1))
    done = command_complete("SELECT 1")
    copies = ("CopyInResponse", "CopyOutResponse")
    next_statement = ("RowDescription", "CommandComplete", "EmptyQueryResponse", *copies)
    return {
        "idle": state(knows()),
        "StartupMessage sent": state(connecting(), "Authentication", "ErrorResponse"),
        "SASLInitialResponse sent": state(
            connecting().send(sasl()).expect("PasswordMessage"), "Authentication", "ErrorResponse"
        ),
        "SASLResponse sent": state(scram_until_proof().expect("PasswordMessage"), "Authentication", "ErrorResponse"),
        "proved by the server": state(
            scram_until_proof().expect("PasswordMessage").send(scram_final), "Authentication", "ErrorResponse"
        ),
        "PasswordMessage sent": state(
            connecting().send(cleartext()).expect("PasswordMessage"), "Authentication", "ErrorResponse"
        ),
        "PasswordMessage sent (md5)": state(
            connecting().send(md5()).expect("PasswordMessage"), "Authentication", "ErrorResponse"
        ),
        "authenticated": state(
            connecting().send(authentication_ok()), "BackendKeyData", "ReadyForQuery", "ErrorResponse"
        ),
        "key known": state(
            connecting().send(authentication_ok(), backend_key_data()), "ReadyForQuery", "ErrorResponse"
        ),
        "Close sent": state(evicting(), "CloseComplete", "ErrorResponse"),
        "closed, Parse sent": state(evicting().send(close_complete()), "ParseComplete", "ErrorResponse"),
        "Parse sent": state(new(), "ParseComplete", "ErrorResponse"),
        "parsed": state(new().send(parse_complete()), "ParameterDescription", "ErrorResponse"),
        "parameters described": state(
            new().send(parse_complete(), parameter_description()), "RowDescription", "NoData", "ErrorResponse"
        ),
        "Parse failed": state(new().send(error_response()).expect("Sync"), "ReadyForQuery", "ErrorResponse"),
        "arguments refused": state(
            Script()
            .connect()
            .start("a", "execute", ONE, ("one too many",))
            .expect(*NEW)
            .send(described("one"))
            .expect("Sync"),
            "ReadyForQuery",
            "ErrorResponse",
        ),
        "prepared": state(
            Script().connect().start("a", "prepare", ONE).expect(*NEW).send(described("one")).expect("Sync"),
            "ReadyForQuery",
            "ErrorResponse",
        ),
        "Bind sent": state(bound(), "BindComplete", "ErrorResponse"),
        "bound": state(
            bound().send(bind_complete()), "DataRow", "CommandComplete", "EmptyQueryResponse", "ErrorResponse"
        ),
        "COPY bound": state(copy_sent().send(bind_complete()), "CommandComplete", "ErrorResponse", *copies),
        "COPY complete": state(
            copy_sent().send(bind_complete(), command_complete("COPY 5")).expect("Sync"),
            "ReadyForQuery",
            "ErrorResponse",
        ),
        "COPY failed": state(
            copy_sent().send(bind_complete(), error_response()).expect("Sync"), "ReadyForQuery", "ErrorResponse"
        ),
        "amid rows": state(bound().send(bind_complete(), row), "DataRow", "CommandComplete", "ErrorResponse"),
        "bound without columns": state(
            bound_without_columns(), "CommandComplete", "EmptyQueryResponse", "ErrorResponse"
        ),
        "complete": state(bound().send(bind_complete(), row, done), "ReadyForQuery", "ErrorResponse"),
        "empty": state(bound().send(bind_complete(), empty_query()), "ReadyForQuery", "ErrorResponse"),
        "failed": state(bound().send(bind_complete(), row, error_response()), "ReadyForQuery", "ErrorResponse"),
        "the second's turn": state(
            bound().send(bind_complete(), row, done, ready_for_query()), "BindComplete", "ErrorResponse"
        ),
        "abandoned": state(bound().abandon("a"), "BindComplete", "ErrorResponse"),
        "abandoned amid rows": state(
            bound().send(bind_complete(), row).abandon("a"), "DataRow", "CommandComplete", "ErrorResponse"
        ),
        "abandoned while described": state(
            new().abandon("a").expect("Sync").send(parse_complete()), "ParameterDescription", "ErrorResponse"
        ),
        "abandoned while failing": state(
            bound().send(bind_complete(), error_response()).abandon("a"), "ReadyForQuery", "ErrorResponse"
        ),
        "abandoned Query": state(simple().abandon("a"), "ErrorResponse", *next_statement),
        "abandoned COPY": state(
            copy_sent().abandon("a").send(bind_complete()), "CommandComplete", "ErrorResponse", *copies
        ),
        "abandoned CopyFail": state(copying_in().abandon("a"), "ErrorResponse"),
        "Query sent": state(simple(), "ErrorResponse", *next_statement),
        "Query: amid rows": state(
            simple().send(row_description("one"), data_row(b"1")), "DataRow", "CommandComplete", "ErrorResponse"
        ),
        "Query: between statements": state(
            simple().send(command_complete("SELECT 1")), "ReadyForQuery", "ErrorResponse", *next_statement
        ),
        "Query failed": state(simple().send(error_response()), "ReadyForQuery", "ErrorResponse"),
        "Query: CopyFail sent": state(copying_in_simply(), "ErrorResponse"),
        "Query: CopyFail answered": state(
            copying_in_simply().send(error_response("57014")), "ReadyForQuery", "ErrorResponse"
        ),
        "Query: copying out": state(copying_out_simply(), "CopyData", "CopyDone", "ErrorResponse"),
        "Query: copied out": state(copying_out_simply().send(copy_done()), "CommandComplete", "ErrorResponse"),
        "Query: behind COPY": state(
            copying_out_simply().send(copy_done(), command_complete("COPY 0")),
            "ReadyForQuery",
            "ErrorResponse",
            *next_statement,
        ),
        "CopyFail sent": state(copying_in(), "ErrorResponse"),
        "CopyFail answered": state(copying_in().send(error_response("57014")), "ReadyForQuery", "ErrorResponse"),
        "copying out": state(copying_out(), "CopyData", "CopyDone", "ErrorResponse"),
        "copied out": state(copying_out().send(copy_done()), "CommandComplete", "ErrorResponse"),
        "draining a cancel": state(draining_a_cancel(), "EmptyQueryResponse", "ErrorResponse"),
        "drained": state(draining_a_cancel().send(empty_query()), "ReadyForQuery", "ErrorResponse"),
        "stray cancel drained": state(
            draining_a_cancel().send(error_response("57014")), "ReadyForQuery", "ErrorResponse"
        ),
        "BEGIN sent": state(beginning(), "ParseComplete", "ErrorResponse"),
        "BEGIN parsed": state(beginning().send(parse_complete()), "BindComplete", "ErrorResponse"),
        "BEGIN bound": state(beginning().send(parse_complete(), bind_complete()), "CommandComplete", "ErrorResponse"),
        "BEGIN complete": state(
            beginning().send(parse_complete(), bind_complete(), command_complete("BEGIN")),
            "ReadyForQuery",
            "ErrorResponse",
        ),
    }
