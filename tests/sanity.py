"""What must be true after every fault: U1 to U8. The fixtures `assert_sane` and `assert_sane_sync` end a test with it.

    async def test_f02_...(assert_sane: Sanity) -> None:
        conn = await assert_sane.connect(assert_sane.through(Faults(end="reset", at=1000)))
        with assert_sane.raises(pgpoll.ConnectionLost):
            ...

- U1: a heartbeat measures that the loop was never blocked for more than 50 ms (waiting for a processor not counted);
  no thread, descriptor or server backend of ours is left.
- U2: queries carry tokens (`token()`), whose answer is compared.
- U3: `at_once()` and `told_at_once()` measure 100 ms.
- U4: each connection made here is either right for the next query, or closed and says so at once.
- U6: the loop's exception handler was told nothing; ResourceWarnings are errors in the whole suite.
- U8: every error that `raises` saw is pgpoll's own, and neither it nor any log record has the password.

U5 belongs to the pool, U7 to the tests of rows 26 and 37.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

import pgpoll
import proxy as _proxy
from pgpoll import sync
from proxy import Faults, Proxy

CANARY = "canary-4711"
BLOCKED_SECONDS = 0.05
AT_ONCE_SECONDS = 0.1

_tokens = itertools.count(1)
_TICKS = os.sysconf("SC_CLK_TCK")


def run_delay() -> float:
    """Seconds for which this thread was ready and had no processor, or a hypervisor had given its processor away."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            waited = int(file.read().split()[1]) / 1e9
        with open("/proc/stat", encoding="ascii") as file:
            return waited + int(file.readline().split()[8]) / _TICKS
    except OSError:
        return 0.0


class Limit:
    """A block that may take so long, without the time in which this thread had no processor."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> Self:
        self.delay, self.began = run_delay(), time.monotonic()  # in this order: what lies between is not counted
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        took = time.monotonic() - self.began - (run_delay() - self.delay)
        if kind is None:
            assert took <= self.seconds, f"took {took:.3f} s, more than {self.seconds} s"


class Watched:
    """What both faces have in common."""

    def __init__(self, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
        self.dsn = dsn  # of the server itself, for the count of backends
        self.name = f"sane {os.getpid()} {next(_tokens)}"
        self.caplog = caplog
        self.proxies: list[Proxy] = []
        _proxy.started()
        gc.collect()
        gc.freeze()  # a collection of all of pytest's objects takes longer than what is measured here
        self.descriptors = descriptors()
        self.threads = set(threading.enumerate())

    def through(self, faults: Faults = Faults()) -> Proxy:  # noqa: B008 - frozen
        """A proxy before the server, which lives until the end of the test."""
        where = urllib.parse.urlsplit(self.dsn)
        made = Proxy(where.hostname or "127.0.0.1", where.port or 5432, faults)
        self.proxies.append(made)
        return made

    def parameters(self, proxy: Proxy | None, changes: dict[str, Any]) -> dict[str, Any]:
        where = urllib.parse.urlsplit(self.dsn)
        port = where.port if proxy is None else proxy.port
        known = {"host": where.hostname, "port": port, "user": where.username, "dbname": where.path[1:]}
        return known | {"password": CANARY, "application_name": self.name} | changes

    def token(self) -> int:
        return next(_tokens)

    def examine(self, error: BaseException | None) -> None:
        """One of ours, with its causes, and without the password. CancelledError may carry one."""
        while error is not None:
            assert isinstance(error, (pgpoll.Error, OSError, TimeoutError, asyncio.CancelledError)), repr(error)
            fields = {**vars(error)} if isinstance(error, pgpoll.Error) else {}
            assert CANARY not in f"{error} {error!r} {error.args} {fields}", "an error shows the password"
            error = error.__cause__

    @contextlib.contextmanager
    def raises(self, *kinds: type[BaseException], match: str | None = None) -> Iterator[pytest.ExceptionInfo[Any]]:
        """pytest.raises, and the error is examined."""
        with pytest.raises(kinds, match=match) as caught:
            yield caught
        self.examine(caught.value)

    def at_once(self, seconds: float = AT_ONCE_SECONDS) -> Limit:
        return Limit(seconds)

    def told_at_once(self, proxy: Proxy, delay: float) -> None:
        """Now is at most 100 ms after the proxy's deed; `delay` is run_delay() of before."""
        assert proxy.ended_at is not None, "the proxy has done nothing"
        took = time.monotonic() - proxy.ended_at - (run_delay() - delay)
        assert took <= AT_ONCE_SECONDS, f"told after {took:.3f} s"

    def nothing_left(self) -> None:
        """U1 and U8, of what lives longer than a connection."""
        for each in self.proxies:
            each.close()
        gc.collect()
        gc.unfreeze()
        deadline = time.monotonic() + 2
        left = descriptors() - self.descriptors
        assert not left, f"descriptors left open: {left}"
        added = [each for each in set(threading.enumerate()) - self.threads if not each.name.startswith("asyncio_")]
        assert not added, f"threads are left: {added}"  # asyncio_n is the loop's own, for getaddrinfo
        with sync.connect(self.dsn) as watcher:
            count = "select count(*) from pg_stat_activity where application_name = $1"
            while (backends := watcher.fetchval(count, self.name)) and time.monotonic() < deadline:
                time.sleep(0.01)
        assert not backends, f"{backends} backends are left"
        assert CANARY not in self.caplog.text, "a log record shows the password"


