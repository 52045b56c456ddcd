"""faults.md rows 6 to 8: a peer that vanishes without a word, by a network namespace; and one that is only busy.

The namespace's end of a veth pair listens, for a proxy to the server. A permanent neighbour entry with nobody's address
makes every packet to it vanish. Needs root and iproute2.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

import pgpoll
from proxy import Proxy
from sanity import Sanity

NOBODY = "02:00:00:00:00:99"
_cables = itertools.count()


class Cable:
    """A veth pair into a namespace of our own; `cut()` loses what is sent to it, `mend()` finds it again."""

    def __init__(self) -> None:
        number = os.getpid() % 200 + 20
        each = f"{os.getpid()}x{next(_cables)}"  # a namespace with sockets in it vanishes only with them
        self.name, self.here, self.there = f"pgpoll{each}", f"pgh{each}", f"pgt{each}"
        self.host, self.address = f"10.213.{number}.1", f"10.213.{number}.2"
        self.ip("netns", "add", self.name)
        self.ip("link", "add", self.here, "type", "veth", "peer", "name", self.there, "netns", self.name)
        self.ip("addr", "add", f"{self.host}/30", "dev", self.here)
        self.ip("link", "set", self.here, "up")
        self.ip("-n", self.name, "addr", "add", f"{self.address}/30", "dev", self.there)
        self.ip("-n", self.name, "link", "set", self.there, "up")

    @staticmethod
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def cut(self) -> None:
        self.ip("neigh", "replace", self.address, "lladdr", NOBODY, "dev", self.here, "nud", "permanent")

    def mend(self) -> None:
        self.ip("neigh", "del", self.address, "dev", self.here)

    def listener(self) -> socket.socket:
        """A socket that lives in the namespace, whoever uses it."""
        made: list[socket.socket] = []

        def enter() -> None:
            with open(f"/run/netns/{self.name}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server((self.address, 0), backlog=64))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return made[0]

    def remove(self) -> None:
        self.ip("link", "del", self.here)
        self.ip("netns", "del", self.name)


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable()
    yield made
    made.remove()


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="a network namespace needs root and iproute2"
)


@contextlib.contextmanager
def beyond(sane: Sanity, cable: Cable) -> Iterator[Proxy]:
    plain = sane.through()
    with Proxy(*plain.upstream, listener=cable.listener()) as proxy:
        yield proxy


@needs_root
async def test_f06_an_idle_connection_whose_server_vanished(cable: Cable, assert_sane: Sanity) -> None:
    """Keepalives notice it, though nobody asks."""
    with beyond(assert_sane, cable) as proxy:
        quick = {"keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 1, "tcp_user_timeout": 1000}
        conn = await assert_sane.connect(proxy, host=cable.address, **quick)
        await assert_sane.ask(conn)
        cable.cut()
        await assert_sane.until(lambda: conn.closed, 8)
        assert "timed out" in str(conn._core.why_closed) or "unreachable" in str(conn._core.why_closed)


@needs_root
async def test_f06_f07_a_request_that_nobody_receives(cable: Cable, assert_sane: Sanity) -> None:
    """tcp_user_timeout ends it; a deadline of its own ends it before."""
    with beyond(assert_sane, cable) as proxy:
        conn = await assert_sane.connect(proxy, host=cable.address, tcp_user_timeout=1000)
        await assert_sane.ask(conn)
        cable.cut()
        with assert_sane.raises(pgpoll.QueryTimeout), assert_sane.at_once(0.4):
            await conn.execute("select 1", timeout=0.2)
        with assert_sane.raises(pgpoll.ConnectionLost):
            await asyncio.wait_for(conn.execute("select 1"), 8)


@needs_root
async def test_f07_it_comes_back(cable: Cable, assert_sane: Sanity) -> None:
    """Silence shorter than the limits: the request is completed by the same connection."""
    with beyond(assert_sane, cable) as proxy:
        conn = await assert_sane.connect(proxy, host=cable.address)
        pid = await conn.fetchval("select pg_backend_pid()")
        cable.cut()
        task = asyncio.create_task(conn.fetchval("select pg_backend_pid()"))
        await asyncio.sleep(0.7)
        assert not task.done()
        cable.mend()
        assert await asyncio.wait_for(task, 10) == pid
        await assert_sane.usable(conn)
        await conn.close()


@needs_root
async def test_f08_the_cancel_request_vanishes(
    cable: Cable, assert_sane: Sanity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a deadline of its own; then the connection is ended. close() and terminate() have theirs."""
    monkeypatch.setattr("pgpoll._cancelling.CANCEL_SECONDS", 0.3)
    monkeypatch.setattr("pgpoll._loop.CLOSE_SECONDS", 0.3)
    with beyond(assert_sane, cable) as proxy:
        first = await assert_sane.connect(proxy, host=cable.address)
        second = await assert_sane.connect(proxy, host=cable.address)
        cable.cut()
        with assert_sane.raises(pgpoll.QueryTimeout):
            await first.execute("select 1", timeout=0.05)
        with assert_sane.raises(pgpoll.ConnectionLost, match="a CancelRequest was not answered"):
            await asyncio.wait_for(first.execute("select 1"), 2)
        task = asyncio.create_task(second.execute("select 1"))
        await asyncio.sleep(0)
        with assert_sane.at_once(0.6):
            await second.close()
        with assert_sane.raises(pgpoll.ConnectionLost):
            await task


async def test_f06_a_busy_server_is_not_gone(assert_sane: Sanity) -> None:
    """It reads nothing of what is pipelined for longer than tcp_user_timeout: Linux would end the connection."""
    conn = await assert_sane.connect(tcp_user_timeout=300)
    head = asyncio.create_task(conn.execute("select pg_sleep(1.5)"))
    big = "x" * 1_000_000
    tasks = [asyncio.create_task(conn.fetchval("select length($1::text) + $2::int4", big, n)) for n in range(12)]
    assert await asyncio.gather(*tasks) == [len(big) + n for n in range(12)]
    await head
    option = socket.socket(fileno=os.dup(conn._core.fileno()))
    with option:
        assert option.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 300, "on again"


async def test_f06_the_options_reach_the_socket(assert_sane: Sanity) -> None:
    expected = {
        (): (1, 15, 5, 3, 30_000),
        (("keepalives_idle", 7), ("keepalives_interval", 2), ("keepalives_count", 4), ("tcp_user_timeout", 9000)): (
            *(1, 7, 2, 4, 9000),
        ),
        (("keepalives", 0), ("tcp_user_timeout", 0)): (0, None, None, None, 0),
    }
    for given, wanted in expected.items():
        conn = await assert_sane.connect(None, **dict(given))
        with socket.socket(fileno=os.dup(conn._core.fileno())) as one:
            tcp = socket.IPPROTO_TCP
            got = (
                one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                *(one.getsockopt(tcp, o) for o in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)),
                one.getsockopt(tcp, socket.TCP_USER_TIMEOUT),
            )
        assert all(want is None or have == want for have, want in zip(got, wanted, strict=True)), (got, wanted)
