"""Fixtures: a PostgreSQL (our own, or PGPOLL_DSN's) and the event loops that every async test runs on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import pgpoll
import sanity as _sanity
import server as _server
from pgpoll import conninfo, sync

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so would its tests

if pipeline := os.environ.get("PGPOLL_MAX_PIPELINE"):  # the whole suite as with a pooler that can't pipeline
    conninfo.MAX_PIPELINE = int(pipeline)

replays: Counter[str] = Counter()  # of dialogues, in test_session_splits.py


def pytest_collection_finish() -> None:
    """The tests themselves, hundreds of thousands of objects, are not the garbage collector's any more.

    To look through them takes it 0.1 s, in which a loop that is being watched stands still.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes tells the first one how often it has replayed dialogues."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["replays"] = dict(replays)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    replays.update(getattr(node, "workeroutput", {}).get("replays", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if replays:
        told = ", ".join(f"{count:,} {what}" for what, count in sorted(replays.items()))
        terminalreporter.write_line(f"dialogues replayed: {told}; {replays.total():,} in all")


LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Every async test runs on asyncio's own loop and on uvloop; PGPOLL_LOOP picks one of them."""
    chosen = os.environ.get("PGPOLL_LOOP")
    return {chosen: LOOPS[chosen]} if chosen else LOOPS


@pytest.fixture(scope="session")
def server() -> Iterator[_server.Server]:
    """A PostgreSQL of our own, with the roles of server.ROLES; for tests of authentication and of loss."""
    with _server.Server() as running:
        yield running


@pytest.fixture(scope="session")
def dsn(request: pytest.FixtureRequest) -> str:
    """The DSN of a superuser's database: PGPOLL_DSN if set, else that of `server`."""
    if given := os.environ.get("PGPOLL_DSN"):
        return given
    running: _server.Server = request.getfixturevalue("server")
    return running.dsn


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[pgpoll.Connection]:
    async with pgpoll.connect(dsn) as connection:
        yield connection


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[pgpoll.Connection]:
    async with pgpoll.connect(dsn) as connection:
        yield connection


@pytest.fixture
def blocking(dsn: str) -> Iterator[sync.Connection]:
    with sync.connect(dsn) as connection:
        yield connection


@pytest.fixture
async def assert_sane(dsn: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[_sanity.Sanity]:
    """U1 to U8 of what was done with it, when the test ends; see sanity.py."""
    async with _sanity.Sanity(dsn, caplog) as sane:
        yield sane


@pytest.fixture
def assert_sane_sync(dsn: str, caplog: pytest.LogCaptureFixture) -> Iterator[_sanity.SyncSanity]:
    """The same for the blocking face."""
    with _sanity.SyncSanity(dsn, caplog) as sane:
        yield sane
