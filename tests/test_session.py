"""The conversation without I/O: every recorded dialogue, in memory and over a socket, and what it leaves to be seen."""

from __future__ import annotations

import pytest

from backend import (
    backend_key_data,
    bind_complete,
    data_row,
    described,
    error_response,
    int4,
    notice,
    parameter_status,
    ready_for_query,
    selected,
    started,
)
from dialogues import DIALOGUES
from dialogues.execute import KNOWN, NEW, ONE, knows
from fake_server import FakeServer
from peers import DATABASE, USER, Memory, Wire, options
from pgpoll import core, errors
from script import Run, Script, error_of, play, where

OVER_A_SOCKET = [name for name, make in DIALOGUES.items() if not make().memory_only]


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str) -> None:
    play(DIALOGUES[name]())


@pytest.mark.parametrize("name", OVER_A_SOCKET)
def test_dialogue_over_a_socket(name: str) -> None:
    script = DIALOGUES[name]()
    wire = Wire(options(**script.changes))
    try:
        Run(wire).play(script)
    finally:
        wire.close()


def test_fake_server_in_a_thread() -> None:
    """The same script serves a client that has a loop of its own."""
    script = knows()
    with FakeServer(script) as server:
        connection = core.Connection(options(port=server.port), pipeline=True)
        assert connection.wait(connection.start_connect(), 5.0)
        first = connection.start_execute(ONE)
        assert connection.wait(first, 5.0)
        assert [tuple(row) for row in first.result()] == [(1,)]
        connection.terminate()
        connection.close_fd()


def test_startup_message_has_what_was_asked_for() -> None:
    run = play(Script().connect())
    startup = run.seen[0]
    assert startup["version"] == 196608
    assert startup["parameters"]["user"] == USER
    assert startup["parameters"]["database"] == DATABASE
    assert startup["parameters"]["client_encoding"] == "UTF8"


def test_parameters_follow_the_server() -> None:
    run = play(Script().connect())
    assert run.client.parameters["server_version"] == "18.0"
    run.deliver(parameter_status("TimeZone", "UTC") + parameter_status("server_version", "18.1"))
    assert run.client.parameters["TimeZone"] == "UTC"
    assert run.client.parameters["server_version"] == "18.1"


def test_transaction_status_is_the_servers_byte() -> None:
    run = Run(Memory(options()))
    assert run.client.transaction_status == ""
    run.play(Script().connect(), 3)
    assert run.client.transaction_status == "I"
    for status in "TEI":
        run.start(status, "script", "whatever")
        run.read(1)
        run.deliver(error_response() + ready_for_query(status))
        assert run.client.transaction_status == status


def test_notices_are_kept_until_taken() -> None:
    run = play(knows())
    run.start("a", "execute", ONE)
    run.deliver(notice("one") + bind_complete() + notice("two", code="01000", severity="WARNING", D="more"))
    run.deliver(selected(1) + ready_for_query() + notice("three"))
    taken = run.client.take_notices()
    assert [each["M"] for each in taken] == ["one", "two", "three"]
    assert taken[1]["D"] == "more"
    assert taken[1]["C"] == "01000"
    assert run.client.take_notices() == []


def test_succeeds_at_ready_for_query_not_before() -> None:
    """D2."""
    run = play(knows())
    run.start("a", "execute", ONE)
    run.deliver(bind_complete() + selected(1))
    assert not run.operations["a"].done()
    with pytest.raises(errors.InterfaceError):
        run.operations["a"].result()
    run.deliver(ready_for_query())
    assert run.operations["a"].done()


def test_finished_operations_come_in_order_and_once() -> None:
    script = knows()
    labels = [f"p{i}" for i in range(4)]
    for label in labels:
        script.start(label, "execute", ONE)
    run = Run(Memory(options())).play(script, len(script.steps))
    run.peer.deliver((bind_complete() + selected(1) + ready_for_query()) * 4)
    run.operations["p2"].result()  # takes it
    handed = [run.client.next_completed() for _ in range(4)]
    assert handed == [run.operations["p0"], run.operations["p1"], run.operations["p3"], None]


def test_error_carries_all_fields() -> None:
    fields = {"D": "the detail", "H": "the hint", "P": "8", "p": "9", "q": "select inner", "W": "a function"}
    names = {
        "s": "schema",
        "t": "table",
        "c": "column",
        "d": "type",
        "n": "constraint",
        "F": "f.c",
        "L": "42",
        "R": "fn",
    }
    run = play(knows())
    run.start("a", "execute", ONE)
    run.deliver(error_response("23505", "duplicate key", **fields, **names) + ready_for_query())
    error = error_of(run.operations["a"])
    assert isinstance(error, errors.UniqueViolation)
    assert (error.sqlstate, error.message, error.detail, error.hint) == (
        "23505",
        "duplicate key",
        "the detail",
        "the hint",
    )
    assert (error.position, error.constraint_name, error.table_name) == (8, "constraint", "table")


def test_written_tells_whether_a_retry_is_safe() -> None:
    run = Run(Memory(options(max_pipeline=1))).play(knows(max_pipeline=1), len(knows().steps))
    run.start("sent", "execute", ONE)
    run.start("waits", "execute", ONE)
    run.expect(KNOWN)
    run.client.fail("cut")
    for label, safe in (("sent", False), ("waits", True)):
        error = run.error(label)
        assert isinstance(error, errors.ConnectionLost)
        assert error.safe_to_retry is safe


