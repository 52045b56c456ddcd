"""faults.md rows 8, 16, 67: what a CancelRequest leaves behind, and what is told where it ends the connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import pgpoll
from pgpoll import core, errors
from proxy import Faults
from sanity import Sanity, SyncSanity

NOT_ANSWERED = "a CancelRequest was not answered within 0.3 s"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CancelRequest follows at once, and has 0.3 s."""
    monkeypatch.setattr("pgpoll._cancelling.GRACE_SECONDS", 0.05)
    monkeypatch.setattr("pgpoll._cancelling.CANCEL_SECONDS", 0.3)


@pytest.mark.usefixtures("impatient")
async def test_f67_everyone_is_told_why(assert_sane: Sanity) -> None:
    """On the wire, in the line, and later."""
    conn = await assert_sane.connect(assert_sane.through(Faults(cancels="hang")))
    await conn.execute("select pg_sleep($1::float8)", 0)
    head = asyncio.create_task(conn.execute("select pg_sleep($1::float8)", 0.6, timeout=0.03))
    behind = asyncio.create_task(conn.execute("select pg_sleep($1::float8)", 0))
    with assert_sane.raises(pgpoll.QueryTimeout):
        await head
    later = asyncio.create_task(conn.execute("select 1"))
    block = asyncio.create_task(conn.transaction().start())
    for task in (behind, later, block):
        with assert_sane.raises(pgpoll.ConnectionLost, match=NOT_ANSWERED) as caught:
            await asyncio.wait_for(task, 2)
        assert isinstance(caught.value, pgpoll.Error)
        assert caught.value.safe_to_retry == (task is not behind)
    with assert_sane.raises(pgpoll.InterfaceError, match=NOT_ANSWERED):
        await conn.execute("select 1")


@pytest.mark.usefixtures("impatient")
def test_f67_everyone_is_told_why_blocking(assert_sane_sync: SyncSanity) -> None:
    conn = assert_sane_sync.connect(assert_sane_sync.through(Faults(cancels="hang")))
    began = threading.Event()

    def head() -> None:
        began.set()
        conn.execute("select pg_sleep(0.5)", timeout=0.1)

    with ThreadPoolExecutor(2) as pool:
        abandoned = pool.submit(head)
        began.wait(2)
        assert_sane_sync.until(lambda: conn._driver.core.in_flight == 1)
        with assert_sane_sync.raises(pgpoll.ConnectionLost, pgpoll.InterfaceError, match=NOT_ANSWERED):
            conn.execute("select 1", timeout=5)
        with assert_sane_sync.raises(pgpoll.QueryTimeout):
            abandoned.result(2)


def hanging(conn: pgpoll.Connection) -> core.Cancel:
    """The CancelRequest on its way."""
    request = conn._driver.cancelling.under_way
    assert request is not None
    assert request._request.fileno() >= 0
    return request._request


async def terminated(conn: pgpoll.Connection) -> None:
    conn.terminate()


async def closed(conn: pgpoll.Connection) -> None:
    """Its deadline is over before the CancelRequest's."""
    await conn.close()


async def left(conn: pgpoll.Connection) -> None:
    with contextlib.suppress(KeyError):
        async with asyncio.timeout(None) as scope:
            asyncio.get_running_loop().call_later(0.05, lambda: scope.reschedule(0))
            async with conn:
                raise KeyError


async def lost(conn: pgpoll.Connection) -> None:
    conn._core.terminate("lost for all that anybody knows")


@pytest.mark.parametrize("end", [terminated, closed, left, lost])
async def test_f67_nothing_outlives_its_connection(
    assert_sane: Sanity, monkeypatch: pytest.MonkeyPatch, end: Callable[[pgpoll.Connection], object]
) -> None:
    """D13: nor does a CancelRequest's socket."""
    monkeypatch.setattr("pgpoll._loop.CLOSE_SECONDS", 0.1)
    conn = await assert_sane.connect(assert_sane.through(Faults(cancels="hang")))
    with assert_sane.raises(pgpoll.QueryTimeout):
        await conn.execute("select pg_sleep(0.5)", timeout=0.03)
    request = hanging(conn)
    by_hand = asyncio.create_task(conn.cancel())
    await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError), assert_sane.at_once(0.5):
        await end(conn)  # type: ignore[misc]
    assert request.done()
    assert request.fileno() == -1
    with assert_sane.raises(errors.OperationalError, match="CancelRequest"):
        await by_hand


async def test_f67_nothing_outlives_a_dropped_connection(assert_sane: Sanity) -> None:
    parameters = assert_sane.parameters(assert_sane.through(Faults(cancels="hang")), {})
    conn = await pgpoll.connect(**parameters)
    with assert_sane.raises(pgpoll.QueryTimeout):
        await conn.execute("select pg_sleep(0.5)", timeout=0.03)
    request = hanging(conn)
    await asyncio.sleep(0.01)  # what woke the request is forgotten by the loop
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del conn
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]
    assert request.done()
    assert request.fileno() == -1


def test_f67_nothing_outlives_its_connection_blocking(assert_sane_sync: SyncSanity) -> None:
    conn = assert_sane_sync.connect(assert_sane_sync.through(Faults(cancels="hang")))
    with assert_sane_sync.raises(pgpoll.QueryTimeout):
        conn.execute("select pg_sleep(0.5)", timeout=0.03)
    assert conn._driver.cancelling.under_way is not None
    request, _ = conn._driver.cancelling.under_way
    assert request.fileno() >= 0
    with assert_sane_sync.at_once():
        conn.terminate()
    assert request.done()
    assert request.fileno() == -1


def test_f67_terminated_while_another_thread_cancels(assert_sane_sync: SyncSanity) -> None:
    """Who waits for the CancelRequest's end sees that of the connection, within a slice."""
    conn = assert_sane_sync.connect(assert_sane_sync.through(Faults(cancels="hang")))
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(conn.execute, "select pg_sleep(0.5)")
        assert_sane_sync.until(lambda: conn._driver.core.in_flight == 1)
        cancelling = pool.submit(conn.cancel)
        assert_sane_sync.until(lambda: conn._driver.cancelling.under_way is not None)
        began = time.monotonic()
        conn.terminate()
        with assert_sane_sync.raises(errors.OperationalError, match="CancelRequest"):
            cancelling.result(5)
        with assert_sane_sync.raises(pgpoll.ConnectionLost):
            running.result(5)
        assert time.monotonic() - began < 1
    assert conn._driver.cancelling.under_way is None


def test_f67_why_it_was_terminated(dsn: str) -> None:
    """The poll API's reason reaches every operation, and who comes later."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conn = core.Connection(pgpoll.conninfo.resolve(dsn), pipeline=True)
        connecting = conn.start_connect()
        while not conn.wait(connecting, 1):
            pass
        asked = [conn.start_execute("select 1"), conn.start_execute("select 2")]
        conn.terminate("the house is on fire")
        for each in asked:
            with pytest.raises(pgpoll.ConnectionLost, match="the house is on fire"):
                each.result()
        with pytest.raises(pgpoll.InterfaceError, match="the house is on fire"):
            conn.start_execute("select 1")
        with pytest.raises(TypeError):
            conn.terminate(5)  # type: ignore[arg-type]
        conn.close_fd()
