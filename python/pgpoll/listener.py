"""Listener: the notifications of channels, for the asyncio face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgpoll._flows import seconds
from pgpoll._listening import LEFT, NEW, Listens, Notification

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Listener"]


class Listener(Listens):
    """What `Connection.listen` gives: an async context manager, and an async iterator of Notifications.

        async with conn.listen("news", "weather") as notifications:
            async for each in notifications:
                print(each.channel, each.payload, each.pid)

    Entering it sends LISTEN, and waits for its answer; leaving it, or dropping it, sends UNLISTEN where no other
    listener of the connection has the channel. Without `async with` the first iteration enters it. Both are requests
    outside of any transaction: entering waits for others' transactions, and raises InterfaceError inside of one's own,
    as waiting for a notification does. Other requests go on meanwhile on the same connection.

    What comes from LISTEN's answer on is kept in order, up to 10,000 notifications. Where more wait, NotificationsLost
    is raised once in the place of those that were lost, with their number in `.lost`, and the listener goes on after
    them. Cancelling the wait for a notification loses none, and does not end it. It ends when it is left, and by the
    connection's end: then with the server's error, or ConnectionLost, after what had come.

    The server delivers nothing within a transaction, so a transaction, stream, COPY or batch on the connection delays
    what is sent meanwhile to its end. What was done by hand goes unnoticed: after UNLISTEN, or DISCARD ALL, nothing
    comes any more.
    """

    __slots__ = ()

    async def next(self, *, timeout: float | None = None) -> Notification | None:
        """The next notification; None where none has come within so many seconds, or after it has been left."""
        driver, box = self._parent._driver, self._box
        driver.check_loop()
        until = None if timeout is None else driver.loop.time() + seconds(timeout)
        while True:
            if box.state is NEW:
                await driver.run(self._enter(), timeout if self._timeout is None else self._timeout)
            if (found := self._at_hand()) is not None or box.state is LEFT:
                return found
            left = None if until is None else until - driver.loop.time()
            if left is not None and left <= 0:
                return None
            await driver.hear(box, left)

    async def __aenter__(self) -> Listener:
        await self._parent._driver.run(self._enter(), self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._parent._driver.dismiss(self._box, at_once=kind is not GeneratorExit)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Notification:
        if (found := await self.next()) is None:
            raise StopAsyncIteration
        return found

    def __del__(self) -> None:
        box = getattr(self, "_box", None)  # unset where __init__ failed
        if box is not None and box.state is not NEW and box.state is not LEFT:
            self._parent._driver.dismiss(box, at_once=False)
