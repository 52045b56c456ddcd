"""Batch: many requests under one Sync, for the asyncio face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pgpoll import _batches, _flows
from pgpoll.core import RESULT, ROW, ROWS, VALUE

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from pgpoll import core
    from pgpoll.connection import Verbs

T = TypeVar("T")

__all__ = ["Batch", "BatchItem"]


class BatchItem(_batches.BatchItem[T]):
    """One request of a Batch. Await it, once the block has been left: what the verb gives, or its error.

    While the block is open that raises InterfaceError. `number` is its place in the batch, counted from 0.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()  # it is there already
        return self.result()


class Batch(_batches.Batch):
    """Many requests under one Sync: the handle that `async with conn.batch() as batch` gives.

        async with conn.batch() as batch:
            one = batch.execute("insert into t values ($1)", 1)
            total = batch.fetchval("select count(*) from t")
        print(await total)

    The verbs are those of the connection, without await and without a timeout: each gives a BatchItem. They are sent
    as they are made, in order, in bounded windows; the server runs them as one transaction. What is wrong with the
    arguments of a statement that is known raises at once, and leaves the batch as it was.

    Leaving the block waits for the answers, and raises the first error, whose `item` says of which. That item has the
    same error, those before it BatchRolledBack, those behind it BatchSkipped. Inside of a transaction that is failed
    then, as by any error: a `transaction()` around the batch keeps what came before. A block that is left by an
    exception, or cancelled, is broken: nothing of it lasts.

    There is no progress callback: who adds the items knows how many there are. For many rows of one statement there is
    `executemany`, which has one.

    The connection is the batch's meanwhile: its other requests raise InterfaceError, those of other tasks wait. COPY
    is refused, and what commits or begins a transaction by hand ends the promise of all or none.
    """

    __slots__ = ("_driver", "_verbs", "_via", "_where")

    def __init__(self, verbs: Verbs, where: str) -> None:
        super().__init__()
        self._verbs: Verbs | None = verbs  # also keeps the connection, until the block is left
        self._via = verbs._via
        self._driver = verbs._driver
        self._where = where

    def execute(self, sql: str, /, *args: Any) -> BatchItem[core.Result]:
        """See Connection.execute."""
        return self._add(sql, args, RESULT)

    def fetch(self, sql: str, /, *args: Any) -> BatchItem[list[core.Record]]:
        """See Connection.fetch."""
        return self._add(sql, args, ROWS)

    def fetchrow(self, sql: str, /, *args: Any) -> BatchItem[core.Record | None]:
        """See Connection.fetchrow."""
        return self._add(sql, args, ROW)

    def fetchval(self, sql: str, /, *args: Any) -> BatchItem[Any]:
        """See Connection.fetchval."""
        return self._add(sql, args, VALUE)

    def _add(self, sql: str, args: tuple[Any, ...], want: core.Want[T]) -> BatchItem[T]:
        self._driver.check_loop()
        item = BatchItem(self, self._number(sql, args), want)
        self._driver.flush()
        return item

    async def __aenter__(self) -> Batch:
        driver = self._driver
        driver.check_loop()
        hold = self._enter(driver.hold("batch", driver.core.start_batch, self._via, self._where))
        self._opened(await driver.run(_flows.started(driver.blocks, hold)))
        hold.block.carry()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        driver, hold = self._driver, self._hold
        assert hold is not None
        hold.block.drop()
        try:
            if error is None:
                await driver.run(_batches.leave(self, driver.blocks, driver.core.flush))
            else:
                self._break(error)
                (driver.doom if kind is GeneratorExit else driver.drop)(hold.block)  # that may be by a finalizer
        finally:
            self._verbs = None

    def __del__(self) -> None:
        if getattr(self, "_state", None) is _batches.OPEN and self._hold is not None:
            self._driver.doom(self._hold.block)
