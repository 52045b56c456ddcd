"""PGPOLL_TRACE: every message both ways, in the format of libpq's PQtrace; nothing secret, values only when asked for.

The golden lines are here; tests/cpp/trace_test.cpp has those of every message; and libpq itself is asked what it says
of the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, Literal

import psycopg.pq
import pytest

import pgpoll
from backend import (
    TEXT,
    bind_complete,
    column,
    command_complete,
    data_row,
    described,
    error_response,
    int4,
    notice,
    ready_for_query,
    selected,
    started,
)
from fake_server import FakeServer
from pgpoll import core
from script import Script
from server import ROLES, Server

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\t")


@pytest.fixture
def trace(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The trace of what the test connects from here on."""
    path = tmp_path / "trace"
    monkeypatch.setenv("PGPOLL_TRACE", str(path))
    monkeypatch.delenv("PGPOLL_TRACE_VALUES", raising=False)
    for name in [each for each in os.environ if each.startswith("PG") and not each.startswith("PGPOLL")]:
        monkeypatch.delenv(name)
    return path


def taken(path: pathlib.Path) -> str:
    """What is in it; the next connection begins a new one."""
    text = path.read_text()
    path.unlink()
    return text


def lines_of(path: pathlib.Path) -> list[str]:
    """The lines without their time stamps, which all have; taken."""
    text = taken(path)
    assert text.endswith("\n")
    lines = text.removesuffix("\n").split("\n")
    assert all(STAMP.match(line) for line in lines)
    return [STAMP.sub("", line) for line in lines]


def conversation() -> Script:
    """One new statement with an argument; a script with a notice; an error; the end."""
    return (
        Script()
        .expect("StartupMessage")
        .send(started())
        .expect("Parse", "Describe", "Flush")
        .send(described("i", column("t", TEXT, -1), parameters=(23,)))
        .expect("Sync")
        .send(ready_for_query())
        .expect("Bind", "Execute", "Sync")
        .send(bind_complete(), data_row(int4(7), b"seven"), data_row(int4(8), None))
        .send(command_complete("SELECT 2"), ready_for_query())
        .expect("Query")
        .send(notice("line\nbreak", D="a value", W="a context"), selected(), ready_for_query("T"))
        .expect("Query")
        .send(error_response(H="try\tthis", D="another value"), ready_for_query("E"))
        .expect("Terminate")
    )


GOLDEN = """\
F	53	StartupMessage	 3 0 "user" "ann" "database" "shop" "client_encoding" "UTF8"
B	8	AuthenticationOk
B	24	ParameterStatus	 "server_version" "18.0"
B	25	ParameterStatus	 "client_encoding" "UTF8"
B	12	BackendKeyData	 4711 'BBBB'
B	5	ReadyForQuery	 I
F	{parse}	Parse	 "{name}" "select i, t from x where i > $1" 0
F	{describe}	Describe	 S "{name}"
F	4	Flush
B	4	ParseComplete
B	10	ParameterDescription	 1 23
B	46	RowDescription	 2 "i" 0 0 23 4 -1 0 "t" 0 0 25 65535 -1 0
F	4	Sync
B	5	ReadyForQuery	 I
F	{bind}	Bind	 "" "{name}" 1 1 1 4 'BBBB' 2 1 1
F	9	Execute	 "" 0
F	4	Sync
B	4	BindComplete
B	23	DataRow	 2 4 'BBBB' 5 'BBBB'
B	18	DataRow	 2 4 'BBBB' -1
B	13	CommandComplete	 "SELECT 2"
B	5	ReadyForQuery	 I
F	20	Query	 "select\\x0a 'café'"
B	60	NoticeResponse	 S "NOTICE" V "NOTICE" C "00000" M "line\\x0abreak" D "SSSS" W "SSSS" \\x00
B	13	CommandComplete	 "SELECT 0"
B	5	ReadyForQuery	 T
F	13	Query	 "whatever"
B	69	ErrorResponse	 S "ERROR" V "ERROR" C "22012" M "division by zero" H "try\\x09this" D "SSSS" \\x00
B	5	ReadyForQuery	 E
F	4	Terminate"""


@contextlib.contextmanager
def served(*scripts: Script) -> Iterator[dict[str, Any]]:
    with FakeServer(*scripts) as server:
        yield {"host": "127.0.0.1", "port": server.port, "user": "ann", "database": "shop", "password": "canary"}


async def converse(where: dict[str, Any]) -> str:
    """The client's side; the name of the statement."""
    conn = await pgpoll.connect(**where)
    statement = await conn.prepare("select i, t from x where i > $1")
    assert [tuple(row) for row in await statement.fetch(6)] == [(7, "seven"), (8, None)]
    await conn.executescript("select\n 'café'")
    with pytest.raises(pgpoll.errors.DivisionByZero):
        await conn.executescript("whatever")
    conn.terminate()
    return statement._prepared.name


