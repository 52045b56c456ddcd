"""COPY TO STDOUT: the objects of both faces that give out chunks of bytes, or Records.

One owns its connection from its first step to its end; leaving it, however that is noticed, ends it (see _copying).
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from pgpoll import core, errors
from pgpoll._copy_sources import Target
from pgpoll._copying import quoted
from pgpoll._flows import Flow, News, answered, check_callback, started
from pgpoll._turns import ENDED, caller

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from typing_extensions import TypeVar

    from pgpoll._copying import Progress
    from pgpoll._turns import Block

    T = TypeVar("T", default=bytes)
else:
    from typing import TypeVar

    T = TypeVar("T")


class Copying(Generic[T]):
    """COPY TO STDOUT, from its first step to its end: what both faces' objects share."""

    __slots__ = (
        *("_block", "_decoded", "_decoder", "_driver", "_operation", "_over", "_progress", "_ready", "_sql"),
        *("_timeout", "_verbs", "_where", "result"),
    )

    def __init__(self, verbs: Any, sql: str, progress: Progress | None, timeout: float | None, *, decoded: bool):
        self._verbs = verbs  # also keeps the connection
        self._driver: Any = verbs._driver  # of either face
        self._sql = sql
        self._decoded = decoded
        self._decoder: core._RecordDecoder | None = None
        self._progress = progress
        self._timeout = timeout
        self._where = caller()
        self._block: Block | None = None
        self._operation: core.Operation[Any] | None = None
        self._over = False
        self._ready: Any = iter(())
        self.result: core.Result | None = None
        """The COPY's Result, once its end has come."""

    def _take(self) -> list[T]:
        """What has come and can be given out without waiting."""
        if self._operation is None or self._block is None:
            return []
        self._driver.taken(self._block)
        if self._decoder is not None:
            taken: list[Any] = self._decoder.take()
        else:
            data = self._operation.take_data()
            taken = [data] if data else []
        if taken:
            self._driver.flush()
            if self._progress is not None:
                count = None if self._decoder is None else self._decoder.count
                self._progress(count, self._operation.copied)
        return taken

    def _more(self) -> Flow[list[T] | None]:
        """What comes next; None at the end."""
        if self._over:
            return None
        try:
            operation = self._operation
            if operation is None:
                operation = yield from self._start()
            while True:
                if taken := self._take():
                    return taken
                if operation.done():
                    break
                yield News(operation)
            self._over = True
            self._driver.blocks.settle()
            self.result = operation.result()
            if self._decoder is not None:
                self._decoder.finish()
        except BaseException:
            self._drop()
            raise
        return None

    def _start(self) -> Flow[core.Operation[Any]]:
        check_callback("on_progress", self._progress)
        driver, via = self._driver, self._verbs._via
        start = partial(driver.core.start_copy_out, self._sql)
        if self._decoded:
            query = _query_of(self._sql)
            request = driver.turn(partial(driver.core.start_prepare, query), via)
            query = _in_binary(query, (yield from answered(driver.blocks, request)).columns)
            start = partial(driver.core.start_copy_out, f"COPY ({query}\n) TO STDOUT (FORMAT binary)", query)
        hold = driver.hold("COPY", start, via, self._where)
        self._block = hold.block
        self._operation = operation = yield from started(driver.blocks, hold)
        hold.block.carry()
        if self._decoded:
            self._decoder = core._RecordDecoder(operation)
        return operation

    def _written(self, to: Any) -> Flow[core.Result]:
        """All of it, into a file; its Result."""
        target = Target(to)
        try:
            while (taken := (yield from self._more())) is not None:
                for data in taken:
                    target.write(data)  # type: ignore[arg-type]
            target.write(b"")
        finally:
            self._drop()
            target.close()
        assert self.result is not None
        return self.result

    def _drop(self, kind: type[BaseException] | None = None) -> None:
        """It ends here, whatever was to come; by a `kind` of exception."""
        if not self._over:
            if self._block is not None:  # a generator may be closed by a finalizer
                (self._driver.doom if kind is GeneratorExit else self._driver.drop)(self._block)
            self._over = True  # not before: a signal handler may raise in between
        self._ready = iter(())

    def __del__(self) -> None:
        block = getattr(self, "_block", None)  # unset where __init__ failed
        if block is not None and block.state is not ENDED:  # whatever it came to: a signal handler may have raised
            self._driver.doom(block)


