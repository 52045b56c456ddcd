"""The timeout of one request on a loop. Imports no asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgpoll import core
from pgpoll._flows import timed_out

if TYPE_CHECKING:
    from pgpoll import errors
    from pgpoll._loop import Driver, Future


class Expiry:
    """The timeout of one request. It ends the wait for `awaited`, which may be replaced while it runs.

    Where that is over when the time is up, and its task has not gone on yet, the next wait ends.
    """

    def __init__(self, driver: Driver, seconds: float, awaited: core.Waiter[Any] | Future[Any] | None = None) -> None:
        self.awaited = awaited
        self.seconds = seconds
        self.error: errors.QueryTimeout | None = None  # the time was up while nothing was awaited that can be ended
        self._core = driver.core
        self._timer = driver.loop.call_later(seconds, self._expire)

    @property
    def when(self) -> float:
        """When the time is up, by the loop's clock."""
        return self._timer.when()

    def cancel(self) -> None:
        """It is not needed any more."""
        self._timer.cancel()

    def check(self) -> None:
        """QueryTimeout where the time is up."""
        if self.error is not None:
            raise self.error

    def wait_for(self, waiter: core.Waiter[Any]) -> None:
        """Go on with this one."""
        self.awaited = waiter
        if self.error is not None:
            waiter.expire(self.error)

    def _expire(self) -> None:
        awaited = self.awaited
        if awaited is not None and not awaited.done() and not self._core.closed:
            self._core._on_writable()  # the reply may be there already
        error = timed_out(self.seconds)
        if awaited is None or awaited.done():
            self.error = error
        elif isinstance(awaited, core.Waiter):
            awaited.expire(error)
        else:
            awaited.set_exception(error)
