"""A server that speaks the protocol by its rules (manual, section 54.2), for tests that invent their dialogues.

Its SQL is a handful of words, and every answer carries the number that was asked with:

    rows 3 of 41        three rows of 41, then some work    fail parse 41     fails at Parse
    echo                its only parameter, an int4         fail bind 41      at Bind
    copy 41             CopyInResponse                      fail execute 41   at Execute, before any row
    tag 41              no rows, the tag "TAG 41"           fail late 41      behind two rows
                                                            fail sync 41      at Sync, behind CommandComplete

There is one portal, the unnamed one. What is executed up to a Sync is committed there, all or nothing.
"""

from __future__ import annotations

from collections import Counter, deque
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
    copying: bool = False  # CopyData is awaited
    running: bytes = b""  # what is said when the work behind the rows is done
    script: list[str] | None = None  # what is left of a simple query
    late_failure: str = ""
    pending: list[str] = field(default_factory=list)  # what was executed since the last Sync
    lasting: Counter[str] = field(default_factory=Counter)  # and committed there
    cancel: bool = False  # a CancelRequest has come: the next thing that runs is hit
    hits: list[str] = field(default_factory=list)  # what was hit
    ended: bool = False

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)
        self.waiting.extend(self.reader)

    def send(self, *messages: bytes) -> None:
        self.answer.extend(messages)

    def fail(self, error: bytes) -> None:
        """An error ends a simple query, or all up to the next Sync."""
        self.send(error)
        self.late_failure, self.copying, self.running = "", False, b""
        self.pending.clear()
        if self.script is None:
            self.skipping = True
        else:
            self.end_script()

    def hit(self, what: str) -> bool:
        """Whether a cancel strikes here; one flag, as the backend's QueryCancelPending."""
        if self.cancel:
            self.cancel = False
            self.hits.append(what)
            return True
        return False

    @property
    def busy(self) -> bool:
        """Whether there is something to work on."""
        return bool(self.running or self.waiting or (self.script is not None and not self.copying))

    def work(self) -> None:
        if self.running:
            return self.finish_rows()
        if self.script is not None and not self.copying:
            return self.next_statement()
        message = self.waiting.popleft()
        if self.copying:
            return self.end_copy(message)
        if self.skipping and message.name != "Sync":
            return None
        step = getattr(self, f"on_{message.name}", None)
        assert step is not None, f"the model does not know {message.name}"
        step(message)
        return None

    def finish_rows(self) -> None:
        if self.hit(self.bound):
            return self.fail(CANCELED)
        complete, self.running = self.running, b""
        return self.send(complete)

    def end_copy(self, message: FrontendMessage) -> None:
        """Flush and Sync are ignored while data is awaited; a cancel strikes before the next message is read."""
        cancelled = self.hit(self.bound)
        if not cancelled and message.name in ("Sync", "Flush"):
            return
        self.fail(CANCELED if cancelled else error_response("57014", "COPY from stdin failed"))
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
        if message["portal"]:
            return self.fail(error_response("34000", "portal does not exist"))
        if self.hit(self.bound):
            return self.fail(CANCELED)
        self.pending.append(self.bound)
        return self.run(self.bound, simple=False)

    def run(self, sql: str, *, simple: bool) -> None:
        match sql.split():
            case ["rows", count, "of", number]:
                value = number.encode() if simple else int4(int(number))
                self.send(*[backend.data_row(value)] * int(count))
                self.running = backend.command_complete(f"SELECT {count}")
            case ["echo"]:
                self.send(backend.data_row(*self.arguments))
                self.running = backend.command_complete("SELECT 1")
            case ["tag", number]:
                self.send(backend.command_complete(f"TAG {number}"))
            case ["copy", _]:
                self.copying = True
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
            self.pending.clear()
        self.lasting.update(self.pending)
        self.pending.clear()
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
        sql = self.bound = message["query"]
        if not sql and not self.cancel:
            return self.send(backend.empty_query(), backend.ready_for_query())
        self.script = sql.split(";")
        return self.fail(CANCELED) if self.hit(sql) else None

    def next_statement(self) -> None:
        assert self.script is not None
        if not self.script:
            return self.end_script()
        sql = self.script.pop(0)
        if sql.startswith(("rows", "fail late")):
            self.send(backend.row_description("n"))
        self.run(sql, simple=True)
        if self.late_failure:
            self.fail(failure(self.late_failure))
        return None

    def end_script(self) -> None:
        self.script = None
        self.send(backend.ready_for_query())

    def on_Terminate(self, message: FrontendMessage) -> None:
        self.ended = True
