"""Python's allocations failing one at a time, in a process of its own: python tests/exhaustion.py [DSN].

A flow is played over and over, each time with another allocation of Python's failing, once: connecting, requests with
arguments and rows of several types, an error, the end. It ends as usual, or with MemoryError, or with its connection
closed; every operation has ended; and what is done next works: on the same connection, where that is open.

The flows have no function, comprehension or generator made within them, and no client: CPython 3.12.1 itself frees the
code of a generator expression once too often where it can't be created, and Options.cleartext_allowed has one.
"""

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]
import contextlib
import datetime as dt
import decimal
import faulthandler
import gc
import select
import sys
from collections.abc import Callable
from typing import Any

from backend import bind_complete, command_complete, data_row, described, error_response, int4, ready_for_query, started
from peers import options
from pgpoll import conninfo, core, errors

ARGUMENTS = (41, "text of some length", decimal.Decimal("12.50"), dt.datetime(2024, 2, 29), [1, None, 3])
MANY = "select $1::int4 + 1 as a, $2::text as b, $3::numeric as c, $4::timestamp as d, $5::int4[] as e"


class Steps:
    """The operations of one playing, and what drives them."""

    def __init__(self, client: Any) -> None:
        self.started: list[core.Operation] = []
        self.client = client

    def start(self, verb: str, *args: Any) -> core.Operation:
        operation: core.Operation = getattr(self.client, f"start_{verb}")(*args)
        self.started.append(operation)
        return operation


STARTED = started()
DESCRIBED = described("a", parameters=(23,))
ROWS = bind_complete() + data_row(int4(42)) + data_row(None) + command_complete("SELECT 2") + ready_for_query()
FAILED = bind_complete() + error_response("22012", "division by zero") + ready_for_query()
SERVED = command_complete("DO") + ready_for_query()


def say(session: core.Session, data: bytes) -> None:
    session.receive(data)
    session.pump()
    session.outbound()


def in_memory(steps: Steps) -> None:
    session = steps.client
    steps.start("connect")
    say(session, STARTED)
    steps.start("execute", "select $1", (41,))
    say(session, DESCRIBED)
    say(session, ROWS)
    result = steps.started[-1].result()
    assert list(result) == [(42,), (None,)]
    assert result[0]["a"] == 42
    steps.start("execute", "select $1", (1,))
    steps.start("script", "select 1; select 2")
    say(session, FAILED)
    told = False
    try:
        steps.started[-2].result()
    except errors.DivisionByZero:
        told = True
    assert told
    say(session, SERVED)
    steps.started[-1].result()
    steps.start("prepare", "select 3")
    steps.started[-1].abandon()
    session.next_completed()


def drive(conn: core.Connection, operation: core.Operation) -> Any:
    while not operation.done():
        state = conn.poll()
        if not operation.done():
            fd = [conn.fileno()]
            ready = select.select(fd if state & core.WAIT_READ else [], fd if state & core.WAIT_WRITE else [], [], 10)
            assert ready[0] or ready[1], "the operation does not end"
    return operation.result()


def over_a_socket(steps: Steps) -> None:
    conn = steps.client
    drive(conn, steps.start("connect"))
    row = drive(conn, steps.start("execute", MANY, ARGUMENTS))[0]
    assert tuple(row) == (42, *ARGUMENTS[1:])
    told = False
    try:
        drive(conn, steps.start("execute", "select 1 / $1::int4", (0,)))
    except errors.DivisionByZero:
        told = True
    assert told
    first, second = steps.start("prepare", "select 3"), steps.start("script", "select 1; select 2")
    drive(conn, first)
    drive(conn, second)
    steps.start("close")


def expect_answer(conn: core.Connection) -> None:
    """The connection answers what it is asked; or it has ended, and says so."""
    try:
        operation = conn.start_execute("select $1::int4", (4711,))
    except errors.InterfaceError:
        while not conn.poll() & core.CLOSED:
            select.select([conn.fileno()], [], [], 10)
        return
    try:
        assert drive(conn, operation).scalar() == 4711
    except errors.OperationalError:
        assert conn.poll() & core.CLOSED


def ended(operation: core.Operation) -> None:
    assert operation.done(), "an operation has not ended"
    with contextlib.suppress(errors.Error, MemoryError):
        operation.result()


def finish(steps: Steps) -> None:
    if isinstance(steps.client, core.Session):
        steps.client.eof()
        steps.client.pump()
        assert steps.client.ended
    else:
        if steps.started and steps.started[0].done():
            expect_answer(steps.client)
        steps.client.terminate()
    for operation in steps.started:
        ended(operation)
    if isinstance(steps.client, core.Connection):
        steps.client.close_fd()


def plays_without(flow: Callable[[Steps], None], make: Callable[[], Any], first: int, last: int) -> bool:
    """Whether the flow ends as usual where the allocations from `first` to before `last` fail (0: all that follow)."""
    steps = Steps(make())
    usual = False
    _testcapi.set_nomemory(first, last)
    try:
        flow(steps)
        usual = True
    except (MemoryError, errors.OperationalError, errors.InterfaceError):
        pass
    except SystemError as error:
        # CPython's own, for a Python frame that can't be made; of a function in C it would say which it was.
        if str(error) != "error return without exception set":
            raise
    finally:
        _testcapi.remove_mem_hooks()
    finish(steps)
    return usual


def main(dsn: str | None) -> None:
    faulthandler.enable()
    made = conninfo.resolve(dsn) if dsn else options()
    flow = over_a_socket if dsn else in_memory

    def make() -> Any:
        return core.Connection(made, pipeline=True) if dsn else core.Session(made)

    assert plays_without(flow, make, 10**9, 0), "the flow itself does not work"
    total = 64
    while not plays_without(flow, make, total, 0):
        total *= 2
    # From here on failures are single. The garbage of the last one must not be collected within the next.
    usual = 0
    for first in range(total):
        gc.collect(0)
        print(f"allocation {first}", file=sys.stderr, flush=True)  # the last line tells where it was
        usual += plays_without(flow, make, first, first + 1)
    print(f"{flow.__name__}: {total} playings, each without another allocation; {usual} ended as usual")
    assert usual < total, "none was noticed"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
