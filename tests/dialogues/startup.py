"""Start-up: every way to authenticate, and the ways it is refused."""

from __future__ import annotations

from backend import (
    authentication,
    authentication_ok,
    backend_key_data,
    cleartext,
    cstring,
    error_response,
    fatal,
    md5,
    negotiate_protocol_version,
    notice,
    parameter_status,
    ready_for_query,
    sasl,
    started,
)
from dialogues.registry import dialogue
from peers import PASSWORD, USER
from pgpoll import errors
from scram_server import ScramServer, md5_password
from script import Run, Script, where


@dialogue
def trust() -> Script:
    return Script().connect().gives("connect", None)


@dialogue
def trust_with_everything_between() -> Script:
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(notice("starting"), authentication_ok(), notice("in"), parameter_status("TimeZone", "UTC"))
        .send(backend_key_data(), parameter_status("DateStyle", "ISO, MDY"), notice(), ready_for_query())
        .gives("connect", None)
    )


@dialogue
def no_key() -> Script:
    """Some poolers give no BackendKeyData."""
    return Script().connect(authentication_ok() + ready_for_query()).gives("connect", None)


@dialogue
def cleartext_password() -> Script:
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(cleartext())
        .expect(where("PasswordMessage", data=cstring(PASSWORD)))
        .send(started())
        .gives("connect", None)
    )


@dialogue
def md5_password_of_user() -> Script:
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(md5(b"\x00\xff\x01\xfe"))
        .expect(where("PasswordMessage", data=md5_password(USER, PASSWORD, b"\x00\xff\x01\xfe")))
        .send(started())
        .gives("connect", None)
    )


def with_scram(run: Run, server: ScramServer) -> None:
    run.memo["scram"] = server


def scram_first(run: Run) -> bytes:
    server: ScramServer = run.memo["scram"]
    return server.first(run.last()["data"])


def scram_final(run: Run) -> bytes:
    server: ScramServer = run.memo["scram"]
    return server.final(run.last()["data"])


def scram_until_proof(server: ScramServer | None = None, *mechanisms: str) -> Script:
    """Up to the client's proof; each playing has a server of its own."""
    wanted = vars(server) if server is not None else {"password": PASSWORD, "iterations": 64}
    return (
        Script()
        .act(lambda run: with_scram(run, ScramServer(**wanted)))
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(sasl(*mechanisms))
        .expect("PasswordMessage")
        .send(scram_first)
    )


def proof_is_right(run: Run) -> None:
    server: ScramServer = run.memo["scram"]
    assert server.mechanism == "SCRAM-SHA-256"
    assert server.verified


@dialogue
def scram() -> Script:
    return (
        scram_until_proof(None, "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
        .expect("PasswordMessage")
        .send(scram_final, started())
        .gives("connect", None)
        .check(proof_is_right)
    )


@dialogue
def scram_wrong_password() -> Script:
    return (
        scram_until_proof()
        .expect("PasswordMessage")
        .send(fatal("28P01", 'password authentication failed for user "ann"'))
        .raises("connect", errors.InvalidPassword, "password authentication failed")
    )


@dialogue
def refused_by_the_server() -> Script:
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(fatal("53300", "sorry, too many clients already"))
        .raises("connect", errors.TooManyConnections, "too many clients")
    )


@dialogue
def refused_after_authentication() -> Script:
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(authentication_ok(), parameter_status("TimeZone", "UTC"))
        .send(error_response("3D000", 'database "shop" does not exist', "FATAL"))
        .raises("connect", errors.InvalidCatalogName, "does not exist")
    )


@dialogue
def method_we_do_not_speak() -> Script:
    """GSSAPI."""
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(authentication(7))
        .raises("connect", errors.OperationalError)
    )


@dialogue
def version_negotiated_unasked() -> Script:
    return (
        Script()
        .start("connect", "connect")
        .expect("StartupMessage")
        .send(negotiate_protocol_version(0, "_pq_.unknown"))
        .raises("connect", errors.ProtocolError, "NegotiateProtocolVersion")
    )
