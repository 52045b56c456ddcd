"""faults.md 2.2 and S4 to S6, S19, at start-up: authentication, parameters, keys. Nothing of ours leaks."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from backend import (
    authentication,
    authentication_ok,
    backend_key_data,
    cleartext,
    data_row,
    int4,
    md5,
    message,
    negotiate_protocol_version,
    notice,
    parameter_status,
    ready_for_query,
    sasl,
    sasl_continue,
    sasl_final,
    selected,
    started,
)
from dialogues.execute import knows
from dialogues.startup import scram_final, scram_until_proof
from hostile import assert_protocol_error, connecting, executing, resident
from peers import PASSWORD, Memory, options
from pgpoll import errors
from scram_server import ScramServer
from script import Run, Script, play

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
