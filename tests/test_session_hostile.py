"""faults.md 2.2 and S4 to S6, S19: what no honest server sends. Bytes end in an outcome or a pgpoll error, at once."""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from backend import (
    INT4,
    TEXT,
    ScramServer,
    authentication,
    authentication_ok,
    backend_key_data,
    bind_complete,
    cleartext,
    column,
    command_complete,
    data_row,
    described,
    error_response,
    int4,
    md5,
    message,
    negotiate_protocol_version,
    notice,
    notification,
    parameter_description,
    parameter_status,
    parse_complete,
    ready_for_query,
    row_description,
    sasl,
    sasl_continue,
    sasl_final,
    selected,
    started,
)
from dialogues.execute import NEW, ONE, knows
from dialogues.startup import scram_final, scram_until_proof
from pgpoll import errors
from script import PASSWORD, Memory, Run, Script, options, play

SHORT = b"RK23C1nIsZc"  # types that can't be long
LONG = b"DTtdEN"


def executing(*data: bytes) -> Run:
    """`a` and `b` are on the wire, BindComplete and `data` have come."""
    run = play(knows())
    run.start("a", "execute", ONE)
    run.start("b", "execute", ONE)
    run.read(6)
    run.messages.clear()
    run.deliver(bind_complete() + b"".join(data))
    return run


def connecting() -> Run:
    run = Run(Memory(options()))
    return run.play(Script().start("connect", "connect").expect("StartupMessage"), 2)


def parsed() -> Run:
    run = play(Script().connect())
    run.start("a", "execute", "select $1::int4", (1,))
    run.expect(NEW)
    run.deliver(parse_complete())
    return run


def assert_protocol_error(run: Run, *texts: str) -> None:
    """The head has a ProtocolError that says what and where; the session is over; nothing of ours was sent for it."""
    assert run.client.ended, "the session goes on"
    told = [label for label in run.operations if run.outcome(label).kind == "raises"]
    assert told, "nobody was told"
    error = run.error(told[0])
    assert isinstance(error, errors.ProtocolError), repr(error)
    assert error.sqlstate == "08P01"
    for text in (*texts, "byte"):
        assert text in str(error), f"{str(error)!r} lacks {text!r}"
    run.assert_ended()
    for label in told[1:]:
        assert isinstance(run.error(label), errors.ConnectionLost)
    assert PASSWORD not in repr(error)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


# Framing.


@pytest.mark.parametrize("length", [0, 1, 2, 3, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF])
@pytest.mark.parametrize("kind", [bytes([each]) for each in SHORT + LONG])
def test_f25_length_that_cannot_be(kind: bytes, length: int) -> None:
    """At once: the header is enough."""
    run = executing()
    run.deliver(message(kind, length=length))
    assert_protocol_error(run)


@pytest.mark.parametrize("kind", [bytes([each]) for each in SHORT])
def test_f27_length_too_long_for_its_type(kind: bytes) -> None:
    run = executing()
    run.deliver(message(kind, length=30_001))
    assert_protocol_error(run)


@pytest.mark.parametrize("kind", [b"D", b"E", b"N", b"d"])
def test_f26_memory_follows_what_came_not_what_was_said(kind: bytes) -> None:
    run = executing()
    before = resident()
    run.deliver(message(kind, bytes(1000), length=(1 << 30) - 100))
    for _ in range(16):
        run.deliver(bytes(65536))
    assert resident() - before < 8 << 20
    assert not run.client.ended
    run.client.eof()
    run.client.pump()
    run.assert_ended()


@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_f28_truncated_frame_then_fin(size: int) -> None:
    run = executing()
    run.deliver(data_row(int4(1))[:size])
    run.client.eof()
    run.client.pump()
    assert isinstance(run.error("a"), errors.ConnectionLost)
    assert not isinstance(run.error("a"), errors.ProtocolError)