def test_bad_argument_of_a_known_statement_raises_at_start() -> None:
    """Nothing is queued and nothing leaves."""
    sql = "select $1::int4"
    run = play(DIALOGUES["bad_argument_of_a_new_statement"]())
    for bad in (("x",), (), (1, 2), (1 << 40,)):
        with pytest.raises(errors.Error):
            run.client.start_execute(sql, bad)
    assert not run.client.outbound()
    run.start("after", "execute", sql, (7,))
    run.expect((where("Bind", parameters=[int4(7)]), "Execute", "Sync"))


def test_abandoned_is_never_handed_out() -> None:
    run = play(knows())
    run.start("a", "execute", ONE)
    run.peer.deliver(bind_complete() + selected(1) + ready_for_query())
    run.operations["a"].abandon()  # finished, not taken
    assert run.client.next_completed() is None


def test_rows_of_an_abandoned_request_are_not_kept() -> None:
    """D5: discarded as they come; a million rows leave nothing behind."""
    run = play(knows())
    run.start("a", "execute", ONE)
    run.read(3)
    run.abandon("a")
    before = resident()
    run.deliver(bind_complete())
    block = data_row(bytes(1000)[:4]) * 20_000
    for _ in range(100):
        run.deliver(block)
    assert resident() - before < 16 << 20
    run.deliver(selected() + ready_for_query())
    assert run.client.transaction_status == "I"


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def test_key_data_is_kept_from_sight() -> None:
    """S15: the cancel key is not in the repr."""
    run = play(Script().connect(started().replace(backend_key_data(), backend_key_data(secret=b"kkkk"))))
    assert "kkkk" not in repr(run.client)


def test_close_during_start_up_refuses_what_comes_later() -> None:
    """D12: what was accepted is served, then Terminate; the start-up's end does not open the door again."""
    run = Run(Memory(options())).play(Script().start("connect", "connect").expect("StartupMessage"), 2)
    run.start("accepted", "execute", ONE)
    run.start("close", "close")
    with pytest.raises(errors.InterfaceError):
        run.client.start_execute("select 'late'")
    run.deliver(started())
    with pytest.raises(errors.InterfaceError):
        run.client.start_execute("select 'later'")
    run.expect(NEW)
    run.deliver(described("one"))
    run.expect(KNOWN)
    run.deliver(bind_complete() + selected(1) + ready_for_query())
    run.expect(("Terminate",))
    run.client.eof()
    run.client.pump()
    run.assert_ended()
    assert run.outcome("accepted").kind == "gives"
    assert run.outcome("close").kind == "gives"


def test_many_may_close() -> None:
    run = play(knows())
    run.start("close", "close")
    run.operations["again"] = run.client.start_close()
    run.expect(("Terminate",))
    run.client.eof()
    run.client.pump()
    for label in ("close", "again"):
        assert run.operations[label].done()
        assert run.operations[label].result() is None


def test_close_before_connecting() -> None:
    client = core.Session(options())
    closing = client.start_close()
    assert closing.done()
    assert client.ended
    assert not client.outbound()


def test_abandoned_start_up_ends_the_session() -> None:
    run = Run(Memory(options())).play(Script().start("connect", "connect").expect("StartupMessage"), 2)
    run.start("queued", "execute", ONE)
    run.abandon("connect")
    run.client.pump()
    run.assert_ended()
    assert isinstance(run.error("queued"), errors.Error)


def test_prepared_statement_of_another_session_is_refused() -> None:
    """Its name means another statement here, or none."""
    theirs = play(DIALOGUES["prepared_then_executed"]())
    ours = play(knows())
    with pytest.raises(errors.InterfaceError):
        ours.client.start_execute(theirs.operations["p"].result(), (1,))
    assert not ours.client.outbound()


def test_nothing_starts_before_connect_and_connect_only_once() -> None:
    client = core.Session(options())
    with pytest.raises(errors.InterfaceError):
        client.start_execute(ONE)
    client.start_connect()
    with pytest.raises(errors.InterfaceError):
        client.start_connect()


def test_operation_outlives_its_session() -> None:
    run = play(knows())
    run.start("pending", "execute", ONE)
    pending, first = run.operations["pending"], run.operations["first"]
    del run
    assert [tuple(row) for row in first.result()] == [(1,)]
    assert pending.connection is None
    assert pending.done()
    with pytest.raises(errors.Error):
        pending.result()


def test_statements_in_use_are_not_evicted() -> None:
    """A cache of one, with a handle out: it stays, and so does its name on the server."""
    run = Run(Memory(options(statement_cache_size=1))).play(Script().connect(), 3)
    for sql in ("select 1 as one", "select 2 as two"):
        run.start(sql, "prepare", sql)
        run.expect(NEW)
        run.deliver(described("n"))
        run.expect(("Sync",))
        run.deliver(ready_for_query())
    run.client.start_execute(run.operations["select 1 as one"].result())
    run.expect((where("Bind", of="select 1 as one"), "Execute", "Sync"))
