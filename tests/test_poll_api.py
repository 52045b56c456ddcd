"""The poll API's rules (core.pyi, design.md section 1) against a real server, on select.select alone."""

from __future__ import annotations

import contextvars
import gc
import itertools
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pgpoll
from peers import drive, wait
from pgpoll import conninfo, core, errors

Connect = Callable[..., core.Connection]


def step(conn: core.Connection) -> None:
    """One poll(), and a wait for as much as it asks for, if there is something to wait for."""
    state = conn.poll()
    if not state & (core.READY | core.CLOSED) and state != core.IDLE:
        wait(conn, state)


def drain(conn: core.Connection) -> None:
    while conn.in_flight:
        step(conn)


@pytest.fixture
def options(dsn: str) -> conninfo.Options:
    return conninfo.resolve(dsn)


@pytest.fixture
def connect(options: conninfo.Options) -> Iterator[Connect]:
    opened = []

    def connected(**keywords: Any) -> core.Connection:
        conn = core.Connection(options, **keywords)
        opened.append(conn)
        drive(conn, conn.start_connect())
        return conn

    yield connected
    for conn in opened:
        conn.terminate()
        conn.close_fd()


@pytest.fixture
def conn(connect: Connect) -> core.Connection:
    return connect()


def refusing() -> tuple[str, str, int]:
    """An address that refuses: a port that was bound and is not any more."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return "127.0.0.1", "127.0.0.1", port


# -- flags


def test_idle_stands_alone(conn: core.Connection) -> None:
    assert conn.poll() == core.IDLE
    assert conn.quiet
    assert conn.in_flight == 0


def test_ready_while_untaken(conn: core.Connection) -> None:
    operation = conn.start_execute("select 1")
    while not operation.done():
        step(conn)
    assert conn.poll() & core.READY
    assert conn.poll() & core.READY
    assert operation.result().scalar() == 1
    assert conn.poll() == core.IDLE


def test_next_completed_takes(conn: core.Connection) -> None:
    conn.start_execute("select 1")
    while not conn.poll() & core.READY:
        step(conn)
    gc.collect()
    operation = conn.next_completed()
    assert operation is not None
    assert operation.connection is conn
    assert conn.next_completed() is None
    assert conn.poll() == core.IDLE
    assert operation.result() is operation.result()
    assert operation.result().scalar() == 1


def test_finished_ones_come_in_order(connect: Connect) -> None:
    conn = connect(pipeline=True)
    started = [conn.start_execute("select $1::int4", (i,)) for i in range(20)]
    started[3].abandon()
    drain(conn)
    taken = []
    while (operation := conn.next_completed()) is not None:
        taken.append(operation)
    assert taken == [*started[:3], *started[4:]]


def test_closed_says_so_again(conn: core.Connection) -> None:
    drive(conn, conn.start_close())
    assert conn.poll() == core.CLOSED
    assert conn.poll() == core.CLOSED
    assert conn.closed
    starts: list[Callable[[], object]] = [
        lambda: conn.start_execute("select 1"),
        lambda: conn.start_prepare("select 1"),
        lambda: conn.start_script("select 1"),
        lambda: conn.start_command("begin"),
        conn.start_connect,
        conn.start_close,
        conn.start_cancel,
    ]
    for start in starts:
        with pytest.raises(pgpoll.InterfaceError, match="closed"):
            start()


def test_closed_with_ready_while_untaken(connect: Connect) -> None:
    conn = connect(pipeline=True)
    running = conn.start_execute("select pg_sleep(10)")
    waiting = conn.start_execute("select 1")
    conn.poll()
    conn.terminate()
    assert conn.poll() == core.CLOSED | core.READY
    for operation in (running, waiting):
        with pytest.raises(errors.ConnectionLost):
            operation.result()
    assert conn.poll() == core.CLOSED


def test_nothing_but_connecting_comes_first(options: conninfo.Options) -> None:
    conn = core.Connection(options)
    assert conn.fileno() == -1
    assert conn.transaction_status == ""
    with pytest.raises(pgpoll.InterfaceError, match="not connected"):
        conn.start_execute("select 1")
    with pytest.raises(pgpoll.InterfaceError, match="not connected"):
        conn.poll()
    operation = conn.start_connect()
    with pytest.raises(pgpoll.InterfaceError):
        conn.start_connect()
    assert drive(conn, operation) is None
    assert conn.backend_pid > 0
    assert conn.server_parameters["client_encoding"] == "UTF8"
    assert conn.transaction_status == "I"
    conn.terminate()


def test_a_result_is_not_there_early(conn: core.Connection) -> None:
    operation = conn.start_execute("select 1")
    with pytest.raises(pgpoll.InterfaceError, match="not finished"):
        operation.result()
    drive(conn, operation)


# -- busy


def test_busy_changes_nothing(conn: core.Connection) -> None:
    slow = conn.start_execute("select pg_sleep(0.05), 7")
    for start in (
        lambda: conn.start_execute("select 2"),
        lambda: conn.start_script("select 2"),
        lambda: conn.start_prepare("select 2"),
    ):
        with pytest.raises(core.BusyError, match="client is busy"):
            start()
    assert conn.in_flight == 1
    assert drive(conn, slow)[0][1] == 7
    assert drive(conn, conn.start_execute("select 3")).scalar() == 3


def test_an_abandoned_one_is_busy_until_drained(conn: core.Connection) -> None:
    slow = conn.start_execute("select pg_sleep(0.05)")
    conn.poll()
    while (state := conn.poll()) and slow.statement is None:
        wait(conn, state)
    slow.abandon()
    with pytest.raises(core.BusyError):
        conn.start_execute("select 2")
    drain(conn)
    assert conn.next_completed() is None
    assert drive(conn, conn.start_execute("select 3")).scalar() == 3


def test_close_is_exempt_from_busy(conn: core.Connection) -> None:
    operation = conn.start_execute("select 1")
    closing = conn.start_close()
    assert conn.start_close() is closing
    drive(conn, closing)
    assert operation.result().scalar() == 1


def test_max_queued(connect: Connect) -> None:
    conn = connect(pipeline=True, max_queued=3)
    operations = [conn.start_execute("select 1") for _ in range(3)]
    with pytest.raises(core.BusyError, match="queued"):
        conn.start_execute("select 1")
    for operation in operations:
        assert drive(conn, operation).scalar() == 1
    assert drive(conn, conn.start_execute("select 2")).scalar() == 2


# -- arguments


def test_a_bad_argument_of_a_known_statement_raises_at_once(conn: core.Connection) -> None:
    assert drive(conn, conn.start_execute("select $1::int4 + 1", (1,))).scalar() == 2
    for arguments in ((2**31,), ("no",), (), (1, 2)):
        with pytest.raises(pgpoll.Error):
            conn.start_execute("select $1::int4 + 1", arguments)
        assert conn.poll() == core.IDLE
    assert drive(conn, conn.start_execute("select $1::int4 + 1", (41,))).scalar() == 42


def test_a_bad_argument_of_a_new_statement_is_its_outcome(conn: core.Connection) -> None:
    operation = conn.start_execute("select $1::int4 + 2", (2**31,))
    with pytest.raises(pgpoll.Error, match=r"\$1"):
        drive(conn, operation)
    assert drive(conn, conn.start_execute("select $1::int4 + 2", (40,))).scalar() == 42


def test_queued_while_its_statement_is_described(connect: Connect) -> None:
    conn = connect(pipeline=True)
    operations = [conn.start_execute("select $1::int4 * 3", (i if i != 2 else "x",)) for i in range(5)]
    for i, operation in enumerate(operations):
        if i == 2:
            with pytest.raises(pgpoll.Error):
                drive(conn, operation)
        else:
            assert drive(conn, operation).scalar() == i * 3


class Index:
    """An int-like whose conversion runs a caller's code."""

    def __init__(self, convert: Callable[[], int]) -> None:
        self.convert = convert

    def __index__(self) -> int:
        return self.convert()


