"""What an observer of a connection is told: a record of each request, and the server's notices. For both faces.

Times, counts and records are the core's (src/py/observing.hpp). Here are the public classes, the rules of notices, and
the part of a request's life that the core does not see: its wait in the line.
"""

from __future__ import annotations

import logging
from collections import deque
from contextvars import Context, copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from pgpoll._flows import check_callback
from pgpoll.errors import field_attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll import core
    from pgpoll._turns import Turn

__all__ = ["Notice", "Observers", "RequestRecord"]

SLICE_SECONDS = 0.01
_AT_A_TIME = 20

_log = logging.getLogger("pgpoll")
_notice_log = logging.getLogger("pgpoll.notice")


class RequestRecord(NamedTuple):
    """What became of one request, as `on_request` gets it. Times are seconds of `time.monotonic()`."""

    sql: str | None
    """The text as it was given; of a transaction's own commands (BEGIN, SAVEPOINT, COMMIT ...) as it was sent."""
    statement: str | None
    """The name of its prepared statement at the server; None where it has none, or it was not known yet."""
    queued: float
    """When it was made; it may have waited for a transaction first."""
    sent: float | None
    """When its first byte had left; None where none has."""
    first_byte: float | None
    """When the first message of its reply had come; None where none has."""
    finished: float
    """When its outcome was known: its ReadyForQuery (of a BEGIN or SAVEPOINT that left with the first request of its
    block: its CommandComplete), its cancellation, the end of the connection."""
    rows: int
    """The rows that have come for it; of a COPY, in either direction, those that its command tag counts."""
    bytes: int
    """The bytes of the reply that have come for it; notices and the like do not count."""
    error: BaseException | None
    """What its caller gets instead of a result: its own error, CancelledError, QueryTimeout, ...; None: a result."""

    def __repr__(self) -> str:
        # An error's message may quote a value, so only its class is shown.
        took = f"{(self.finished - self.queued) * 1000:.3f} ms"
        outcome = "" if self.error is None else f" {type(self.error).__name__}"
        return f"<pgpoll.RequestRecord {self.sql!r} rows={self.rows} bytes={self.bytes} {took}{outcome}>"


class Notice(NamedTuple):
    """A NoticeResponse, as `on_notice` gets it. Its fields are named as those of errors; None where it has none."""

    message: str
    severity: str | None = None
    """WARNING, NOTICE, DEBUG, INFO or LOG, never localised."""
    sqlstate: str | None = None
    detail: str | None = None
    hint: str | None = None
    position: int | None = None
    internal_position: int | None = None
    internal_query: str | None = None
    where: str | None = None
    schema_name: str | None = None
    table_name: str | None = None
    column_name: str | None = None
    datatype_name: str | None = None
    constraint_name: str | None = None
    source_file: str | None = None
    source_line: int | None = None
    source_function: str | None = None

    def __repr__(self) -> str:
        return f"<pgpoll.Notice {self.severity} {self.sqlstate}: {self.message!r}>"


class Observers(NamedTuple):
    """The two callbacks that `connect` takes."""

    on_request: Callable[[RequestRecord], object] | None = None
    on_notice: Callable[[Notice], object] | None = None

    def checked(self) -> Observers:
        """Itself; InterfaceError where one can't be called."""
        for name, callback in self._asdict().items():
            check_callback(name, callback)
        return self


class InLine:
    """The observer's side of a request that waits in the line: the core does not know it yet.

    It takes the place of the turn's `start`. Where the turn ends without an operation, `left` says so.
    """

    __slots__ = ("_context", "_core", "_queued", "_sql", "_start")

    def __init__(self, connection: core.Connection, turn: Turn, sql: str | core.PreparedStatement) -> None:
        queued = connection._observed_at()
        assert queued is not None
        self._core = connection
        self._queued = queued
        self._sql = sql
        self._context = copy_context()
        self._start = turn.start
        turn.start = self

    def __call__(self) -> core.Operation[Any]:
        return self._context.run(self._core._start_observed, self._queued, self._start)

    def left(self, turn: Turn, error: BaseException) -> None:
        """The turn's caller gets this error."""
        if turn.operation is None:
            self._core._note(self._sql, self._queued, error, self._context)


class Notices:
    """Hands over the notices of one connection: to `on_notice`, in the context that this was made in, or to the log.

    They wait in the core, which keeps a bounded number: where more come than are handed over, the rest is dropped, and
    a warning says how many.
    """

    __slots__ = ("_busy", "_context", "_core", "_dropped", "_failed", "_on_notice", "_taken")

    def __init__(
        self,
        connection: core.Connection,
        on_notice: Callable[[Notice], object] | None,
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._core = connection
        self._on_notice = on_notice
        self._failed = failed
        self._context: Context = copy_context()
        self._taken: deque[dict[str, str]] = deque()
        self._busy = False
        self._dropped = 0

    @property
    def untold(self) -> bool:
        """Whether some were taken, and are still to be handed over."""
        return bool(self._taken)

    def hand_over(self, seconds: float | None) -> bool:
        """All that are there, or for about so many seconds: at least one. True where some are left."""
        if self._busy:  # within a callback: whoever called that goes on
            return False
        self._busy = True
        try:
            until = None if seconds is None else monotonic() + seconds
            while True:
                if not self._taken:
                    self._taken.extend(self._core.take_notices(_AT_A_TIME))
                    if not self._taken:
                        self._tell_dropped()
                        return False
                self._tell(self._taken.popleft())
                if until is not None and monotonic() >= until:
                    return True
        finally:
            self._busy = False

    def _tell(self, fields: dict[str, str]) -> None:
        if self._on_notice is None:
            _write(fields)
            return
        try:
            self._context.run(self._on_notice, Notice(fields.get("M", ""), **field_attributes(fields)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the callback's
            self._failed("on_notice", error)

    def _tell_dropped(self) -> None:
        dropped = self._core.notices_dropped
        if dropped > 2 * self._dropped:  # few lines, however many they are
            self._dropped = dropped
            _log.warning("%d notices of the server were dropped: they came faster than they were handed over", dropped)


def _write(fields: dict[str, str]) -> None:
    """Only the message: detail, hint and context may have what should not be in a log."""
    severity = fields.get("V") or fields.get("S", "")
    level = logging.WARNING if severity == "WARNING" else logging.DEBUG if "DEBUG" in severity else logging.INFO
    _notice_log.log(level, "%s: %s", severity, fields.get("M", ""))
