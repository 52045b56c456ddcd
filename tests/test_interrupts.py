"""Ctrl-C anywhere within the blocking face's own code: nothing is left behind, at the server or here.

Each verb is run again and again, interrupted at its first place, its second, and so on to its last (tests/
interrupting.py). PGPOLL_INTERRUPTS is the stride: 1 tries every place.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import pgpoll
from interrupting import Interrupt, Interrupter
from pgpoll import _cancelling, sync

STRIDE = int(os.environ.get("PGPOLL_INTERRUPTS", "11"))

Verb = Callable[[sync.Connection], object]


def execute(conn: sync.Connection) -> None:
    conn.execute("select 1")


def execute_within(conn: sync.Connection) -> None:
    conn.fetchval("select $1::int4", 1, timeout=20)


def script(conn: sync.Connection) -> None:
    conn.executescript("select 1; insert into i_t values (1)")


def prepare(conn: sync.Connection) -> None:
    conn.prepare("select 2").fetch()


def transaction(conn: sync.Connection) -> None:
    with conn.transaction():
        conn.execute("insert into i_t values (1)")


def nested(conn: sync.Connection) -> None:
    with conn.transaction() as tx:
        with tx.transaction():
            conn.execute("insert into i_t values (1)")
        tx.execute("insert into i_t values (1)")


def rolled_back(conn: sync.Connection) -> None:
    with contextlib.suppress(ZeroDivisionError), conn.transaction():
        with contextlib.suppress(KeyError), conn.transaction():
            conn.execute("insert into i_t values (1)")
            raise KeyError
        raise ZeroDivisionError


def script_in_transaction(conn: sync.Connection) -> None:
    with conn.transaction(), conn.transaction():
        conn.executescript("insert into i_t values (1)")


def by_hand(conn: sync.Connection) -> None:
    tx = conn.transaction()
    try:
        tx.start()
        tx.execute("insert into i_t values (1)")
        tx.commit()
    except Interrupt:
        if tx._block.live:
            tx.rollback()
        raise


def executemany(conn: sync.Connection) -> None:
    conn.executemany("insert into i_t values ($1)", ((each,) for each in range(3)))


def batch(conn: sync.Connection) -> None:
    with conn.batch() as items:
        items.execute("insert into i_t values ($1)", 1)
        one = items.fetchval("select 3")
    assert one.result() == 3


def batch_in_transaction(conn: sync.Connection) -> None:
    with conn.transaction(), conn.batch() as items:
        items.execute("insert into i_t values ($1)", 1)


def stream(conn: sync.Connection) -> None:
    for _ in conn.stream("select generate_series(1, 5)", prefetch=2):
        pass


def stream_left(conn: sync.Connection) -> None:
    with conn.stream("select generate_series(1, 100000)", prefetch=2) as rows:
        next(rows)


def stream_in_transaction(conn: sync.Connection) -> None:
    with conn.transaction(), conn.stream("select generate_series(1, 7)", prefetch=2) as rows:
        for _ in rows:
            conn.execute("select 1")


def copy_in(conn: sync.Connection) -> None:
    conn.copy_in("copy i_t from stdin", iter([b"1\n", b"2\n"]))


def copy_records(conn: sync.Connection) -> None:
    conn.copy_records("i_t", [(1,), (2,)])


def copy_out(conn: sync.Connection) -> None:
    for _ in conn.copy_out("copy (select generate_series(1, 3)) to stdout"):
        pass


def copy_out_left(conn: sync.Connection) -> None:
    with conn.copy_out_records("select generate_series(1, 100000)") as records:
        next(records)


def listen(conn: sync.Connection) -> None:
    with conn.listen("i_n", "i_m") as heard:
        conn.execute("select pg_notify('i_n', '')")
        assert heard.next(timeout=5) is not None


def cancel(conn: sync.Connection) -> None:
    conn.cancel()
    conn.execute("select 1")


def run_transaction(conn: sync.Connection) -> None:
    conn.run_transaction(lambda tx: tx.execute("insert into i_t values (1)"))


VERBS: list[Verb] = [
    *(execute, execute_within, script, prepare, transaction, nested, rolled_back, script_in_transaction, by_hand),
    *(executemany, batch, batch_in_transaction, stream, stream_left, stream_in_transaction, copy_in, copy_records),
    *(copy_out, copy_out_left, listen, cancel, run_transaction),
]


# An iterator that is not within a `with` ends when it is dropped, and the traceback has it.
HELD: list[Verb] = [stream, copy_out]


@pytest.fixture(scope="module")
def admin(dsn: str) -> Iterator[sync.Connection]:
    with sync.connect(dsn) as conn:
        yield conn


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def conn(dsn: str) -> Iterator[sync.Connection]:
    with sync.connect(dsn) as connection:
        yield connection


class Case:
    """One connection that is interrupted again and again."""

    def __init__(self, dsn: str, admin: sync.Connection) -> None:
        self.dsn, self.admin = dsn, admin
        self.conn = self._connect()
        self.closed = 0
        self.token = 0

    def _connect(self) -> sync.Connection:
        conn = sync.connect(self.dsn)
        conn.execute("create temp table i_t (i int4)")
        return conn

    def interrupt(self, verb: Verb, at: int) -> str | None:
        """Run the verb, interrupted there; where that was, None where there is no such place."""
        faulthandler.dump_traceback_later(30, exit=True)
        interrupter = Interrupter(at)
        try:
            with interrupter:
                verb(self.conn)
        except Interrupt:
            if verb not in HELD:
                self.check(interrupter.where)  # what the traceback holds lives on meanwhile
        except pgpoll.Error as error:
            raise AssertionError(f"{error!r} at {interrupter.where}") from error
        else:
            if interrupter.count >= at:
                raise AssertionError(f"the interrupt was lost at {interrupter.where}")
            return None
        self.check(interrupter.where)
        self.conn.execute("truncate i_t")
        return interrupter.where

    def ask(self, answers: list[Any]) -> None:
        try:
            answers.append(self.conn.fetchval("select 7", timeout=2))
        except pgpoll.Error as error:
            answers.append(error)

    def check(self, where: str) -> None:
        conn, driver = self.conn, self.conn._driver
        if conn.closed:
            self.closed += 1
            assert not driver.blocks.stack, where
            assert not driver.blocks.waiting, where
            self.conn = self._connect()
            return
        self.token += 1
        try:
            assert conn.fetchval("select $1::int4", self.token, timeout=2) == self.token, where
            stranger: list[Any] = []
            thread = threading.Thread(target=self.ask, args=(stranger,))
            thread.start()
            thread.join()
            assert stranger == [7], f"another thread after {where}: {stranger}"
        except pgpoll.Error as error:
            raise AssertionError(f"{error!r} after {where}") from error
        blocks = driver.blocks
        left = (blocks.stack, blocks.waiting, driver._watched, driver._apart, driver.core._unfinished())
        assert not any(left), f"{where}: {left}"
        assert conn.transaction_status == "I", f"{where}: in status {conn.transaction_status}"
        listening = conn.fetchval("select string_agg(c, ',') from pg_listening_channels() c")
        assert listening is None, f"{where}: listens to {listening}"
        state = self.admin.fetchval("select state from pg_stat_activity where pid = $1", conn.backend_pid)
        assert state == "idle", f"{where}: {state}"


def struck(verb: Verb, conn: sync.Connection, after: float, gap: float) -> None:
    """Run it while signals come; two of them raise, wherever."""
    off = partial(signal.setitimer, signal.ITIMER_REAL, 0)
    try:
        try:
            with contextlib.suppress(Interrupt, pgpoll.Error):
                signal.setitimer(signal.ITIMER_REAL, after, gap)
                verb(conn)
            off()
        except Interrupt:
            off()
    except Interrupt:
        off()


@pytest.fixture
def strikes() -> Iterator[list[int]]:
    """As many of SIGALRM raise as there are in this list."""
    left: list[int] = []

    def handler(*_: object) -> None:
        if left:
            left.pop()
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # what strikes in a __del__ is dropped by Python
    yield left
    left.clear()
    sys.unraisablehook = hook
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_struck_twice(dsn: str, admin: sync.Connection, strikes: list[int]) -> None:
    """Real signals, and the second one may strike while the first is seen to."""
    case, chance = Case(dsn, admin), random.Random(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # where leaving a `with` was interrupted twice
        for _ in range(1100 // STRIDE):
            faulthandler.dump_traceback_later(30, exit=True)
            verb = chance.choice(VERBS)
            after, gap = chance.uniform(1e-5, 1e-3), chance.uniform(1e-5, 2e-4)
            strikes[:] = 1, 2
            struck(verb, case.conn, after, gap)
            strikes.clear()
            case.check(f"{verb.__name__} struck after {after:.6f} and {gap:.6f} s")
            case.conn.execute("truncate i_t")
    case.conn.close()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_terminated_anywhere(verb: Verb, dsn: str) -> None:
    """By a signal handler that goes on: the verb ends at once, by an error of pgpoll or by its result."""
    at = random.Random(verb.__name__).randint(1, 3 * STRIDE)
    while True:
        faulthandler.dump_traceback_later(30, exit=True)
        conn = sync.connect(dsn)
        conn.execute("create temp table i_t (i int4)")
        handler = Interrupter(at, conn.terminate)
        with contextlib.suppress(pgpoll.Error), handler:
            verb(conn)
        terminated = handler.count >= at
        assert conn.closed == terminated, handler.where
        conn.terminate()
        driver = conn._driver
        left = (driver.blocks.stack, driver.blocks.waiting, driver._watched, driver._apart, driver.core._unfinished())
        assert not any(left), f"{handler.where}: {left}"
        assert driver.mutex.depth == 0, handler.where
        with pytest.raises(pgpoll.InterfaceError):
            conn.execute("select 1")
        if not terminated:
            return
        at += 3 * STRIDE


def test_a_wish_is_granted_while_somebody_waits(conn: sync.Connection, admin: sync.Connection) -> None:
    """An abandoned request whose CancelRequest has not struck: cancelled again, though its thread does something else.

    Who waits for that thread's transaction sees to it.
    """
    driver = conn._driver
    conn.fetchval("select 1")
    with contextlib.suppress(ZeroDivisionError), conn.transaction():
        conn.execute("select 1")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(driver.cancelling, "_cancel_abandoned", lambda *_: None)
            with pytest.raises(pgpoll.QueryTimeout):
                conn.execute("select pg_sleep(20)", timeout=0.05)
        stranger = threading.Thread(target=conn.execute, args=("select 1",))
        stranger.start()
        state, until = "active", time.monotonic() + 5
        while state == "active" and time.monotonic() < until:
            time.sleep(0.05)
            state = admin.fetchval("select state from pg_stat_activity where pid = $1", conn.backend_pid)
        assert state == "idle in transaction (aborted)"
        raise ZeroDivisionError
    stranger.join(5)
    assert not stranger.is_alive()


@pytest.fixture
def left_under_way(conn: sync.Connection) -> Callable[[], object]:
    """Abandons a COPY at the server, as a second Ctrl-C leaves it: its CancelRequest is begun, and no more."""

    def leave() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(conn._driver.cancelling, "_finish", lambda _: None)
            records.close()
        assert conn._driver.cancelling.under_way is not None

    records = conn.copy_out_records("select generate_series(1, 1000000)")
    next(records)
    return leave


def test_a_cancel_that_was_left_under_way_is_gone_on_with_by_who_waits(
    conn: sync.Connection, left_under_way: Callable[[], object]
) -> None:
    answers: list[int] = []
    stranger = threading.Thread(target=lambda: answers.append(conn.fetchval("select 7")))
    stranger.start()
    while not conn._driver.blocks.waiting:
        time.sleep(0.001)
    left_under_way()
    stranger.join(5)
    assert answers == [7]


def test_a_cancel_that_was_left_under_way_for_long(
    conn: sync.Connection, left_under_way: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its two seconds are of who looks at it."""
    monkeypatch.setattr(_cancelling, "CANCEL_SECONDS", 0.5)
    left_under_way()
    time.sleep(0.6)
    assert conn.fetchval("select 7") == 7


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_anywhere(verb: Verb, dsn: str, admin: sync.Connection) -> None:
    case = Case(dsn, admin)
    try:
        at, places = random.Random(verb.__name__).randint(1, STRIDE), 0
        while case.interrupt(verb, at) is not None:
            at += STRIDE
            places += 1
        assert places >= 6 // STRIDE
        assert case.closed == 0
        verb(case.conn)
    finally:
        case.conn.close()


def test_close_anywhere(dsn: str, admin: sync.Connection) -> None:
    """What is left is closed, or as it was."""
    at, places = 1, 0
    while True:
        faulthandler.dump_traceback_later(30, exit=True)
        conn = sync.connect(dsn)
        pid = conn.backend_pid
        tx = conn.transaction()
        tx.start()
        interrupter = Interrupter(at)
        with contextlib.suppress(Interrupt), interrupter:
            conn.close()
        conn.close()
        assert conn.closed, interrupter.where
        assert not conn._driver.blocks.stack, interrupter.where
        until = time.monotonic() + 5
        while admin.fetchval("select count(*) from pg_stat_activity where pid = $1", pid):
            assert time.monotonic() < until, interrupter.where
        if interrupter.count < at:
            break
        at += max(1, STRIDE // 3)
        places += 1
    assert places > 60 // STRIDE