def test_late_encoding_has_the_context_of_the_start(conn: core.Connection) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    context = contextvars.Context()
    context.run(variable.set, 42)
    operation = context.run(conn.start_execute, "select $1::int4 + 100", (Index(variable.get),))
    assert drive(conn, operation).scalar() == 142
    assert variable.get() == 0


def test_poll_inside_poll(conn: core.Connection) -> None:
    def convert() -> int:
        with pytest.raises(pgpoll.InterfaceError, match=r"poll\(\) inside poll\(\)"):
            conn.poll()
        conn.flush()
        return 5

    assert drive(conn, conn.start_execute("select $1::int4 + 200", (Index(convert),))).scalar() == 205


@pytest.mark.parametrize("end", ["terminate", "close_fd", "abandon", "start"])
def test_encoding_may_do_anything(connect: Connect, end: str) -> None:
    conn = connect(pipeline=True)
    others: list[core.Operation] = []

    def convert() -> int:
        if end == "abandon":
            operation.abandon()
        elif end == "start":
            others.append(conn.start_execute("select 300"))
        else:
            getattr(conn, end)()
        return 5

    operation = conn.start_execute("select $1::int4 + 300", (Index(convert),))
    if end == "start":
        assert drive(conn, operation).scalar() == 305
        assert drive(conn, others[0]).scalar() == 300
    elif end == "abandon":
        drain(conn)
        assert operation.done()
        assert drive(conn, conn.start_execute("select 1")).scalar() == 1
    else:
        with pytest.raises(errors.ConnectionLost):
            drive(conn, operation)
        assert conn.closed


