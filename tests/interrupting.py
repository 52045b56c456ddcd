"""KeyboardInterrupt at the n-th place of the driver's own Python code where a signal handler can raise.

A handler runs where the interpreter looks for signals: as a function begins or goes on, after a call, and at the end of
a loop's round. So no place is left out that Ctrl-C could hit; the waits, which are of C, are places of their own.
"""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import pgpoll

DIRECTORY = str(Path(pgpoll.__file__).parent)

_looked: dict[CodeType, set[int]] = {}


def places(code: CodeType) -> set[int]:
    """The offsets before which a signal may be seen to.

    What is raised there is as if the instruction before had raised: where that has another handler it is no such place.
    """
    if (found := _looked.get(code)) is None:
        instructions = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
        entries: list[Any] = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]

        def handler(offset: int) -> int | None:
            return next((each.target for each in entries if each.start <= offset < each.end), None)

        found = _looked[code] = set()
        heads = {each.argval for each in instructions if each.opname == "JUMP_BACKWARD"}
        for before, each in itertools.pairwise(instructions):
            looks = before.opname.startswith("CALL") or each.offset in heads
            if looks and handler(before.offset) == handler(each.offset):
                found.add(each.offset)
    return found


class Interrupt(KeyboardInterrupt):
    """That of this test."""


def _raise() -> None:
    raise Interrupt


def _finalizing(frame: FrameType | None) -> bool:
    """What is raised in a finalizer, or as an unfinished generator is closed, Python drops."""
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "<genexpr>"):
            return True
        frame = frame.f_back
    return False


class Interrupter:
    """Raises at place number `at` that this thread comes by while it is entered; `count` is how many there were.

    Or does what else a signal handler may do.
    """

    def __init__(self, at: int, handler: Callable[[], object] = _raise) -> None:
        self.at = at
        self.handler = handler
        self.count = 0
        self.where = "nowhere"

    def __call__(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(DIRECTORY) or _finalizing(frame):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._place(frame)
        return self._within

    def _within(self, frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == "opcode" and frame.f_lasti in places(frame.f_code):
            self._place(frame)
        return self._within

    def _place(self, frame: FrameType) -> None:
        self.count += 1
        if self.count == self.at:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
            self.handler()

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