def golden(name: str) -> list[str]:
    """With this name, and the lengths that it gives."""
    return GOLDEN.format(name=name, parse=39 + len(name), describe=6 + len(name), bind=26 + len(name)).split("\n")


# -- whole conversations


async def test_golden(trace: pathlib.Path) -> None:
    with served(conversation()) as where:
        name = await converse(where)
    assert lines_of(trace) == golden(name)


async def test_values_when_they_are_asked_for(trace: pathlib.Path, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    async def values() -> list[str]:
        async with pgpoll.connect(dsn) as conn:
            await conn.fetch("select $1::int4, $2::text", 7, "a value")
            with pytest.raises(pgpoll.Error):
                await conn.executescript("do $$ begin raise 'no' using detail = 'a detail'; end $$")
        return [line for line in lines_of(trace) if re.search("\tBind\t|\tDataRow\t|\tErrorResponse\t", line)]

    assert [re.sub('"pgpoll_[^"]*"', '"s"', line.split("\t", 2)[2]) for line in (await values())[:2]] == [
        "Bind\t \"\" \"s\" 1 1 2 4 'BBBB' 7 'BBBB' 2 1 1",
        "DataRow\t 2 4 'BBBB' 7 'BBBB'",
    ]
    monkeypatch.setenv("PGPOLL_TRACE_VALUES", "0")
    assert "a value" not in str(await values())
    monkeypatch.setenv("PGPOLL_TRACE_VALUES", "1")
    bind, row, error = await values()
    assert "2 4 '\\x00\\x00\\x00\\x07' 7 'a value' 2 1 1" in bind
    assert row.endswith("2 4 '\\x00\\x00\\x00\\x07' 7 'a value'")
    assert 'D "a detail"' in error


def test_connections_share_a_file_that_only_we_may_read(trace: pathlib.Path, dsn: str) -> None:
    with pgpoll.sync.connect(dsn) as one, pgpoll.sync.connect(dsn) as two:
        assert one.fetchval("select 1") == two.fetchval("select 1") == 1
    assert trace.stat().st_mode & 0o777 == 0o600
    lines = lines_of(trace)
    assert len([line for line in lines if "StartupMessage" in line]) == 2
    assert lines.count("F\t4\tTerminate") == 2


async def test_a_cancel_request_is_traced(trace: pathlib.Path, dsn: str) -> None:
    async with pgpoll.connect(dsn) as conn:
        with pytest.raises(pgpoll.QueryTimeout):
            await conn.execute("select pg_sleep(60)", timeout=0.05)
        assert await conn.fetchval("select 1") == 1
        pid = conn.backend_pid
    lines = lines_of(trace)
    assert lines.count(f"F\t16\tCancelRequest\t 1234 5678 {pid} 'BBBB'") == 1
    assert 'F\t5\tQuery\t ""' in lines, "what drains a stray cancellation"


async def test_nothing_secret(trace: pathlib.Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the password, nor anything that it could be learnt from, nor the key that cancels."""
    monkeypatch.setenv("PGPOLL_TRACE_VALUES", "1")
    for role, (_, password, method) in ROLES.items():
        if method == "reject":
            continue
        async with pgpoll.connect(server.dsn, user=role, password=password) as conn:
            assert await conn.fetchval("select 1") == 1
        text = taken(trace)
        assert password not in text
        for word in ("md5", "r=", "s=", "p=", "v="):
            assert not re.search(rf"[\"'][^\"']*{word}", "".join(re.findall(".*(?:Password|SASL).*", text))), text
        match method:
            case "scram-sha-256":
                assert re.findall(r"\t(\w+)\t 'BBBB'", text) == [
                    "AuthenticationSASLContinue",
                    "SASLResponse",
                    "AuthenticationSASLFinal",
                ]
                assert 'SASLInitialResponse\t "SCRAM-SHA-256" ' in text
            case "md5" | "password":
                assert 'PasswordMessage\t "SSSS"' in text
        assert re.search(r"BackendKeyData\t \d+ 'BBBB'\n", text)


# -- the file


def test_a_file_that_can_not_be_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("PGPOLL_TRACE", str(tmp_path / "nowhere" / "trace"))
    with pytest.raises(pgpoll.InterfaceError, match=r"PGPOLL_TRACE: could not open .*No such file"):
        pgpoll.sync.connect(host="127.0.0.1", port=1, user="u")


@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_ends_the_trace_not_the_connection(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    found: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", found.append)
    monkeypatch.setenv("PGPOLL_TRACE", "/dev/full")
    with pgpoll.sync.connect(dsn) as conn:
        assert conn.fetchval("select 1") == 1
    assert [each.exc_value.errno for each in found] == [28]


def test_off_without_the_variable(trace: pathlib.Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPOLL_TRACE", "")
    with pgpoll.sync.connect(dsn):
        pass
    assert not trace.exists()


# -- as libpq says it

Chunk = tuple[Literal["F", "B"], bytes]


@contextlib.contextmanager
def relay(dsn: str) -> Iterator[tuple[int, list[Chunk]]]:
    """A port that leads to the server, and what went through it."""
    host, port = urllib.parse.urlsplit(dsn).hostname, urllib.parse.urlsplit(dsn).port
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[Chunk] = []

    def carry() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection((host, port)) as backend:
            while True:
                readable, _, _ = select.select([client, backend], [], [], 30)
                for source in readable:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    seen.append(("F" if source is client else "B", data))
                    (backend if source is client else client).sendall(data)

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        thread.join(30)
        listener.close()


def libpq_says(port: int) -> str:
    """What PQtrace writes of a conversation of libpq's own."""
    # in a process of its own: some of these calls keep the GIL, which the relay needs
    run = subprocess.run([sys.executable, __file__, str(port)], check=True, timeout=60, capture_output=True, text=True)
    return run.stdout


def converse_by_libpq(port: int) -> str:
    where = f"host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable gssencmode=disable"
    with tempfile.TemporaryFile("w+") as file:
        conn = psycopg.pq.PGconn.connect_start(where.encode())
        conn.trace(file.fileno())
        conn.set_trace_flags(psycopg.pq.Trace.SUPPRESS_TIMESTAMPS)
        deadline = time.monotonic() + 10
        while (state := conn.connect_poll()) not in (psycopg.pq.PollingStatus.OK, psycopg.pq.PollingStatus.FAILED):
            assert time.monotonic() < deadline
            reading = state == psycopg.pq.PollingStatus.READING
            select.select([conn.socket] if reading else [], [] if reading else [conn.socket], [], 1)
        assert conn.status == psycopg.pq.ConnStatus.OK, conn.error_message
        conn.exec_(b"select 1 as one, null, 'text', '\\x0102'::bytea; do $$ begin raise notice 'hello'; end $$")
        conn.exec_(b"create temp table traced (a int4, b text); listen traced; notify traced, 'payload'")
        conn.prepare(b"s", b"insert into traced values ($1, $2) returning a", [23, 25])
        conn.exec_prepared(b"s", [b"1", b"one"])
        conn.exec_params(b"select $1::int4, b from traced", [b"\0\0\0\7"], None, [1], 1)
        conn.describe_prepared(b"s")
        conn.describe_portal(b"")
        conn.exec_(b"select 1/0")
        conn.exec_(b"")
        conn.exec_(b"copy traced from stdin")
        conn.put_copy_data(b"2\ttwo\n")
        conn.put_copy_end()
        conn.get_result()
        conn.get_result()
        conn.exec_(b"copy traced from stdin")
        conn.put_copy_end(b"never mind")
        conn.get_result()
        conn.get_result()
        conn.exec_(b"copy traced to stdout")
        while conn.get_copy_data(0)[0] > 0:
            pass
        conn.get_result()
        conn.close_prepared(b"s")
        conn.finish()
        file.seek(0)
        return file.read()


def test_as_libpq_says_it(dsn: str) -> None:
    """The same lines for the same bytes; but for the key, which we mask, and AuthenticationOk, which it leaves out."""
    with relay(dsn) as (port, seen):
        theirs = libpq_says(port).splitlines()
    ours = core._trace(seen, True).splitlines()
    kinds = {line.split("\t")[2] for line in theirs}
    assert len(kinds) > 25, f"too little was said: {kinds}"
    for direction in "FB":
        expected = [line for line in theirs if line.startswith(direction)]
        found = [line for line in ours if line.startswith(direction) and "AuthenticationOk" not in line]
        assert found == [re.sub(r"(BackendKeyData\t \d+) .*", r"\1 'BBBB'", line) for line in expected]


def test_the_asyncio_face_is_traced_as_the_other(trace: pathlib.Path) -> None:
    with served(conversation()) as where:
        asyncio.run(converse(where))
    asynchronous = lines_of(trace)
    with served(conversation()) as where:
        conn = pgpoll.sync.connect(**where)
        statement = conn.prepare("select i, t from x where i > $1")
        statement.fetch(6)
        conn.executescript("select\n 'café'")
        with pytest.raises(pgpoll.errors.DivisionByZero):
            conn.executescript("whatever")
        conn.terminate()
    assert lines_of(trace) == asynchronous


if __name__ == "__main__":
    sys.stdout.write(converse_by_libpq(int(sys.argv[1])))
