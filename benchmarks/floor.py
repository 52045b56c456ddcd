"""The floor of a blocking round trip: a socket, the bytes of one prepared query, and no driver.

What is left of a driver's time when this is taken off is the driver's own. Knows servers that ask for no password.
"""

from __future__ import annotations

import importlib
import re
import socket
import struct

from contenders import ARGUMENT, ONE_VALUE, SyncConnection, SyncContender, check


def message(kind: bytes, body: bytes) -> bytes:
    """One message of the protocol; the start-up message has no type."""
    return kind + struct.pack("!i", len(body) + 4) + body


PREPARE = message(b"P", b"one\0" + ONE_VALUE.encode() + b"\0\0\0") + message(b"S", b"")
BIND = b"\0one\0" + struct.pack("!hhhiihh", 1, 1, 1, 4, ARGUMENT, 1, 1)
QUERY = message(b"B", BIND) + message(b"E", b"\0\0\0\0\0") + message(b"S", b"")
ANSWER = re.compile(rb"D\0\0\0\x0e\0\x01\0\0\0\x04(.{4})", re.DOTALL)


class RawConnection(SyncConnection):
    def fetchvals(self, count: int) -> None:
        send, recv = self.raw.send, self.raw.recv
        answer = self.ask(QUERY)
        found = ANSWER.search(answer)
        check(None if found is None else struct.unpack("!i", found[1])[0])
        size = len(answer)
        for _ in range(count - 1):
            send(QUERY)
            if len(recv(size)) != size:
                raise ConnectionError("an answer in pieces, or none")

    def ask(self, request: bytes) -> bytes:
        """Send, and wait for ReadyForQuery."""
        self.raw.sendall(request)
        answer = bytearray()
        while answer[-6:-1] != b"Z\0\0\0\x05":
            if not (more := self.raw.recv(65536)):
                raise ConnectionError("the server has closed the connection")
            answer += more
        return bytes(answer)

    def backend_pid(self) -> int:
        return self.pid

    pid = 0


class Raw(SyncContender):
    name = "socket"

    def load(self) -> str:
        self._resolve = importlib.import_module("pgpoll.conninfo").resolve
        return "a raw one"

    def connect(self, dsn: str) -> SyncConnection:
        options = self._resolve(dsn)
        host, _, port = options.addresses[0]
        unix = host.startswith("/")
        raw = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        raw.connect(f"{host}/.s.PGSQL.{port}" if unix else (host, port))
        made = RawConnection(raw)
        names = b"".join(f"{name}\0{value}\0".encode() for name, value in options.startup_parameters)
        greeting = made.ask(message(b"", struct.pack("!i", 3 << 16) + names + b"\0"))
        key = greeting.index(b"K\0\0\0\x0c")
        made.pid = struct.unpack_from("!i", greeting, key + 5)[0]
        made.ask(PREPARE)
        return made