@pytest.mark.parametrize("kind", [b"\x21", b"\x00", b"\xff"])
@pytest.mark.parametrize("when", [connecting, parsed, executing, lambda: executing(data_row(int4(1)))])
def test_f33_unknown_type(when: Callable[[], Run], kind: bytes) -> None:
    run = when()
    run.deliver(message(kind, b"whatever"))
    assert_protocol_error(run, f"0x{kind[0]:02x}")


# Rows and their description.

ROWS = {
    "a field of -2": struct.pack("!Hi", 1, -2),
    "a field of -2**31": struct.pack("!Hi", 1, -(2**31)),
    "a field beyond the message": struct.pack("!Hi", 1, 5) + b"four",
    "a field of 2 GiB": struct.pack("!Hi", 1, 0x7FFFFFFF) + b"four",
    "trailing bytes": struct.pack("!Hi", 1, 4) + b"four!",
    "half a length": struct.pack("!H", 1) + b"\0\0",
    "half a count": b"\0",
    "no count": b"",
    "f30 fewer fields": struct.pack("!H", 0),
    "f30 more fields": struct.pack("!HiIiI", 2, 4, 1, 4, 2),
    "f30 65,535 fields": struct.pack("!H", 65535),
}


@pytest.mark.parametrize("body", ROWS.values(), ids=ROWS)
def test_f29_malformed_row(body: bytes) -> None:
    """Rows before it were right; still nobody gets a part of a result."""
    run = executing(data_row(int4(1)))
    run.deliver(message(b"D", body))
    assert_protocol_error(run, "DataRow")


def test_f30_rows_without_a_description() -> None:
    run = play(Script().connect())
    run.start("a", "execute", "update t set x = 1")
    run.read(3)
    run.deliver(described())
    run.read(3)
    run.deliver(bind_complete() + data_row(int4(1)))
    assert_protocol_error(run, "DataRow")


DESCRIPTIONS = {
    "65,535 columns, short": struct.pack("!H", 65535) + column("x"),
    "a name without its end": struct.pack("!H", 1) + b"name",
    "half a column": struct.pack("!H", 1) + column("x")[:-3],
    "trailing bytes": struct.pack("!H", 1) + column("x") + b"!",
    "no count": b"",
    "a format nobody asked for": struct.pack("!H", 1) + column("x", code=7),
}


