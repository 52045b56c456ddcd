"""The asyncio face: `connect`, Connection and Transaction.

Many tasks may use one connection at once: requests are sent in the order in which they are made, as they come, and each
task gets its own answer. Nobody ever waits for another's, but for the end of a transaction.

Every verb is a real `async def`: nothing is checked, encoded or queued before its first step, which runs in the context
of the task that awaits it. Cancelling a task at any await is safe: the request's answer is read without it, and a query
that runs alone is cancelled at the server.

The verbs raise the error of their own request (a class of `pgpoll.errors`); InterfaceError for misuse, a closed
connection, or one that belongs to another event loop; DataError for an argument that doesn't fit, before anything of it
is sent; ConnectionLost, or the server's own FATAL error, where the connection ends; QueryTimeout where `timeout=`
(seconds, with the time in the line) runs out.
"""

from __future__ import annotations

import warnings
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pgpoll import _copying, _flows, _loop
from pgpoll._copy_out import CopyOut
from pgpoll._facts import Facts
from pgpoll._observing import Observers
from pgpoll._turns import Block, begin_command, caller
from pgpoll.core import RESULT, ROW, ROWS, VALUE
from pgpoll.statement import Statement

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from types import TracebackType

    from pgpoll import core
    from pgpoll._copying import Progress
    from pgpoll._observing import Notice, RequestRecord

T = TypeVar("T")

__all__ = ["Connection", "CopyOut", "Transaction", "connect"]