def test_what_encoding_raises_is_the_outcome(conn: core.Connection) -> None:
    def convert() -> int:
        raise ZeroDivisionError("mine")

    operation = conn.start_execute("select $1::int4 + 400", (Index(convert),))
    with pytest.raises(errors.DataError, match=r"\$1") as caught:
        drive(conn, operation)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert conn.poll() == core.IDLE


@pytest.mark.parametrize("sql", ["select 1\0", "select '\ud800'", b"select 1", None])
def test_sql_that_cannot_be_sent(conn: core.Connection, sql: Any) -> None:
    for start in (conn.start_execute, conn.start_prepare, conn.start_script, conn.start_command):
        with pytest.raises(pgpoll.InterfaceError, match="sql"):
            start(sql)
    with pytest.raises(pgpoll.InterfaceError, match="tuple"):
        conn.start_execute("select 1", [1])  # type: ignore[call-overload]
    assert conn.poll() == core.IDLE


# -- kinds of requests


def test_kinds(conn: core.Connection) -> None:
    script = drive(conn, conn.start_script("create temp table t (i int4); insert into t values (1), (2); table t"))
    assert [each.tag for each in script] == ["CREATE TABLE", "INSERT 0 2", "SELECT 2"]
    assert script[2][0][0] == "1"
    assert drive(conn, conn.start_command("begin")) == "BEGIN"
    assert conn.transaction_status == "T"
    assert drive(conn, conn.start_command("rollback")) == "ROLLBACK"
    prepared = drive(conn, conn.start_prepare("select $1::text as t, $2::int4[] as a"))
    assert [(p.name, p.type_name) for p in prepared.parameters] == [("$1", "text"), ("$2", "int4[]")]
    assert [c.name for c in prepared.columns] == ["t", "a"]
    operation = conn.start_execute(prepared, ("x", [1]))
    assert operation.sql == prepared.sql
    assert drive(conn, operation)[0] == ("x", [1])
    assert operation.statement is not None
    assert operation.statement.name == prepared.name
    assert drive(conn, conn.start_prepare("create temp table v (i int4)")).columns is None
    assert drive(conn, conn.start_execute("")).tag == ""


def test_several_statements_are_told_where_to_go(conn: core.Connection) -> None:
    with pytest.raises(pgpoll.ProgrammingError) as caught:
        drive(conn, conn.start_execute("select 1; select 2"))
    assert "executescript" in str(caught.value)


def test_an_error_keeps_being_raised_and_says_if_retrying_is_safe(conn: core.Connection) -> None:
    operation = conn.start_execute("select 1/0")
    for _ in range(2):
        with pytest.raises(errors.DivisionByZero) as caught:
            drive(conn, operation)
    assert caught.value.safe_to_retry is False
    assert conn.poll() == core.IDLE


def test_notices(conn: core.Connection) -> None:
    drive(conn, conn.start_script("do $$ begin raise notice 'hello'; end $$"))
    assert [notice["M"] for notice in conn.take_notices()] == ["hello"]
    assert conn.take_notices() == []


# -- abandoning and cancelling


def test_abandoned_before_it_is_sent(connect: Connect) -> None:
    conn = connect(pipeline=True)
    drive(conn, conn.start_script("create temp table t (i int4)"))
    first = conn.start_execute("insert into t values (1)")
    second = conn.start_execute("insert into t values (2)")  # waits: the first keeps the writer until it is described
    second.abandon()
    with pytest.raises(pgpoll.InterfaceError, match="abandoned"):
        second.result()
    drive(conn, first)
    assert drive(conn, conn.start_execute("select i from t")).fetch() == [(1,)]