@pytest.mark.parametrize("body", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_f31_malformed_row_description(body: bytes) -> None:
    run = parsed()
    run.deliver(parameter_description(INT4) + message(b"T", body))
    assert_protocol_error(run, "RowDescription")


def test_f31_duplicate_row_description() -> None:
    run = executing(data_row(int4(1)), row_description("one"))
    assert_protocol_error(run, "RowDescription")


def test_f31_as_many_columns_as_a_table_has() -> None:
    names = [f"c{i}" for i in range(1664)]
    run = play(Script().connect())
    run.start("a", "execute", "select *")
    run.read(3)
    run.deliver(described(*names))
    run.read(3)
    run.deliver(bind_complete() + data_row(*[int4(i) for i in range(1664)]) + command_complete("SELECT 1"))
    run.deliver(ready_for_query())
    assert run.outcome("a").value[0] == [tuple(range(1664))]


PARAMETERS = {
    "65,535, short": struct.pack("!H", 65535) + b"\0\0\0\x17",
    "trailing bytes": struct.pack("!HI", 1, 23) + b"!",
    "no count": b"",
}


@pytest.mark.parametrize("body", PARAMETERS.values(), ids=PARAMETERS)
def test_f44_malformed_parameter_description(body: bytes) -> None:
    run = parsed()
    run.deliver(message(b"t", body))
    assert_protocol_error(run, "ParameterDescription")


# Authentication that nobody asked for (S4, S5), and S6.


@pytest.mark.parametrize("request_", [cleartext(), md5(), sasl(), authentication_ok(), authentication(7)])
def test_f34_authentication_mid_session(request_: bytes) -> None:
    for run in (executing(), executing(data_row(int4(1))), play(knows())):
        run.deliver(request_)
        assert run.client.ended
        assert not run.client.outbound(), "something was sent, a password perhaps"


def test_s04_cleartext_is_refused_where_others_may_listen() -> None:
    run = Run(Memory(options(host="192.0.2.1")))
    run.play(Script().start("connect", "connect").expect("StartupMessage"), 2)
    run.deliver(cleartext())
    assert isinstance(run.error("connect"), errors.OperationalError)
    assert "cleartext" in str(run.error("connect"))
    assert not run.client.outbound()
    assert PASSWORD not in str(run.error("connect"))


@pytest.mark.parametrize("request_", [cleartext(), md5(), sasl()])
def test_s04_no_password_to_give(request_: bytes) -> None:
    run = Run(Memory(options(password=None)))
    run.play(Script().start("connect", "connect").expect("StartupMessage"), 2)
    run.deliver(request_)
    assert "password" in str(run.error("connect"))
    assert not run.client.outbound()


@pytest.mark.parametrize("second", [cleartext(), md5(), sasl()])
def test_s04_a_second_method_is_refused(second: bytes) -> None:
    """A password was given once; a server that asks again, for less, is after it."""
    run = connecting()
    run.deliver(md5())
    run.read(1)
    run.deliver(second)
    assert isinstance(run.error("connect"), errors.OperationalError)
    assert not run.client.outbound()


SASL_OUT_OF_ORDER = {
    "final before continue": sasl_final(b"v=AAAA"),
    "the mechanisms again": sasl(),
    "ok before continue": authentication_ok(),
    "cleartext instead": cleartext(),
    "md5 instead": md5(),
}


@pytest.mark.parametrize("answer", SASL_OUT_OF_ORDER.values(), ids=SASL_OUT_OF_ORDER)
@pytest.mark.parametrize("proved", [False, True])
def test_s05_sasl_out_of_order(answer: bytes, proved: bool) -> None:
    """Case 10 and 11: AuthenticationOk before a verified server-final is fatal, and so is everything else."""
    if proved:
        script = scram_until_proof().expect("PasswordMessage")
        run = Run(Memory(options())).play(script, len(script.steps))
        if answer == SASL_OUT_OF_ORDER["final before continue"]:
            answer = sasl_continue(b"r=again,s=AAAA,i=4096")
    else:
        run = connecting()
        run.deliver(sasl())
        run.read(1)
    run.deliver(answer + started())
    assert run.outcome("connect").kind == "raises"
    assert isinstance(run.error("connect"), errors.OperationalError)
    run.assert_ended()
    assert not run.client.outbound()


FINALS = {
    "wrong": {"signature_text": "d3JvbmcgYnV0IHRoaXJ0eS10d28gYnl0ZXMgbG9uZyEhISE="},
    "short": {"signature_text": "AAAA"},
    "empty": {"signature_text": ""},
    "no base64": {"signature_text": "!!!!"},
    "an error": {"final_text": "e=other-error"},
    "nothing": {"final_text": ""},
    "trailing": {"final_text": "v=AAAA,x=y"},
}


@pytest.mark.parametrize("switches", FINALS.values(), ids=FINALS)
def test_s05_server_that_cannot_prove_itself(switches: dict[str, Any]) -> None:
    script = scram_until_proof(ScramServer(PASSWORD, 64, **switches)).expect("PasswordMessage")
    run = Run(Memory(options())).play(script, len(script.steps))
    run.deliver(scram_final(run) + started())
    assert isinstance(run.error("connect"), errors.OperationalError)
    run.assert_ended()
    assert PASSWORD not in str(run.error("connect"))


FIRSTS = {
    "i=0": {"iterations_text": "0"},
    "i=-1": {"iterations_text": "-1"},
    "i=cap+1": {"iterations_text": "1000001"},
    "i=2**31": {"iterations_text": str(2**31)},
    "i=2**32+1": {"iterations_text": str(2**32 + 1)},
    "i=10**300": {"iterations_text": "1" + "0" * 300},
    "i=4096x": {"iterations_text": "4096x"},
    "i=": {"iterations_text": ""},
    "no salt": {"salt_text": ""},
    "salt no base64": {"salt_text": "%%%%"},
    "a nonce not ours": {"nonce": "rOprNGfwEbeRWgbNEkqO"},
    "an empty nonce": {"nonce": ""},
    "an extension": {"first_text": "m=ext,r=a,s=AAAA,i=4096"},
    "nothing": {"first_text": ""},
    "commas": {"first_text": ",,,,"},
}


@pytest.mark.parametrize("switches", FIRSTS.values(), ids=FIRSTS)
def test_s06_bad_server_first(switches: dict[str, Any]) -> None:
    """Refused before anything is derived: at once, and nothing more is sent."""
    began = time.monotonic()
    script = scram_until_proof(ScramServer(PASSWORD, 64, **switches))
    run = Run(Memory(options())).play(script, len(script.steps))
    assert isinstance(run.error("connect"), errors.OperationalError)
    assert not run.client.outbound()
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("iterations", [1, 4096, 1_000_000])
def test_s06_iterations_up_to_the_cap_in_short_slices(iterations: int) -> None:
    """No pump() takes long (5 ms is the rule; the bound here leaves room for a busy machine)."""
    script = scram_until_proof(ScramServer(PASSWORD, iterations))
    run = Run(Memory(options())).play(script, len(script.steps))
    longest, pumps, data = 0.0, 0, b""
    while not data:
        began = time.thread_time()
        run.client.pump()
        longest = max(longest, time.thread_time() - began)
        data = bytes(run.client.outbound())
        pumps += 1
        assert pumps < 5000
    assert longest < 0.05
    run.reader.feed(data)
    run.seen.extend(run.reader)
    run.deliver(scram_final(run) + started())
    assert run.outcome("connect").kind == "gives"


def test_s06_salt_of_two_megabytes() -> None:
    script = scram_until_proof(ScramServer(PASSWORD, 64, salt=bytes(2 << 20)))
    run = Run(Memory(options())).play(script, len(script.steps))
    assert run.outcome("connect").kind == "raises"


def test_s19_floods_before_authentication() -> None:
    """At most 64 KiB are kept for a server that has not proved who it is."""
    for data in (
        message(b"E", length=65 * 1024),
        message(b"N", length=1 << 29),
        message(b"S", length=1 << 20),
    ):
        run = connecting()
        run.deliver(data)
        assert_protocol_error(run)
    run = connecting()
    before = resident()
    for _ in range(200):
        run.deliver(notice("x" * 60_000) * 10)
        if run.client.ended:
            break
    assert resident() - before < 32 << 20


# Errors and notices.

ERRORS = {
    "empty": b"",
    "only its end": b"\0",
    "no terminator": b"SERROR\0C22012\0Mdivision by zero\0",
    "a field without its end": b"SERROR\0C22012\0Mdivision by zero",
    "unknown fields": b"SERROR\0C22012\0Mdivision by zero\0?what\0\x01one\0\xffff\0\0",
    "twice": b"SERROR\0C22012\0C22013\0Mfirst\0Msecond\0\0",
    "no SQLSTATE": b"SERROR\0Mdivision by zero\0\0",
    "no text": b"SERROR\0C22012\0\0",
    "invalid UTF-8": b"SERROR\0C22012\0M\xff\xfe\x80\0\0",
    "a number that is none": b"SERROR\0C22012\0Mx\0Pmany\0p\0L" + b"9" * 400 + b"\0\0",
    "a SQLSTATE that is none": b"SERROR\0Ca very long code\0Mx\0\0",
}


@pytest.mark.parametrize("body", ERRORS.values(), ids=ERRORS)
def test_f35_odd_error(body: bytes) -> None:
    """Tolerated where it is framed: the request fails, its neighbour does not."""
    run = executing(message(b"E", body), ready_for_query())
    run.deliver(bind_complete() + selected(2) + ready_for_query())
    error = run.error("a")
    assert isinstance(error, errors.DatabaseError)
    assert not isinstance(error, errors.ProtocolError)
    str(error), repr(error)
    assert run.outcome("b").value[0] == [(2,)]


def test_f35_long_text_is_cut() -> None:
    run = executing(error_response("22012", "x" * (4 << 20)), ready_for_query())
    assert len(str(run.error("a"))) <= 64 * 1024 + 1024


def test_f36_an_error_belongs_to_exactly_one() -> None:
    run = executing(data_row(int4(1)), error_response(), ready_for_query())
    run.deliver(bind_complete() + selected(2) + ready_for_query())
    assert isinstance(run.error("a"), errors.DivisionByZero)
    assert run.outcome("b").value[0] == [(2,)]


def test_f36_two_fatals() -> None:
    run = executing(error_response("57P01", "first", "FATAL"), error_response("57P02", "second", "FATAL"))
    assert isinstance(run.error("a"), errors.AdminShutdown)
    assert isinstance(run.error("b").__cause__, errors.AdminShutdown)
    run.assert_ended()


def test_f36_an_error_while_idle_closes_with_its_reason() -> None:
    run = play(knows())
    run.deliver(error_response("57P05", "idle-session timeout", "FATAL"))
    run.assert_ended()
    with pytest.raises(errors.InterfaceError, match="idle-session timeout"):
        run.client.start_execute(ONE)


def test_f37_a_flood_of_notices_is_bounded() -> None:
    run = executing()
    before = resident()
    block = notice("n" * 100) * 1000
    for _ in range(200):
        run.deliver(block)
    assert resident() - before < 16 << 20
    run.deliver(selected(1) + ready_for_query())
    assert run.outcome("a").kind == "gives"


def test_f38_a_flood_of_notifications_is_bounded() -> None:
    run = executing()
    before = resident()
    block = notification("channel", "p" * 100) * 1000
    for _ in range(200):
        run.deliver(block)
    assert resident() - before < 16 << 20
    run.deliver(selected(1) + ready_for_query())
    assert run.outcome("a").kind == "gives"


# What start-up reports.


def test_f39_too_many_parameters() -> None:
    run = executing()
    run.deliver(b"".join(parameter_status(f"name{i}", "v") for i in range(2000)))
    assert_protocol_error(run, "ParameterStatus")


def test_f39_too_much_of_parameters() -> None:
    run = executing()
    run.deliver(b"".join(parameter_status(f"name{i}", "v" * 200_000) for i in range(8)))
    assert_protocol_error(run, "ParameterStatus")


def test_f39_the_same_parameter_many_times() -> None:
    run = executing()
    for _ in range(100):
        run.deliver(parameter_status("TimeZone", "v" * 100) * 1000)
    run.deliver(selected(1) + ready_for_query())
    assert run.outcome("a").kind == "gives"


@pytest.mark.parametrize(("name", "value"), [("client_encoding", "LATIN1"), ("integer_datetimes", "off")])
def test_f39_settings_that_we_would_decode_wrongly(name: str, value: str) -> None:
    run = executing()
    run.deliver(parameter_status(name, value))
    assert_protocol_error(run, "ParameterStatus", name)


@pytest.mark.parametrize("body", [b"", b"name", b"name\0value", b"name\0value\0more"])
def test_f39_malformed_parameter_status(body: bytes) -> None:
    run = executing()
    run.deliver(message(b"S", body))
    assert_protocol_error(run, "ParameterStatus")


@pytest.mark.parametrize(
    "data",
    [
        negotiate_protocol_version(0),
        negotiate_protocol_version(2),
        message(b"v", struct.pack("!ii", 0, -1)),
        message(b"v", struct.pack("!ii", 0, 0x7FFFFFFF)),
        message(b"v"),
    ],
)
def test_f40_version_negotiated_though_the_lowest_was_asked_for(data: bytes) -> None:
    run = connecting()
    run.deliver(data)
    assert_protocol_error(run, "NegotiateProtocolVersion")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 257, 300])
