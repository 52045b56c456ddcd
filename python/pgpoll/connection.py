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
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pgpoll import _batches, _copying, _flows, _loop, _two_phase, errors
from pgpoll._copy_out import CopyOut
from pgpoll._facts import Facts
from pgpoll._observing import Observers
from pgpoll._retrying import RETRYABLE, Attempts, check_function
from pgpoll._turns import Block, begin_command, caller
from pgpoll.batch import Batch
from pgpoll.core import RESULT, ROW, ROWS, VALUE
from pgpoll.listener import Listener
from pgpoll.statement import Statement
from pgpoll.stream import PREFETCH, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
    from types import TracebackType

    from pgpoll import core
    from pgpoll._copying import Progress
    from pgpoll._observing import Notice, RequestRecord

T = TypeVar("T")

__all__ = ["Connection", "Transaction", "connect"]


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

    async def executemany(
        self,
        sql: str,
        rows: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        /,
        *,
        timeout: float | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> core.Result:
        """Run one statement for each of `rows`, all or none of it: a Result of all rows and their number together.

        A row is a tuple, a list or a Record with the values of `$1`, `$2`, ... `rows` is any iterable, also an
        asynchronous one; it is read as the server takes it, never as a whole. Where it raises, a row doesn't fit, the
        server refuses one or the task is cancelled, nothing lasts: inside of a transaction that is failed then, and
        elsewhere rolled back. The error's `item` is the row's number, counted from 0.

        The Result has the rows in order where the statement has RETURNING, the tag of the whole ("INSERT 0 1000"), and
        its rowcount. Without rows it has rowcount 0, and nothing is sent, nor checked.

        `on_progress` is called, not awaited, with how many rows the server has taken; what it raises ends all, but for
        the last call, which comes when all has taken effect. `timeout` is in seconds. Other requests wait; those of the
        same task, in `rows`, raise InterfaceError.
        """
        driver = self._driver
        hold = driver.hold("batch", partial(self._core.start_executemany, sql), self._via, caller())
        flow = _batches.executemany(driver.blocks, hold, rows, self._core.flush, on_progress, asynchronous=True)
        return await driver.run(flow, timeout)

    def batch(self) -> Batch:
        """Many requests in one flight, all or none of them: `async with conn.batch() as batch`. See Batch."""
        return Batch(self, caller())

    async def prepare(self, sql: str, /, *, timeout: float | None = None) -> Statement:
        """Prepare one statement: its parameters' and columns' types, and verbs to run it. `timeout` is in seconds."""
        start = partial(self._core.start_prepare, sql)
        prepared = await self._driver.request(start, self._via, timeout, sql, opens=True)
        return Statement(self, prepared)

    def stream(
        self, sql: str, /, *args: Any, prefetch: int | None = PREFETCH, timeout: float | None = None
    ) -> Stream[core.Record]:
        """The rows of one statement as they come, in bounded memory: `async for row in conn.stream(...)`.

        At most `prefetch` rows (1000) are held, or on their way; more are asked for once half of them were consumed.
        Outside of a transaction the stream owns the connection, from its first step to its end; inside of one other
        requests go in between. With None the server is given no limit, so that it may use parallel plans, and it waits
        while 1 MiB is not consumed; such a stream owns the connection in a transaction as well. `timeout` is in
        seconds, for each wait. See Stream.

        Nothing is raised here: the first step raises what is wrong with the call, InterfaceError for a `prefetch` that
        is neither None nor an int from 1 on.
        """
        return Stream(self, sql, args, prefetch, timeout, caller())

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
        """A transaction, or a savepoint where one is open already; entered by `async with`, or begun by its `start()`.

        `async with` sends nothing: BEGIN, or SAVEPOINT, leaves in front of the first request inside, in the same round
        trip. The connection is owned from the entry on. A block in which nothing is asked sends nothing at all.

        `isolation` is "serializable", "repeatable read", "read committed" or "read uncommitted", also with underscores;
        None, for all three, is the server's default. A savepoint takes none of them. Raises InterfaceError for others.
        """
        block = Block(begin_command(isolation, readonly, deferrable), caller())
        block.maker = self._driver.maker()
        return Transaction(self, block)

    async def cancel(self) -> None:
        """Cancel the running request at the server: whoever awaits it gets QueryCanceled, if it was in time.

        Returns when the server has taken notice. Nothing happens where nothing runs. Raises InterfaceError where a
        transaction, stream, COPY or batch is open that the caller is not inside of.
        """
        await self._driver.cancel(self._via)

    def _execute(
        self, sql: str | core.PreparedStatement, args: tuple[Any, ...], want: core.Want[T], timeout: float | None
    ) -> Coroutine[Any, Any, T]:
        def start() -> core.Operation[T]:
            return self._core.start_execute(sql, args, want)

        return self._driver.request(start, self._via, timeout, sql, opens=True)


class Connection(Verbs):
    """A connection to a PostgreSQL server, made by `connect`. Belongs to the event loop that it was made on.

    And to its process: in the child of a fork each verb, and each step of what was open, raises InterfaceError.

    An async context manager: leaving it closes the connection; by an exception, without serving what is still waiting.
    Dropped without `close()`, it is closed with a ResourceWarning.

    A transaction owns the connection: requests from outside of it wait for its end (see `transaction`). Inside are
    those made through its handle, by the task that entered it, and by tasks made inside of it. A BEGIN sent by hand
    gives no such ownership.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, driver: _loop.Driver) -> None:
        super().__init__(driver, None, driver.blocks.stack)

    async def run_transaction(
        self,
        fn: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        retries: int = 3,
        isolation: str | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> T:
        """`await fn(tx, *args)` in a transaction of these options; its value, once that is committed.

        Where `fn` or the COMMIT raises SerializationFailure (40001) or DeadlockDetected (40P01) the transaction is
        rolled back and all of it is done again, up to `retries` times, after a random pause of at most 20 ms, 40 ms,
        ..., 1 s. So `fn` may run several times: what it does elsewhere should not count twice. The last such error has
        a note with the number of attempts. Nothing else is retried, CommitUnknown least of all.

        Raises InterfaceError inside of a transaction: only the outermost can be done again.
        """
        check_function(fn)
        attempts = Attempts(retries)
        self._driver.check_outside("run_transaction")
        while True:
            try:
                async with self.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable) as tx:
                    awaitable = fn(tx, *args)
                    if not isawaitable(awaitable):
                        raise errors.InterfaceError(
                            f"run_transaction takes an async function: this one gave {type(awaitable).__name__}"
                        )
                    return await awaitable
            except RETRYABLE as error:
                seconds = attempts.pause(error, closed=self._core.closed)
                if seconds is None:
                    raise
            await self._driver.pause(seconds)

    async def commit_prepared(self, gid: str, /, *, timeout: float | None = None) -> None:
        """COMMIT PREPARED: commit what some connection has prepared under this name, here or before a crash.

        Raises UndefinedObject where there is none; InterfaceError inside of a transaction. Once sent it is never
        cancelled. Where the answer is lost or not waited for, `prepared_transactions` tells what became of it.
        """
        await self._finish_prepared("COMMIT PREPARED", gid, timeout)

    async def rollback_prepared(self, gid: str, /, *, timeout: float | None = None) -> None:
        """ROLLBACK PREPARED; errors as for `commit_prepared`."""
        await self._finish_prepared("ROLLBACK PREPARED", gid, timeout)

    async def prepared_transactions(self, *, timeout: float | None = None) -> list[core.Record]:
        """The prepared transactions of this database, oldest first: records of gid, prepared, owner and transaction.

        `prepared` is an aware datetime, `transaction` the transaction's id, an int.
        """
        return await self.fetch(_two_phase.PREPARED, timeout=timeout)

    async def _finish_prepared(self, verb: str, gid: str, timeout: float | None) -> None:
        sql = f"{verb} {_two_phase.quoted(gid)}"
        self._driver.check_outside(verb)
        await self._driver.request(partial(self._core.start_command, sql), None, timeout, sql)

    def listen(self, *channels: str, timeout: float | None = None) -> Listener:
        """Listen to channels: `async with conn.listen("news") as notifications`, and `async for` within.

        A channel's name is taken to the letter, as a quoted identifier is: `NOTIFY News` without quotes goes to "news".
        Raises InterfaceError for one that the server could not take, or would cut. `timeout` is that of entering it, in
        seconds.
        """
        return Listener(self, channels, timeout)

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

    BEGIN leaves with the first request inside; the others of the block wait for BEGIN's answer. Where it fails (a hot
    standby has no SERIALIZABLE) that request has not run and raises BEGIN's error; all later ones of the block raise
    InterfaceError with that as `__cause__`, unsent, and the block can't be committed. BEGIN waits for the answers to
    whatever may have begun a transaction by hand; where one has, the first request raises InterfaceError.

    By hand: `await tx.start()`, which sends BEGIN at once, then `commit()` or `rollback()`. Dropped before that, it is
    rolled back, with a ResourceWarning.
    """

    __slots__ = ("_block", "_left", "_parent")

    def __init__(self, parent: Verbs, block: Block) -> None:
        super().__init__(parent._driver, block, (block,))
        self._parent = parent  # also keeps the connection
        self._block = block
        self._left = False  # `with` has been left: what is still to be done needs no handle

    async def start(self, *, timeout: float | None = None) -> None:
        """BEGIN, or SAVEPOINT, sent at once; waits for others' transactions. Once only. `timeout` is in seconds."""
        driver = self._driver
        driver.check_loop()
        control = driver.control(self._block, self._parent._via)
        await driver.run(_flows.start(driver.blocks, control), timeout)
        self._block.carry()

    async def commit(self, *, timeout: float | None = None) -> None:
        """COMMIT, or RELEASE; waits for others' transactions inside of this one.

        `timeout` is in seconds; where it runs out after COMMIT was sent, the error is CommitUnknown.
        """
        await self._driver.run(self._end(commit=True), timeout)
        self._block.drop()

    async def prepare_transaction(self, gid: str, /, *, timeout: float | None = None) -> None:
        """PREPARE TRANSACTION: end the block, and leave the transaction at the server, for any connection's
        `commit_prepared(gid)` or `rollback_prepared(gid)`, whatever crashes meanwhile. Leaving `async with` is quiet.

        `gid` is a name of at most 199 bytes, unique in the server. A failed transaction is rolled back, with
        InFailedSqlTransaction; one that can't be prepared as well, with the server's error (max_prepared_transactions
        is 0 as a rule). Where the answer is lost, or `timeout` seconds run out after it was sent, the error is
        CommitUnknown: it may be prepared or not, which `prepared_transactions` tells. Not for a nested block.
        """
        command = f"PREPARE TRANSACTION {_two_phase.quoted(gid)}"
        await self._driver.run(self._end(commit=True, prepare=command), timeout)
        self._block.drop()

    async def rollback(self, *, timeout: float | None = None) -> None:
        """ROLLBACK, of the savepoint where it is one. `timeout` is in seconds; after it the rollback goes on alone."""
        await self._driver.run(self._end(commit=False), timeout)
        self._block.drop()

    async def __aenter__(self) -> Transaction:
        driver, block = self._driver, self._block
        driver.check_loop()
        control = driver.control(block, self._parent._via)
        driver.blocks.enter(control, lazy=True)
        if not control.decided:
            await driver.run(_flows.entered(driver.blocks, control))
        block.carry()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        driver, block = self._driver, self._block
        block.drop()
        if error is None or isinstance(error, Exception):
            await driver.run(_flows.leave(driver.blocks, block, error, self._end))
        else:
            # cancelled, or a generator closed, maybe by a finalizer: the rollback needs no task
            (driver.doom if kind is GeneratorExit else driver.blocks.doom)(block)

    def _end(self, commit: bool, prepare: str = "") -> _flows.Flow[None]:
        driver = self._driver
        control = driver.control(self._block, self._block, commit=commit, prepare=prepare)
        return _flows.finish(driver.blocks, control, driver.core)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        block = getattr(self, "_block", None)  # unset where __init__ failed
        if block is not None and block.live and not self._left and not self._core.closed and self._driver.ours:
            _warn(f"unfinished transaction {self!r}", ResourceWarning, stacklevel=2, source=self)
            self._driver.doom(block)

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
