"""A server in a thread that plays scripts, for clients that have a loop of their own."""

from __future__ import annotations

import socket
import threading
from typing import Self

from script import Act, Run, Script


class FakeServer:
    """Plays the server's steps of one script per accepted connection, in a thread; its failures are raised at exit."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = scripts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.failures: list[Exception] = []
        self.runs: list[Run] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def serve(self) -> None:
        try:
            for script in self.scripts:
                self.listener.settimeout(10)
                connection, _ = self.listener.accept()
                connection.settimeout(10)
                with connection:
                    self.runs.append(Run(Accepted(connection)).play(server_side(script), len(script.steps)))
        except (AssertionError, OSError) as error:
            self.failures.append(error)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.thread.join(15)
        self.listener.close()
        if self.failures and kind is None:
            raise self.failures[0]


class Accepted:
    """The server's end of a socket, for FakeServer: blocking, without a client."""

    class Nobody:
        def next_completed(self) -> None:
            return None

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.client = self.Nobody()

    def deliver(self, data: bytes) -> None:
        self.connection.sendall(data)

    def received(self, wanted: int) -> bytes:
        return self.connection.recv(1 << 16) if wanted else b""


def server_side(script: Script) -> Script:
    """The script without its caller's steps."""
    kept = Script()
    kept.steps = [step for step in script.steps if not isinstance(step, Act)]
    return kept
