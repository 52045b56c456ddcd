"""pgpoll.core: PostgreSQL on a nonblocking poll API, in the manner of libpq. Whoever owns the event loop drives it.

A whole session on select.select, and no loop:

    import select
    from pgpoll import conninfo, core

    def drive(conn, operation):
        while not operation.done():
            state = conn.poll()
            if not operation.done():
                fd = [conn.fileno()]  # asked anew each time: it may change while connecting
                select.select(fd if state & core.WAIT_READ else [], fd if state & core.WAIT_WRITE else [], [])
        return operation.result()

    conn = core.Connection(conninfo.resolve("postgresql://localhost/postgres"))
    drive(conn, conn.start_connect())
    print(drive(conn, conn.start_execute("select $1::int4 + 1", (41,))).scalar())  # 42
    drive(conn, conn.start_close())
    conn.close_fd()

Two connections at once, each with many requests in flight, on selectors:

    import selectors

    def watch(selector, conn, registered):
        state = conn.poll()
        wanted = (selectors.EVENT_READ if state & core.WAIT_READ else 0) | (
            selectors.EVENT_WRITE if state & core.WAIT_WRITE else 0)
        if registered != (conn.fileno(), wanted):
            if registered[1]:
                selector.unregister(registered[0])
            if wanted:
                selector.register(conn.fileno(), wanted, conn)
        while (operation := conn.next_completed()) is not None:
            print(conn.backend_pid, operation.result().scalar())
        return conn.fileno(), wanted

    conns = [core.Connection(options, pipeline=True) for _ in range(2)]
    for conn in conns:
        drive(conn, conn.start_connect())
        for i in range(10):
            conn.start_execute("select $1::int4", (i,))
    with selectors.DefaultSelector() as selector:
        registered = {conn: watch(selector, conn, (-1, 0)) for conn in conns}
        while any(conn.in_flight for conn in conns):
            for key, _ in selector.select():
                registered[key.data] = watch(selector, key.data, registered[key.data])

The contract
------------
start_*() queues a request and returns its Operation at once; nothing blocks. poll() makes all the progress that is
possible without blocking, and says what it needs:

    READY       a finished operation is not yet taken, by result() or next_completed(), or a channel has stirred and not
                been looked at, see next_stirred(), or a notification not taken, where they are kept; abandoned ones
                never appear
    0           alone: a stream without a row limit holds all that it may: take from it, or abandon it
    WAIT_READ   call poll() again when the descriptor is readable. Watch for reading even while there is much to write
    WAIT_WRITE  call it again when the descriptor is writable; while connecting, and in long computations, too
    IDLE        alone: nothing is in flight, nothing to send. An idle descriptor may be watched for reading all the same
    CLOSED      lost or closed. Every operation has its outcome; READY with it while some are untaken. Remove the
                descriptor. poll() says so again; start_*() raises InterfaceError ("... closed ...")

Busy. Without pipeline=True a second request raises BusyError ("client is busy") and changes nothing, while one is in
flight: started and not finished, or abandoned and not drained. start_cancel() and start_close() are exempt. With
pipeline=True requests queue and are served in order; past max_queued BusyError is raised there too.

Arguments. Where the statement's description is known, start_execute() encodes them: a bad one raises DataError there
and nothing is queued. For a new statement they are encoded within poll(), when the description has come, in the
context of the call that started it; a bad one is the outcome of that operation alone. poll() inside poll(), as encoding
may run a caller's code, raises InterfaceError.

Outcomes. operation.result() gives the result, or raises the request's own error; every error has `safe_to_retry`, True
where no byte of the request had left. Loss of the connection ends every operation: the one being answered with what
the server said, the others with ConnectionLost. An error never spoils another request outside a transaction.

Streams. start_stream() gives an operation that rows are taken from while it runs. READY says that some have come, until
take_rows() has been called: it gives what is there, decoded, and never blocks. With a credit so many rows come and no
more, until grant() says so: grant what was consumed once it is half of the credit, and at most so many are held or on
their way. Without credit (None) all come, and once 1 MiB of them waits to be taken poll() reads nothing more (0).
The rows come first, then the outcome: where the operation is done and take_rows() gives none, result() gives the tag,
or raises what ended it. abandon() ends it early: where the server runs on, cancel_wanted() says so. Until its end the
stream has the connection to itself: what is started meanwhile waits.

    operation = conn.start_stream("select * from t", (), 1000)
    while (rows := operation.take_rows()) or not operation.done():
        if rows:
            operation.grant(len(rows))
        else:
            conn.wait(operation, 1.0)  # or poll(), and wait as it says
    operation.result()

Channels. A COPY passes data through while it runs. start_copy_in() stirs when the server takes data; then

    while (data := source.read(65536)):
        if not operation.feed(data):        # so much is unsent that this is enough, or the server has ended the COPY
            drive_until_stirred(operation)  # poll() until operation.stirred or operation.done()
            if operation.stopped:
                break
    else:
        operation.finish_feed()

and its result is awaited as any other's. start_copy_out() stirs when take_data() has something to give; past about
1 MiB nothing more is read before some is taken, and poll() may return 0.

Abandoning and cancelling. operation.abandon() ends the interest, not the protocol: what was sent is read to its end and
discarded, what was not sent never is. Nothing is cancelled at the server by itself: after each abandon() and poll(),
cancel_wanted() says NONE; NOW: an abandoned request runs and nobody waits behind it; GRACE: somebody does, give it a
second. start_cancel() sends the CancelRequest, by a Cancel with a socket and a poll() of its own. Until that has ended
no other request is written.

Descriptors. fileno() is -1 without a socket. poll() never closes one that may be registered: while connecting the old
socket stays open until the poll() after the one that changed it, so a new socket always has a new number. After the
end the descriptor stays open until close_fd(), or deallocation; unregister it first.

Tracing. With PGPOLL_TRACE=path in the environment a Connection appends every message to that file; docs/observing.md.

Nothing here starts a thread or a timer, or looks up a name: a host name left unresolved raises InterfaceError. One call
of poll() computes for at most 5 ms and receives a bounded number of bytes. Use in the child of a fork raises
InterfaceError, and nothing is ever sent there. A connection dropped without close sends Terminate and warns with
ResourceWarning.
"""

