"""What begins a block in front of its first request, under the same Sync: BEGIN, SAVEPOINT, and how they fail."""

from __future__ import annotations

from typing import Any

from backend import (
    INT4,
    bind_complete,
    column,
    command_complete,
    copy_in_response,
    described,
    error_response,
    fatal,
    parse_complete,
    ready_for_query,
    row_description,
    selected,
)
from dialogues.execute import COPY, KNOWN, NEW, ONE, knows
from dialogues.registry import dialogue
from pgpoll import core, errors
from script import Run, Script, where

BEGIN = (where("Parse", query="BEGIN", statement=""), "Bind", "Execute")
SAVEPOINT = (where("Parse", query="SAVEPOINT s", statement=""), "Bind", "Execute")
RIDES = ("Flush", *KNOWN)  # the answer to BEGIN comes at once, however long the request takes
DESCRIBE = (where("Parse", query=ONE), "Describe", "Flush")
STANDBY = error_response("0A000", "cannot use serializable mode in a hot standby")
STALE = error_response("0A000", "cached plan must not change result type")
CANCELED = error_response("57014", "canceling statement due to user request")


def opening(
    script: Script, label: str, verb: str, *args: Any, ahead: tuple[str, ...] = ("BEGIN",), outermost: bool = True
) -> Script:
    """Starts a request with `ahead` in front of it; those are labelled as they read."""

    def start(run: Run) -> None:
        operations = run.client._start_behind(ahead, outermost, lambda: getattr(run.client, f"start_{verb}")(*args))
        run.operations |= dict(zip((*ahead, label), operations, strict=True))

    return script.act(start)


def begun(tag: str = "BEGIN") -> bytes:
    return parse_complete() + bind_complete() + command_complete(tag)


def given(script: Script, label: str = "a", value: int = 7, status: str = "T") -> Script:
    script.send(bind_complete(), selected(value), ready_for_query(status))
    return script.gives(label, [(value,)], "SELECT 1")


def done(*labels: str) -> Any:
    """These, of all that were started with a block, are done."""

    def check(run: Run) -> None:
        names = {"BEGIN", "SAVEPOINT s", "a"} & run.operations.keys()
        assert {name for name in names if run.operations[name].done()} == set(labels)

    return check


@dialogue
def begin_with_a_known_statement() -> Script:
    """One flight; BEGIN is done at its CommandComplete, the request at its ReadyForQuery."""
    script = opening(knows(), "a", "execute", ONE).expect(*BEGIN, *RIDES).send(begun()).act(done("BEGIN"))
    script.send(bind_complete(), selected(7)).act(done("BEGIN")).send(ready_for_query("T"))
    return script.gives("BEGIN", "BEGIN").gives("a", [(7,)], "SELECT 1")


@dialogue
def begin_with_a_new_statement() -> Script:
    script = opening(Script().connect(), "a", "execute", ONE).expect(*BEGIN, *DESCRIBE)
    script.send(begun()).act(done("BEGIN")).send(described("one")).expect(*KNOWN)
    return given(script).gives("BEGIN", "BEGIN")


@dialogue
def begin_with_a_statement_that_is_parsed_each_time() -> Script:
    script = knows(statement_cache_size=0)
    opening(script, "a", "execute", ONE).expect(*BEGIN, "Flush", "Parse", "Bind", "Describe", "Execute", "Sync")
    script.send(begun(), parse_complete(), bind_complete(), row_description(column("one", code=1)))
    script.send(selected(7), ready_for_query("T"))
    return script.gives("BEGIN", "BEGIN").gives("a", [(7,)], "SELECT 1")


@dialogue
def begin_and_savepoint() -> Script:
    script = opening(knows(), "a", "execute", ONE, ahead=("BEGIN", "SAVEPOINT s"))
    script.expect(*BEGIN, *SAVEPOINT, *RIDES).send(begun()).act(done("BEGIN")).send(begun("SAVEPOINT"))
    return given(script.act(done("BEGIN", "SAVEPOINT s"))).gives("BEGIN", "BEGIN").gives("SAVEPOINT s", "SAVEPOINT")


@dialogue
def begin_with_prepare() -> Script:
    script = opening(Script().connect(), "a", "prepare", ONE).expect(*BEGIN, *DESCRIBE)
    script.send(begun(), described("one")).expect("Sync").send(ready_for_query("T"))
    return script.gives("BEGIN", "BEGIN").gives("a", [], ["one"])


@dialogue
def begin_with_prepare_of_what_is_known() -> Script:
    """Nothing to ask the server for, but BEGIN is."""
    script = opening(knows(), "a", "prepare", ONE).expect(*BEGIN, "Sync").send(begun(), ready_for_query("T"))
    return script.gives("BEGIN", "BEGIN").gives("a", [], ["one"])


@dialogue
def begin_with_a_command() -> Script:
    script = opening(Script().connect(), "a", "command", "SAVEPOINT s").expect(*BEGIN, *SAVEPOINT, "Sync")
    script.send(begun(), begun("SAVEPOINT"), ready_for_query("T"))
    return script.gives("BEGIN", "BEGIN").gives("a", "SAVEPOINT")


