"""How a session ends: closed by us, by the server with and without a word, in the middle of things."""

from __future__ import annotations

from backend import bind_complete, data_row, described, fatal, int4, notice, ready_for_query, selected
from dialogues.execute import KNOWN, NEW, ONE, knows
from dialogues.registry import dialogue
from pgpoll import errors
from script import Run, Script


def eof(run: Run) -> None:
    run.client.eof()
    run.client.pump()


def caused_by_the_server(run: Run) -> None:
    """U8: the head has the server's word, the others have it as their cause."""
    for label in ("b", "c", "queued"):
        error = run.error(label)
        assert isinstance(error, errors.ConnectionLost)
        assert isinstance(error.__cause__, errors.AdminShutdown)
    assert run.error("queued").safe_to_retry
    assert not run.error("a").safe_to_retry
    assert not run.error("b").safe_to_retry


@dialogue
def fatal_with_several_waiting() -> Script:
    """f13: 57P01 amid the head's rows; two behind it on the wire, one that never left."""
    script = knows(memory_only=True, max_pipeline=3)
    for label in ("a", "b", "c", "queued"):
        script.start(label, "execute", ONE)
    script.expect(*KNOWN * 3).send(bind_complete(), data_row(int4(1)), fatal()).act(eof)
    script.raises("a", errors.AdminShutdown).raises("a", errors.OperationalError)
    script.raises("b", errors.ConnectionLost).raises("c", errors.ConnectionLost)
    return script.raises("queued", errors.ConnectionLost).check(caused_by_the_server)


@dialogue
def eof_without_a_word() -> Script:
    script = knows(memory_only=True)
    for label in ("a", "b"):
        script.start(label, "execute", ONE)
    script.expect(*KNOWN * 2).send(bind_complete(), data_row(int4(1))).act(eof)
    return script.raises("a", errors.ConnectionLost).raises("b", errors.ConnectionLost)


@dialogue
def eof_behind_the_last_answer() -> Script:
    """What was received is served first."""
    return (
        knows(memory_only=True)
        .start("a", "execute", ONE)
        .expect(*KNOWN)
        .act(lambda run: run.client.receive(bind_complete() + selected(1) + ready_for_query()))
        .act(eof)
        .gives("a", [(1,)], "SELECT 1")
        .check(lambda run: run.assert_ended())
    )


@dialogue
def fatal_while_idle() -> Script:
    """f36: with a notice in front; nobody waits, so nobody is told but the next who comes."""
    return (
        knows(memory_only=True)
        .send(notice("about to"), fatal("57P05", "terminating connection due to idle-session timeout"))
        .act(eof)
        .check(lambda run: run.assert_ended())
    )


@dialogue
def fatal_while_a_statement_is_described() -> Script:
    return (
        Script(memory_only=True)
        .connect()
        .start("a", "execute", ONE)
        .start("b", "execute", ONE)
        .expect(*NEW)
        .send(fatal())
        .act(eof)
        .raises("a", errors.AdminShutdown)
        .raises("b", errors.ConnectionLost)
        .check(lambda run: run.assert_ended())
    )


@dialogue
def closed_while_idle() -> Script:
    return (
        knows(memory_only=True)
        .start("close", "close")
        .expect("Terminate")
        .act(eof)
        .gives("close", None)
        .check(lambda run: run.assert_ended())
    )


@dialogue
def closed_behind_what_was_accepted() -> Script:
    """D12: Terminate leaves only when everybody is served."""
    return (
        knows(memory_only=True)
        .start("a", "execute", ONE)
        .start("new", "execute", "select 2 as two")
        .start("close", "close")
        .expect(*KNOWN, *NEW)
        .send(bind_complete(), selected(1), ready_for_query())
        .send(described("two"))
        .expect(*KNOWN)
        .send(bind_complete(), selected(2), ready_for_query())
        .expect("Terminate")
        .act(eof)
        .gives("a", [(1,)], "SELECT 1")
        .gives("new", [(2,)], "SELECT 1")
        .gives("close", None)
        .check(lambda run: run.assert_ended())
    )


@dialogue
def refused_once_closing() -> Script:
    def refused(run: Run) -> None:
        try:
            run.start("late", "execute", ONE)
        except errors.InterfaceError:
            return
        raise AssertionError("accepted behind close()")

    return (
        knows(memory_only=True).start("close", "close").act(refused).expect("Terminate").act(eof).gives("close", None)
    )


@dialogue
def fatal_at_start_up() -> Script:
    return (
        Script(memory_only=True)
        .start("connect", "connect")
        .start("queued", "execute", ONE)
        .expect("StartupMessage")
        .send(fatal("57P03", "the database system is starting up"))
        .act(eof)
        .raises("connect", errors.CannotConnectNow)
        .raises("queued", errors.ConnectionLost)
        .check(lambda run: run.assert_ended())
    )
