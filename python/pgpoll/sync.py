"""The blocking face: the verbs of `pgpoll.connect`'s connections, without await. Imports no asyncio.

    with pgpoll.sync.connect("postgresql://...") as conn:
        rows = conn.fetch("select * from t where i = $1", 7)

Threads may share a connection: a verb holds its mutex while it drives, and gives it back while it waits for another
thread's transaction. Inside of a transaction is the thread that entered it, and whatever is made through its handle.
`cancel()` and `terminate()` never take the mutex: from another thread they end the wait of the verb that runs.

While a verb waits the GIL is free, and Ctrl-C is prompt: the query is cancelled at the server (which may take 1 s; a
second Ctrl-C skips it) and KeyboardInterrupt raised; the connection stays usable. That is so wherever it strikes, and
whatever the handler of a signal raises: what a verb had begun is abandoned, and a transaction whose start or `with` it
interrupts is rolled back. (In a `__del__` Python itself drops what is raised.) A handler may call `terminate()`.

Inside of a running event loop these verbs block it, as any blocking call does.

The verbs raise the same errors as those of the asyncio face; see `pgpoll.connection`.
"""

from __future__ import annotations

import warnings
from collections.abc import Coroutine
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pgpoll import _batches, _copying, _two_phase, conninfo, core, errors
from pgpoll._blocking import Batch, BatchItem, Listener, Stream
from pgpoll._copy_out import BlockingCopyOut
from pgpoll._copy_out import BlockingCopyOut as CopyOut
from pgpoll._facts import Facts
from pgpoll._flows import Flow, finish, leave, start
from pgpoll._observing import Observers
from pgpoll._retrying import RETRYABLE, Attempts, check_function
from pgpoll._streams import PREFETCH
from pgpoll._threads import Driver, resolved
from pgpoll._turns import Block, begin_command, caller
from pgpoll.core import RESULT, ROW, ROWS, VALUE
from pgpoll.statement import Described, R

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from pgpoll._copying import Progress
    from pgpoll._observing import Notice, RequestRecord

T = TypeVar("T")

__all__ = ["Batch", "BatchItem", "Connection", "CopyOut", "Listener", "Statement", "Stream", "Transaction", "connect"]