import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, Final, Generic, Literal, Protocol, Self, SupportsIndex, final, overload, type_check_only

from _typeshed import structseq
from typing_extensions import Buffer, TypeVar

from pgpoll.errors import BusyError as BusyError
from pgpoll.errors import InterfaceError as InterfaceError

WAIT_READ: Final = 1
WAIT_WRITE: Final = 2
READY: Final = 4
IDLE: Final = 8
CLOSED: Final = 16

NONE: Final = 0
NOW: Final = 1
GRACE: Final = 2

class _Options(Protocol):
    """conninfo.Options, or what looks like it."""

    @property
    def addresses(self) -> Sequence[tuple[str, str | None, int]]: ...
    @property
    def user(self) -> str: ...
    @property
    def password(self) -> str | None: ...
    @property
    def scram_password(self) -> str | None: ...
    @property
    def startup_parameters(self) -> Sequence[tuple[str, str]]: ...
    @property
    def cleartext_allowed(self) -> bool: ...
    @property
    def statement_cache_size(self) -> int: ...
    @property
    def max_pipeline(self) -> int: ...

@final
class Column(structseq[Any], tuple[str, str, int, int, int, int, int]):
    """A column of a result. `size` and `typmod` are pg_type's: -1 has none; `table_oid` is 0 for an expression."""

    @property
    def name(self) -> str: ...
    @property
    def type_name(self) -> str: ...
    @property
    def type_oid(self) -> int: ...
    @property
    def typmod(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def table_oid(self) -> int: ...
    @property
    def format(self) -> int: ...

@final
class Parameter(structseq[Any], tuple[str, str, int]):
    """A parameter of a prepared statement; its name is "$1", "$2", ..."""

    @property
    def name(self) -> str: ...
    @property
    def type_name(self) -> str: ...
    @property
    def type_oid(self) -> int: ...

@final
class Record(Sequence[Any]):
    """A row: an immutable sequence, equal to the tuple of its values, that answers `rec["name"]` and `rec.name` too."""

    @overload
    def __getitem__(self, key: SupportsIndex | str, /) -> Any: ...
    @overload
    def __getitem__(self, key: slice, /) -> tuple[Any, ...]: ...
    def __getattr__(self, name: str, /) -> Any: ...
    count: Any  # a column, as every other name
    index: Any
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __lt__(self, other: Record | tuple[Any, ...], /) -> bool: ...
    def __le__(self, other: Record | tuple[Any, ...], /) -> bool: ...
    def __gt__(self, other: Record | tuple[Any, ...], /) -> bool: ...
    def __ge__(self, other: Record | tuple[Any, ...], /) -> bool: ...
    def keys(self) -> tuple[str, ...]:
        """The columns' names."""
    def _asdict(self) -> dict[str, Any]:
        """Name to value; ValueError where two columns have one name."""

_R = TypeVar("_R", default=Record)
_T_co = TypeVar("_T_co", default=Any, covariant=True)
_T = TypeVar("_T")

@type_check_only
class Want(int, Generic[_T]):
    """What Operation.result() gives for an execute: an int."""

RESULT: Final[Want[Result[Any]]]  # the rows are decoded when they are touched
ROWS: Final[Want[list[Any]]]  # a list of Record; this and what follows is decoded as it arrives
ROW: Final[Want[Any | None]]  # the first Record
VALUE: Final[Want[Any]]  # its first value; None where there is no row

@final
class Result(Sequence[_R], Generic[_R]):
    """What a statement gave. A row is decoded when it is touched and not kept; a bad value raises DataError there."""

    @property
    def tag(self) -> str:
        """The command tag, "INSERT 0 2"; "" for an empty statement."""
    @property
    def rowcount(self) -> int | None:
        """The tag's number of rows; None where it has none."""
    @property
    def columns(self) -> tuple[Column, ...]:
        """() where the statement returns no rows."""
    @overload
    def __getitem__(self, index: SupportsIndex, /) -> _R: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[_R]: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_R]: ...
    def first(self) -> _R | None:
        """The first row; None where there is none."""
    def one(self) -> _R:
        """The only row; InterfaceError where there is none, or more than one."""
    def scalar(self) -> Any:
        """The first row's first value; None where there is no row."""
    def fetch(self) -> list[_R]:
        """All rows, decoded."""
    @classmethod
    def __class_getitem__(cls, item: Any, /) -> types.GenericAlias: ...