def test_cancel(conn: core.Connection) -> None:
    assert conn.cancel_wanted() == core.NONE
    slow = conn.start_execute("select pg_sleep(20)")
    started = time.monotonic()
    while (state := conn.poll()) and slow.statement is None:
        wait(conn, state)
    time.sleep(0.05)  # the server ignores a CancelRequest that comes before it has begun
    slow.abandon()
    assert conn.cancel_wanted() == core.NOW
    cancel = conn.start_cancel()
    assert conn.cancel_wanted() == core.NONE
    while (state := cancel.poll()) != core.CLOSED:
        wait(cancel, state)
    assert cancel.done()
    assert cancel.poll() == core.CLOSED
    cancel.close_fd()
    drain(conn)
    assert time.monotonic() - started < 5
    assert conn.next_completed() is None
    for i in range(20):
        assert drive(conn, conn.start_execute("select $1::int4", (i,))).scalar() == i


def test_grace_while_somebody_waits_behind(connect: Connect) -> None:
    conn = connect(pipeline=True)
    for _ in range(2):
        drive(conn, conn.start_execute("select pg_sleep($1)", (0.0,)))
    slow = conn.start_execute("select pg_sleep($1)", (0.1,))
    behind = conn.start_execute("select pg_sleep($1)", (0.0,))
    conn.poll()
    slow.abandon()
    assert conn.cancel_wanted() == core.GRACE
    behind.abandon()
    assert conn.cancel_wanted() == core.NOW
    drain(conn)


def test_a_dropped_cancel_is_an_ended_one(conn: core.Connection) -> None:
    cancel = conn.start_cancel()
    cancel.poll()
    del cancel
    assert drive(conn, conn.start_execute("select 1")).scalar() == 1


def test_cancelling_what_never_connected(options: conninfo.Options) -> None:
    conn = core.Connection(options)
    with pytest.raises(pgpoll.InterfaceError, match="key"):
        conn.start_cancel()


# -- descriptors


def test_addresses_in_turn_and_the_descriptor_rule(options: conninfo.Options) -> None:
    several = options._replace(
        addresses=tuple(conninfo.Address(*refusing()) for _ in range(2)) + tuple(options.addresses)
    )
    conn = core.Connection(several)
    operation = conn.start_connect()
    registered = -1
    seen = []
    while not operation.done():
        state = conn.poll()
        fd = conn.fileno()
        if fd != registered:
            if registered >= 0:
                os.fstat(registered)  # still open: the caller unregisters it now
            registered = fd
            seen.append(fd)
        if not operation.done():
            wait(conn, state)
    operation.result()
    assert len(seen) > 1
    assert all(a != b for a, b in itertools.pairwise(seen))
    conn.terminate()
    os.fstat(conn.fileno())
    conn.close_fd()
    assert conn.fileno() == -1


def test_every_address_and_its_reason(options: conninfo.Options) -> None:
    dead = [refusing() for _ in range(2)]
    conn = core.Connection(options._replace(addresses=tuple(conninfo.Address(*each) for each in dead)))
    with pytest.raises(errors.ConnectionLost) as caught:
        drive(conn, conn.start_connect())
    for _, _, port in dead:
        assert str(port) in str(caught.value)
    assert caught.value.safe_to_retry
    assert conn.poll() == core.CLOSED


def test_a_name_not_looked_up(options: conninfo.Options) -> None:
    unknown = options._replace(addresses=(conninfo.Address("db.example", None, 5432),))
    with pytest.raises(pgpoll.InterfaceError, match=r"db\.example"):
        core.Connection(unknown)