class Verbs(Facts):
    """What a connection and a transaction's handle have in common: the requests."""

    __slots__ = ("_driver", "_via")

    def __init__(self, driver: Driver, via: Block | None) -> None:
        super().__init__(driver.core)
        self._driver = driver
        self._via = via

    def execute(self, sql: str, /, *args: Any, timeout: float | None = None) -> core.Result:
        """See pgpoll.Connection.execute."""
        return self._execute(sql, args, RESULT, timeout)

    def fetch(self, sql: str, /, *args: Any, timeout: float | None = None) -> list[core.Record]:
        """See pgpoll.Connection.fetch."""
        return self._execute(sql, args, ROWS, timeout)

    def fetchrow(self, sql: str, /, *args: Any, timeout: float | None = None) -> core.Record | None:
        """See pgpoll.Connection.fetchrow."""
        return self._execute(sql, args, ROW, timeout)

    def fetchval(self, sql: str, /, *args: Any, timeout: float | None = None) -> Any:
        """See pgpoll.Connection.fetchval."""
        return self._execute(sql, args, VALUE, timeout)

    def executescript(self, sql: str, /, *, timeout: float | None = None) -> list[core.Result]:
        """See pgpoll.Connection.executescript."""
        return self._driver.request(partial(self._core.start_script, sql), self._via, timeout, sql)

    def executemany(
        self,
        sql: str,
        rows: Iterable[Sequence[Any]],
        /,
        *,
        timeout: float | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> core.Result:
        """See pgpoll.Connection.executemany. `rows` is an iterable, which is read without the connection's mutex."""
        driver = self._driver
        hold = driver.hold("batch", partial(self._core.start_executemany, sql), self._via, caller())
        flow = _batches.executemany(driver.blocks, hold, rows, self._core.flush, on_progress, asynchronous=False)
        return driver.run(flow, timeout)

    def batch(self, *, timeout: float | None = None) -> Batch:
        """See pgpoll.Connection.batch: `with conn.batch() as batch`.

        `timeout` is in seconds, for entering the block, and again for its end: QueryTimeout then, and the items say
        what is known of them.
        """
        return Batch(self, caller(), timeout)

    def prepare(self, sql: str, /, *, timeout: float | None = None) -> Statement:
        """See pgpoll.Connection.prepare."""
        start = partial(self._core.start_prepare, sql)
        return Statement(self, self._driver.request(start, self._via, timeout, sql, opens=True))

    def stream(
        self, sql: str, /, *args: Any, prefetch: int | None = PREFETCH, timeout: float | None = None
    ) -> Stream[core.Record]:
        """See pgpoll.Connection.stream."""
        return Stream(self, sql, args, prefetch, timeout, caller())

    def copy_in(
        self,
        sql: str,
        source: Any,
        *,
        on_progress: Progress | None = None,
        timeout: float | None = None,
    ) -> core.Result:
        """See pgpoll.Connection.copy_in. While the source computes, other threads may use the connection's mutex."""
        flow = _copying.copy_in(self._driver, self._via, sql, source, on_progress, asynchronous=False)
        return self._driver.run(flow, timeout)

    def copy_records(
        self,
        table: str,
        records: Any,
        columns: Iterable[str] | None = None,
        schema: str | None = None,
        *,
        on_progress: Progress | None = None,
        timeout: float | None = None,
    ) -> core.Result:
        """See pgpoll.Connection.copy_records."""
        flow = _copying.copy_records(
            self._driver, self._via, (schema, table), columns, records, on_progress, asynchronous=False
        )
        return self._driver.run(flow, timeout)

    @overload
    def copy_out(
        self, sql: str, to: None = None, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> BlockingCopyOut: ...
    @overload
    def copy_out(
        self, sql: str, to: Any, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> core.Result: ...
    def copy_out(
        self, sql: str, to: Any = None, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> BlockingCopyOut | core.Result:
        """See pgpoll.Connection.copy_out: an iterator of bytes; with `to` its Result, once all is written."""
        if to is None:
            return BlockingCopyOut(self, sql, on_progress, timeout, decoded=False)
        copy: BlockingCopyOut = BlockingCopyOut(self, sql, on_progress, None, decoded=False)
        return self._driver.run(copy._written(to), timeout)

    def copy_out_records(
        self, sql: str, *, on_progress: Progress | None = None, timeout: float | None = None
    ) -> BlockingCopyOut[core.Record]:
        """See pgpoll.Connection.copy_out_records: an iterator of Records."""
        return BlockingCopyOut(self, sql, on_progress, timeout, decoded=True)

    def transaction(
        self, *, isolation: str | None = None, readonly: bool | None = None, deferrable: bool | None = None
    ) -> Transaction:
        """See pgpoll.Connection.transaction."""
        return Transaction(self, Block(begin_command(isolation, readonly, deferrable), caller()))

    def cancel(self) -> None:
        """See pgpoll.Connection.cancel. From any thread; from outside of a transaction, through its handle."""
        self._driver.cancel(self._via)

    def _execute(
        self, sql: str | core.PreparedStatement, args: tuple[Any, ...], want: core.Want[T], timeout: float | None
    ) -> T:
        if timeout is None and self._via is None:
            return self._driver.execute(sql, args, want)

        def start() -> core.Operation[T]:
            return self._core.start_execute(sql, args, want)

        return self._driver.request(start, self._via, timeout, sql, opens=True)


class Connection(Verbs):
    """A blocking connection to a PostgreSQL server, made by `pgpoll.sync.connect`. May be shared by threads.

    Not by processes: in the child of a fork each verb, and each step of what was open, raises InterfaceError.

    A context manager: leaving it closes the connection; by an exception, without serving what is still waiting.
    Dropped without `close()`, it is closed with a ResourceWarning.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver, None)

    def run_transaction(
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        retries: int = 3,
        isolation: str | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> T:
        """`fn(tx, *args)` in a transaction, again where that helps. See pgpoll.Connection.run_transaction.

        There is no `timeout`: nothing can interrupt `fn`. Its requests take theirs, and PostgreSQL's
        transaction_timeout ends a transaction that lasts too long.
        """
        check_function(fn)
        attempts = Attempts(retries)
        self._driver.check_outside("run_transaction")
        while True:
            try:
                with self.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable) as tx:
                    value = fn(tx, *args)
                    if isinstance(value, Coroutine):
                        value.close()
                        raise errors.InterfaceError("run_transaction got an async function: use pgpoll.connect")
                    return value
            except RETRYABLE as error:
                seconds = attempts.pause(error, closed=self._core.closed)
                if seconds is None:
                    raise
            sleep(seconds)

    def commit_prepared(self, gid: str, /, *, timeout: float | None = None) -> None:
        """See pgpoll.Connection.commit_prepared."""
        self._finish_prepared("COMMIT PREPARED", gid, timeout)

    def rollback_prepared(self, gid: str, /, *, timeout: float | None = None) -> None:
        """See pgpoll.Connection.rollback_prepared."""
        self._finish_prepared("ROLLBACK PREPARED", gid, timeout)

    def prepared_transactions(self, *, timeout: float | None = None) -> list[core.Record]:
        """See pgpoll.Connection.prepared_transactions."""
        return self.fetch(_two_phase.PREPARED, timeout=timeout)

    def _finish_prepared(self, verb: str, gid: str, timeout: float | None) -> None:
        sql = f"{verb} {_two_phase.quoted(gid)}"
        self._driver.check_outside(verb)
        self._driver.request(partial(self._core.start_command, sql), None, timeout, sql)

    def listen(self, *channels: str, timeout: float | None = None) -> Listener:
        """Listen to channels: `with conn.listen("news") as notifications`. See pgpoll.Connection.listen."""
        return Listener(self, channels, timeout)

    def close(self) -> None:
        """Serve what was accepted, within 5 s, and end the connection. See pgpoll.Connection.close."""
        self._driver.close(None)

    def terminate(self) -> None:
        """End the connection now, from any thread. Whoever waits gets ConnectionLost("closed"). Never fails."""
        self._driver.terminate()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._driver.leave()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        connection = getattr(self, "_core", None)  # unset where __init__ failed
        if connection is None:
            return
        if not connection.closed and self._driver.ours:
            _warn(f"unclosed connection {self!r}", ResourceWarning, stacklevel=2, source=self)
        self._driver.terminate()


class Transaction(Verbs):
    """One transaction, or savepoint, of a blocking connection. See pgpoll.Transaction.

    Inside of it are the thread that entered it, and whatever is made through this handle.
    """

    __slots__ = ("_block", "_left", "_parent")

    def __init__(self, parent: Verbs, block: Block) -> None:
        super().__init__(parent._driver, block)
        self._parent = parent  # also keeps the connection
        self._block = block
        self._left = False  # `with` has been left: what is still to be done needs no handle

    def start(self, *, timeout: float | None = None) -> None:
        """BEGIN, or SAVEPOINT. See pgpoll.Transaction.start."""
        driver = self._driver
        control = driver.control(self._block, self._parent._via)
        try:
            driver.run(start(driver.blocks, control), timeout)
        except BaseException as error:
            self._torn(error)
            raise

    def commit(self, *, timeout: float | None = None) -> None:
        """COMMIT, or RELEASE. See pgpoll.Transaction.commit."""
        self._driver.run(self._end(commit=True), timeout)

    def prepare_transaction(self, gid: str, /, *, timeout: float | None = None) -> None:
        """PREPARE TRANSACTION. See pgpoll.Transaction.prepare_transaction."""
        command = f"PREPARE TRANSACTION {_two_phase.quoted(gid)}"
        self._driver.run(self._end(commit=True, prepare=command), timeout)

    def rollback(self, *, timeout: float | None = None) -> None:
        """ROLLBACK, of the savepoint where it is one. See pgpoll.Transaction.rollback."""
        self._driver.run(self._end(commit=False), timeout)

    def _torn(self, error: BaseException) -> None:
        if not isinstance(error, errors.Error):
            self._driver.doom(self._block)
            self._left = True

    def _enter(self) -> Transaction:
        driver = self._driver
        driver.enter(driver.control(self._block, self._parent._via))
        return self

    def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        driver, block = self._driver, self._block
        if error is None or isinstance(error, Exception):
            driver.run(leave(driver.blocks, block, error, self._end))
        else:
            driver.doom(block)  # Ctrl-C, or a generator closed, maybe by a finalizer
        self._left = True

    __enter__ = core._surely(_enter, _torn)
    __exit__ = core._surely(_exit, _torn)

    def _end(self, commit: bool, prepare: str = "") -> Flow[None]:
        driver = self._driver
        control = driver.control(self._block, self._block, commit=commit, prepare=prepare)
        return finish(driver.blocks, control, driver.core)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        block = getattr(self, "_block", None)  # unset where __init__ failed
        if block is not None and block.live and not self._left and not self._core.closed and self._driver.ours:
            _warn(f"unfinished transaction {self!r}", ResourceWarning, stacklevel=2, source=self)
            self._driver.doom(block)

    def __repr__(self) -> str:
        return f"<pgpoll.sync.Transaction entered at {self._block.where}, {self._block.state.value}>"


class Statement(Described[R]):
    """A prepared statement of a blocking connection. See pgpoll.Statement."""

    __slots__ = ("_verbs",)

    def __init__(self, verbs: Verbs, prepared: core.PreparedStatement) -> None:
        super().__init__(prepared)
        self._verbs = verbs

    def execute(self, *args: Any, timeout: float | None = None) -> core.Result[R]:
        """See pgpoll.Connection.execute."""
        return self._verbs._execute(self._prepared, args, RESULT, timeout)

    def fetch(self, *args: Any, timeout: float | None = None) -> list[R]:
        """See pgpoll.Connection.fetch."""
        return self._verbs._execute(self._prepared, args, ROWS, timeout)

    def fetchrow(self, *args: Any, timeout: float | None = None) -> R | None:
        """See pgpoll.Connection.fetchrow."""
        return self._verbs._execute(self._prepared, args, ROW, timeout)

    def fetchval(self, *args: Any, timeout: float | None = None) -> Any:
        """See pgpoll.Connection.fetchval."""
        return self._verbs._execute(self._prepared, args, VALUE, timeout)

    def explain(self, *args: Any, analyze: bool = False, timeout: float | None = None) -> Any:
        """See pgpoll.Statement.explain."""
        sql = self._explain(analyze=analyze)
        if not analyze:
            return self._verbs._execute(sql, args, VALUE, timeout)
        with self._verbs.transaction() as tx:
            plan = tx._execute(sql, args, VALUE, timeout)
            tx.rollback()
        return plan

    def stream(self, *args: Any, prefetch: int | None = PREFETCH, timeout: float | None = None) -> Stream[R]:
        """See pgpoll.Connection.stream."""
        return Stream(self._verbs, self._prepared, args, prefetch, timeout, caller())


def connect(
    dsn: str | None = None,
    /,
    *,
    on_request: Callable[[RequestRecord], object] | None = None,
    on_notice: Callable[[Notice], object] | None = None,
    **params: Any,
) -> Connection:
    """Connect to a server, blocking. Parameters and errors as for `pgpoll.connect`.

    The operating system's name lookup can't be interrupted by `connect_timeout`, but its time counts. `on_request` and
    `on_notice` are called within the verb, in its thread, and may use the connection; what they raise is logged by the
    logger `pgpoll`, but for KeyboardInterrupt and the like, which the verb raises.
    """
    observers = Observers(on_request, on_notice).checked()
    options = conninfo.parse(dsn, **params)
    timeout = options.connect_timeout
    deadline = None if timeout is None else monotonic() + timeout
    driver = Driver(resolved(options), observers)
    driver.connect(deadline, timeout)
    return Connection(driver)
