"""The drivers that the benchmark compares, each used as its own documentation recommends for speed.

Every driver is imported when it is asked for, so that one that is not installed is reported and the others still run.
What is the same for all: one prepared statement a query, cached by the driver; binary results; autocommit.

- pgpoll: `fetchval`, `fetch` and `executemany`.
- asyncpg: `Connection.fetchval`, `fetch` and `executemany` (its statement cache prepares).
- psycopg: the C implementation (asserted), `prepare_threshold=0`, a raw cursor (`$1` parameters) that is made once.
- streaming: pgpoll's `stream`, asyncpg's `cursor`, psycopg's `AsyncServerCursor`; psqlpy is not compared.
- psqlpy: `fetch_val`, `execute_many`, and `fetch` with `records()`, its nearest to named records: only that converts.

Drivers ship partial stubs or none, so a driver's module and objects are `Any` here and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from cases import STREAM_PREFETCH

ONE_VALUE = "select $1::int4"
ARGUMENT = 42


class WrongValue(Exception):
    """A driver gave another value than was asked for."""


def check(value: object) -> None:
    """Raise WrongValue unless `value` is the one that ONE_VALUE must give."""
    if value != ARGUMENT:
        raise WrongValue(f"{ONE_VALUE} with {ARGUMENT} gave {value!r}")


class Connection(ABC):
    """One connection of a driver on asyncio."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    @abstractmethod
    async def fetchvals(self, count: int) -> None:
        """Run ONE_VALUE `count` times, one after another, and check each value. Hot: calls the driver directly."""

    @abstractmethod
    async def fetch(self, sql: str) -> Sequence[Any]:
        """All rows of `sql`, every value a Python object."""

    @abstractmethod
    async def executemany(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run `sql` for each row."""

    @abstractmethod
    async def hold(self, sql: str) -> object:
        """The driver's result of `sql`, complete in the client and with no row touched."""

    async def stream(self, sql: str) -> int:
        """Touch the rows of `sql` one by one, in bounded memory; how many there were."""
        raise NotImplementedError

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""

    def values(self, row: Any) -> tuple[Any, ...]:
        """The values of one row of `fetch`, in order."""
        return tuple(row)

    async def backend_pid(self) -> int:
        """The process id of the connection's backend."""
        return int(self.values((await self.fetch("select pg_backend_pid()"))[0])[0])


class Contender(ABC):
    """A driver: how it is imported, connected, and what its version is."""

    name: ClassVar[str]
    shares_connection: ClassVar[bool] = False
    """True when many tasks use one connection at once; else each task of ten has its own."""
    streams: ClassVar[bool] = True
    """Whether it is compared in streaming."""

    @abstractmethod
    def load(self) -> str:
        """Import the driver and return its version; ImportError when it is not there."""

    @abstractmethod
    async def connect(self, dsn: str) -> Connection:
        """A new connection."""


class PgpollConnection(Connection):
    async def fetchvals(self, count: int) -> None:
        fetchval = self.raw.fetchval
        for _ in range(count):
            check(await fetchval(ONE_VALUE, ARGUMENT))

    async def fetch(self, sql: str) -> Sequence[Any]:
        rows: Sequence[Any] = await self.raw.fetch(sql)
        return rows

    async def executemany(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        await self.raw.executemany(sql, rows)

    async def hold(self, sql: str) -> object:
        return await self.raw.execute(sql)

    async def stream(self, sql: str) -> int:
        count = 0
        async for _ in self.raw.stream(sql, prefetch=STREAM_PREFETCH):
            count += 1
        return count

    async def close(self) -> None:
        await self.raw.close()


class Pgpoll(Contender):
    name = "pgpoll"
    shares_connection = True

    def load(self) -> str:
        module: Any = importlib.import_module("pgpoll")
        importlib.import_module("pgpoll.core")
        self._connect = module.connect
        return _version("pgpoll", module)

    async def connect(self, dsn: str) -> Connection:
        return PgpollConnection(await self._connect(dsn))


class AsyncpgConnection(PgpollConnection):
    """Has the same verbs as pgpoll."""

    async def hold(self, sql: str) -> object:
        return await self.raw.fetch(sql)

    async def stream(self, sql: str) -> int:
        count = 0
        async with self.raw.transaction():
            async for _ in self.raw.cursor(sql, prefetch=STREAM_PREFETCH):
                count += 1
        return count


class Asyncpg(Contender):
    name = "asyncpg"

    def load(self) -> str:
        self._module: Any = importlib.import_module("asyncpg")
        return _version("asyncpg", self._module)

    async def connect(self, dsn: str) -> Connection:
        return AsyncpgConnection(await self._module.connect(dsn))


class PsycopgConnection(Connection):
    def __init__(self, raw: Any, cursor: Any) -> None:
        super().__init__(raw)
        self._cursor = cursor

    async def fetchvals(self, count: int) -> None:
        execute, fetchone = self._cursor.execute, self._cursor.fetchone
        for _ in range(count):
            await execute(ONE_VALUE, (ARGUMENT,))
            check((await fetchone())[0])

    async def fetch(self, sql: str) -> Sequence[Any]:
        await self._cursor.execute(sql)
        if self._cursor.description is None:
            return ()
        rows: Sequence[Any] = await self._cursor.fetchall()
        return rows

    async def executemany(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        await self._cursor.executemany(sql, rows)

    async def hold(self, sql: str) -> object:
        await self._cursor.execute(sql)
        return self._cursor

    async def stream(self, sql: str) -> int:
        count = 0
        async with self.raw.transaction(), self.raw.cursor("streamed", binary=True) as cursor:
            cursor.itersize = STREAM_PREFETCH
            await cursor.execute(sql)
            async for _ in cursor:
                count += 1
        return count

    async def close(self) -> None:
        await self.raw.close()


class Psycopg(Contender):
    name = "psycopg"

    def load(self) -> str:
        self._module: Any = importlib.import_module("psycopg")
        return _psycopg_version(self._module)

    async def connect(self, dsn: str) -> Connection:
        raw = await self._module.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0)
        cursor = self._module.AsyncRawCursor(raw)
        cursor.format = self._module.pq.Format.BINARY
        return PsycopgConnection(raw, cursor)


class PsqlpyConnection(Connection):
    async def fetchvals(self, count: int) -> None:
        fetch_val = self.raw.fetch_val
        for _ in range(count):
            check(await fetch_val(ONE_VALUE, [ARGUMENT]))

    async def fetch(self, sql: str) -> Sequence[Any]:
        rows: Sequence[Any] = (await self.raw.fetch(sql)).records()
        return rows

    def values(self, row: Any) -> tuple[Any, ...]:
        return tuple(row.values())

    async def executemany(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        await self.raw.execute_many(sql, rows)

    async def hold(self, sql: str) -> object:
        return await self.raw.fetch(sql)

    async def close(self) -> None:
        self.raw.close()


class Psqlpy(Contender):
    name = "psqlpy"
    streams = False

    def load(self) -> str:
        self._module: Any = importlib.import_module("psqlpy")
        return _version("psqlpy", self._module)

    async def connect(self, dsn: str) -> Connection:
        return PsqlpyConnection(await self._module.connect(dsn))


class SyncConnection(ABC):
    """One blocking connection of a driver."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    @abstractmethod
    def fetchvals(self, count: int) -> None:
        """As Connection.fetchvals."""

    @abstractmethod
    def backend_pid(self) -> int:
        """As Connection.backend_pid."""

    def close(self) -> None:
        """Close the connection."""
        self.raw.close()


class SyncContender(ABC):
    """A driver's blocking face."""

    name: ClassVar[str]

    @abstractmethod
    def load(self) -> str:
        """As Contender.load."""

    @abstractmethod
    def connect(self, dsn: str) -> SyncConnection:
        """A new connection."""


class PgpollSyncConnection(SyncConnection):
    def fetchvals(self, count: int) -> None:
        fetchval = self.raw.fetchval
        for _ in range(count):
            check(fetchval(ONE_VALUE, ARGUMENT))

    def backend_pid(self) -> int:
        return int(self.raw.fetchval("select pg_backend_pid()"))


class PgpollSync(SyncContender):
    name = "pgpoll"

    def load(self) -> str:
        self._module: Any = importlib.import_module("pgpoll.sync")
        importlib.import_module("pgpoll.core")
        return _version("pgpoll", self._module)

    def connect(self, dsn: str) -> SyncConnection:
        return PgpollSyncConnection(self._module.connect(dsn))


class PsycopgSyncConnection(SyncConnection):
    def __init__(self, raw: Any, cursor: Any) -> None:
        super().__init__(raw)
        self._cursor = cursor

    def fetchvals(self, count: int) -> None:
        execute, fetchone = self._cursor.execute, self._cursor.fetchone
        for _ in range(count):
            execute(ONE_VALUE, (ARGUMENT,))
            check(fetchone()[0])

    def backend_pid(self) -> int:
        return int(self._cursor.execute("select pg_backend_pid()").fetchone()[0])


class PsycopgSync(SyncContender):
    name = "psycopg"

    def load(self) -> str:
        self._module: Any = importlib.import_module("psycopg")
        return _psycopg_version(self._module)

    def connect(self, dsn: str) -> SyncConnection:
        raw = self._module.connect(dsn, autocommit=True, prepare_threshold=0)
        cursor = self._module.RawCursor(raw)
        cursor.format = self._module.pq.Format.BINARY
        return PsycopgSyncConnection(raw, cursor)


def _version(distribution: str, module: Any) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # imported from a build tree
        return str(getattr(module, "__version__", "unknown"))


def _psycopg_version(module: Any) -> str:
    implementation = module.pq.__impl__
    if implementation not in ("binary", "c"):
        raise ImportError(f"psycopg runs on its {implementation!r} implementation; install psycopg[binary]")
    return f"{_version('psycopg', module)} ({implementation}, libpq {module.pq.version()})"


ASYNC: tuple[type[Contender], ...] = (Pgpoll, Asyncpg, Psycopg, Psqlpy)
SYNC: tuple[type[SyncContender], ...] = (PgpollSync, PsycopgSync)
