"""Code that runs while values are decoded, or arguments dropped, does what it likes with what it is run by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from backend import bind_complete, column, copy_data, copy_out_response, data_row, described, parse_complete
from dialogues.execute import knows
from pgpoll import core, errors
from script import play

JSON, TEXT = 114, 25
SQL = "select j, t from t"
SPACED = b" 1"  # json's decoder in Python takes what has white space around it


@contextmanager
def in_json(then: Callable[[], object]) -> Iterator[list[object]]:
    """Runs `then` where a json value is decoded the first time; what came of it."""
    outcome: list[object] = []

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_name == "decode" and not outcome:
            outcome.append(None)
            try:
                outcome[0] = then()
            except errors.Error as error:
                outcome[0] = error

    sys.setprofile(watch)
    try:
        yield outcome
    finally:
        sys.setprofile(None)


def stream_of(*texts: bytes) -> tuple[core.Session, core.Operation[str]]:
    run = play(knows())
    operation = run.client.start_stream(SQL, (), None)
    run.client.outbound()
    run.client.receive(described(column("j", JSON), column("t", TEXT)))
    run.client.receive(bind_complete() + b"".join(data_row(SPACED, each) for each in texts))
    return run.client, operation


def test_f57_rows_are_not_taken_while_they_are_decoded() -> None:
    session, operation = stream_of(b"x" * 100_000, b"y" * 100_000)
    with in_json(operation.take_rows) as outcome:
        rows = operation.take_rows(1)
    assert isinstance(outcome[0], errors.InterfaceError)
    assert [tuple(each) for each in rows] == [(1, "x" * 100_000)]
    assert [tuple(each) for each in operation.take_rows()] == [(1, "y" * 100_000)]
    assert not session.ended


def test_f57_stream_abandoned_while_its_rows_are_decoded() -> None:
    _, operation = stream_of(b"x" * 300_000, b"y" * 300_000)
    filler: list[bytes] = []

    def abandon() -> None:
        operation.abandon()
        filler.extend(b"z" * 600_000 for _ in range(20))  # the rows' memory, were it free

    with in_json(abandon), pytest.raises(errors.InterfaceError, match="abandoned"):
        operation.take_rows()


def test_f57_records_are_not_taken_while_they_are_decoded() -> None:
    run = play(knows())
    operation = run.client.start_copy_out("copy (select 1) to stdout (format binary)", "select 1")
    run.client.outbound()
    run.client.receive(described(column("j", JSON), column("t", TEXT)) + parse_complete() + bind_complete())
    head = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    record = b"\0\2\0\0\0\2" + SPACED + b"\0\0\0\1x"
    run.client.receive(copy_out_response(2, 1) + copy_data(head + record))
    decoder = core._RecordDecoder(operation)

    def more() -> object:
        run.client.receive(copy_data(record * 50_000))
        return decoder.take()

    with in_json(more) as outcome:
        records = decoder.take()
    assert isinstance(outcome[0], errors.InterfaceError)
    assert [tuple(each) for each in records] == [(1, "x")]
    assert len(decoder.take()) > 1


def test_f77_connection_dropped_by_the_arguments_of_what_is_abandoned() -> None:
    held = {"session": play(knows()).client}

    class Last:
        def __del__(self) -> None:
            held.clear()

    operation = held["session"].start_execute("select $1", (Last(),))
    operation.abandon()
    assert operation.connection is None
    with pytest.raises(errors.InterfaceError):
        operation.result()
