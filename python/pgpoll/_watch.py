"""The wait of a task for a block's start or end. Imports no asyncio."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pgpoll import core
    from pgpoll._loop import Driver, Loop

_EMPTY = Context()


class Watch:
    """The wait for a block's start or end, which goes on whoever goes away.

    While a task waits (`take_over` ... `give_back`) it is woken as by any request of its own, and tells the blocks; a
    future's part is played for it here, and cancelling that does not reach the request. Else a callback tells them.
    """

    def __init__(self, driver: Driver, operation: core.Operation[Any], done: Callable[[], None]) -> None:
        self._asyncio_future_blocking = False
        self._driver = driver
        self._operation = operation
        self._done: Callable[[], None] | None = done
        self._waiter = driver.core._waiter(operation)
        self._wakeup: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._error: BaseException | None = None
        self._waiter.add_done_callback(self._tell, context=_EMPTY.copy())

    def take_over(self) -> None:
        """From here on who awaits it tells."""
        self._waiter.remove_done_callback(self._tell)

    def give_back(self) -> None:
        """The task was woken, or goes away."""
        if self._waiter.done():
            self._tell(self._waiter)
        else:
            self._waiter.add_done_callback(self._tell, context=_EMPTY.copy())

    def _tell(self, _: object) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._driver.unwatch(self._operation)
            done()

    # what a task uses of a future

    def __await__(self) -> Generator[Any, None, None]:
        if not self._waiter.done():
            self._asyncio_future_blocking = True
            yield self
        if self._error is not None:
            raise self._error

    def get_loop(self) -> Loop:
        return self._driver.loop

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: Context) -> None:
        self._wakeup, self._context = wakeup, context
        self._waiter.add_done_callback(wakeup, context=context)

    def done(self) -> bool:
        return self._error is not None or self._waiter.done()

    def result(self) -> None:
        if self._error is not None:
            raise self._error

    def cancel(self, msg: object = None) -> bool:
        kind = self._driver.cancelled_error
        return self.set_exception(kind() if msg is None else kind(msg))

    def set_exception(self, error: BaseException) -> bool:
        if self.done() or self._wakeup is None:
            return False
        self._error = error
        self._waiter.remove_done_callback(self._wakeup)
        self._driver.loop.call_soon(self._wakeup, self, context=self._context)
        return True