@final
class PreparedStatement:
    """What start_prepare() gives; start_execute() takes it in place of sql. Holding one keeps the statement."""

    @property
    def name(self) -> str: ...
    @property
    def sql(self) -> str: ...
    @property
    def parameters(self) -> tuple[Parameter, ...]: ...
    @property
    def columns(self) -> tuple[Column, ...] | None:
        """None where it returns no rows."""

@final
class Operation(Generic[_T_co]):
    """One request, from its start to its outcome. Its driver keeps it alive until it is taken or abandoned."""

    def done(self) -> bool:
        """Whether the outcome is known."""
    def result(self) -> _T_co:
        """Take the outcome: a Result (execute, COPY), a list of Results whose values are str or None (script), a
        PreparedStatement (prepare), a command tag (command) or None (connect, close).

        Raises the request's own error, each time; InterfaceError while it is not done, or where it was abandoned.
        """
    def abandon(self) -> None:
        """End the interest in it; the protocol goes on."""
    def take_rows(self, at_most: int | None = None, /) -> list[Any]:
        """Of a stream: the next rows that have come, Records, all of them or so many; [] where none has.

        Raises DataError, each time, where the next one has a bad value: it names the row's number in the stream.
        """
    def grant(self, rows: int, /) -> None:
        """Of a stream with credit: so many more rows may come. InterfaceError for others."""
    def _spare(self) -> None:
        """Abandon it, and let it run at the server: nothing is cancelled for it."""
    def _columns(self) -> tuple[Column, ...] | None:
        """Of a stream: None before they are known, () where it returns no rows."""
    def add(self, sql: str | PreparedStatement, args: tuple[Any, ...] = (), /) -> int:
        """Of a batch: one more item; its number, counted from 0. Sent with the others, in order, as there is room.

        Raises as start_execute() does, and the batch is what it was. Bad arguments of a statement that is not known yet
        end the batch, and so does any error: what is added after that is skipped.
        """
    def feed_rows(self, rows: Iterator[Any], /) -> bool:
        """Of an executemany: take from `rows` as many as there is room for; True once it has no more.

        A row is a tuple, a list or a Record. Nothing is taken while the operation has not stirred. Where `rows` raises,
        or a row doesn't fit, that is raised and `failed_item` says which: abandon the operation then.
        """
    def end(self) -> None:
        """Of a batch or an executemany: there is no more. Its Sync follows, and the outcome."""
    @overload
    def item(self, number: int, /) -> Result[Any]:
        """Of a batch that has succeeded: what this item gave, once; `want` as in start_execute()."""
    @overload
    def item(self, number: int, want: Want[_T], /) -> _T: ...
    @property
    def failed_item(self) -> int | None:
        """Of a batch or an executemany: the item that it failed with, counted from 0. None: it has not, or as a whole
        (a deferred constraint, a connection that was lost)."""
    @property
    def items_answered(self) -> int:
        """How many the server has executed."""
    @property
    def items_written(self) -> int:
        """How many may have left."""
    @property
    def settled(self) -> bool:
        """Whether the server has said how the batch ended. Where it has failed, nothing of it lasts."""
    @property
    def stirred(self) -> bool:
        """Of a channel: there is something to take, or room to feed."""
    on_stir: Callable[[], object] | None
    """For a loop that is attached: called when a channel has stirred, or the operation is done. Must not raise."""
    @property
    def sql(self) -> str | None: ...
    @property
    def written(self) -> bool:
        """While it is not done: it can't be taken back any more. Then: a byte of it had left."""
    @property
    def statement(self) -> PreparedStatement | None:
        """What it runs, once described."""
    @property
    def connection(self) -> Connection | Session | None:
        """What it was started on; None once that is gone."""
    @property
    def feeds(self) -> bool:
        """Of start_copy_in(): whether data may be fed now."""
    @property
    def stopped(self) -> bool:
        """Of start_copy_in(): the server has ended it, or never began it. The outcome will say why."""
    @property
    def copied(self) -> int:
        """Bytes of COPY data that were fed, or have come."""
    def feed(self, data: Buffer, /) -> bool:
        """Of start_copy_in(): data, cut anywhere; it is copied. False: no more before it has stirred, or `stopped`.

        Raises InterfaceError before the COPY has begun (it stirs then), and once it was ended here.
        """
    def finish_feed(self) -> None:
        """Of start_copy_in(): all has been fed."""
    def fail_feed(self, reason: str, /) -> None:
        """Of start_copy_in(): nothing is to be copied. The outcome is the server's QueryCanceled, with `reason`."""
    def take_data(self) -> bytes:
        """Of start_copy_out(): what has come and was not taken, also when it is done; b"" where there is nothing."""

