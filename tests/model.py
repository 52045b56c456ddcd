"""A server that speaks the protocol by its rules (manual, section 54.2), for tests that invent their dialogues.

Its SQL is a handful of words, and every answer carries the number that was asked with:

    rows 3 of 41        three rows of 41, then some work    fail parse 41     fails at Parse
    echo                its only parameter, an int4         fail bind 41      at Bind
    copy 41             CopyInResponse                      fail execute 41   at Execute, before any row
    tag 41              no rows, the tag "TAG 41"           fail late 41      behind two rows
    insert 41           an effect, the tag "INSERT 0 1"     fail sync 41      at Sync, behind CommandComplete
    insert echo         an effect of its int4               begin, commit, rollback 41
    alter 41            no plan of "insert echo" and "series of" is good any more: 0A000

Effects are durable once their transaction has ended well: at Sync, or at COMMIT where BEGIN came before; so long do
portals last. What channels need is in model_channels.py.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import backend
from backend import FrontendMessage, FrontendReader, error_response, int4

CANCELED = error_response("57014", "canceling statement due to user request")


@dataclass
class Effect:
    number: int
    transaction: int  # the number of its BEGIN; 0: its own
    durable: bool = False


@dataclass
class Portal:
    sql: str
    arguments: list[bytes | None]
    rows: list[bytes] | None = None  # DataRows that have not been asked for yet; None: it has not run


def failure(sql: str) -> bytes:
    return error_response("P0001", sql)


@dataclass
class ModelServer:
    """`feed` takes bytes, `work` deals with one message of them, `answer` has what is to be sent to the client."""

    reader: FrontendReader = field(default_factory=FrontendReader)
    waiting: deque[FrontendMessage] = field(default_factory=deque)
    answer: list[bytes] = field(default_factory=list)  # one message each
    statements: dict[str, str] = field(default_factory=dict)
    portals: dict[str, Portal] = field(default_factory=dict)
    bound: str = ""  # what runs, or did last
    skipping: bool = False  # to the next Sync, after an error
    copying: bool = False  # CopyData is awaited
    running: list[bytes] = field(default_factory=list)  # what is said when the work behind the rows is done
    script: list[str] | None = None  # what is left of a simple query
    late_failure: str = ""
    pending: list[str] = field(default_factory=list)  # what was executed since the last Sync
    lasting: Counter[str] = field(default_factory=Counter)  # and committed there
    cancel: bool = False  # a CancelRequest has come: the next thing that runs is hit
    hits: list[str] = field(default_factory=list)  # what was hit
    ended: bool = False
    status: str = "I"
    transaction: int = 0  # the number of its BEGIN
    effects: list[Effect] = field(default_factory=list)  # pending and durable ones
    undone: list[Effect] = field(default_factory=list)  # by the end of a transaction that was begun
    stale: set[str] = field(default_factory=set)  # names whose plan has changed

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)
        self.waiting.extend(self.reader)

    def send(self, *messages: bytes) -> None:
        self.answer.extend(messages)

    def fail(self, error: bytes) -> None:
        """An error ends a simple query, or all up to the next Sync."""
        self.send(error)
        self.late_failure, self.copying, self.running = "", False, []
        self.roll_back()
        self.status = "I" if self.status == "I" else "E"
        self.pending.clear()
        if self.script is None:
            self.skipping = True
        else:
            self.end_script()

    def ready(self) -> None:
        if self.status == "I":
            self.commit()
            self.portals.clear()
        self.send(backend.ready_for_query(self.status))

    def commit(self) -> None:
        for each in self.effects:
            each.durable = True

    def roll_back(self) -> None:
        self.undone += [each for each in self.effects if not each.durable and each.transaction]
        self.effects = [each for each in self.effects if each.durable]

    def refuses(self, sql: str) -> bool:
        """In a transaction that has failed all but its end."""
        if self.status != "E" or sql.startswith(("commit", "rollback")) or not sql:
            return False
        self.fail(error_response("25P02", "current transaction is aborted"))
        return True

    def control(self, word: str, number: int) -> str:
        """BEGIN within a transaction, and an end of none, are warned of and done all the same."""
        commits = word == "commit" and self.status != "E"
        if word == "begin":
            self.status, self.transaction = "T", self.transaction or number
            return "BEGIN"
        if commits:
            self.commit()
        self.roll_back()
        self.portals.clear()
        self.status, self.transaction = "I", 0
        return "COMMIT" if commits else "ROLLBACK"

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
            return self.take_copied(message)
        if self.skipping and message.name != "Sync":
            return None
        if message.name in ("CopyData", "CopyDone", "CopyFail"):  # of a COPY that has failed: it can't be known yet
            return None
        step = getattr(self, f"on_{message.name}", None)
        assert step is not None, f"the model does not know {message.name}"
        step(message)
        return None

    def finish_rows(self) -> None:
        if self.hit(self.bound):
            return self.fail(CANCELED)
        said, self.running = self.running, []
        for each in said:
            if each.startswith(b"E"):
                self.fail(each)
            else:
                self.send(each)
        return None

    def take_copied(self, message: FrontendMessage) -> None:
        """Flush and Sync are ignored while data is awaited; a cancel strikes before the next message is read."""
        if self.hit(self.bound):
            self.waiting.appendleft(message)
            return self.fail(CANCELED)
        if message.name in ("Sync", "Flush"):
            return None
        return self.go_on_copying(message)

    def go_on_copying(self, message: FrontendMessage) -> None:
        assert message.name == "CopyFail", message
        self.fail(error_response("57014", "COPY from stdin failed"))

    def on_StartupMessage(self, message: FrontendMessage) -> None:
        self.send(backend.authentication_ok(), backend.backend_key_data(), backend.ready_for_query())

    def on_Parse(self, message: FrontendMessage) -> None:
        name, sql = message["statement"], message["query"]
        if self.refuses(sql):
            return None
        if sql.startswith("fail parse"):
            return self.fail(failure(sql))
        if name and name in self.statements:
            return self.fail(error_response("42P05", "prepared statement already exists"))
        self.statements[name] = sql
        return self.send(backend.parse_complete())

    def on_Describe(self, message: FrontendMessage) -> None:
        if message["name"] not in self.statements:
            return self.fail(error_response("26000", "prepared statement does not exist"))
        sql = self.statements[message["name"]]
        if self.refuses(sql):
            return None
        if self.hit(sql):
            return self.fail(CANCELED)
        self.send(backend.parameter_description(*[backend.INT4] * sql.startswith(("echo", "insert echo", "series of"))))
        rows = sql.startswith(("rows", "echo", "fail late", "series"))
        return self.send(backend.row_description("n") if rows else backend.no_data())

    def on_Bind(self, message: FrontendMessage) -> None:
        name = message["statement"]
        if name not in self.statements:
            return self.fail(error_response("26000", "prepared statement does not exist"))
        if self.refuses(self.statements[name]):
            return None
        if name in self.stale:
            return self.fail(error_response("0A000", "cached plan must not change result type"))
        self.bound = self.statements[name]
        if self.bound.startswith("fail bind"):
            return self.fail(failure(self.bound))
        self.portals[message["portal"]] = Portal(self.bound, message["parameters"])
        return self.send(backend.bind_complete())

    def on_Execute(self, message: FrontendMessage) -> None:
        portal = self.portals.get(message["portal"])
        if portal is None:
            return self.fail(error_response("34000", "portal does not exist"))
        self.bound = portal.sql
        if self.refuses(self.bound):
            return None
        if self.hit(self.bound):
            return self.fail(CANCELED)
        self.pending.append(self.bound)
        return self.run(self.bound, portal, message["limit"])

    def run(self, sql: str, portal: Portal | None, limit: int = 0) -> None:
        """Without a portal it is of a simple query."""
        arguments = portal.arguments if portal else []
        match sql.split():
            case ["rows", count, "of", number]:
                value = int4(int(number)) if portal else number.encode()
                self.send(*[backend.data_row(value)] * int(count))
                self.running = [backend.command_complete(f"SELECT {count}")]
            case ["echo"]:
                self.send(backend.data_row(*arguments))
                self.running = [backend.command_complete("SELECT 1")]
            case ["tag", number]:
                self.send(backend.command_complete(f"TAG {number}"))
            case ["insert", what]:
                number = what if what != "echo" else str(int.from_bytes(arguments[0] or b"", "big"))
                self.effects.append(Effect(int(number), self.transaction))
                self.send(backend.command_complete("INSERT 0 1"))
            case ["begin" | "commit" | "rollback" as word, number]:
                self.send(backend.command_complete(self.control(word, int(number))))
            case ["alter", number]:
                self.stale = {name for name, sql in self.statements.items() if sql in ("insert echo", "series of")}
                self.send(backend.command_complete(f"TAG {number}"))
            case ["copy", _]:
                self.copying = True
                self.send(backend.copy_in_response())
            case ["fail", "late", _]:
                self.send(*[backend.data_row(int4(1))] * 2)
                self.fail(failure(sql))
            case ["fail", "sync", _]:
                self.send(backend.command_complete("INSERT 0 1"))
                self.late_failure = sql if self.status == "I" else ""  # else it would be at COMMIT
            case _:
                self.fail(failure(sql))

    def on_Sync(self, message: FrontendMessage) -> None:
        if self.late_failure and not self.skipping:
            self.fail(failure(self.late_failure))
        self.lasting.update(self.pending)
        self.pending.clear()
        self.late_failure = ""
        self.skipping = False
        self.ready()

    def on_Flush(self, message: FrontendMessage) -> None:
        pass

    def on_Close(self, message: FrontendMessage) -> None:
        if message["target"] == "P":
            self.portals.pop(message["name"], None)
        else:
            self.statements.pop(message["name"], None)
            self.stale.discard(message["name"])
        self.send(backend.close_complete())

    def on_Query(self, message: FrontendMessage) -> None:
        """Several statements by `;`, up to the first that fails."""
        sql = self.bound = message["query"]
        if not sql and not self.cancel:
            self.send(backend.empty_query())
            return self.ready()
        self.script = sql.split(";")
        return self.fail(CANCELED) if self.hit(sql) else None

    def next_statement(self) -> None:
        assert self.script is not None
        if not self.script:
            return self.end_script()
        sql = self.script.pop(0)
        if self.refuses(sql):
            return None
        if sql.startswith(("rows", "fail late")):
            self.send(backend.row_description("n"))
        self.run(sql, None)
        if self.late_failure:
            self.fail(failure(self.late_failure))
        return None

    def end_script(self) -> None:
        self.script = None
        self.ready()

    def on_Terminate(self, message: FrontendMessage) -> None:
        self.ended = True
