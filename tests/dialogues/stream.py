"""Rows in parts: streams with credit and without."""

from __future__ import annotations

from typing import Any

from backend import (
    INT4,
    TEXT,
    bind_complete,
    column,
    command_complete,
    copy_data,
    copy_done,
    copy_in_response,
    copy_out_response,
    data_row,
    described,
    empty_query,
    error_response,
    fatal,
    int4,
    no_data,
    notice,
    parameter_description,
    parameter_status,
    parse_complete,
    portal_suspended,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.abandon import STRAY, wishes
from dialogues.execute import KNOWN, NEW, ONE, knows, served
from dialogues.recovery import AGAIN, GONE, STALE, described_again
from dialogues.registry import dialogue
from pgpoll import core, errors
from script import Run, Script, where

DONE = command_complete("SELECT 1")


def rows(*numbers: int) -> bytes:
    return b"".join(data_row(int4(number)) for number in numbers)


def asked(limit: int, portal: str = "") -> tuple[where, str]:
    return where("Execute", portal=portal, limit=limit), "Flush"


def streaming(credit: int | None = 2, **changes: Any) -> Script:
    """A stream of a known statement, whose Bind and first Execute have left."""
    script = knows(**changes).start("s", "stream", ONE, (), credit)
    return script.expect(where("Bind", portal="", of=ONE), *asked(credit or 0))


def suspended(**changes: Any) -> Script:
    """A stream that has used its credit of 2 rows, which were taken."""
    script = streaming(**changes).send(bind_complete(), rows(1, 2), portal_suspended()).takes("s", (1,), (2,))
    return script.takes("s").expect()


def ending(script: Script, *numbers: int) -> Script:
    """So many more rows, and the end."""
    script.send(rows(*numbers), DONE).expect("Sync").send(ready_for_query())
    return script.takes("s", *((number,) for number in numbers)).gives("s", "SELECT 1")


def followed(script: Script) -> Script:
    """The next request is served."""
    return served(script.start("next", "execute", ONE).expect(*KNOWN), value=9)


# With credit.


@dialogue
def stream_of_a_new_statement() -> Script:
    sql = "select $1::int4 as x"
    script = Script().connect().start("s", "stream", sql, (5,), 1).expect(*NEW)
    script.send(described("x", parameters=(INT4,)))
    script.expect(where("Bind", of=sql, parameters=[int4(5)], result_formats=[1]), *asked(1))
    script.send(bind_complete(), rows(5), portal_suspended()).takes("s", (5,)).expect().grant("s", 3)
    return followed_by_known(ending(script.expect(*asked(3)), 6, 7), sql)


def followed_by_known(script: Script, sql: str) -> Script:
    """The statement is in the cache."""
    script.start("known", "execute", sql, (6,)).expect(where("Bind", of=sql), "Execute", "Sync")
    return served(script, "known", 6)


@dialogue
def stream_by_the_row() -> Script:
    script = streaming(1).send(bind_complete())
    for number in range(3):
        script.expect().send(rows(number), portal_suspended()).takes("s", (number,)).expect().grant("s", 1)
        script.expect(*asked(1))
    return followed(ending(script))


@dialogue
def credit_granted_before_it_is_used_up() -> Script:
    """It counts at the next Execute, all of it at once."""
    script = streaming(3).send(bind_complete(), rows(1)).takes("s", (1,)).grant("s", 1).expect().send(rows(2))
    script.grant("s", 4).expect().send(rows(3), portal_suspended()).expect(*asked(5))
    return ending(script.takes("s", (2,), (3,)), 4, 5, 6, 7, 8)


@dialogue
def rows_are_taken_in_parts() -> Script:
    script = streaming(5).send(bind_complete(), rows(1, 2, 3)).takes("s", (1,), at_most=1).takes("s", (2,), at_most=1)
    script.send(rows(4, 5), portal_suspended()).takes("s", (3,), at_most=4).takes("s", (4,), (5,), at_most=4)
    return ending(script.grant("s", 1).expect(*asked(1)), 6)


@dialogue
def rows_are_taken_when_it_is_over() -> Script:
    script = streaming(5).send(bind_complete(), rows(1, 2, 3), DONE).expect("Sync").send(ready_for_query())
    return followed(script).takes("s", (1,), (2,), at_most=2).takes("s", (3,)).takes("s").gives("s", "SELECT 1")


@dialogue
def the_end_just_behind_the_limit() -> Script:
    """The server doesn't know that the last row was the last before it is asked for more."""
    return ending(suspended().grant("s", 2).expect(*asked(2)))


@dialogue
def stream_without_rows() -> Script:
    return followed(ending(streaming().send(bind_complete())))


@dialogue
def stream_of_a_statement_without_columns() -> Script:
    sql = "insert into t values (1)"
    script = Script().connect().start("s", "stream", sql, (), 2).expect(*NEW)
    script.send(parse_complete(), parameter_description(), no_data())
    script.expect(where("Bind", of=sql), *asked(2)).send(bind_complete(), command_complete("INSERT 0 1")).expect("Sync")
    return script.send(ready_for_query()).takes("s").gives("s", "INSERT 0 1")


@dialogue
def stream_of_nothing() -> Script:
    script = streaming().send(bind_complete(), empty_query()).expect("Sync").send(ready_for_query())
    return script.takes("s").gives("s", "")


@dialogue
def stream_without_a_statement_cache() -> Script:
    script = knows(statement_cache_size=0).start("s", "stream", ONE, (), 2)
    script.expect("Parse", "Bind", "Describe", *asked(2))
    script.send(
        parse_complete(), bind_complete(), row_description(column("one", code=1)), rows(1, 2), portal_suspended()
    )
    return ending(script.takes("s", (1,), (2,)).grant("s", 1).expect(*asked(1)), 3)


@dialogue
def stream_of_another_shape() -> Script:
    """A statement that isn't kept has other columns than it had."""
    script = knows(statement_cache_size=0).start("s", "stream", ONE, (), 2)
    script.expect("Parse", "Bind", "Describe", *asked(2))
    script.send(parse_complete(), bind_complete(), row_description(column("t", TEXT, -1)), data_row(b"x"), DONE)
    return script.expect("Sync").send(ready_for_query()).takes("s", ("x",)).gives("s", "SELECT 1")


@dialogue
def others_wait_for_a_stream() -> Script:
    """Nothing of another is written before its Sync."""
    script = suspended().start("next", "execute", ONE).expect().grant("s", 2).expect(*asked(2)).send(rows(3), DONE)
    script.expect("Sync", *KNOWN).send(ready_for_query(), bind_complete(), selected(9), ready_for_query())
    return script.takes("s", (3,)).gives("s", "SELECT 1").gives("next", [(9,)], "SELECT 1")


@dialogue
def asynchronous_messages_out_of_credit() -> Script:
    script = suspended().send(notice(), parameter_status("TimeZone", "UTC")).expect().grant("s", 1).expect(*asked(1))
    return ending(script, 3).check(lambda run: one_notice(run))


def one_notice(run: Run) -> None:
    assert len(run.client.take_notices()) == 1


# Without a limit.


@dialogue
def stream_without_a_limit() -> Script:
    script = streaming(None).send(bind_complete(), rows(1, 2)).takes("s", (1,), (2,)).expect().send(rows(3))
    return followed(ending(script.takes("s", (3,)), 4, 5))


# Errors.


@dialogue
def stream_that_fails_to_bind() -> Script:
    script = streaming().send(error_response("22P02", "invalid input")).expect("Sync").send(ready_for_query())
    return followed(script.takes("s").raises("s", errors.InvalidTextRepresentation))


@dialogue
def stream_that_fails_amid_its_rows() -> Script:
    """What came before the error is there to be taken."""
    script = streaming(5).send(bind_complete(), rows(1), error_response()).expect("Sync").send(ready_for_query())
    return followed(script.takes("s", (1,)).takes("s").raises("s", errors.DivisionByZero))


@dialogue
def stream_that_fails_later() -> Script:
    script = suspended().grant("s", 2).expect(*asked(2)).send(rows(3), error_response()).expect("Sync")
    return followed(script.send(ready_for_query()).takes("s", (3,)).raises("s", errors.DivisionByZero))


@dialogue
def stream_that_fails_at_its_sync() -> Script:
    script = streaming().send(bind_complete(), rows(1), DONE).expect("Sync")
    script.send(error_response("23503", "deferred"), ready_for_query())
    return followed(script.takes("s", (1,)).raises("s", errors.ForeignKeyViolation))


@dialogue
def stream_that_is_terminated_out_of_credit() -> Script:
    return suspended().send(fatal()).raises("s", errors.AdminShutdown)


@dialogue
def stream_that_times_out_out_of_credit() -> Script:
    """An ErrorResponse while nothing runs, as of transaction_timeout."""
    script = suspended().send(error_response("25P04", "transaction timeout")).expect("Sync").send(ready_for_query())
    return followed(script.raises("s", errors.Error, "transaction timeout"))


@dialogue
def more_rows_than_were_asked_for() -> Script:
    return streaming(2).send(bind_complete(), rows(1, 2, 3)).raises("s", errors.ProtocolError, "more rows")


@dialogue
def suspended_before_its_limit() -> Script:
    """A server that says so for ever would be asked for ever, whether it reads that or not."""
    script = streaming(3).send(bind_complete(), rows(1, 2), portal_suspended())
    return script.raises("s", errors.ProtocolError, "PortalSuspended")


@dialogue
def more_rows_than_the_execute_asked_for() -> Script:
    """Credit that was granted since counts at the next one."""
    script = streaming(2).send(bind_complete(), rows(1)).takes("s", (1,)).grant("s", 5).expect()
    return script.send(rows(2, 3)).raises("s", errors.ProtocolError, "more rows")


@dialogue
def rows_out_of_credit() -> Script:
    return suspended().send(rows(3)).raises("s", errors.ProtocolError, "nothing was asked")


@dialogue
def suspended_without_a_limit() -> Script:
    return (
        streaming(None).send(bind_complete(), portal_suspended()).raises("s", errors.ProtocolError, "PortalSuspended")
    )


@dialogue
def suspended_with_a_body() -> Script:
    script = streaming().send(bind_complete(), rows(1, 2), b"s\0\0\0\5x")
    return script.raises("s", errors.ProtocolError, "a body where none belongs")


@dialogue
def stream_with_a_bad_argument() -> Script:
    """Of a new statement: no Bind, and the statement stays known."""
    sql = "select $1::int4 as one"
    script = Script().connect().start("s", "stream", sql, ("x",), 2).expect(*NEW)
    script.send(described("one", parameters=(INT4,))).expect("Sync").send(ready_for_query())
    return followed_by_known(script.raises("s", errors.DataError, "$1"), sql)


@dialogue
def copy_in_by_a_stream() -> Script:
    sql = "copy t from stdin"
    script = Script().connect().start("s", "stream", sql, (), 2).expect(*NEW)
    script.send(parse_complete(), parameter_description(), no_data()).expect("Bind", *asked(2))
    script.send(bind_complete(), copy_in_response()).expect("CopyFail", "Sync")
    script.send(error_response("57014", "COPY from stdin failed"), ready_for_query())
    return script.raises("s", errors.InterfaceError, "copy_in")


@dialogue
def copy_in_by_a_stream_that_is_over() -> Script:
    """No query ends in COPY; a server that awaits data would have swallowed the Sync."""
    script = streaming().abandon("s").expect("Sync").start("next", "execute", ONE)
    return script.send(bind_complete(), copy_in_response()).cancelled("s").raises("next", errors.Error, "lost")


@dialogue
def copy_out_by_a_stream() -> Script:
    sql = "copy t to stdout"
    script = Script().connect().start("s", "stream", sql, (), 2).expect(*NEW)
    script.send(parse_complete(), parameter_description(), no_data()).expect("Bind", *asked(2))
    script.send(bind_complete(), copy_out_response(), copy_data(), copy_done(), command_complete("COPY 1"))
    script.expect("Sync").send(ready_for_query())
    return script.raises("s", errors.InterfaceError, "copy_out")


# A second attempt.


@dialogue
def stream_whose_plan_has_changed() -> Script:
    script = streaming().send(STALE).expect("Sync").send(ready_for_query()).expect(*AGAIN)
    script.send(described_again()).expect("Bind", *asked(2)).send(bind_complete())
    return followed(ending(script, 7))


@dialogue
def stream_whose_statement_was_dropped() -> Script:
    """Credit that was granted meanwhile counts too."""
    script = streaming().send(GONE).expect("Sync").grant("s", 3).send(ready_for_query()).expect(*AGAIN)
    script.send(described_again()).expect("Bind", *asked(5)).send(bind_complete())
    return ending(script, 7, 8, 9)


@dialogue
def stream_whose_plan_has_changed_in_a_transaction() -> Script:
    script = knows().start("begin", "command", "BEGIN").expect("Parse", *KNOWN)
    script.send(parse_complete(), bind_complete(), command_complete("BEGIN"), ready_for_query("T"))
    script.start("s", "stream", ONE, (), 2).expect("Bind", *asked(2)).send(STALE).expect("Sync")
    return script.send(ready_for_query("E")).raises("s", errors.FeatureNotSupported)


def struck() -> Script:
    """A CancelRequest that was meant for the request before it may still strike."""
    script = knows(memory_only=True).start("gone", "execute", ONE).expect(*KNOWN).abandon("gone")
    script.act(lambda run: run.client.cancel_started()).act(lambda run: run.client.cancel_ended())
    script.send(bind_complete(), selected(1), ready_for_query()).expect("Query").send(empty_query(), ready_for_query())
    script.start("s", "stream", ONE, (), 2).expect("Bind", *asked(2))
    return script.cancelled("gone")


@dialogue
def struck_before_its_first_row() -> Script:
    script = struck().send(bind_complete(), STRAY).expect("Sync").send(ready_for_query()).expect("Bind", *asked(2))
    return ending(script.send(bind_complete()), 7)


@dialogue
def struck_behind_its_first_row() -> Script:
    """It has given rows: the second attempt would give them again."""
    script = struck().send(bind_complete(), rows(1, 2), portal_suspended()).takes("s", (1,), (2,)).grant("s", 2)
    script.expect(*asked(2)).send(STRAY).expect("Sync").send(ready_for_query())
    return script.raises("s", errors.QueryCanceled)


# Abandoned.


@dialogue
def stream_abandoned_unsent() -> Script:
    script = knows().start("ahead", "execute", "select 2 as two").start("s", "stream", ONE, (), 2).expect(*NEW)
    script.abandon("s").send(described("two")).expect(*KNOWN).send(bind_complete(), selected(2), ready_for_query())
    return followed(script.cancelled("s").gives("ahead", [(2,)], "SELECT 1"))


@dialogue
def stream_abandoned_while_described() -> Script:
    script = Script().connect().start("s", "stream", ONE, (), 2).expect(*NEW).abandon("s").expect("Sync")
    return followed(script.send(described("one"), ready_for_query()).cancelled("s"))


@dialogue
def stream_abandoned_before_its_rows() -> Script:
    """Its Sync leaves at once: the server ends it at the limit."""
    script = streaming().act(lambda run: wishes(run, core.NONE)).abandon("s").expect("Sync")
    script.act(lambda run: wishes(run, core.NOW)).start("next", "execute", ONE).expect()
    script.send(bind_complete(), rows(1, 2), portal_suspended(), ready_for_query()).expect(*KNOWN)
    return served(script.cancelled("s"), value=9)


@dialogue
def stream_abandoned_amid_its_rows() -> Script:
    script = streaming(5).send(bind_complete(), rows(1)).takes("s", (1,)).send(rows(2)).abandon("s").expect("Sync")
    return followed(script.send(rows(3), DONE, ready_for_query()).cancelled("s"))


@dialogue
def stream_abandoned_out_of_credit() -> Script:
    """Nothing runs at the server: nothing is to be cancelled."""
    script = suspended().abandon("s").expect("Sync").act(lambda run: wishes(run, core.NONE))
    return followed(script.send(ready_for_query()).cancelled("s"))


@dialogue
def stream_abandoned_with_credit_just_granted() -> Script:
    script = suspended().grant("s", 2).expect(*asked(2)).abandon("s").expect("Sync")
    script.act(lambda run: wishes(run, core.NOW)).send(rows(3, 4), portal_suspended(), ready_for_query())
    return followed(script.cancelled("s"))


@dialogue
def stream_abandoned_behind_its_last_row() -> Script:
    script = streaming().send(bind_complete(), rows(1), DONE).expect("Sync").abandon("s").expect()
    return followed(script.send(ready_for_query()).cancelled("s"))


@dialogue
def stream_abandoned_that_fails() -> Script:
    script = streaming(5).send(bind_complete(), rows(1)).abandon("s").expect("Sync")
    return followed(script.send(error_response(), ready_for_query()).cancelled("s"))


@dialogue
def stream_abandoned_after_its_error() -> Script:
    script = streaming(5).send(bind_complete(), error_response()).expect("Sync").abandon("s").expect()
    return followed(script.send(ready_for_query()).cancelled("s"))


@dialogue
def stream_without_a_limit_cancelled_at_the_server() -> Script:
    script = streaming(None, memory_only=True).send(bind_complete(), rows(1, 2)).takes("s", (1,), (2,)).abandon("s")
    script.expect("Sync").act(lambda run: wishes(run, core.NOW)).act(lambda run: run.client.cancel_started())
    script.send(rows(3, 4, 5)).act(lambda run: run.client.cancel_ended()).send(STRAY, ready_for_query())
    script.expect(where("Query", query="")).send(empty_query(), ready_for_query())
    return followed(script.cancelled("s"))


@dialogue
def cancelled_by_hand_out_of_credit() -> Script:
    """No Execute leaves while the CancelRequest may strike it; the stream itself is not abandoned."""
    script = suspended(memory_only=True).act(lambda run: run.client.cancel_started()).grant("s", 1).expect()
    script.act(lambda run: run.client.cancel_ended()).expect(*asked(1)).send(rows(3), DONE).expect("Sync")
    script.send(ready_for_query()).expect(where("Query", query="")).send(empty_query(), ready_for_query())
    return script.takes("s", (3,)).gives("s", "SELECT 1")