@final
class Cancel:
    """A CancelRequest on its way. Its connection learns from it when the socket has ended."""

    def fileno(self) -> int: ...
    def poll(self) -> int:
        """As Connection.poll(): WAIT_READ, WAIT_WRITE; CLOSED at its end."""
    def done(self) -> bool:
        """Whether the socket has reached its end: the request was delivered, or could not be."""
    def delivered(self) -> bool:
        """Whether it ended because the server has taken the request."""
    def close_fd(self) -> None:
        """Close the socket, which is its end too. Unregister it first."""

def _surely(method: _T, undo: Callable[[Any, BaseException], object], /) -> _T:
    """A method that is undone, by undo(self, error), where it raises, also where that is at its first instruction. What
    `undo` raises is dropped.
    """

@final
class _Mutex:
    """A reentrant lock for blocking callers. Whatever a signal handler raises, it is held, or it is not: what takes it,
    gives it back or gives it up for a while is one call of C each, and no such exception comes in between.
    """

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def held(self, seconds: float | None, /) -> AbstractContextManager[bool, None]:
        """`with` it, where it can be had within so many seconds; None has no limit."""
    def wait(self, seconds: float, what: object, /) -> None:
        """Give it up, however often it was taken, until notify_all() or for so long. Whatever is raised, it is taken
        again before; a signal does not end that.
        """
    def notify_all(self) -> None: ...
    def outside(self, what: object, function: Callable[..., _T], /, *args: Any) -> _T:
        """What `function` gives, called while nobody has it, or others."""
    def owned(self) -> bool:
        """Whether this thread has it."""
    @property
    def waiting(self) -> int:
        """How many threads are within wait()."""
    @property
    def awaited(self) -> list[Any]:
        """The `what` of all that are within wait() and outside()."""
    @property
    def depth(self) -> int:
        """How often who has it has taken it."""
    disturbed: bool
    """Somebody has given it back by an exception; to be reset by who has seen to that."""
    mended: bool
    """Set by who has it, and will give it back by an exception whose traces are seen to."""