def test_f41_backend_key_of_another_size(size: int) -> None:
    """Protocol 3.0 has 4 bytes."""
    run = connecting()
    run.deliver(authentication_ok() + backend_key_data(secret=bytes(size)))
    assert_protocol_error(run, "BackendKeyData")


def test_f41_backend_key_twice() -> None:
    run = connecting()
    run.deliver(authentication_ok() + backend_key_data() + backend_key_data())
    assert_protocol_error(run, "BackendKeyData")


@pytest.mark.parametrize("body", [b"", b"SELECT 1", b"SELECT 1\0more"])
def test_f42_malformed_command_complete(body: bytes) -> None:
    assert_protocol_error(executing(message(b"C", body)), "CommandComplete")


@pytest.mark.parametrize(
    "tag", [b"", b"INSERT 99999999999999999999", b"SELECT -1", b"SELECT", b"UPDATE x", b"\xff\xfe"]
)
def test_f42_odd_tag(tag: bytes) -> None:
    run = executing(command_complete(tag), ready_for_query())
    assert run.operations["a"].result().rowcount is None


@pytest.mark.parametrize("body", [b"", b"?", b"i", b"\0", b"II"])
def test_f43_malformed_ready_for_query(body: bytes) -> None:
    assert_protocol_error(executing(command_complete("SELECT 0"), message(b"Z", body)), "ReadyForQuery")