@dialogue
def begin_with_a_copy_that_is_refused() -> Script:
    sql = "copy t from stdin"
    script = opening(Script().connect(), "a", "execute", sql).expect(*BEGIN, *NEW)
    script.send(begun(), described()).expect(*COPY).send(bind_complete(), copy_in_response())
    script.expect("CopyFail", "Sync").send(error_response("57014", "COPY from stdin failed"), ready_for_query("E"))
    return script.gives("BEGIN", "BEGIN").raises("a", errors.InterfaceError, "copy_in")


@dialogue
def begin_through_a_pooler() -> Script:
    script = opening(knows(max_pipeline=1), "a", "execute", ONE).expect(*BEGIN, *RIDES).send(begun())
    return given(script).gives("BEGIN", "BEGIN")


# Where one fails the server skips what rides with it.


@dialogue
def begin_fails() -> Script:
    script = opening(knows(), "a", "execute", ONE).expect(*BEGIN, *RIDES)
    script.send(parse_complete(), bind_complete(), STANDBY).act(done()).send(ready_for_query())
    for label in ("BEGIN", "a"):
        script.raises(label, errors.FeatureNotSupported, "hot standby")
    return given(script.start("b", "execute", ONE).expect(*KNOWN), "b", status="I")


@dialogue
def begin_fails_before_a_new_statement() -> Script:
    script = opening(Script().connect(), "a", "execute", ONE).expect(*BEGIN, *DESCRIBE)
    script.send(parse_complete(), bind_complete(), STANDBY).expect("Sync").send(ready_for_query())
    for label in ("BEGIN", "a"):
        script.raises(label, errors.FeatureNotSupported, "hot standby")
    script.start("b", "execute", ONE).expect(*DESCRIBE).send(described("one")).expect(*KNOWN)
    return given(script, "b", status="I")


@dialogue
def savepoint_fails() -> Script:
    script = opening(knows(), "a", "execute", ONE, ahead=("BEGIN", "SAVEPOINT s")).expect(*BEGIN, *SAVEPOINT, *RIDES)
    script.send(begun(), parse_complete(), error_response("53200", "out of memory"), ready_for_query("E"))
    for label in ("SAVEPOINT s", "a"):
        script.raises(label, errors.OutOfMemory, "out of memory")
    return script.gives("BEGIN", "BEGIN")


@dialogue
def begin_is_answered_by_the_end() -> Script:
    script = opening(knows(), "a", "execute", ONE).expect(*BEGIN, *RIDES).send(fatal())
    for label in ("BEGIN", "a"):
        script.raises(label, errors.AdminShutdown)
    return script


@dialogue
def request_fails_behind_begin() -> Script:
    """A transaction is open, and lost; no second attempt in it, whatever the error is."""
    script = opening(knows(), "a", "execute", ONE).expect(*BEGIN, *RIDES).send(begun(), STALE, ready_for_query("E"))
    return script.gives("BEGIN", "BEGIN").raises("a", errors.FeatureNotSupported, "cached plan").expect()


@dialogue
def begin_is_struck_by_a_cancel_request_of_anothers() -> Script:
    """What carries it never runs a second time."""
    script = knows(memory_only=True).start("gone", "execute", ONE)
    opening(script, "a", "execute", ONE).expect(*KNOWN, *BEGIN, *RIDES).abandon("gone")
    script.act(lambda run: run.client.cancel_started()).send(bind_complete(), selected(1), ready_for_query())
    script.cancelled("gone").send(parse_complete(), CANCELED, ready_for_query()).expect()

    def socket_ended(run: Run) -> None:
        run.client.cancel_ended()
        run.client.pump()

    script.act(socket_ended).expect(where("Query", query="")).send(error_response("57014"), ready_for_query())
    for label in ("BEGIN", "a"):
        script.raises(label, errors.QueryCanceled, "canceling")
    return script.expect()


@dialogue
def cached_plan_changed_before_begin() -> Script:
    """A second attempt would run inside of that transaction."""
    script = opening(knows().start("b", "execute", ONE), "a", "execute", ONE).expect(*KNOWN, *BEGIN, *RIDES)
    script.send(STALE, ready_for_query()).raises("b", errors.FeatureNotSupported, "cached plan").expect()
    return given(script.send(begun())).gives("BEGIN", "BEGIN")


@dialogue
def arguments_refused_behind_begin() -> Script:
    """The transaction has begun, and is open."""
    sql = "select $1::int4 as one"
    script = opening(Script().connect(), "a", "execute", sql, ("x",)).expect(*BEGIN, *NEW)
    script.send(begun(), described("one", parameters=(INT4,))).expect("Sync").send(ready_for_query("T"))
    return script.gives("BEGIN", "BEGIN").raises("a", errors.DataError, "$1")


@dialogue
def arguments_refused_before_begin() -> Script:
    """Its statement was described meanwhile, so nothing has left yet."""
    sql = "select $1::int4 as one"
    script = Script().connect().start("first", "execute", sql, (1,)).expect(*NEW)
    opening(script, "a", "execute", sql, ("x",)).send(described("one", parameters=(INT4,))).expect(*KNOWN)
    given(script, "first", 1, "I")
    for label, kind in (("a", errors.DataError), ("BEGIN", errors.InterfaceError)):
        script.raises(label, kind)
    return script.expect()