class Sanity(Watched):
    """The asyncio face's."""

    def __init__(self, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__(dsn, caplog)
        self.loop = asyncio.get_running_loop()
        self.made: list[pgpoll.Connection] = []
        self.noise: list[dict[str, Any]] = []
        self.worst = 0.0
        self.blocking_allowed = False  # for a test that blocks the loop itself

    async def connect(self, proxy: Proxy | None = None, **changes: Any) -> pgpoll.Connection:
        conn = await pgpoll.connect(**self.parameters(proxy, changes))
        self.made.append(conn)
        return conn

    async def until(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def ask(self, conn: pgpoll.Connection) -> None:
        """One query with a token."""
        token = self.token()
        assert await conn.fetchval("select $1::int4", token, timeout=10) == token

    async def usable(self, conn: pgpoll.Connection) -> None:
        """The connection goes on, and its answers are the right ones."""
        for _ in range(3):
            await self.ask(conn)
        assert not conn._driver.blocks.stack

    async def closed(self, conn: pgpoll.Connection) -> None:
        """The connection is closed, and every verb says so at once."""
        assert conn.closed
        for verb in (conn.execute, conn.fetch, conn.fetchrow, conn.fetchval, conn.executescript, conn.prepare):
            with self.at_once(), self.raises(pgpoll.InterfaceError):
                await verb("select 1")
        with self.at_once(), self.raises(pgpoll.InterfaceError):
            await conn.transaction().start()
        with self.at_once():
            await conn.close()
            conn.terminate()

    async def __aenter__(self) -> Self:
        self.loop.set_exception_handler(lambda _, context: self.noise.append(context))
        self.tasks = asyncio.all_tasks()
        self.heart = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for conn in self.made:
                await (self.closed(conn) if conn.closed else self.usable(conn))
        finally:
            self.heart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.heart
            for conn in self.made:
                await conn.close()
            self.made.clear()
        for each in self.proxies:
            each.close()
        with contextlib.suppress(TimeoutError):  # the proxies' sockets close in a thread of their own
            await self.until(lambda: not descriptors() - self.descriptors, 0.5)
        left = asyncio.all_tasks() - self.tasks - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"
        self.nothing_left()
        await asyncio.sleep(0)
        self.loop.set_exception_handler(None)
        assert not self.noise, f"the loop was told {self.noise}"
        assert self.blocking_allowed or self.worst <= BLOCKED_SECONDS, f"the loop was blocked for {self.worst:.3f} s"

    async def _beat(self) -> None:
        while True:
            delay, began = run_delay(), time.monotonic()
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, time.monotonic() - began - 0.005 - (run_delay() - delay))


class SyncSanity(Watched):
    """The blocking face's."""

    def __init__(self, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__(dsn, caplog)
        self.made: list[sync.Connection] = []

    def connect(self, proxy: Proxy | None = None, **changes: Any) -> sync.Connection:
        conn = sync.connect(**self.parameters(proxy, changes))
        self.made.append(conn)
        return conn

    def until(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.002)

    def usable(self, conn: sync.Connection) -> None:
        for _ in range(3):
            token = self.token()
            assert conn.fetchval("select $1::int4", token, timeout=10) == token

    def closed(self, conn: sync.Connection) -> None:
        assert conn.closed
        for verb in (conn.execute, conn.fetch, conn.fetchrow, conn.fetchval, conn.executescript, conn.prepare):
            with self.at_once(), self.raises(pgpoll.InterfaceError):
                verb("select 1")
        with self.at_once():
            conn.close()
            conn.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for conn in self.made:
                (self.closed if conn.closed else self.usable)(conn)
        finally:
            for conn in self.made:
                conn.close()
            self.made.clear()
        self.nothing_left()


def descriptors() -> Counter[str]:
    """How many of each kind are open in this process. Not which: a loop may change its own."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of this listing
            found[os.readlink(f"/proc/self/fd/{name}").split(":[")[0]] += 1
    del found["/dev/null"]  # libuv opens one for itself, and keeps it
    return found