@final
class Waiter(Generic[_T_co]):
    """The await of one Operation, by one task; with what a task uses of asyncio.Future. Internal."""

    _asyncio_future_blocking: bool
    def __await__(self) -> Generator[Any, None, _T_co]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Self: ...
    def send(self, value: None, /) -> Self: ...
    def close(self) -> None:
        """Abandon the operation."""
    def get_loop(self) -> Any: ...
    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None: ...
    def remove_done_callback(self, fn: Callable[[Any], object], /) -> int: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def exception(self) -> BaseException | None: ...
    def result(self) -> _T_co: ...
    def cancel(self, msg: object = None) -> bool:
        """Abandon the operation; False once its reply was handed out."""
    def expire(self, error: BaseException, /) -> bool:
        """Abandon the operation, and let who awaits it get this error; False once it is finished."""

class _Driver:
    def start_connect(self) -> Operation[None]:
        """Connect, from the next poll() on. Once."""
    @overload
    def start_execute(self, sql: str | PreparedStatement, args: tuple[Any, ...] = (), /) -> Operation[Result[Any]]:
        """One statement, with the values of $1, $2, ... The types are those that the server infers.

        `want` is what its `result()` gives: RESULT, ROWS, ROW or VALUE.

        Raises DataError or InterfaceError for bad arguments where the statement is known; else see `result()`.
        """
    @overload
    def start_execute(
        self, sql: str | PreparedStatement, args: tuple[Any, ...], want: Want[_T], /
    ) -> Operation[_T]: ...
    def start_stream(
        self, sql: str | PreparedStatement, args: tuple[Any, ...], credit: int | None, /
    ) -> Operation[str]:
        """One statement whose rows are taken while they come: see "Streams" above. The result is the command tag.

        `credit` is the number of rows that may come at first, from 1 on; None: all. Otherwise as start_execute().
        """
    def _start_open(
        self, sql: str | PreparedStatement, args: tuple[Any, ...], portal: str, limit: int, /
    ) -> Operation[bool]:
        """One statement as a portal of a transaction: its first rows, to be taken, and whether there may be more."""
    def _start_fetch(self, opened: Operation[bool], limit: int, number: int, /) -> Operation[bool]:
        """The next rows of the portal that `opened` has opened, from that number on."""
    def _close_portal(self, portal: str, /) -> None:
        """Close it, when it is its turn. Nobody is told."""
    def start_prepare(self, sql: str, /) -> Operation[PreparedStatement]:
        """Parse and describe a statement."""
    def start_script(self, sql: str, /) -> Operation[list[Result]]:
        """Several statements in the simple protocol."""
    def start_command(self, sql: str, /) -> Operation[str]:
        """One statement without arguments or rows, in one flight, never cancelled by wish: BEGIN, COMMIT ..."""
    def _start_behind(
        self, commands: tuple[str, ...], outermost: bool, start: Callable[[], Operation], /
    ) -> list[Operation]:
        """What `start` starts, with `commands` (BEGIN, SAVEPOINT ...) in front of it under its Sync: their Operations,
        done at their CommandComplete, and its own. Where one fails all that follow do, with its error. `outermost`: it
        waits for all that may have begun a transaction, and fails, unsent, where one has. Not for a script.
        """
    def start_batch(self) -> Operation[None]:
        """Many items under one Sync, all or none: add() them, end() it, and take each by item()."""
    def start_executemany(self, sql: str, /) -> Operation[Result[Any]]:
        """One statement for many rows, all or none: feed_rows() them whenever it has stirred, then end() it.

        Its result has all rows, and their number together. Without rows nothing is sent.
        """
    def start_copy_in(self, sql: str, query: str = "", /) -> Operation[Result]:
        """COPY ... FROM STDIN, a channel: it stirs when it may be fed, see Operation.feed(). Abandoned, it fails.

        `query` is described in the same flight. Raises InterfaceError for an sql that does not begin with COPY.
        """
    def start_copy_out(self, sql: str, query: str = "", /) -> Operation[Result]:
        """COPY ... TO STDOUT, a channel: it stirs when there is something to take, see Operation.take_data()."""
    def start_close(self) -> Operation[None]:
        """Serve what was accepted, then send Terminate and wait for the end. Those who ask again get the same one."""
    def next_completed(self) -> Operation | None:
        """Take the oldest finished operation that was not taken."""
    def next_stirred(self) -> Operation | None:
        """The next channel (an operation that data passes through while it runs) with something to take, or room to
        feed. Each is listed once, until that is done."""
    def cancel_wanted(self) -> Literal[0, 1, 2]:
        """NONE, NOW or GRACE: whether an abandoned request should be cancelled at the server."""
    def cancel_too_old(self) -> None:
        """A CancelRequest that was sent can't strike any more: from here on a 57014 is the request's own.

        Until then a request that it hit in place of the abandoned one runs again, where that is safe.
        """
    def take_notices(self, at_most: int | None = None, /) -> list[dict[str, str]]:
        """The oldest notices not yet taken, all of them or so many: each a dict of the protocol's field codes.

        10,000 are kept, of 1 MiB altogether; what comes while there is no room is dropped and counted.
        """
    def keep_notifications(self, keep: bool, /) -> None:
        """Whether notifications are kept until they are taken; at first they are dropped as they come."""
    def take_notifications(self, at_most: int | None = None, /) -> list[tuple[str, str | None, int]]:
        """The oldest notifications not yet taken, all of them or so many: (channel, payload, pid of the sender).

        10,000 are kept, of 8 MiB altogether. Where more came, (channel, None, how many) stands in the place of those
        that were dropped; without a channel, "", where they were of too many to tell.
        """
    @property
    def transaction_status(self) -> str:
        """What the last ReadyForQuery said: "I", "T" or "E"; "" before the first."""
    @property
    def why_closed(self) -> Exception | None:
        """The error that ended the connection, made anew; None while it is open."""
    @property
    def in_flight(self) -> int:
        """Requests started and not finished; abandoned ones until they are drained."""
    @property
    def abandoned_head(self) -> int:
        """The number of the abandoned request that runs at the server, which GRACE is about; 0 for none."""
    @property
    def quiet(self) -> bool:
        """Nothing is in flight, nothing to send."""

