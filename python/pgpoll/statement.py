"""Statement: a prepared statement of one connection, for the asyncio face; and what both faces' statements share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from pgpoll._turns import caller
from pgpoll.core import RESULT, ROW, ROWS, VALUE
from pgpoll.stream import PREFETCH, Stream

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from pgpoll import core
    from pgpoll.connection import Verbs

    R = TypeVar("R", default=core.Record)
else:
    from typing import TypeVar

    R = TypeVar("R")

__all__ = ["Statement"]


class Described(Generic[R]):
    """What the server has said about a prepared statement."""

    __slots__ = ("_prepared",)

    def __init__(self, prepared: core.PreparedStatement) -> None:
        self._prepared = prepared

    @property
    def sql(self) -> str:
        """The text that was prepared."""
        return self._prepared.sql

    @property
    def parameters(self) -> tuple[core.Parameter, ...]:
        """One for each of $1, $2, ...: its type as the server has inferred it, in `.type_name` and `.type_oid`."""
        return self._prepared.parameters

    @property
    def columns(self) -> tuple[core.Column, ...] | None:
        """The columns of its rows; None where it returns none."""
        return self._prepared.columns

    def _explain(self, *, analyze: bool) -> str:
        return f"EXPLAIN (FORMAT JSON, VERBOSE{', ANALYZE' if analyze else ''}) {self._prepared.sql}"

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self.sql!r}>"


class Statement(Described[R]):
    """A prepared statement. Made by `Connection.prepare`, or by `Transaction.prepare` and then part of that block.

    It is pinned on the server while this object lives, beside the statements that the connection keeps by itself; once
    it is dropped it is one of those, and closed when there are too many. The verbs are those of Connection without the
    text.
    """

    __slots__ = ("_verbs",)

    def __init__(self, verbs: Verbs, prepared: core.PreparedStatement) -> None:
        super().__init__(prepared)
        self._verbs = verbs

    async def execute(self, *args: Any, timeout: float | None = None) -> core.Result[R]:
        """See Connection.execute."""
        return await self._verbs._execute(self._prepared, args, RESULT, timeout)

    async def fetch(self, *args: Any, timeout: float | None = None) -> list[R]:
        """See Connection.fetch."""
        return await self._verbs._execute(self._prepared, args, ROWS, timeout)

    async def fetchrow(self, *args: Any, timeout: float | None = None) -> R | None:
        """See Connection.fetchrow."""
        return await self._verbs._execute(self._prepared, args, ROW, timeout)

    async def fetchval(self, *args: Any, timeout: float | None = None) -> Any:
        """See Connection.fetchval."""
        return await self._verbs._execute(self._prepared, args, VALUE, timeout)

    async def explain(self, *args: Any, analyze: bool = False, timeout: float | None = None) -> Any:
        """The server's plan for these arguments: what EXPLAIN (FORMAT JSON, VERBOSE) gives, as Python objects.

        With `analyze` the statement is executed as well, in a transaction (a savepoint inside of one) that is rolled
        back. `timeout` is in seconds.
        """
        sql = self._explain(analyze=analyze)
        if not analyze:
            return await self._verbs._execute(sql, args, VALUE, timeout)
        async with self._verbs.transaction() as tx:
            plan = await tx._execute(sql, args, VALUE, timeout)
            await tx.rollback()
        return plan

    def stream(self, *args: Any, prefetch: int | None = PREFETCH, timeout: float | None = None) -> Stream[R]:
        """See Connection.stream."""
        return Stream(self._verbs, self._prepared, args, prefetch, timeout, caller())