class Verbs(Facts):
    """What a connection and a transaction's handle have in common: the requests."""

    __slots__ = ("_busy", "_driver", "_via")

    def __init__(self, driver: _loop.Driver, via: Block | None, busy: Sequence[Block]) -> None:
        super().__init__(driver.core)
        self._driver = driver
        self._via = via  # the block that this is the handle of
        self._busy = busy  # false as long as nobody has to wait for anybody

    async def execute(self, sql: str, /, *args: Any, timeout: float | None = None) -> core.Result:
        """Run one statement with `$1`, `$2`, ... replaced by `args`; its Result: rows, tag, rowcount.

        Arguments are taken as the types that the server infers; rows are decoded when they are touched. `timeout` is in
        seconds; None waits without limit. For several statements at once there is `executescript`.
        """
        if timeout is None and (not self._busy or self._driver.inside(self._via)):
            return await self._core._execute(sql, args, RESULT)
        return await self._execute(sql, args, RESULT, timeout)

    async def fetch(self, sql: str, /, *args: Any, timeout: float | None = None) -> list[core.Record]:
        """As `execute`; the rows as a list of Records, decoded."""
        if timeout is None and (not self._busy or self._driver.inside(self._via)):
            return await self._core._execute(sql, args, ROWS)
        return await self._execute(sql, args, ROWS, timeout)

    async def fetchrow(self, sql: str, /, *args: Any, timeout: float | None = None) -> core.Record | None:
        """As `execute`; the first row, or None where there is none. The others are read and dropped."""
        if timeout is None and (not self._busy or self._driver.inside(self._via)):
            return await self._core._execute(sql, args, ROW)
        return await self._execute(sql, args, ROW, timeout)

    async def fetchval(self, sql: str, /, *args: Any, timeout: float | None = None) -> Any:
        """As `execute`; the first column of the first row, or None where there is no row."""
        if timeout is None and (not self._busy or self._driver.inside(self._via)):
            return await self._core._execute(sql, args, VALUE)
        return await self._execute(sql, args, VALUE, timeout)

    async def executescript(self, sql: str, /, *, timeout: float | None = None) -> list[core.Result]:
        """Run several statements, separated by semicolons, without parameters: a Result for each.

        The values are str or None, as the server writes them. As with psql, the statements are one transaction unless
        they say otherwise. `timeout` is in seconds.
        """
        return await self._driver.request(partial(self._core.start_script, sql), self._via, timeout, sql)

    async def prepare(self, sql: str, /, *, timeout: float | None = None) -> Statement:
        """Prepare one statement: its parameters' and columns' types, and verbs to run it. `timeout` is in seconds."""
        prepared = await self._driver.request(partial(self._core.start_prepare, sql), self._via, timeout, sql)
        return Statement(self, prepared)

    async def copy_in(
        self,
        sql: str,
        source: Any,
        *,
        on_progress: Progress | None = None,
        timeout: float | None = None,
    ) -> core.Result:
        """Run a COPY ... FROM STDIN whose data, in text, CSV or binary as `sql` says, comes from `source`; its Result.

        `source` is bytes (or what has its memory in a buffer), a pathlib.Path, a binary file, or an (async)
        iterable of bytes, cut anywhere; it is read only as fast as the server takes it. Where it raises nothing is
        copied, and its own error is raised; where the server fails it is read no further, and the error's `copy_line`
        says where.
        Until the end the connection is the COPY's: others wait, and a source that uses it gets InterfaceError.

        `on_progress(rows, bytes)` is called after each slice of the data, with None for the rows; what it raises ends
        the COPY. `timeout` is in seconds, the source's own waits included. Raises InterfaceError for a source of str,
        or an sql that is no COPY ... FROM STDIN.
        """
        flow = _copying.copy_in(self._driver, self._via, sql, source, on_progress, asynchronous=True)
        return await self._driver.run(flow, timeout)

    async def copy_records(
        self,
        table: str,
        records: Any,
        columns: Iterable[str] | None = None,
        schema: str | None = None,
        *,
        on_progress: Progress | None = None,
        timeout: float | None = None,
    ) -> core.Result:
        """Copy records into a table, in the binary format: a Result, whose `rowcount` says how many.

        `records` is an (async) iterable of sequences (tuples, lists, Records), mappings or dataclasses; of the last
        two the values are taken by the columns' names. `table` and `schema` are one identifier each, quoted. Without
        `columns` all are written that can be, in their order; generated ones can't.

        Values are taken as `execute` takes them for parameters of the columns' types. The first that doesn't fit raises
        DataError, which names the record (counted from 1), the column and the types, and nothing is copied. A column of
        a type that the driver can't write in binary raises InterfaceError. `on_progress(rows, bytes)` and the rest are
        as for `copy_in`.
        """
        flow = _copying.copy_records(
            self._driver, self._via, (schema, table), columns, records, on_progress, asynchronous=True
        )
        return await self._driver.run(flow, timeout)

    @overload
    def copy_out(
        self, sql: str, to: None = None, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> CopyOut: ...
    @overload
    def copy_out(
        self, sql: str, to: Any, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> Coroutine[Any, Any, core.Result]: ...
    def copy_out(
        self, sql: str, to: Any = None, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> CopyOut | Coroutine[Any, Any, core.Result]:
        """Run a COPY ... TO STDOUT: an asynchronous iterator of what comes, as bytes, and a context manager.

        The bytes are cut anywhere; with FORMAT text or CSV usually between two lines. No more than about 1 MiB is kept
        for a slow consumer: the server waits. With `to`, a pathlib.Path or a binary file, all is written there instead,
        and awaiting this call gives the Result; a Path is made when the first bytes, or the end, have come.

        The connection is the COPY's until its end; leaving the block, or dropping the iterator, ends it at once.
        `on_progress(rows, bytes)` is called as data comes, with None for the rows. `timeout`, in seconds, is for each
        wait of the iterator, or for all with `to`. Raises InterfaceError for an sql that is no COPY ... TO STDOUT.
        """
        if to is None:
            return CopyOut(self, sql, on_progress, timeout, decoded=False)
        copy: CopyOut = CopyOut(self, sql, on_progress, None, decoded=False)
        return self._driver.run(copy._written(to), timeout)

    def copy_out_records(
        self, sql: str, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> CopyOut[core.Record]:
        """The rows of a query as Records, by COPY in the binary format: an asynchronous iterator and a context manager.

        For a query without parameters, or a COPY ... TO STDOUT without options. Nothing but a bounded part is in memory
        at once. Columns of types that the driver knows in text only are str, as everywhere. `on_progress(rows, bytes)`,
        `timeout` and the rest are as for `copy_out`. A value that can't be decoded raises DataError and ends the COPY.
        """
        return CopyOut(self, sql, on_progress, timeout, decoded=True)

    def transaction(
        self, *, isolation: str | None = None, readonly: bool | None = None, deferrable: bool | None = None
    ) -> Transaction:
        """A transaction, or a savepoint where one is open already; begun by `async with`, or by its `start()`.

        `isolation` is "serializable", "repeatable read", "read committed" or "read uncommitted", also with underscores;
        None, for all three, is the server's default. A savepoint takes none of them. Raises InterfaceError for others.
        """
        return Transaction(self, Block(begin_command(isolation, readonly, deferrable), caller()))

    async def cancel(self) -> None:
        """Cancel the running request at the server: whoever awaits it gets QueryCanceled, if it was in time.

        Returns when the server has taken notice. Nothing happens where nothing runs. Raises InterfaceError where a
        transaction is open that the caller is not inside of.
        """
        await self._driver.cancel(self._via)

    async def _execute(
        self, sql: str | core.PreparedStatement, args: tuple[Any, ...], want: core.Want[T], timeout: float | None
    ) -> T:
        return await self._driver.request(lambda: self._core.start_execute(sql, args, want), self._via, timeout, sql)


class Connection(Verbs):
    """A connection to a PostgreSQL server, made by `connect`. Belongs to the event loop that it was made on.

    An async context manager: leaving it closes the connection; by an exception, without serving what is still waiting.
    Dropped without `close()`, it is closed with a ResourceWarning.

    A transaction owns the connection: requests from outside of it wait for its end (see `transaction`). Inside are
    those made through its handle, by the task that entered it, and by tasks made inside of it. A BEGIN sent by hand
    gives no such ownership.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, driver: _loop.Driver) -> None:
        super().__init__(driver, None, driver.blocks.stack)

    async def close(self) -> None:
        """Serve what was accepted, within 5 s, and end the connection. Later requests get InterfaceError.

        Waits for another's transaction; one that the caller is inside of is rolled back. May be called often, and by
        many.
        """
        await self._driver.close(None)

    def terminate(self) -> None:
        """End the connection now. Whoever waits gets ConnectionLost("closed"). Never fails."""
        self._driver.terminate()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self._driver.leave()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        core = getattr(self, "_core", None)  # unset where __init__ failed
        if core is not None and not core.closed and self._driver.ours:
            _warn(f"unclosed connection {self!r}", ResourceWarning, stacklevel=2, source=self)
        if core is not None:
            self._driver.terminate()


class Transaction(Verbs):
    """One transaction, or savepoint: the handle that `async with conn.transaction() as tx` gives.

    It has the verbs of the connection; what is made through it is inside of the block, from whatever task. Leaving the
    block commits; by an exception it rolls back. A block in which an error was swallowed can't be committed: it is
    rolled back, and leaving it raises InFailedSqlTransaction. Where COMMIT was sent and its answer never came the error
    is CommitUnknown; a task that is cancelled in between gets CancelledError with that as its `__cause__`.

    By hand: `await tx.start()`, then `commit()` or `rollback()`.
    """

    __slots__ = ("_block", "_parent")

    def __init__(self, parent: Verbs, block: Block) -> None:
        super().__init__(parent._driver, block, (block,))
        self._parent = parent  # also keeps the connection
        self._block = block

    async def start(self, *, timeout: float | None = None) -> None:
        """BEGIN, or SAVEPOINT; waits for others' transactions. Once only. `timeout` is in seconds."""
        driver = self._driver
        driver.check_loop()
        control = driver.control(self._block, self._parent._via)
        await driver.run(_flows.start(driver.blocks, control, driver.task_name()), timeout)
        self._block.carry()

    async def commit(self, *, timeout: float | None = None) -> None:
        """COMMIT, or RELEASE; waits for others' transactions inside of this one.

        `timeout` is in seconds; where it runs out after COMMIT was sent, the error is CommitUnknown.
        """
        await self._driver.run(self._end(commit=True), timeout)
        self._block.drop()

    async def rollback(self, *, timeout: float | None = None) -> None:
        """ROLLBACK, of the savepoint where it is one. `timeout` is in seconds; after it the rollback goes on alone."""
        await self._driver.run(self._end(commit=False), timeout)
        self._block.drop()

    async def __aenter__(self) -> Transaction:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        driver, block = self._driver, self._block
        block.drop()
        if error is None or isinstance(error, Exception):
            await driver.run(_flows.leave(driver.blocks, block, error, self._end))
        else:
            driver.doom(block)  # cancelled, or a generator closed: the rollback needs no task

    def _end(self, commit: bool) -> _flows.Flow[None]:
        driver = self._driver
        control = driver.control(self._block, self._block, commit=commit)
        return _flows.finish(driver.blocks, control, driver.core)

    def __repr__(self) -> str:
        block = self._block
        return f"<pgpoll.connection.Transaction entered at {block.where}, {block.state.value}>"


class Connecting(Coroutine[Any, Any, Connection]):
    """What `connect` returns: await it, or enter it with `async with`."""

    __slots__ = ("_connection", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Connection]) -> None:
        self._coroutine = coroutine
        self._connection: Connection | None = None

    def __await__(self) -> Generator[Any, Any, Connection]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """See Coroutine.send."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """See Coroutine.throw."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """See Coroutine.close."""
        self._coroutine.close()

    async def __aenter__(self) -> Connection:
        self._connection = await self._coroutine
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.__aexit__(kind, error, traceback)


def connect(
    dsn: str | None = None,
    /,
    *,
    on_request: Callable[[RequestRecord], object] | None = None,
    on_notice: Callable[[Notice], object] | None = None,
    **params: Any,
) -> Connecting:
    """Connect to a server: `await connect(...)`, or `async with connect(...) as conn`.

    `dsn` is `postgresql://...` or `key=value ...`; `params` and what neither says are as in `pgpoll.conninfo.parse`.
    Names are looked up by the loop's resolver, addresses are tried in turn: in `connect_timeout` seconds altogether.
    Raises InterfaceError for wrong options, OperationalError where no server could be reached or it refused,
    QueryTimeout where the time ran out.

    `on_request` is called with a RequestRecord for each request, whatever its outcome, before the task that awaits it
    goes on, and in the context that the request was made in. Requests are the verbs' and a transaction's own commands;
    what was refused as misuse before it was queued is none. `on_notice` is called with a Notice for each that the
    server sends, in the context of this call; without it they go to the logger `pgpoll.notice`. Neither is awaited.
    What they raise goes to the loop's exception handler. Both may use the connection: start tasks, terminate it.
    """
    return Connecting(_connect(dsn, params, Observers(on_request, on_notice)))


async def _connect(dsn: str | None, params: dict[str, Any], observers: Observers) -> Connection:
    return Connection(await _loop.connect(dsn, params, observers))
