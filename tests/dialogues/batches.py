"""Batches: many items under one Sync, broken off in every way, and executemany."""

from __future__ import annotations

from typing import Any

from backend import (
    INT4,
    TEXT,
    bind_complete,
    close_complete,
    column,
    command_complete,
    data_row,
    described,
    empty_query,
    error_response,
    fatal,
    int4,
    no_data,
    notice,
    parse_complete,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.begin import BEGIN, STANDBY, opening
from dialogues.execute import KNOWN, NEW, ONE, forgetful, knows
from dialogues.recovery import AGAIN, STALE, described_again
from dialogues.registry import dialogue
from pgpoll import core, errors
from script import Run, Script, plain, where

ITEM = ("Bind", "Execute")
BREAK = where("Execute", portal="pgpoll_broken")
BROKEN = error_response("34000", 'portal "pgpoll_broken" does not exist')
INSERT = "insert into t values ($1)"
GOOD = bind_complete() + selected(1)
DONE = bind_complete() + command_complete("INSERT 0 1")


def add(*items: str | tuple[Any, ...]) -> Any:
    """Adds items to the batch "b": texts, or texts with their arguments."""

    def act(run: Run) -> None:
        for item in items:
            sql, *args = (item,) if isinstance(item, str) else item
            run.operations["b"].add(sql, tuple(args))

    return act


def end(run: Run) -> None:
    run.operations["b"].end()


def feed(*rows: Any) -> Any:
    def act(run: Run) -> None:
        iterator = iter(rows)
        while not run.operations["b"].feed_rows(iterator):
            run.client.pump()

    return act


def gives_items(*expected: object) -> Any:
    """What the items of "b" gave."""

    def check(run: Run) -> None:
        operation = run.operations["b"]
        assert operation.result() is None
        assert (operation.settled, operation.failed_item) == (True, None)
        assert [plain(operation.item(i)) for i in range(len(expected))] == list(expected)

    return check


def fails_at(item: int | None, *, settled: bool = True) -> Any:
    def check(run: Run) -> None:
        operation = run.operations["b"]
        assert (operation.failed_item, operation.settled) == (item, settled)

    return check


def batch(script: Script | None = None, **changes: Any) -> Script:
    return (script or knows(**changes)).start("b", "batch")


@dialogue
def batch_of_known_statements() -> Script:
    return (
        batch()
        .act(add(ONE, ONE))
        .expect(*ITEM, *ITEM)
        .act(add(ONE))
        .act(end)
        .expect(*ITEM, "Sync")
        .send(bind_complete(), selected(1), bind_complete(), selected(), bind_complete(), selected(3, 4))
        .start("next", "execute", ONE)
        .expect(*KNOWN)
        .send(ready_for_query(), bind_complete(), selected(5), ready_for_query())
        .check(gives_items(([(1,)], "SELECT 1"), ([], "SELECT 0"), ([(3,), (4,)], "SELECT 2")))
        .gives("next", [(5,)], "SELECT 1")
    )


@dialogue
def empty_batch_sends_nothing() -> Script:
    return batch().act(end).start("next", "execute", ONE).expect(*KNOWN).send(GOOD, ready_for_query()).gives("b")


@dialogue
def batch_with_an_empty_statement() -> Script:
    script = batch().act(add("")).expect(*NEW).send(described()).act(end)
    script.expect(*ITEM, "Sync").send(bind_complete(), empty_query(), ready_for_query())
    return script.check(gives_items(([], "")))


@dialogue
def batch_with_an_empty_statement_behind_rows() -> Script:
    script = batch().act(add(ONE, "")).expect(*ITEM, *NEW).send(GOOD, described()).act(end)
    script.expect(*ITEM, "Sync").send(bind_complete(), empty_query(), ready_for_query())
    return script.check(gives_items(([(1,)], "SELECT 1"), ([], "")))


@dialogue
def batch_with_new_statements_in_their_places() -> Script:
    new = "select $1::int4 as x"
    return (
        batch()
        .act(add(ONE, (new, 7), (new, 8), ONE))
        .act(end)
        .expect(*ITEM, where("Parse", query=new), where("Describe", of=new), "Flush")
        .send(GOOD, described("x", parameters=(INT4,)))
        .expect(
            *(where("Bind", of=new, parameters=[int4(7)]), "Execute"),
            *(where("Bind", of=new, parameters=[int4(8)]), "Execute"),
            *(where("Bind", of=ONE), "Execute", "Sync"),
        )
        .send(bind_complete(), selected(7), bind_complete(), selected(8), GOOD, ready_for_query())
        .check(gives_items(([(1,)], "SELECT 1"), ([(7,)], "SELECT 1"), ([(8,)], "SELECT 1"), ([(1,)], "SELECT 1")))
    )


@dialogue
def batch_with_other_requests_around() -> Script:
    """Those ahead are answered first; those behind wait for its Sync."""
    return (
        knows()
        .start("ahead", "execute", ONE)
        .start("b", "batch")
        .start("behind", "execute", ONE)
        .expect(*KNOWN)
        .act(add(ONE))
        .expect(*ITEM)
        .send(bind_complete(), selected(10), ready_for_query())
        .act(end)
        .expect("Sync", *KNOWN)
        .send(bind_complete(), selected(11), ready_for_query(), bind_complete(), selected(12), ready_for_query())
        .gives("ahead", [(10,)], "SELECT 1")
        .check(gives_items(([(11,)], "SELECT 1")))
        .gives("behind", [(12,)], "SELECT 1")
    )


@dialogue
def batch_with_a_window_of_two() -> Script:
    """Nothing is written behind two unanswered items, and a Flush lets the answers come."""
    return (
        batch(max_pipeline=2)
        .act(add(ONE, ONE, ONE))
        .act(end)
        .expect(*ITEM, "Flush", *ITEM, "Flush")
        .send(bind_complete(), selected(1))
        .expect(*ITEM, "Flush", "Sync")
        .send(bind_complete(), selected(2), bind_complete(), selected(3), ready_for_query())
        .check(gives_items(([(1,)], "SELECT 1"), ([(2,)], "SELECT 1"), ([(3,)], "SELECT 1")))
    )


@dialogue
def batch_for_a_pooler_that_cannot_pipeline() -> Script:
    script = knows(max_pipeline=1).start("ahead", "execute", ONE).start("b", "batch").act(add(ONE, ONE)).act(end)
    script.expect(*KNOWN).send(GOOD, ready_for_query())
    script.expect(*ITEM, "Flush").send(GOOD).expect(*ITEM, "Flush", "Sync").send(GOOD, ready_for_query())
    return script.check(gives_items(([(1,)], "SELECT 1"), ([(1,)], "SELECT 1")))


@dialogue
def batch_of_unnamed_statements() -> Script:
    """statement_cache_size=0: each comes with its Parse, and with the description of its portal."""
    known = ("Parse", "Bind", "Describe", "Execute")
    answer = parse_complete() + bind_complete() + row_description(column("one", code=1))
    script = Script(statement_cache_size=0).connect().start("first", "execute", ONE).expect(*NEW)
    script.send(described("one")).expect(*KNOWN).send(GOOD, ready_for_query())
    return (
        batch(script)
        .act(add(ONE, ONE))
        .act(end)
        .expect(*known, *known, "Sync")
        .send(answer, selected(1), answer, selected(2), ready_for_query())
        .check(gives_items(([(1,)], "SELECT 1"), ([(2,)], "SELECT 1")))
    )


@dialogue
def new_unnamed_statement_in_a_batch() -> Script:
    script = batch(Script(statement_cache_size=0).connect()).act(add(ONE)).act(end).expect(*NEW)
    script.send(described("one")).expect(*ITEM, "Sync").send(GOOD, ready_for_query())
    return script.check(gives_items(([(1,)], "SELECT 1")))


# Errors.


@dialogue
def error_of_an_item_that_has_others_behind() -> Script:
    return (
        batch()
        .act(add(ONE, ONE, ONE))
        .act(end)
        .expect(*ITEM, *ITEM, *ITEM, "Sync")
        .start("next", "execute", ONE)
        .expect(*KNOWN)
        .send(GOOD, bind_complete(), error_response(), ready_for_query(), GOOD, ready_for_query())
        .raises("b", errors.DivisionByZero)
        .check(fails_at(1))
        .gives("next", [(1,)], "SELECT 1")
    )


@dialogue
def error_while_items_are_added() -> Script:
    """The Sync leaves at once, and what is added after that is skipped."""
    return (
        batch()
        .act(add(ONE, ONE))
        .expect(*ITEM, *ITEM)
        .send(GOOD, error_response())
        .expect("Sync")
        .act(add(ONE))
        .send(ready_for_query())
        .act(add(ONE))
        .act(end)
        .raises("b", errors.DivisionByZero)
        .check(fails_at(1))
    )


@dialogue
def error_at_the_sync_of_a_batch() -> Script:
    """A deferred constraint: no single item's."""
    return (
        batch()
        .act(add(ONE, ONE))
        .act(end)
        .expect(*ITEM, *ITEM, "Sync")
        .send(GOOD, GOOD, error_response("23505", "deferred"), ready_for_query())
        .raises("b", errors.UniqueViolation)
        .check(fails_at(None))
    )


@dialogue
def error_of_a_description_in_a_batch() -> Script:
    return (
        batch()
        .act(add(ONE, "selec", ONE))
        .act(end)
        .expect(*ITEM, *NEW)
        .send(GOOD, error_response("42601", "syntax error"))
        .expect("Sync")
        .send(ready_for_query())
        .raises("b", errors.SyntaxError)
        .check(fails_at(1))
    )


@dialogue
def error_of_a_description_behind_an_item_that_fails() -> Script:
    """The server has skipped the Parse."""
    script = batch().act(add(ONE, "select 2")).act(end).expect(*ITEM, *NEW).send(bind_complete(), error_response())
    script.expect("Sync").send(ready_for_query()).raises("b", errors.DivisionByZero).check(fails_at(0))
    return script.start("next", "execute", "select 2").expect(*NEW).send(described("two")).expect(*KNOWN)


@dialogue
def arguments_that_do_not_fit_break_the_batch() -> Script:
    return (
        batch()
        .act(add(ONE, ("select $1::int4", "x"), ONE))
        .expect(*ITEM, *NEW)
        .send(GOOD, described("x", parameters=(INT4,)))
        .expect(BREAK, "Sync")
        .send(BROKEN, ready_for_query())
        .act(end)
        .raises("b", errors.DataError, "$1 (int4)")
        .check(fails_at(1))
    )


@dialogue
def first_arguments_that_do_not_fit() -> Script:
    """Nothing was executed, so there is nothing to break."""
    script = batch().act(add(("select $1::int4", "x"), ONE)).expect(*NEW).send(described("x", parameters=(INT4,)))
    script.expect("Sync").send(ready_for_query())
    return script.raises("b", errors.DataError, "$1 (int4)").check(fails_at(0))


@dialogue
def arguments_that_do_not_fit_behind_an_item_that_fails() -> Script:
    """The first error is the batch's."""
    new = "select $1::int4"
    script = batch().act(add((new, 7), (new, "x"))).expect(*NEW).send(described("x", parameters=(INT4,)))
    script.expect(*ITEM, BREAK, "Sync").send(bind_complete(), error_response(), ready_for_query())
    return script.raises("b", errors.DivisionByZero).check(fails_at(0))


@dialogue
def arguments_that_do_not_fit_behind_an_item_that_does_not() -> Script:
    new = "select $1::int4"
    script = batch().act(add((new, 7), (new, "x"))).expect(*NEW).send(described("x", parameters=(INT4,)))
    script.expect(*ITEM, BREAK, "Sync").send(GOOD, BROKEN, ready_for_query())
    return script.raises("b", errors.DataError, "$1 (int4)").check(fails_at(1))


@dialogue
def plan_that_the_server_has_dropped_within_a_batch() -> Script:
    """A plain error (D15); the next request prepares it again."""
    script = batch().act(add(ONE, ONE)).act(end).expect(*ITEM, *ITEM, "Sync")
    script.send(GOOD, error_response("26000", "gone"), ready_for_query()).raises("b", errors.InvalidSqlStatementName)
    return script.check(fails_at(1)).start("next", "execute", ONE).expect("Close", *NEW)


@dialogue
def statement_dropped_between_the_call_and_its_turn() -> Script:
    """It is known when the item is added, and not any more when it would be written: described again."""
    return (
        knows(max_pipeline=1)
        .start("new", "prepare", "deallocate all")
        .expect(*NEW)
        .send(described())
        .expect("Sync")
        .send(ready_for_query())
        .start("drop", "execute", "deallocate all")
        .expect(*KNOWN)
        .start("b", "batch")
        .act(add(ONE))
        .act(end)
        .send(bind_complete(), command_complete("DEALLOCATE ALL"), ready_for_query())
        .expect(*NEW)
        .send(described("one"))
        .expect(*ITEM, "Flush", "Sync")
        .send(GOOD, ready_for_query())
        .check(gives_items(([(1,)], "SELECT 1")))
    )


@dialogue
def fatal_error_while_a_batch_is_open() -> Script:
    script = batch().act(add(ONE)).expect(*ITEM).send(GOOD, notice(), fatal()).raises("b", errors.AdminShutdown)
    return script.check(fails_at(None, settled=False))


# Abandoned.


@dialogue
def batch_abandoned_before_its_first_item() -> Script:
    return batch().abandon("b").cancelled("b").start("next", "execute", ONE).expect(*KNOWN)


@dialogue
def batch_abandoned_in_line() -> Script:
    """Its items wait behind a description: nothing of it ever leaves."""
    script = knows().start("new", "execute", "select 2").start("b", "batch").act(add(ONE)).expect(*NEW).abandon("b")
    script.send(described("two")).expect(*KNOWN).send(bind_complete(), selected(2), ready_for_query())
    return script.cancelled("b").gives("new", [(2,)], "SELECT 1")


@dialogue
def batch_abandoned_with_items_on_the_wire() -> Script:
    """Broken before its Sync, so nothing of it is committed."""
    return (
        batch()
        .act(add(ONE, ONE))
        .expect(*ITEM, *ITEM)
        .send(GOOD)
        .abandon("b")
        .expect(BREAK, "Sync")
        .start("next", "execute", ONE)
        .send(GOOD, BROKEN, ready_for_query())
        .expect(*KNOWN)
        .send(GOOD, ready_for_query())
        .cancelled("b")
        .gives("next", [(1,)], "SELECT 1")
    )


@dialogue
def batch_abandoned_while_a_statement_is_described() -> Script:
    """Something was executed before it. The statement is known after."""
    script = batch().act(add(ONE, "select 2 as two")).expect(*ITEM, *NEW).abandon("b").expect(BREAK, "Sync")
    script.send(GOOD, described("two"), BROKEN, ready_for_query()).cancelled("b")
    return script.start("next", "execute", "select 2 as two").expect(*KNOWN).send(GOOD, ready_for_query())


@dialogue
def batch_abandoned_while_its_first_statement_is_described() -> Script:
    """Nothing was executed: no break."""
    script = batch().act(add("select 2 as two")).expect(*NEW).abandon("b").expect("Sync")
    return script.send(described("two"), ready_for_query()).cancelled("b")


@dialogue
def batch_abandoned_after_its_sync() -> Script:
    """It goes on by itself, as any request that was sent."""
    script = batch().act(add(ONE)).act(end).expect(*ITEM, "Sync").abandon("b").send(GOOD, ready_for_query())
    return script.cancelled("b").start("next", "execute", ONE).expect(*KNOWN)


@dialogue
def batch_abandoned_while_its_error_is_drained() -> Script:
    script = batch().act(add(ONE)).expect(*ITEM).send(error_response()).expect("Sync").abandon("b")
    return script.send(ready_for_query()).cancelled("b").start("next", "execute", ONE).expect(*KNOWN)


@dialogue
def batch_behind_an_abandoned_head() -> Script:
    """Not even its first item is written before the head's end."""
    return (
        knows()
        .start("gone", "execute", ONE)
        .expect(*KNOWN)
        .abandon("gone")
        .start("b", "batch")
        .act(add(ONE))
        .act(end)
        .send(GOOD, ready_for_query())
        .expect(*ITEM, "Sync")
        .send(GOOD, ready_for_query())
        .cancelled("gone")
        .check(gives_items(([(1,)], "SELECT 1")))
    )


@dialogue
def batch_goes_on_behind_a_head_that_was_abandoned() -> Script:
    """An item is on the wire: the others wait for the head's end."""
    return (
        knows()
        .start("gone", "execute", ONE)
        .start("b", "batch")
        .act(add(ONE))
        .expect(*KNOWN, *ITEM)
        .abandon("gone")
        .act(add(ONE))
        .act(end)
        .send(GOOD, ready_for_query())
        .expect(*ITEM, "Sync")
        .send(GOOD, GOOD, ready_for_query())
        .cancelled("gone")
        .check(gives_items(([(1,)], "SELECT 1"), ([(1,)], "SELECT 1")))
    )


@dialogue
def cancelled_by_hand_while_a_batch_is_open() -> Script:
    """Its items wait for the end of that socket. They go on in front of the drain: nothing else could end it."""
    return (
        batch(memory_only=True)
        .act(add(ONE))
        .expect(*ITEM)
        .act(lambda run: run.client.cancel_started())
        .act(add(ONE))
        .act(end)
        .expect()
        .act(lambda run: run.client.cancel_ended())
        .expect(*ITEM, "Sync")
        .send(GOOD, error_response("57014", "canceling statement due to user request"), ready_for_query())
        .expect("Query")
        .send(empty_query(), ready_for_query())
        .raises("b", errors.QueryCanceled)
        .check(fails_at(1))
    )


@dialogue
def batch_behind_a_head_that_is_cancelled() -> Script:
    """The head has ended, the socket of its CancelRequest has not: that strikes no item that was not on the wire."""
    return (
        knows(memory_only=True)
        .start("gone", "execute", ONE)
        .start("b", "batch")
        .act(add(ONE))
        .expect(*KNOWN, *ITEM)
        .abandon("gone")
        .act(lambda run: run.client.cancel_started())
        .send(GOOD, ready_for_query(), GOOD)
        .act(add(ONE))
        .expect()
        .act(lambda run: run.client.cancel_ended())
        .expect(*ITEM)
        .act(end)
        .expect("Sync")
        .send(GOOD, ready_for_query())
        .expect("Query")
        .send(empty_query(), ready_for_query())
        .cancelled("gone")
        .check(gives_items(([(1,)], "SELECT 1"), ([(1,)], "SELECT 1")))
    )


# A batch that has sent nothing gives way to what runs again.


def gives_way() -> Script:
    """ "a" failed for no fault of its own while a batch was open behind it."""
    script = knows().start("a", "execute", ONE).expect(*KNOWN).start("b", "batch")
    return script.send(STALE, ready_for_query()).expect(*AGAIN)


@dialogue
def batch_without_items_gives_way() -> Script:
    script = gives_way().act(add(ONE)).start("next", "execute", ONE).send(described_again()).expect(*KNOWN, *ITEM)
    script.send(GOOD, ready_for_query()).gives("a", [(1,)], "SELECT 1").act(end).expect("Sync", *KNOWN)
    script.send(GOOD, ready_for_query(), GOOD, ready_for_query()).gives("next", [(1,)], "SELECT 1")
    return script.check(gives_items(([(1,)], "SELECT 1")))


@dialogue
def batch_ended_while_it_gives_way() -> Script:
    script = gives_way().act(end).start("next", "execute", ONE).send(described_again()).expect(*KNOWN * 2)
    return script.send((GOOD + ready_for_query()) * 2).gives("b").gives("next", [(1,)], "SELECT 1")


@dialogue
def batch_abandoned_while_it_gives_way() -> Script:
    script = gives_way().abandon("b").start("next", "execute", ONE).send(described_again()).expect(*KNOWN * 2)
    return script.send((GOOD + ready_for_query()) * 2).cancelled("b").gives("next", [(1,)], "SELECT 1")


@dialogue
def batch_gives_way_to_two() -> Script:
    script = knows().start("a", "execute", ONE).start("c", "execute", ONE).expect(*KNOWN * 2).start("b", "batch")
    script.send((STALE + ready_for_query()) * 2).expect(*AGAIN).act(add(ONE)).send(described_again())
    script.expect(*KNOWN * 2, *ITEM).act(end).expect("Sync").send((GOOD + ready_for_query()) * 3)
    script.gives("a", [(1,)], "SELECT 1").gives("c", [(1,)], "SELECT 1")
    return script.check(gives_items(([(1,)], "SELECT 1")))


@dialogue
def many_rows_give_way() -> Script:
    script = knows_insert().start("a", "execute", INSERT, (0,)).expect(*KNOWN).start("b", "executemany", INSERT)
    again = where("Close", target="S", of=INSERT), where("Parse", query=INSERT), "Describe", "Flush"
    script.send(STALE, ready_for_query()).expect(*again)

    def no_room(run: Run) -> None:
        assert run.operations["b"].feed_rows(iter(())) is False
        assert not run.operations["b"].stirred

    def stirs(run: Run) -> None:
        assert run.operations["b"].stirred

    script.act(no_room).send(close_complete(), described(parameters=(INT4,))).expect(*KNOWN).act(stirs)
    script.act(feed((1,), (2,))).act(end).expect(*ITEM * 2, "Sync")
    return script.send(DONE, ready_for_query(), DONE, DONE, ready_for_query()).gives("b", [], "INSERT 0 2")


# A statement's Close is skipped where what begins a block in front of it fails: the server has the statement still, and
# says 42P05 to whoever parses its text again. Nothing is done again within a batch, so it closes it first.

CLOSE = where("Close", target="S", of=ONE)


def needs_it_again(script: Script) -> Script:
    """The batch, when all that was ahead of it has been answered."""
    script.start("b", "batch").act(add(ONE)).expect(CLOSE, where("Parse", query=ONE), "Describe", "Flush")
    script.send(close_complete(), described("one")).act(end).expect(*ITEM, "Sync").send(GOOD, ready_for_query())
    return script.check(gives_items(([(1,)], "SELECT 1")))


@dialogue
def batch_behind_begin_that_fails_before_an_eviction() -> Script:
    script = opening(forgetful(statement_cache_size=1), "a", "execute", "select 2").expect(*BEGIN, CLOSE, *NEW)
    script.send(parse_complete(), bind_complete(), STANDBY).expect("Sync").send(ready_for_query())
    return needs_it_again(script.raises("a", errors.FeatureNotSupported, "hot standby"))


def crowded() -> Script:
    """A cache of one that keeps two: the older one's Close rides with the next request."""
    script = Script(statement_cache_size=1).connect().start("handle", "prepare", ONE).expect(*NEW)
    script.send(described("one")).expect("Sync").send(ready_for_query()).start("two", "execute", "select 2")
    script.expect(*NEW).send(described("two")).expect(*KNOWN).send(bind_complete(), selected(2), ready_for_query())
    return script.act(lambda run: run.forget("handle"))


@dialogue
def batch_behind_begin_that_fails_before_a_surplus_is_closed() -> Script:
    script = opening(crowded(), "a", "execute", "select 2").expect(*BEGIN, "Flush", CLOSE, *KNOWN)
    script.send(parse_complete(), bind_complete(), STANDBY, ready_for_query())
    return needs_it_again(script.raises("a", errors.FeatureNotSupported, "hot standby"))


@dialogue
def batch_that_was_written_before_begin_has_failed() -> Script:
    script = opening(crowded(), "a", "execute", "select 2").expect(*BEGIN, "Flush", CLOSE, *KNOWN)
    script.start("b", "batch").act(add(ONE)).expect(CLOSE, where("Parse", query=ONE), "Describe", "Flush")
    script.send(parse_complete(), bind_complete(), STANDBY, ready_for_query(), close_complete(), described("one"))
    script.act(end).expect(*ITEM, "Sync").send(GOOD, ready_for_query())
    script.raises("a", errors.FeatureNotSupported, "hot standby")
    return script.check(gives_items(([(1,)], "SELECT 1")))


# executemany.


def many(script: Script | None = None, sql: str = INSERT, **changes: Any) -> Script:
    return (script or Script(**changes).connect()).start("b", "executemany", sql)


def knows_insert(**changes: Any) -> Script:
    script = Script(**changes).connect().start("known", "prepare", INSERT).expect(*NEW)
    return script.send(described(parameters=(INT4,))).expect("Sync").send(ready_for_query())


def row(number: int) -> where:
    return where("Bind", of=INSERT, parameters=[int4(number)])


@dialogue
def many_rows_of_a_new_statement() -> Script:
    """Described when the first row is there; the rest is encoded then."""
    rows = iter([(1,), [2]])
    return (
        many()
        .act(lambda run: check(run.operations["b"].feed_rows(rows), exhausted=False))
        .expect(*NEW)
        .send(described(parameters=(INT4,)))
        .act(lambda run: check(run.operations["b"].feed_rows(rows), exhausted=True))
        .expect(row(1), "Execute", row(2), "Execute")
        .act(end)
        .expect("Sync")
        .send(DONE, DONE, ready_for_query())
        .gives("b", [], "INSERT 0 2")
    )


def check(got: bool, *, exhausted: bool) -> None:
    assert got is exhausted


@dialogue
def no_rows_at_all() -> Script:
    """Nothing is sent, and nothing was affected."""

    def rowcount(run: Run) -> None:
        result = run.operations["b"].result()
        assert isinstance(result, core.Result)
        assert (result.rowcount, list(result), result.columns) == (0, [], ())

    return many().act(feed()).act(end).check(rowcount)


@dialogue
def many_rows_with_returning() -> Script:
    sql = "insert into t values ($1) returning i, t"
    script = many(sql=sql).act(lambda run: check(run.operations["b"].feed_rows(iter([(1,)])), exhausted=False))
    script.expect(*NEW).send(described("i", column("t", TEXT, -1), parameters=(INT4,)))
    script.act(feed((2,), (3,))).expect(*ITEM, *ITEM, *ITEM).act(end).expect("Sync")
    for number in (1, 2, 3):
        script.send(bind_complete(), data_row(int4(number), b"x"), command_complete("INSERT 0 1"))
    return script.send(ready_for_query()).gives("b", [(1, "x"), (2, "x"), (3, "x")], "INSERT 0 3")


@dialogue
def many_rows_in_windows_of_two() -> Script:
    """Fed one by one, and no more than two are unanswered."""
    rows = iter([(1,), (2,), (3,)])

    def feed_on(*, exhausted: bool = False) -> Any:
        return lambda run: check(run.operations["b"].feed_rows(rows), exhausted=exhausted)

    return (
        many(knows_insert(max_pipeline=2))
        .act(feed_on())
        .expect(row(1), "Execute", "Flush")
        .act(feed_on())
        .expect(row(2), "Execute", "Flush")
        .act(feed_on())
        .send(DONE)
        .act(feed_on())
        .expect(row(3), "Execute", "Flush")
        .send(DONE)
        .act(feed_on(exhausted=True))
        .act(end)
        .expect("Sync")
        .send(DONE, ready_for_query())
        .gives("b", [], "INSERT 0 3")
    )


@dialogue
def many_rows_of_an_unnamed_statement() -> Script:
    """Parsed once more, in front of the first row."""
    script = Script(statement_cache_size=0).connect().start("first", "execute", INSERT, (0,)).expect(*NEW)
    script.send(described(parameters=(INT4,))).expect(*KNOWN).send(DONE, ready_for_query())
    script = many(script).act(feed((1,), (2,))).act(end).expect("Parse", "Bind", "Describe", "Execute", *ITEM, "Sync")
    script.send(parse_complete(), bind_complete(), no_data(), command_complete("INSERT 0 1"), DONE)
    return script.send(ready_for_query()).gives("b", [], "INSERT 0 2")


@dialogue
def many_rows_of_which_one_fails() -> Script:
    script = many(knows_insert()).act(feed((1,), (2,), (3,))).act(end).expect(*ITEM, *ITEM, *ITEM, "Sync")
    script.send(DONE, DONE, bind_complete(), error_response("23505", "duplicate"), ready_for_query())
    return script.raises("b", errors.UniqueViolation).check(fails_at(2))


@dialogue
def many_rows_of_which_one_is_an_empty_query() -> Script:
    """No server says so; but it has affected no row."""
    script = many(knows_insert()).act(feed((1,), (2,))).act(end).expect(*ITEM, *ITEM, "Sync")
    return script.send(DONE, bind_complete(), empty_query(), ready_for_query()).gives("b", [], "INSERT 0 1")


@dialogue
def many_rows_abandoned() -> Script:
    """f76: what was sent can't last."""
    script = many(knows_insert()).act(feed((1,), (2,))).expect(*ITEM, *ITEM).send(DONE).abandon("b")
    return script.expect(BREAK, "Sync").send(DONE, BROKEN, ready_for_query("T")).cancelled("b")


@dialogue
def many_rows_abandoned_before_the_first() -> Script:
    return many(knows_insert()).abandon("b").cancelled("b").start("next", "execute", INSERT, (1,)).expect(*KNOWN)


@dialogue
def many_rows_behind_a_description() -> Script:
    """It may be fed when the writer is its own."""
    rows = iter([(1,)])
    script = knows_insert().start("new", "execute", "select 2").start("b", "executemany", INSERT)
    script.act(lambda run: check(run.operations["b"].feed_rows(rows), exhausted=False)).expect(*NEW)
    script.send(described("two")).expect(*KNOWN)
    script.act(lambda run: check(run.operations["b"].feed_rows(rows), exhausted=True)).act(end).expect(*ITEM, "Sync")
    return script.send(bind_complete(), selected(2), ready_for_query(), DONE, ready_for_query())
