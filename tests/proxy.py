"""A TCP proxy between the driver and a real server, which cuts, resets, stalls, splits, slows and forgets.

    with Proxy("127.0.0.1", 5432, Faults(end="reset", at=100)) as proxy:
        ...connect to 127.0.0.1, proxy.port...

Every proxy lives in one thread with a loop of its own (`started()`), so it serves blocking callers and any loop. What
it does depends on `Faults` and its seed alone. Offsets count the bytes of one stream from the start of the connection.
A CancelRequest, which comes on a connection of its own, is known by its code and treated as `Faults.cancels` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Self

CANCEL_REQUEST = 80877102
SECONDS = 10.0  # that anything here may take at most

End = Literal["cut", "reset", "stall"]


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What happens to a connection; by default nothing. Times are in seconds."""

    end: End | None = None  # at byte `at` of `stream`: FIN, RST, or silence both ways
    at: int = 0
    stream: Literal["server", "client"] = "server"
    reply_lost: bytes = b""  # once the client has sent this: it is delivered, the answer is not, and `end` follows
    segment: int = 0  # bytes at most in one; 0: as they come; -1: of random size
    rate: float = 0.0  # bytes a second; 0: as fast as they come
    delay: float = 0.0  # each chunk is held back so long
    jitter: float = 0.0  # and at most so much longer
    cancels: Literal["pass", "delay", "twice", "drop", "hang", "reset", "refuse"] = (
        "pass"  # "refuse": no longer listens
    )
    cancel_delay: float = 0.0  # "delay": until it is delivered, its socket open; "twice": until the second delivery
    seed: int = 0

    @classmethod
    def random(cls, dice: random.Random) -> Faults:
        """A bad network: some connections end in the middle, some are late, some come in pieces."""
        segment = dice.choice([0, 0, 0, -1, 7])
        return cls(
            end=dice.choice(["cut", "reset", None]),
            at=dice.randrange(1, 200_000),
            segment=segment,
            delay=0 if segment else dice.choice([0, 0, 0.001, 0.01]),
            jitter=0 if segment else dice.choice([0, 0.002, 0.02]),
            cancels=dice.choice(["pass", "delay", "delay", "reset"]),
            cancel_delay=dice.random() * 0.2,
            seed=dice.randrange(1 << 30),
        )


@functools.cache
def started() -> asyncio.AbstractEventLoop:
    """The loop that all proxies run on, in its thread."""
    loop = asyncio.SelectorEventLoop()
    threading.Thread(target=loop.run_forever, name="proxies", daemon=True).start()
    return loop


def await_there(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, started()).result(SECONDS)


class Proxy:
    """Listens on 127.0.0.1, `port`. `ended_at` is when (time.monotonic) the first connection's end was made."""

    def __init__(
        self,
        host: str,
        port: int,
        faults: Faults = Faults(),
        listener: socket.socket | None = None,
    ) -> None:
        self.upstream = (host, port)
        self.faults = faults
        self.streams = {"server": 0, "client": 0}  # bytes passed on, of all connections but CancelRequests
        self.connections = 0
        self.cancels = 0  # CancelRequests that came
        self.cancels_delivered = 0
        self.ended_at: float | None = None
        self.ended = threading.Event()
        self.dice = random.Random(faults.seed)
        self.listener = listener or socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: set[socket.socket] = set()
        self._closed = False
        started().call_soon_threadsafe(started().add_reader, self.listener, self._accept)

    def close(self) -> None:
        """End everything; when this returns no descriptor is left."""
        if not self._closed:
            self._closed = True
            await_there(self._close())

    def heal(self, faults: Faults = Faults()) -> None:
        """From the next connection on: these faults."""
        self.faults = faults

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- in the proxies' thread

    async def _close(self) -> None:
        self._refuse()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._sockets:
            each.close()

    def _refuse(self) -> None:
        if self.listener.fileno() >= 0:
            started().remove_reader(self.listener)
            self.listener.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = started().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
            raise error

    def _accept(self) -> None:
        """A callback, for a task that is cancelled may lose what it has just accepted."""
        with contextlib.suppress(BlockingIOError):
            client, _ = self.listener.accept()
            self._keep(client)
            self._spawn(self._serve(client))

    def _keep(self, one: socket.socket) -> None:
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.add(one)

    def _drop(self, *sockets: socket.socket) -> None:
        for one in sockets:
            self._sockets.discard(one)
            one.close()

    async def _connected(self) -> socket.socket:
        server = socket.socket()
        self._keep(server)
        await started().sock_connect(server, self.upstream)
        return server

    async def _serve(self, client: socket.socket) -> None:
        loop = started()
        first = b""
        while len(first) < 8:
            if not (data := await loop.sock_recv(client, 65536)):
                return self._drop(client)
            first += data
        if struct.unpack("!ii", first[:8])[1] == CANCEL_REQUEST:
            return await self._cancel_request(client, first)
        self.connections += 1
        if self.faults.cancels == "refuse":
            self._refuse()
        link = _Link(self, self.faults, client, await self._connected())
        try:
            await link.run(first)
        finally:
            self._drop(link.client, link.server)
        return None

    async def _cancel_request(self, client: socket.socket, request: bytes) -> None:
        faults = self.faults
        self.cancels += 1
        if faults.cancels == "hang":
            await asyncio.sleep(3600)
        if faults.cancels == "drop":
            return self._drop(client)
        if faults.cancels == "reset":
            return self._reset(client)
        if faults.cancels == "delay":
            await asyncio.sleep(faults.cancel_delay)
        await self._deliver(request)
        if faults.cancels == "twice":
            await asyncio.sleep(faults.cancel_delay)
            await self._deliver(request)
        return self._drop(client)

    async def _deliver(self, request: bytes) -> None:
        loop = started()
        server = await self._connected()
        await loop.sock_sendall(server, request)
        with contextlib.suppress(ConnectionError):
            await loop.sock_recv(server, 1)
        self.cancels_delivered += 1
        self._drop(server)

    def _reset(self, one: socket.socket) -> None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._drop(one)

    def _told(self) -> None:
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        self.ended.set()