class CopyOut(Copying[T]):
    """What a COPY TO STDOUT gives: an asynchronous iterator, of bytes or of Records, and a context manager.

    It owns the connection from its first step to its end: one's own requests raise InterfaceError, others wait. To
    leave its block, to cancel the task that waits in it, or to drop it ends it; what the server had still to send is
    cancelled and read without anybody. `result` is the COPY's Result once the end has come.
    """

    __slots__ = ("__weakref__",)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        for item in self._ready:
            return item  # type: ignore[no-any-return]
        taken: list[T] | None = await self._driver.run(self._more(), self._timeout)
        if taken is None:
            raise StopAsyncIteration
        self._ready = iter(taken)
        for item in self._ready:
            return item  # type: ignore[no-any-return]
        raise AssertionError

    async def aclose(self) -> None:
        """End it now. The connection is of use at once; nobody waits for what the server had to send."""
        self._drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drop(kind)


class BlockingCopyOut(Copying[T]):
    """What a COPY TO STDOUT gives, in the blocking face: an iterator and a context manager. See pgpoll.CopyOut."""

    __slots__ = ("__weakref__",)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        for item in self._ready:
            return item  # type: ignore[no-any-return]
        try:
            taken: list[T] | None = self._driver.run(self._more(), self._timeout)
        except BaseException as error:
            self._torn(error)
            raise
        if taken is None:
            raise StopIteration
        self._ready = iter(taken)
        for item in self._ready:
            return item  # type: ignore[no-any-return]
        raise AssertionError

    def close(self) -> None:
        """End it now, at the server as well."""
        self._drop()

    def _torn(self, error: BaseException) -> None:
        if not isinstance(error, errors.Error):
            self._drop()

    def __enter__(self) -> Self:
        return self

    def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drop(kind)

    __exit__ = core._surely(_exit, _torn)


# By the type's output function, which its cast to text need not be; not null in the sense of IS DISTINCT FROM.
_AS_TEXT = "case when {0} is distinct from null then pg_catalog.format('%s', {0}) end"
_BLANK = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_WRITES = re.compile(r"(?:insert|update|delete|merge)\b", re.IGNORECASE)
_COPY = re.compile(r"\s*copy\s+(?P<what>.*?)\s+to\s+stdout\s*", re.IGNORECASE | re.DOTALL)
_TABLE = re.compile(r"(?P<table>[^()]+?)\s*(?:\((?P<columns>[^()]*)\))?", re.DOTALL)


_WITHOUT_OPTIONS = "copy_out_records() takes a query, or COPY ... TO STDOUT without options; copy_out() takes any"


def _query_of(sql: str) -> str:
    """The query whose rows are copied; of a COPY ... TO STDOUT without options, the one that it stands for."""
    if not isinstance(sql, str):
        raise errors.InterfaceError(f"sql must be str, not {type(sql).__name__}")
    text = _BLANK.sub("", sql, count=1).rstrip().rstrip(";").rstrip()
    if (copy := _COPY.fullmatch(text)) is None:
        if text[:4].upper() == "COPY":
            raise errors.InterfaceError(_WITHOUT_OPTIONS)
        return text
    what = copy["what"]
    if what.startswith("(") and what.endswith(")"):
        return what[1:-1]
    if (table := _TABLE.fullmatch(what)) is None:
        raise errors.InterfaceError(_WITHOUT_OPTIONS)
    return f"select {table['columns'] or '*'} from {table['table']}"


def _in_binary(query: str, columns: Sequence[core.Column] | None) -> str:
    """The query with what isn't decoded from binary as text, as everywhere."""
    if columns is None:
        raise errors.InterfaceError("the statement returns no rows to copy")
    if all(column.format for column in columns):
        return query
    places = [f"c{number}" for number in range(len(columns))]
    chosen = ", ".join(
        f"{place if column.format else _AS_TEXT.format(place)} as {quoted(column.name, 'a column')}"
        for place, column in zip(places, columns, strict=True)
    )
    copied = f"copied({', '.join(places)})"
    if _WRITES.match(query):  # may stand there only
        return f"with {copied} as ({query}\n) select {chosen} from copied"
    return f"select {chosen} from ({query}\n) as {copied}"