# BEGIN is for the status byte that holds when all has answered that may change it.


def behind_by_hand(status: str, sql: str = "begin") -> Script:
    script = opening(knows().start("hand", "execute", sql), "a", "execute", ONE).expect(*NEW)
    script.send(described()).expect(*KNOWN).send(bind_complete(), command_complete("X"))
    return script.gives("hand", [], "X").send(ready_for_query(status))


@dialogue
def begin_behind_one_by_hand() -> Script:
    script = behind_by_hand("T").expect()
    for label in ("BEGIN", "a"):
        script.raises(label, errors.InterfaceError, "by hand")
    return script.check(lambda run: unwritten(run, "BEGIN", "a"))


@dialogue
def begin_behind_what_might_have_begun_one() -> Script:
    script = behind_by_hand("I", "call p()").expect(*BEGIN, *RIDES).send(begun())
    return given(script).gives("BEGIN", "BEGIN")


@dialogue
def begin_behind_a_script() -> Script:
    script = opening(knows().start("hand", "script", "begin; commit"), "a", "execute", ONE).expect("Query")
    script.send(command_complete("BEGIN"), command_complete("COMMIT"), ready_for_query()).expect(*BEGIN, *RIDES)
    return given(script.send(begun())).gives("BEGIN", "BEGIN")


@dialogue
def begin_behind_queries() -> Script:
    """They change nothing: no flight is lost."""
    script = knows().start("b", "execute", ONE).start("c", "execute", ONE)
    opening(script, "a", "execute", ONE).expect(*KNOWN * 2, *BEGIN, *RIDES)
    given(given(script, "b", 1, "I"), "c", 2, "I").send(begun())
    return given(script).gives("BEGIN", "BEGIN")


@dialogue
def savepoint_waits_for_nobody() -> Script:
    script = knows().start("hand", "command", "begin")
    opening(script, "a", "execute", ONE, ahead=("SAVEPOINT s",), outermost=False)
    script.expect("Parse", *KNOWN, *SAVEPOINT, *RIDES).send(begun(), ready_for_query("T"), begun("SAVEPOINT"))
    return given(script).gives("SAVEPOINT s", "SAVEPOINT")


# Given up.


def wanted(wish: int) -> Any:
    def check(run: Run) -> None:
        assert run.client.cancel_wanted() == wish

    return check


def unwritten(run: Run, *labels: str) -> None:
    assert not any(run.operations[label].written for label in labels)


@dialogue
def abandoned_before_begin_was_sent() -> Script:
    script = opening(knows(max_pipeline=1).start("b", "execute", ONE), "a", "execute", ONE).expect(*KNOWN)
    script.abandon("a").cancelled("a").raises("BEGIN", errors.InterfaceError, "abandoned")
    return given(script, "b", status="I").check(lambda run: unwritten(run, "BEGIN", "a"))


@dialogue
def abandoned_while_begin_is_on_its_way() -> Script:
    """BEGIN is never cancelled by wish (D6); what rides with it is, once it runs."""

    script = opening(knows(memory_only=True), "a", "execute", ONE).expect(*BEGIN, *RIDES).abandon("a")
    script.act(wanted(core.NONE)).send(begun()).act(wanted(core.NOW)).act(done("BEGIN"))
    script.send(bind_complete(), selected(1), ready_for_query("T")).gives("BEGIN", "BEGIN").cancelled("a")
    return given(script.start("b", "execute", ONE).expect(*KNOWN), "b")


@dialogue
def abandoned_behind_an_abandoned_head() -> Script:
    """Nobody waits for the request, but a block does for its BEGIN: a late CancelRequest would hit that."""
    script = opening(knows(memory_only=True).start("b", "execute", ONE), "a", "execute", ONE)
    script.expect(*KNOWN, *BEGIN, *RIDES).abandon("b").act(wanted(core.GRACE)).abandon("a").act(wanted(core.GRACE))
    script.send(bind_complete(), selected(1), ready_for_query()).act(wanted(core.NONE)).send(begun())
    script.act(wanted(core.NOW)).send(bind_complete(), selected(1), ready_for_query("T"))
    return script.gives("BEGIN", "BEGIN").cancelled("a", "b")


@dialogue
def abandoned_while_it_is_described_behind_begin() -> Script:
    script = opening(Script().connect(), "a", "execute", ONE).expect(*BEGIN, *DESCRIBE).abandon("a").expect("Sync")
    script.send(begun(), described("one"), ready_for_query("T")).gives("BEGIN", "BEGIN").cancelled("a")
    return given(script.start("b", "execute", ONE).expect(*KNOWN), "b")


@dialogue
def begin_is_abandoned() -> Script:
    """What rides with it goes on."""
    script = opening(knows(), "a", "execute", ONE).expect(*BEGIN, *RIDES).abandon("BEGIN").send(begun())
    return given(script).cancelled("BEGIN")
