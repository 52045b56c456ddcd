"""COPY given to execute or executescript: a clear error, and nobody behind it is spoiled (D3)."""

from __future__ import annotations

from backend import (
    bind_complete,
    command_complete,
    copy_both_response,
    copy_data,
    copy_done,
    copy_in_response,
    copy_out_response,
    data_row,
    described,
    error_response,
    ready_for_query,
    row_description,
)
from dialogues.execute import COPY, KNOWN, NEW, ONE, knows, served
from dialogues.registry import dialogue
from pgpoll import errors
from script import Script

FAILED = error_response("57014", "COPY from stdin failed: not asked for")
FOLLOWERS = [f"f{i}" for i in range(10)]
FOLLOW = KNOWN * 10


def followers_served(script: Script) -> Script:
    for i, label in enumerate(FOLLOWERS):
        served(script, label, i)
    return script


def with_followers(script: Script) -> Script:
    for label in FOLLOWERS:
        script.start(label, "execute", ONE)
    return script


@dialogue
def copy_in_through_execute() -> Script:
    """A server that awaits data swallows a Sync, so the only one follows CopyFail."""
    script = knows().start("copy", "execute", "copy t from stdin")
    with_followers(script).expect(*NEW).send(described()).expect(*COPY)
    script.send(bind_complete(), copy_in_response()).expect("CopyFail", "Sync", *FOLLOW)
    script.send(FAILED).send(ready_for_query()).raises("copy", errors.InterfaceError, "copy_in")
    return followers_served(script)


@dialogue
def copy_in_through_a_known_statement() -> Script:
    """Nothing may follow it on the wire, though it leaves in one flight."""
    script = knows()
    for label in ("first copy", "second copy"):
        script.start(label, "execute", "  /* load */ COPY t FROM STDIN")
        if label == "first copy":
            script.expect(*NEW).send(described())
        else:
            with_followers(script)
        follow = FOLLOW if label == "second copy" else ()
        script.expect(*COPY).send(bind_complete(), copy_in_response()).expect("CopyFail", "Sync", *follow)
        script.send(FAILED, ready_for_query()).raises(label, errors.InterfaceError, "copy_in")
    return followers_served(script)


@dialogue
def copy_out_through_execute() -> Script:
    script = knows().start("copy", "execute", "copy t to stdout")
    with_followers(script).expect(*NEW).send(described()).expect(*COPY)
    script.send(bind_complete(), copy_out_response(), copy_data(), copy_data(b""), copy_done())
    script.send(command_complete("COPY 2")).expect("Sync", *FOLLOW)
    script.send(ready_for_query()).raises("copy", errors.InterfaceError, "copy_out")
    return followers_served(script)


@dialogue
def copy_that_fails_by_itself() -> Script:
    """The server's error is the request's own."""
    return (
        Script()
        .connect()
        .start("copy", "execute", "copy t from '/nowhere'")
        .expect(*NEW)
        .send(described())
        .expect(*COPY)
        .send(bind_complete(), error_response("58P01", "could not open file"))
        .expect("Sync")
        .send(ready_for_query())
        .raises("copy", errors.UndefinedFile, "could not open file")
    )


@dialogue
def copy_of_a_file_succeeds() -> Script:
    return (
        Script()
        .connect()
        .start("copy", "execute", "copy t from '/somewhere'")
        .expect(*NEW)
        .send(described())
        .expect(*COPY)
        .send(bind_complete(), command_complete("COPY 5"))
        .expect("Sync")
        .send(ready_for_query())
        .gives("copy", [], "COPY 5")
    )


@dialogue
def copy_in_within_a_script() -> Script:
    """The simple protocol: CopyFail alone, the server goes to ReadyForQuery by itself."""
    script = knows().start("copy", "script", "select 1; copy t from stdin; select 2")
    with_followers(script).expect("Query")
    script.send(row_description("one"), data_row(b"1"), command_complete("SELECT 1"), copy_in_response())
    script.expect("CopyFail").send(FAILED, ready_for_query()).raises("copy", errors.InterfaceError, "copy_in")
    script.expect(*FOLLOW)
    return followers_served(script)


@dialogue
def copy_out_within_a_script() -> Script:
    script = knows().start("copy", "script", "copy t to stdout; select 2")
    with_followers(script).expect("Query")
    script.send(copy_out_response(), copy_data(), copy_done(), command_complete("COPY 1"))
    script.send(row_description("two"), data_row(b"2"), command_complete("SELECT 1"), ready_for_query())
    script.raises("copy", errors.InterfaceError, "copy_out").expect(*FOLLOW)
    return followers_served(script)


@dialogue
def copy_out_that_fails_half_way() -> Script:
    script = knows().start("copy", "execute", "copy t to stdout")
    with_followers(script).expect(*NEW).send(described()).expect(*COPY)
    script.send(bind_complete(), copy_out_response(), copy_data(), error_response("57014", "statement timeout"))
    script.expect("Sync", *FOLLOW).send(ready_for_query())
    script.check(lambda run: run.assert_raises("copy", errors.Error, ""))
    return followers_served(script)


@dialogue
def abandoned_copy_in() -> Script:
    """The caller left before the server asked for data: still CopyFail, or the server waits for ever."""
    script = knows().start("copy", "execute", "copy t from stdin").expect(*NEW).send(described()).expect(*COPY)
    script.abandon("copy").send(bind_complete(), copy_in_response()).expect("CopyFail", "Sync")
    script.send(FAILED, ready_for_query()).cancelled("copy").start("next", "execute", ONE).expect(*KNOWN)
    return served(script)


@dialogue
def cancelled_copy_in() -> Script:
    """Somebody else's CancelRequest strikes while the server awaits data: CopyFail is ignored, its Sync is answered."""
    script = knows().start("copy", "execute", "copy t from stdin")
    with_followers(script).expect(*NEW).send(described()).expect(*COPY)
    script.send(bind_complete(), copy_in_response(), error_response("57014"))
    script.expect("CopyFail", "Sync", *FOLLOW)
    script.send(ready_for_query()).raises("copy", errors.InterfaceError, "copy_in")
    return followers_served(script)


@dialogue
def copy_in_cancelled_before_it_began() -> Script:
    script = knows().start("copy", "execute", "copy t from stdin")
    with_followers(script).expect(*NEW).send(described()).expect(*COPY)
    script.send(bind_complete(), error_response("57014")).expect("Sync", *FOLLOW)
    script.send(ready_for_query()).raises("copy", errors.QueryCanceled, "")
    return followers_served(script)


@dialogue
def abandoned_copy_in_of_a_script() -> Script:
    script = knows().start("copy", "script", "copy t from stdin").expect("Query").abandon("copy")
    script.send(copy_in_response()).expect("CopyFail").send(FAILED, ready_for_query()).cancelled("copy")
    return script


@dialogue
def copy_both_is_no_answer_to_us() -> Script:
    """Only replication begins it."""
    return (
        Script()
        .connect()
        .start("copy", "script", "start_replication")
        .expect("Query")
        .send(copy_both_response())
        .raises("copy", errors.ProtocolError, "CopyBothResponse")
    )