@dataclass
class _Link:
    """One connection through the proxy."""

    proxy: Proxy
    faults: Faults
    client: socket.socket
    server: socket.socket
    passed: dict[str, int] = field(default_factory=lambda: {"server": 0, "client": 0})
    seen: bytes = b""
    lost: bool = False  # the client's last words are delivered, and the answer is to be lost

    async def run(self, first: bytes) -> None:
        pumps = [asyncio.create_task(self.to_server(first)), asyncio.create_task(self.to_client())]
        try:
            await asyncio.gather(*pumps)
        except OSError:
            pass  # one end went away, and takes the other along
        finally:
            for each in pumps:
                each.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def to_server(self, data: bytes) -> None:
        loop, faults = started(), self.faults
        while data:
            if faults.reply_lost:
                self.seen = self.seen[-len(faults.reply_lost) :] + data
                self.lost = self.lost or faults.reply_lost in self.seen
            await self.pass_on("client", data, self.server)
            data = await loop.sock_recv(self.client, 65536)
        raise ConnectionResetError

    async def to_client(self) -> None:
        loop = started()
        while data := await loop.sock_recv(self.server, 65536):
            if self.lost:
                await self.end()
            await self.pass_on("server", data, self.client)
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_WR)
        await self.drain()

    async def pass_on(self, stream: Literal["server", "client"], data: bytes, sink: socket.socket) -> None:
        faults, dice = self.faults, self.proxy.dice
        ending = faults.end is not None and faults.stream == stream and not faults.reply_lost
        if ending:
            data = data[: faults.at - self.passed[stream]]
        while data:
            size = dice.randrange(1, 64) if faults.segment < 0 else faults.segment or len(data)
            chunk, data = data[:size], data[size:]
            if wait := faults.delay + dice.random() * faults.jitter + (len(chunk) / faults.rate if faults.rate else 0):
                await asyncio.sleep(wait)
            await started().sock_sendall(sink, chunk)
            self.passed[stream] += len(chunk)
            self.proxy.streams[stream] += len(chunk)
        if ending and self.passed[stream] >= faults.at:
            await self.end()

    async def end(self) -> None:
        """The fault; does not return."""
        if self.faults.end == "reset":
            # No socket is closed while a pump may be registered with it: run() ends them first.
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.proxy._told()
        elif self.faults.end == "cut":
            self.proxy._told()
            self.client.shutdown(socket.SHUT_WR)
            self.server.shutdown(socket.SHUT_RDWR)
            await self.drain()
        else:
            self.proxy._told()
            self.lost = True
            await asyncio.sleep(3600)
        raise ConnectionResetError

    async def drain(self) -> None:
        """Until the client has closed: closing a socket with unread bytes would be a reset."""
        while await started().sock_recv(self.client, 65536):
            pass
