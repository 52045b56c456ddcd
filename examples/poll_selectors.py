"""Two pipelined connections at once on the standard library's selectors: the shape of any event loop's integration.

    PGPOLL_DSN=postgresql://postgres@127.0.0.1/postgres python examples/poll_selectors.py

Each connection has many requests under way. Whenever its descriptor is ready, poll() moves all it can; what has
finished is taken with next_completed(), in the order in which it was started.
"""

import os
import selectors
from collections.abc import Iterator

import pgpoll
from pgpoll import core

WATCHED = {
    core.WAIT_READ: selectors.EVENT_READ,
    core.WAIT_WRITE: selectors.EVENT_WRITE,
    core.WAIT_READ | core.WAIT_WRITE: selectors.EVENT_READ | selectors.EVENT_WRITE,
}


class Watcher:
    """Keeps one connection registered with a selector for what its last poll() asked for."""

    def __init__(self, selector: selectors.BaseSelector, conn: core.Connection) -> None:
        self._selector = selector
        self._conn = conn
        self._fd = -1
        self._events = 0

    def step(self) -> Iterator[core.Operation]:
        """One poll(), and the operations that it finished."""
        flags = self._conn.poll()
        while (operation := self._conn.next_completed()) is not None:
            yield operation
        self._watch(flags)

    def _watch(self, flags: int) -> None:
        fd = self._conn.fileno()
        events = WATCHED.get(flags & (core.WAIT_READ | core.WAIT_WRITE), selectors.EVENT_READ)
        if flags & core.CLOSED:
            fd = -1
        if (fd, events) == (self._fd, self._events):
            return
        # The old descriptor is still open here, even where an address refused and the next one is being tried.
        if self._fd != -1:
            self._selector.unregister(self._fd)
        if fd != -1:
            self._selector.register(fd, events, self)
        self._fd, self._events = fd, events


def main() -> None:
    options = pgpoll.conninfo.resolve(os.environ.get("PGPOLL_DSN"))
    selector = selectors.DefaultSelector()
    connections = {name: core.Connection(options, pipeline=True) for name in ("one", "two")}
    waiting: dict[core.Operation, str] = {}
    for name, conn in connections.items():
        # Requests may be queued before the connection is made: they leave as soon as it is.
        waiting[conn.start_connect()] = f"{name}: connected"
        for n in range(5):
            waiting[conn.start_execute("select $1::int4 * 10, pg_sleep($2::float8)", (n, 0.05))] = (
                f"{name}: {n} times 10"
            )
        waiting[conn.start_close()] = f"{name}: closed"

    watchers = [Watcher(selector, conn) for conn in connections.values()]
    ready = watchers
    while waiting:
        for watcher in ready:
            for operation in watcher.step():
                what = waiting.pop(operation)
                result = operation.result()
                print(what if result is None else f"{what} = {result[0][0]}")
        ready = [key.data for key, _ in selector.select()] if waiting else []
    print("both connections took their turns in one thread, without waiting for each other")


if __name__ == "__main__":
    main()
