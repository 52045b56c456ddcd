"""Where COPY's data comes from and goes to: sources cut or joined to slices, targets that take bytes.

A source's `next` gives one slice of some 64 KiB, so that what a chunk costs is not paid for every line of it.
"""

from __future__ import annotations

import errno
import io
import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from pgpoll import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pgpoll import core

SLICE = 65_536
SLICE_SECONDS = 0.02  # a slice of a slow source is smaller, so that its time and the server's errors are looked at


def chunks(source: Any, *, asynchronous: bool) -> Any:
    """An iterator, or an asynchronous one, of the slices of what `copy_in` was given. InterfaceError for others."""
    if isinstance(source, str):
        raise errors.InterfaceError("the source is a str: COPY's data is bytes (for a file pass a pathlib.Path)")
    if isinstance(source, os.PathLike):
        return _of_path(source)
    if hasattr(source, "__aiter__"):
        if not asynchronous:
            raise errors.InterfaceError("an asynchronous source can't be iterated here: use pgpoll.connect")
        return _Joined(aiter(source))
    if hasattr(source, "read"):
        return _of_file(source)
    try:
        view = memoryview(source)
    except TypeError:
        pass
    else:
        return _cut(view)
    if hasattr(source, "__iter__"):
        return _joined(iter(source))
    raise errors.InterfaceError(
        f"the source is of type {type(source).__name__}: pass bytes, a Path, a binary file or an iterable of bytes"
    )


def records(source: Any, encoder: Any, *, asynchronous: bool) -> Any:
    """The slices of records: `encoder(iterable or None)` makes the encoder."""
    if hasattr(source, "__aiter__"):
        if not asynchronous:
            raise errors.InterfaceError("asynchronous records can't be iterated here: use pgpoll.connect")
        return AsyncRecords(aiter(source), encoder(None))
    if isinstance(source, (str, bytes)) or not hasattr(source, "__iter__"):
        raise errors.InterfaceError(f"records are an iterable, not {type(source).__name__}")
    return encoder(source)


class AsyncRecords:
    """The slices of records that come from an asynchronous iterator."""

    def __init__(self, source: AsyncIterator[Any], encoder: core._RecordEncoder) -> None:
        self._source = source
        self._encoder = encoder
        self._ended = False

    @property
    def count(self) -> int:
        """Records so far."""
        return self._encoder.count

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        add = self._encoder.add
        until = monotonic() + SLICE_SECONDS
        async for record in self._source:
            if add(record) or monotonic() >= until:
                return self._encoder.take()
        self._ended = True
        return self._encoder.finish()


class _Joined:
    """The slices of chunks that come from an asynchronous iterator."""

    def __init__(self, source: AsyncIterator[Any]) -> None:
        self._source = source
        self._left: Iterator[memoryview] | None = None  # of a large chunk

    async def __anext__(self) -> bytes | memoryview:
        if self._left is not None:
            for piece in self._left:
                return piece
            self._left = None
        parts: list[bytes] = []
        size = 0
        until = monotonic() + SLICE_SECONDS
        async for chunk in self._source:
            data = _checked(chunk)
            if len(data) > SLICE:
                self._left = _cut(memoryview(data))
                break
            parts.append(data)
            if (size := size + len(data)) >= SLICE or monotonic() >= until:
                break
        if parts:
            return b"".join(parts)
        if self._left is None:
            raise StopAsyncIteration
        return next(self._left)


def _checked(chunk: Any) -> bytes:
    """A copy, for who made it may use its memory again."""
    if isinstance(chunk, bytes):
        return chunk
    if not isinstance(chunk, str):
        try:
            return bytes(memoryview(chunk))
        except TypeError:
            pass
    raise errors.InterfaceError(f"the source gave a chunk of type {type(chunk).__name__}: COPY's data is bytes")


def _cut(view: memoryview) -> Iterator[memoryview]:
    data = view.cast("B") if view.contiguous else memoryview(view.tobytes())
    for at in range(0, len(data), SLICE):
        yield data[at : at + SLICE]


def _joined(source: Iterator[Any]) -> Iterator[bytes | memoryview]:
    parts: list[bytes] = []
    size = 0
    until = monotonic() + SLICE_SECONDS
    for chunk in source:
        data = _checked(chunk)
        parts.append(data)
        size += len(data)
        if size >= SLICE or monotonic() >= until:
            yield from _cut(memoryview(b"".join(parts)))
            parts, size = [], 0
            until = monotonic() + SLICE_SECONDS
    if parts:
        yield b"".join(parts)


def _of_file(file: Any) -> Iterator[bytes]:
    while data := _refuse_async(file.read(SLICE), file, "read", "pass an iterable of its chunks"):
        yield _checked(data)
    if data is None:
        raise BlockingIOError(errno.EAGAIN, "the source has nothing to read now: COPY takes a file that blocks")


def _refuse_async(given: Any, file: Any, method: str, hint: str) -> Any:
    """What a file's method gave, but a coroutine."""
    if not hasattr(given, "__await__"):
        return given
    if hasattr(given, "close"):
        given.close()
    raise errors.InterfaceError(f"{type(file).__name__}.{method}() is asynchronous: {hint}")


def _of_path(path: os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from _of_file(file)


class Target:
    """What `copy_out` writes to: a path, made when there is something to write or all has gone well, or a file."""

    def __init__(self, to: Any) -> None:
        self._path = to if isinstance(to, os.PathLike) else None
        self._file = None if self._path is not None else to
        if self._path is None and not hasattr(to, "write"):
            raise errors.InterfaceError(f"can't write to {type(to).__name__}: pass a pathlib.Path or a binary file")
        if isinstance(to, io.TextIOBase):
            raise errors.InterfaceError(
                f"{type(to).__name__} takes str, and COPY's data is bytes: open it in binary mode"
            )

    def write(self, data: bytes) -> None:
        """All of it."""
        if self._file is None:
            assert self._path is not None
            self._file = open(self._path, "wb")  # noqa: SIM115 - closed by close()
        left = memoryview(data)
        while left:
            file = self._file
            written = _refuse_async(file.write(left), file, "write", "iterate over copy_out() instead")
            if written == 0 or (written is None and isinstance(file, io.RawIOBase)):
                raise BlockingIOError(errno.EAGAIN, "the target takes nothing now: COPY writes to a file that blocks")
            if not isinstance(written, int):
                return
            left = left[written:]

    def close(self) -> None:
        """Close what was opened here."""
        if self._path is not None and self._file is not None:
            self._file.close()
