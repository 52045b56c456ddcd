"""Who carries a script's bytes: Memory to a sans-IO Session, Wire to a Connection over a TCP socket."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from pgpoll import conninfo, core

USER, DATABASE, PASSWORD = "ann", "shop", "canary-secret"


def options(**changes: Any) -> conninfo.Options:
    """Options that depend on no environment; the address is never dialled in memory."""
    address = {"host": changes.pop("host", "127.0.0.1"), "port": changes.pop("port", 5432)}
    password = changes.pop("password", PASSWORD)
    made = conninfo.resolve(user=USER, database=DATABASE, password=password, **address)
    return made._replace(**changes)


Cut = str | int  # "whole", "bytes", or the offset in the server's stream at which one chunk ends


class Peer(Protocol):
    """The connection's other end, and the client that is driven with it."""

    client: Any

    def deliver(self, data: bytes) -> None: ...
    def received(self, wanted: int) -> bytes: ...


class Memory:
    """Hands bytes to a Session, cut as asked; the offset counts over the whole dialogue."""

    def __init__(self, made: conninfo.Options, cut: Cut = "whole") -> None:
        self.client = core.Session(made)
        self.cut = cut
        self.offset = 0

    def chunks(self, data: bytes) -> Iterator[bytes]:
        if self.cut == "bytes":
            yield from (data[i : i + 1] for i in range(len(data)))
        elif isinstance(self.cut, int) and 0 < self.cut - self.offset < len(data):
            yield data[: self.cut - self.offset]
            yield data[self.cut - self.offset :]
        else:
            yield data

    def deliver(self, data: bytes) -> None:
        for chunk in self.chunks(data):
            self.client.receive(chunk)
            self.client.pump()
        self.offset += len(data)

    def received(self, wanted: int) -> bytes:
        """What has left; pumps on (SCRAM is computed in slices) while that is nothing and something is wanted."""
        data = bytes(self.client.outbound())
        for _ in range(5000 if wanted else 0):
            if data or self.client.ended:
                break
            self.client.pump()
            data = bytes(self.client.outbound())
        return data


class Wire:
    """A Connection and the server's end of its TCP socket, driven in turn by one thread."""

    def __init__(self, made: conninfo.Options) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(5)
        here = made.addresses[0]._replace(port=self.listener.getsockname()[1])
        self.client = core.Connection(made._replace(addresses=(here,)), pipeline=True)
        self.server: socket.socket | None = None

    def accepted(self) -> socket.socket:
        if self.server is None:
            self.client.poll()
            self.server = self.listener.accept()[0]
            self.server.setblocking(False)
            self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.server

    def deliver(self, data: bytes) -> None:
        server = self.accepted()
        view = memoryview(data)
        while view:
            with suppress(BlockingIOError):
                view = view[server.send(view) :]
            self.client.poll()
        self.settle()

    def settle(self) -> None:
        """Polls until nothing has been readable for 2 ms."""
        while self.client.fileno() >= 0 and select.select([self.client.fileno()], [], [], 0.002)[0]:
            if self.client.poll() & core.CLOSED:
                break

    def received(self, wanted: int) -> bytes:
        deadline = time.monotonic() + (2 if wanted else 0)
        server = self.accepted()
        while True:
            self.client.poll()
            with suppress(BlockingIOError):
                return server.recv(1 << 16)
            if time.monotonic() >= deadline:
                return b""
            select.select([server], [], [], 0.001)

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        self.listener.close()
        self.client.terminate()
        self.client.close_fd()


def drive(conn: core.Connection, operation: core.Operation, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not operation.done():
        assert time.monotonic() < deadline, "the operation does not end"
        state = conn.poll()
        if not operation.done():
            wait(conn, state)
    return operation.result()


def wait(conn: core.Connection | core.Cancel, state: int, seconds: float = 5) -> None:
    fd = [conn.fileno()]
    select.select(fd if state & core.WAIT_READ else [], fd if state & core.WAIT_WRITE else [], [], seconds)
