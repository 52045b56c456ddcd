"""Fixtures: a PostgreSQL (our own, or PGPOLL_DSN's) and the event loops that every async test runs on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import sanity as _sanity
import server as _server
from pgpoll import conninfo

if pipeline := os.environ.get("PGPOLL_MAX_PIPELINE"):  # the whole suite as with a pooler that can't pipeline
    conninfo.MAX_PIPELINE = int(pipeline)

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
async def assert_sane(dsn: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[_sanity.Sanity]:
    """U1 to U8 of what was done with it, when the test ends; see sanity.py."""
    async with _sanity.Sanity(dsn, caplog) as sane:
        yield sane


@pytest.fixture
def assert_sane_sync(dsn: str, caplog: pytest.LogCaptureFixture) -> Iterator[_sanity.SyncSanity]:
    """The same for the blocking face."""
    with _sanity.SyncSanity(dsn, caplog) as sane:
        yield sane