def test_f43_the_servers_status_wins() -> None:
    run = executing(selected(1), ready_for_query("E"))
    assert run.outcome("a").kind == "gives"
    assert run.client.transaction_status == "E"


@pytest.mark.parametrize("value", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"ok\xc3"])
def test_f45_invalid_utf8_in_a_value(value: bytes) -> None:
    """DataError at the touch of that row; the connection and the other rows are well."""
    run = play(Script().connect())
    run.start("a", "execute", "select t")
    run.read(3)
    run.deliver(described(column("t", TEXT, -1)))
    run.read(3)
    run.deliver(bind_complete() + data_row(b"good") + data_row(value) + data_row(b"too"))
    run.deliver(command_complete("SELECT 3") + ready_for_query())
    result = run.operations["a"].result()
    assert (result[0][0], result[2][0]) == ("good", "too")
    with pytest.raises(errors.DataError):
        result[1][0]
    assert not run.client.ended


def test_f45_invalid_utf8_in_a_column_name() -> None:
    run = play(Script().connect())
    run.start("a", "execute", "select t")
    run.read(3)
    run.deliver(described(column(b"\xff\xfe")))
    run.read(3)
    run.deliver(bind_complete() + selected(1) + ready_for_query())
    result = run.operations["a"].result()
    assert result[0][0] == 1
    assert isinstance(result.columns[0].name, str)
    assert not run.client.ended


def test_close_complete_that_nobody_asked_for_is_no_answer_to_the_next() -> None:
    run = executing(selected(1), ready_for_query(), message(b"3"))
    assert run.outcome("a").kind == "gives"
    assert isinstance(run.error("b"), errors.ProtocolError)


def test_names_with_a_nul_never_leave() -> None:
    """f53."""
    run = play(knows())
    for verb in ("execute", "prepare", "script", "command"):
        with pytest.raises(errors.InterfaceError):
            getattr(run.client, f"start_{verb}")("select 1\0; drop table t")
    assert not run.client.outbound()
