"""A server that speaks the protocol by its rules (manual, section 54.2), for tests that invent their dialogues.

Its SQL is a handful of words, and every answer carries the number that was asked with:

    rows 3 of 41        three rows of 41                    fail parse 41     fails at Parse
    echo                its only parameter, an int4         fail bind 41      at Bind
    copy 41             CopyInResponse                      fail execute 41   at Execute, before any row
    tag 41              no rows, the tag "TAG 41"           fail late 41      behind two rows
                                                            fail sync 41      at Sync, behind CommandComplete
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import backend
from backend import FrontendMessage, FrontendReader, error_response, int4

CANCELED = error_response("57014", "canceling statement due to user request")


def failure(sql: str) -> bytes:
    return error_response("P0001", sql)


@dataclass
class ModelServer:
    """`feed` takes bytes, `work` deals with one message of them, `answer` has what is to be sent to the client."""

    reader: FrontendReader = field(default_factory=FrontendReader)
    waiting: deque[FrontendMessage] = field(default_factory=deque)
    answer: list[bytes] = field(default_factory=list)  # one message each
    statements: dict[str, str] = field(default_factory=dict)
    bound: str = ""
    arguments: list[bytes | None] = field(default_factory=list)
    skipping: bool = False  # to the next Sync, after an error
    copying: str = ""  # "extended" or "simple" while CopyData is awaited
    late_failure: str = ""
    cancel: bool = False  # a CancelRequest has come: the next thing that runs is hit
    hits: list[str] = field(default_factory=list)  # what was hit
    ended: bool = False

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)
        self.waiting.extend(self.reader)

    def send(self, *messages: bytes) -> None:
        self.answer.extend(messages)

    def fail(self, error: bytes) -> None:
        self.send(error)
        self.skipping = True
        self.late_failure = ""

    def hit(self, what: str) -> bool:
        """Whether a cancel strikes here; one flag, as the backend's QueryCancelPending."""
        if self.cancel:
            self.cancel = False
            self.hits.append(what)
            return True
        return False

    def work(self) -> None:
        message = self.waiting.popleft()
        if self.copying:
            return self.end_copy(message)
        if self.skipping and message.name != "Sync":
            return None
        step = getattr(self, f"on_{message.name}", None)
        assert step is not None, f"the model does not know {message.name}"
        step(message)
        return None

    def end_copy(self, message: FrontendMessage) -> None:
        """Flush and Sync are ignored while data is awaited; a cancel strikes before the next message is read."""
        cancelled = self.hit(self.bound)
        if not cancelled and message.name in ("Sync", "Flush"):
            return
        simple, self.copying = self.copying == "simple", ""
        self.fail(CANCELED if cancelled else error_response("57014", "COPY from stdin failed"))
        if simple:
            self.skipping = False
            self.send(backend.ready_for_query())
        if cancelled and message.name != "CopyFail":  # that one is ignored where nothing is copied
            self.waiting.appendleft(message)
        elif not cancelled:
            assert message.name == "CopyFail", message

    def on_StartupMessage(self, message: FrontendMessage) -> None:
        self.send(backend.authentication_ok(), backend.backend_key_data(), backend.ready_for_query())

    def on_Parse(self, message: FrontendMessage) -> None:
        name, sql = message["statement"], message["query"]
        if sql.startswith("fail parse"):
            return self.fail(failure(sql))
        if name and name in self.statements:
            return self.fail(error_response("42P05", "prepared statement already exists"))
        self.statements[name] = sql
        return self.send(backend.parse_complete())

    def on_Describe(self, message: FrontendMessage) -> None:
        sql = self.statements[message["name"]]
        self.send(backend.parameter_description(*[backend.INT4] * (sql == "echo")))
        rows = sql.startswith(("rows", "echo", "fail late"))
        self.send(backend.row_description("n") if rows else backend.no_data())

    def on_Bind(self, message: FrontendMessage) -> None:
        name = message["statement"]
        if name not in self.statements:
            return self.fail(error_response("26000", "prepared statement does not exist"))
        self.bound, self.arguments = self.statements[name], message["parameters"]
        if self.bound.startswith("fail bind"):
            return self.fail(failure(self.bound))
        return self.send(backend.bind_complete())

    def on_Execute(self, message: FrontendMessage) -> None:
        if self.hit(self.bound):
            return self.fail(CANCELED)
        return self.run(self.bound, simple=False)

    def run(self, sql: str, *, simple: bool) -> None:
        match sql.split():
            case ["rows", count, "of", number]:
                value = number.encode() if simple else int4(int(number))
                self.send(*[backend.data_row(value)] * int(count), backend.command_complete(f"SELECT {count}"))
            case ["echo"]:
                self.send(backend.data_row(*self.arguments), backend.command_complete("SELECT 1"))
            case ["tag", number]:
                self.send(backend.command_complete(f"TAG {number}"))
            case ["copy", _]:
                self.bound, self.copying = sql, "simple" if simple else "extended"
                self.send(backend.copy_in_response())
            case ["fail", "late", _]:
                self.send(*[backend.data_row(int4(1))] * 2)
                self.fail(failure(sql))
            case ["fail", "sync", _]:
                self.send(backend.command_complete("INSERT 0 1"))
                self.late_failure = sql
            case _:
                self.fail(failure(sql))

    def on_Sync(self, message: FrontendMessage) -> None:
        if self.late_failure and not self.skipping:
            self.send(failure(self.late_failure))
        self.late_failure = ""
        self.skipping = False
        self.send(backend.ready_for_query())

    def on_Flush(self, message: FrontendMessage) -> None:
        pass

    def on_Close(self, message: FrontendMessage) -> None:
        self.statements.pop(message["name"], None)
        self.send(backend.close_complete())

    def on_Query(self, message: FrontendMessage) -> None:
        """Several statements by `;`, up to the first that fails."""
        sql = message["query"]
        if self.hit(sql):
            return self.send(CANCELED, backend.ready_for_query())
        if not sql:
            return self.send(backend.empty_query(), backend.ready_for_query())
        for each in sql.split(";"):
            if each.startswith(("rows", "fail late")):
                self.send(backend.row_description("n"))
            self.run(each, simple=True)
            if self.copying:
                return None
            if self.late_failure:
                self.fail(failure(self.late_failure))
            if self.skipping:
                break
        self.skipping = False
        return self.send(backend.ready_for_query())

    def on_Terminate(self, message: FrontendMessage) -> None:
        self.ended = True