def test_options_are_checked() -> None:
    with pytest.raises((AttributeError, TypeError)):
        core.Connection(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        core.Connection()  # type: ignore[call-arg]


def test_lost(connect: Connect) -> None:
    conn, other = connect(pipeline=True), connect()
    drive(conn, conn.start_execute("select pg_sleep($1)", (0.0,)))
    head = conn.start_execute("select pg_sleep($1)", (20.0,))
    behind = conn.start_execute("select pg_sleep($1)", (0.0,))
    conn.poll()
    drive(other, other.start_execute("select pg_terminate_backend($1)", (conn.backend_pid,)))
    with pytest.raises(errors.AdminShutdown):
        drive(conn, head)
    with pytest.raises(errors.ConnectionLost) as caught:
        behind.result()
    assert isinstance(caught.value.__cause__, errors.AdminShutdown)
    assert conn.poll() == core.CLOSED
    fd = conn.fileno()
    assert fd >= 0
    conn.close_fd()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_large_both_ways(conn: core.Connection) -> None:
    text = "y" * 20_000_000
    assert drive(conn, conn.start_execute("select $1::text", (text,))).scalar() == text


# -- wait


def test_wait(conn: core.Connection) -> None:
    operation = conn.start_execute("select pg_sleep(0.2)")
    assert conn.wait(operation, 0) is False
    assert conn.wait(operation, 0.01) is False
    assert conn.wait(operation, 10) is True
    assert conn.wait(operation, 0) is True


def test_terminate_from_another_thread_ends_the_wait(conn: core.Connection) -> None:
    for end in (conn.terminate, conn.close_fd):
        timer = threading.Timer(0.1, end)
        if not conn.closed:
            operation = conn.start_execute("select pg_sleep(20)")
        timer.start()
        started = time.monotonic()
        assert conn.wait(operation, 10) is True
        assert time.monotonic() - started < 3
        timer.join()
    with pytest.raises(errors.ConnectionLost):
        operation.result()
    assert conn.fileno() == -1


def test_close_fd_from_another_thread_ends_the_wait(conn: core.Connection) -> None:
    operation = conn.start_execute("select pg_sleep(20)")
    timer = threading.Timer(0.1, conn.close_fd)
    timer.start()
    assert conn.wait(operation, 10) is True
    timer.join()
    assert conn.fileno() == -1


# -- the ends of objects


def test_dropped_without_close(options: conninfo.Options) -> None:
    conn = core.Connection(options)
    drive(conn, conn.start_connect())
    fd = conn.fileno()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del conn
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_dropped_with_a_request_in_flight(options: conninfo.Options) -> None:
    conn = core.Connection(options)
    drive(conn, conn.start_connect())
    operation = conn.start_execute("select pg_sleep(20)")
    conn.poll()
    with pytest.warns(ResourceWarning):
        del conn
    assert operation.done()
    assert operation.connection is None
    with pytest.raises(errors.ConnectionLost):
        operation.result()


def test_dropped_in_a_cycle(options: conninfo.Options) -> None:
    conn = core.Connection(options)
    drive(conn, conn.start_connect())
    cycle: list[Any] = [conn]
    cycle.append(conn.start_execute("select $1::text", (cycle,)))
    del conn
    del cycle
    with pytest.warns(ResourceWarning):
        gc.collect()


def test_dropped_quietly_where_there_is_nothing_to_close(options: conninfo.Options, conn: core.Connection) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        core.Connection(options)
        starting = core.Connection(options)
        starting.start_connect()
        starting.poll()
        del starting
        ended = core.Connection(options)
        drive(ended, ended.start_connect())
        ended.terminate()
        del ended
        gc.collect()


def test_closing_what_never_connected(options: conninfo.Options) -> None:
    conn = core.Connection(options)
    assert conn.start_close().result() is None
    assert conn.poll() == core.CLOSED


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork(options: conninfo.Options, conn: core.Connection) -> None:
    running = conn.start_execute("select pg_sleep(0.2), 5")
    conn.poll()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            calls: list[Callable[[], object]] = [
                conn.poll,
                conn.flush,
                lambda: conn.start_execute("select 1"),
                conn.start_close,
                conn.start_cancel,
                conn.next_completed,
                running.abandon,
                lambda: conn.wait(running, 1),
            ]
            for call in calls:
                with pytest.raises(pgpoll.InterfaceError, match="fork"):
                    call()
            conn.terminate()
            assert conn.fileno() == -1
            dropped = core.Connection(options)
            drive(dropped, dropped.start_connect())
            dropped.terminate()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert drive(conn, running)[0][1] == 5
    assert drive(conn, conn.start_execute("select 1")).scalar() == 1


# -- pinning


def test_operations_of_a_session_outlive_it(options: conninfo.Options) -> None:
    session = core.Session(options)
    operation = session.start_connect()
    assert session.outbound()[4:8] == b"\0\3\0\0"
    del session
    assert operation.done()
    with pytest.raises(errors.ConnectionLost):
        operation.result()
