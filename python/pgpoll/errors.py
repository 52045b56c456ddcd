"""Every error of pgpoll: PEP 249's hierarchy, and one class for each SQLSTATE condition of PostgreSQL.

    Error
    |-- InterfaceError               misuse; nothing was sent for it
    |   `-- BusyError
    `-- DatabaseError                .sqlstate, .message, .detail, .hint, .position, .constraint_name, ...
        |-- DataError
        |-- IntegrityError           UniqueViolation, ...
        |-- InternalError            InFailedSqlTransaction, ...
        |-- NotSupportedError
        |-- OperationalError         AdminShutdown, QueryCanceled, ..., and ours:
        |   |-- BatchRolledBack
        |   |-- BatchSkipped
        |   |-- ConnectionLost
        |   |-- CommitUnknown        (TransactionResolutionUnknown, 08007)
        |   |-- NotificationsLost
        |   |-- ProtocolError        (ProtocolViolation, 08P01)
        |   `-- QueryTimeout         also a TimeoutError
        `-- ProgrammingError         UndefinedTable, SyntaxError, ...

The classes of conditions are named as PostgreSQL names them, in CamelCase (`unique_violation`: UniqueViolation), and
stand under the base that psycopg gives their SQLSTATE's class. A SQLSTATE without a class of its own, for instance
one that a function raises, has its class's base. Where the server ended the connection with the error (FATAL, PANIC),
the exception is an OperationalError too, whatever its condition.

All are plain Python classes that pickle and copy with every attribute.

Sources: PEP 249; PostgreSQL manual, appendix "PostgreSQL Error Codes" and "Error and Notice Message Fields".
"""

from __future__ import annotations

from typing import Any

from pgpoll import _sqlstate
from pgpoll._error_bases import (
    BusyError,
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from pgpoll._sqlstate import *  # noqa: F403  (generated, with __all__)
from pgpoll._sqlstate import BASES, CONDITIONS, ProtocolViolation, TransactionResolutionUnknown

__all__ = [
    "BatchRolledBack",
    "BatchSkipped",
    "BusyError",
    "CommitUnknown",
    "ConnectionLost",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "NotificationsLost",
    "OperationalError",
    "ProgrammingError",
    "ProtocolError",
    "QueryTimeout",
    "condition",
    "make_server_error",
]
__all__ += _sqlstate.__all__

for _each in CONDITIONS.values():
    _each.__module__ = __name__


class BatchRolledBack(OperationalError):
    """An item of a batch may have been executed, and nothing of it lasts: another one failed. `__cause__` says why."""


class BatchSkipped(OperationalError):
    """An item of a batch was not executed, because one before it had failed. `__cause__` says why."""


class ConnectionLost(OperationalError):
    """The connection ended before the request's outcome came. Its `__cause__` says why, where that is known."""


class CommitUnknown(TransactionResolutionUnknown):
    """A COMMIT was sent and its reply was lost: the transaction may be committed or not. Never retried by pgpoll."""


class NotificationsLost(OperationalError):
    """Notifications came faster than a listener took them. It goes on: what comes next is the first that was kept."""

    lost: int = 0
    """How many."""


class ProtocolError(ProtocolViolation):
    """The server sent what the protocol does not allow; the connection is closed."""


class QueryTimeout(OperationalError, TimeoutError):
    """The request's `timeout=` ran out."""


def condition(sqlstate: str | None) -> type[DatabaseError]:
    """The class of errors with this SQLSTATE: its own, else its class's base, else DatabaseError."""
    if not sqlstate:
        return DatabaseError
    return CONDITIONS.get(sqlstate) or BASES.get(sqlstate[:2]) or BASES.get(sqlstate[:1]) or DatabaseError


def make_server_error(fields: dict[str, str], *, lost: bool = False) -> DatabaseError:
    """The exception for an ErrorResponse.

    `fields` has the message's fields by their one-letter codes ("C": "23505", "M": ...); unknown ones are ignored,
    missing ones give None. `lost` says that the connection ended with it even where the severity does not say so.
    """
    kind = condition(fields.get("C"))
    severity = fields.get("V") or fields.get("S")
    if lost or severity in ("FATAL", "PANIC"):
        kind = _fatal(kind)
    error = kind(fields.get("M", ""))
    error.__dict__.update(field_attributes(fields))
    return error


def field_attributes(fields: dict[str, str]) -> dict[str, Any]:
    """The fields of an ErrorResponse or NoticeResponse by the names of our attributes; all but the message."""
    attributes: dict[str, Any] = {}
    if severity := fields.get("V") or fields.get("S"):
        attributes["severity"] = severity
    for code, value in fields.items():
        if (name := _TEXT_FIELDS.get(code)) is not None:
            attributes[name] = value
        elif (name := _NUMBER_FIELDS.get(code)) is not None:
            attributes[name] = _number(value)
    return attributes


_TEXT_FIELDS = {
    "C": "sqlstate",
    "D": "detail",
    "H": "hint",
    "q": "internal_query",
    "W": "where",
    "s": "schema_name",
    "t": "table_name",
    "c": "column_name",
    "d": "datatype_name",
    "n": "constraint_name",
    "F": "source_file",
    "R": "source_function",
}
_NUMBER_FIELDS = {"P": "position", "p": "internal_position", "L": "source_line"}


def _number(value: str) -> int | None:
    return int(value) if len(value) < 20 and value.isascii() and value.isdigit() else None


# A FATAL may come with any condition (3D000 at start-up, 25P03 later), and programs catch OperationalError for a lost
# connection. So there is a second class of the condition's name that is both, made when first needed.
_fatal_classes: dict[type[DatabaseError], type[DatabaseError]] = {}


def _fatal(kind: type[DatabaseError]) -> type[DatabaseError]:
    if issubclass(kind, OperationalError):
        return kind
    if issubclass(OperationalError, kind):
        return OperationalError
    if (made := _fatal_classes.get(kind)) is None:
        body = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": _reduce_fatal}
        made = _fatal_classes.setdefault(kind, type(kind.__name__, (kind, OperationalError), body))
    return made


def _reduce_fatal(error: DatabaseError) -> tuple[object, ...]:
    return _remake_fatal, (type(error).__bases__[0], error.args), error.__dict__


def _remake_fatal(kind: type[DatabaseError], args: tuple[object, ...]) -> DatabaseError:
    return _fatal(kind)(*args)
