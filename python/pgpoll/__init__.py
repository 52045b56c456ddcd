"""pgpoll: a PostgreSQL driver with a nonblocking poll API.

    import pgpoll

    async with pgpoll.connect("postgresql://...") as conn:      # asyncio
        total = await conn.fetchval("select $1::int4 + 1", 41)

    with pgpoll.sync.connect("postgresql://...") as conn:       # blocking
        rows = conn.fetch("select * from t where i = $1", 7)

`pgpoll.core` is the poll API beneath both, `pgpoll.conninfo` reads DSNs, `pgpoll.errors` has an exception for every
SQLSTATE. Importing pgpoll does not import asyncio: the asyncio face is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pgpoll import errors
from pgpoll.errors import (
    BatchRolledBack,
    BatchSkipped,
    BusyError,
    CommitUnknown,
    ConnectionLost,
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotificationsLost,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    ProtocolError,
    QueryTimeout,
)

if TYPE_CHECKING:
    from pgpoll import conninfo, core, sync
    from pgpoll._copy_out import CopyOut
    from pgpoll._listening import Notification
    from pgpoll._observing import Notice, RequestRecord
    from pgpoll._values import Interval, RawJson
    from pgpoll.batch import Batch, BatchItem
    from pgpoll.connection import Connection, Transaction, connect
    from pgpoll.core import Column, Record, Result
    from pgpoll.listener import Listener
    from pgpoll.statement import Statement
    from pgpoll.stream import Stream

__all__ = [
    "Batch",
    "BatchItem",
    "BatchRolledBack",
    "BatchSkipped",
    "BusyError",
    "Column",
    "CommitUnknown",
    "Connection",
    "ConnectionLost",
    "CopyOut",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "Interval",
    "Listener",
    "NotSupportedError",
    "Notice",
    "Notification",
    "NotificationsLost",
    "OperationalError",
    "ProgrammingError",
    "ProtocolError",
    "QueryTimeout",
    "RawJson",
    "Record",
    "RequestRecord",
    "Result",
    "Statement",
    "Stream",
    "Transaction",
    "connect",
    "conninfo",
    "core",
    "errors",
    "sync",
]

_MODULES = frozenset(("conninfo", "core", "sync"))
_HOMES = {
    "Batch": "batch",
    "BatchItem": "batch",
    "Column": "core",
    "Connection": "connection",
    "CopyOut": "_copy_out",
    "Interval": "_values",
    "Listener": "listener",
    "Notice": "_observing",
    "Notification": "_listening",
    "RawJson": "_values",
    "Record": "core",
    "RequestRecord": "_observing",
    "Result": "core",
    "Statement": "statement",
    "Stream": "stream",
    "Transaction": "connection",
    "connect": "connection",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"pgpoll.{name}")
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module 'pgpoll' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"pgpoll.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
