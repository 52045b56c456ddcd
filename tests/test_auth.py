"""Authentication against a real server, over TCP and its Unix socket: what is right gets in, what is wrong does not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pgpoll import conninfo, core, errors
from server import PASSWORD, SASLPREP_PASSWORD, SASLPREP_PASSWORD_PREPARED, Server

MD5, CLEARTEXT, SCRAM = "pgpoll_md5", "pgpoll_password", "pgpoll_scram"


@contextmanager
def connected(server: Server, *, unix: bool = False, **params: object) -> Iterator[core.Connection]:
    """A connection that is there, or the error of its start-up."""
    host = str(server.directory) if unix else "127.0.0.1"
    options = conninfo.resolve(host=host, port=server.port, database="postgres", **params)
    connection = core.Connection(options)
    try:
        operation = connection.start_connect()
        assert connection.wait(operation, 20.0), "start-up hangs"
        operation.result()
        yield connection
    finally:
        connection.terminate()
        connection.close_fd()


def query(connection: core.Connection, sql: str) -> object:
    operation = connection.start_execute(sql)
    assert connection.wait(operation, 10.0)
    return operation.result().scalar()


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("role", [MD5, CLEARTEXT, SCRAM])
def test_right_password(server: Server, role: str, unix: bool) -> None:
    with connected(server, unix=unix, user=role, password=PASSWORD) as connection:
        assert query(connection, "select current_user::text") == role
        assert connection.backend_pid > 0
        assert connection.transaction_status == "I"


@pytest.mark.parametrize("unix", [False, True])
def test_trust_needs_no_password(server: Server, unix: bool) -> None:
    with connected(server, unix=unix, user="postgres") as connection:
        assert query(connection, "select 1") == 1


@pytest.mark.parametrize("role", [MD5, CLEARTEXT, SCRAM])
@pytest.mark.parametrize("wrong", ["wrong", PASSWORD + " ", PASSWORD[:-1], "ä" * 40, "p" * 900])
def test_wrong_password(server: Server, role: str, wrong: str) -> None:
    with pytest.raises(errors.InvalidPassword) as raised, connected(server, user=role, password=wrong):
        pass
    assert isinstance(raised.value, errors.OperationalError)
    assert raised.value.sqlstate == "28P01"
    assert wrong not in str(raised.value)


@pytest.mark.parametrize("role", [MD5, CLEARTEXT, SCRAM])
def test_no_password(server: Server, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("HOME", "/nowhere/at/all")  # no passfile there
    with pytest.raises(errors.OperationalError, match="password"), connected(server, user=role):
        pass


@pytest.mark.parametrize("password", [SASLPREP_PASSWORD, SASLPREP_PASSWORD_PREPARED])
def test_password_that_saslprep_changes(server: Server, password: str) -> None:
    with connected(server, user="pgpoll_saslprep", password=password) as connection:
        assert query(connection, "select 1") == 1


def test_rejected_by_the_host_based_rules(server: Server) -> None:
    with (
        pytest.raises(errors.InvalidAuthorizationSpecification),
        connected(server, user="pgpoll_rejected", password=PASSWORD),
    ):
        pass


def test_no_such_role_and_no_such_database(server: Server) -> None:
    with pytest.raises(errors.OperationalError), connected(server, user="nobody_at_all"):
        pass
    options = conninfo.resolve(host="127.0.0.1", port=server.port, user="postgres", database="not_there")
    connection = core.Connection(options)
    operation = connection.start_connect()
    assert connection.wait(operation, 10.0)
    with pytest.raises(errors.InvalidCatalogName) as raised:
        operation.result()
    assert isinstance(raised.value, errors.OperationalError)
    assert connection.poll() == core.CLOSED
    connection.close_fd()


def test_many_iterations(server: Server) -> None:
    """A hundred times the usual work: derived in slices."""
    with connected(server, user="postgres") as connection:
        query(connection, "set scram_iterations = 400000")
        query(connection, f"alter role {SCRAM} password '{PASSWORD}'")
        try:
            with connected(server, user=SCRAM, password=PASSWORD) as slow:
                assert query(slow, "select 1") == 1
        finally:
            query(connection, "reset scram_iterations")
            query(connection, f"alter role {SCRAM} password '{PASSWORD}'")


@pytest.mark.parametrize("role", [MD5, CLEARTEXT, SCRAM])
def test_s13_password_is_seen_nowhere(server: Server, role: str, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-7f3a"
    caplog.set_level(logging.DEBUG)
    options = conninfo.resolve(host="127.0.0.1", port=server.port, user=role, database="postgres", password=canary)
    connection = core.Connection(options)
    operation = connection.start_connect()
    assert connection.wait(operation, 10.0)
    with pytest.raises(errors.InvalidPassword) as raised:
        operation.result()
    connection.close_fd()
    for text in (repr(options), str(options), repr(connection), repr(operation), repr(raised.value), caplog.text):
        assert canary not in text