@final
class Connection(_Driver):
    """One connection. `max_queued` bounds the requests in flight and queued, start_command()'s aside; 0 does not."""

    def __new__(cls, options: _Options, *, pipeline: bool = False, max_queued: int = 0) -> Self: ...
    def start_cancel(self) -> Cancel:
        """A CancelRequest for what runs now; InterfaceError where the server gave no key for it."""
    def poll(self) -> int:
        """All the progress that can be made without blocking: flags, see above."""
    def flush(self) -> int:
        """Send what can be sent, read nothing: WAIT_WRITE or 0."""
    def fileno(self) -> int: ...
    def close_fd(self) -> None:
        """Close the socket now. Unregister it first."""
    def terminate(self, why: str = "closed", /) -> None:
        """End everything now, from any thread; wait() returns. The descriptor stays open until close_fd().

        What is not done yet ends with ConnectionLost of the text `why`.
        """
    def wait(self, operation: Operation, seconds: float, /) -> bool:
        """Poll and wait until `operation` is done, or for so many seconds, with the GIL free. Whether it is done.

        Returns early where notices or notifications have come. An exception of a signal's handler is raised here; the
        operation goes on.
        """
    def _unfinished(self) -> list[Operation]:
        """Those in flight that were neither taken nor abandoned, but for rows of a portal that were asked for."""
    @property
    def notices_dropped(self) -> int:
        """How many notices there was no room for."""
    @property
    def backend_pid(self) -> int:
        """0 before it is known."""
    @property
    def server_parameters(self) -> dict[str, str]:
        """A copy of what the server reported."""
    @property
    def closed(self) -> bool:
        """Lost or closed."""
    def _attach(
        self,
        loop: Any,
        call_soon: Callable[..., object],
        current_task: Callable[[Any], object],
        get_running_loop: Callable[[], object],
        task_types: tuple[type, ...],
        on_change: Callable[[int], object],
        on_notices: Callable[[], object],
        cancelled_error: type[BaseException],
        level_triggered: bool = True,
    ) -> None:
        """Let an event loop drive it, by its functions.

        `level_triggered` is False for one that may tell of an error once, and not again while something is unread.

        `on_change` gets WAIT_READ, WAIT_WRITE and CLOSED, when they or the descriptor changed, and whenever
        cancel_wanted() is not NONE. `on_notices` is called when there are notices or notifications to take, before
        replies are handed out.
        """
    def _observe(
        self,
        on_request: Callable[[Any], object] | None,
        make_record: Callable[..., object],
        on_failure: Callable[[BaseException], object],
        at_once: bool,
        /,
    ) -> None:
        """Call `on_request` with a record of every request from now on; see src/py/observing.hpp.

        With `at_once` when the outcome is known, else within `_report()`; always in the request's context.
        `on_failure` gets what it raises.
        """
    def _report(self) -> None: ...
    def _observed_at(self) -> float | None:
        """The time where somebody observes."""
    def _start_observed(self, queued: float, start: Callable[[], Operation[_T]], /) -> Operation[_T]:
        """`start()`, whose request was made at that time."""
    def _note(self, sql: str | PreparedStatement, queued: float, error: BaseException, context: Context, /) -> None:
        """Record a request that was never started."""
    @property
    def _news(self) -> bool:
        """Whether notices or notifications wait to be taken, or somebody observes."""
    @overload
    def _execute(self, sql: str | PreparedStatement, args: tuple[Any, ...], /) -> Waiter[Result[Any]]: ...
    @overload
    def _execute(self, sql: str | PreparedStatement, args: tuple[Any, ...], want: Want[_T], /) -> Waiter[_T]: ...
    def _waiter(self, operation: Operation[_T], /) -> Waiter[_T]: ...
    def _shielded_waiter(self, operation: Operation[Any], /) -> Waiter[None]: ...
    def _runs_here(self) -> bool: ...
    def _on_readable(self) -> None: ...
    def _on_writable(self) -> None: ...
    def _flush_due(self) -> None: ...
    def _flush_soon(self) -> None: ...

@final
class Session(_Driver):
    """The same conversation without a socket: bytes in, bytes out. For tests. Every request pipelines."""

    def __new__(cls, options: _Options) -> Self: ...
    def receive(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take bytes of the server."""
    def eof(self) -> None:
        """The server has closed its side."""
    def outbound(self) -> bytes:
        """Take all the bytes for the server."""
    def pump(self) -> None:
        """Make all the progress that is possible."""
    def cancel_started(self) -> None: ...
    def cancel_ended(self) -> None: ...
    def fail(self, message: str, /) -> None:
        """The connection is lost."""
    @property
    def backend_key(self) -> tuple[int, bytes] | None:
        """BackendKeyData, once it has come."""
    @property
    def parameters(self) -> dict[str, str]: ...
    @property
    def ended(self) -> bool: ...

@final
class _RecordEncoder:
    """An iterator of slices of COPY's binary format, over records; or they are added one by one."""

    def __new__(
        cls, records: Iterable[Any] | None, names: tuple[str, ...], oids: tuple[int, ...], types: tuple[str, ...], /
    ) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> bytes: ...
    def add(self, record: Any, /) -> bool:
        """Whether a slice is full."""
    def take(self) -> bytes: ...
    def finish(self) -> bytes:
        """The rest, with the trailer."""
    @property
    def count(self) -> int: ...

@final
class _RecordDecoder:
    """The Records of a start_copy_out() in the binary format whose query was described."""

    def __new__(cls, operation: Operation[Any], /) -> Self: ...
    def take(self) -> list[Record]:
        """Some of those that have come; [] where none is whole. DataError where the data is wrong."""
    def finish(self) -> None:
        """DataError where the end has not come."""
    @property
    def count(self) -> int: ...

def _binary(type_oid: int, /) -> bool: ...
def _record(names: tuple[str, ...], values: tuple[Any, ...], /) -> Record: ...
def _encode(type_oid: int, value: object, /) -> bytes | None: ...
def _decode(type_oid: int, data: bytes, /) -> Any: ...
def _trace(chunks: list[tuple[Literal["F", "B"], bytes]], show_values: bool, /) -> str: ...
