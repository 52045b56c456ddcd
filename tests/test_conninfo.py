"""DSN, keyword arguments and environment. No server, and no name is really looked up."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import random
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgpoll import _conninfo_addresses, conninfo, errors
from pgpoll._conninfo_dsn import read_dsn
from pgpoll._conninfo_keywords import KEYWORDS

CANARY = "cAnArY"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(_conninfo_addresses, "SOCKET_FOLDERS", ())

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError(f"name lookup: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refused(dsn: Any = None, /, **params: Any) -> str:
    with pytest.raises(errors.InterfaceError) as caught:
        conninfo.parse(dsn, **params)
    assert caught.value.__context__ is None
    shown = "".join(traceback.format_exception(caught.value))
    for frame, _ in traceback.walk_tb(caught.tb):
        if frame.f_code.co_filename != __file__:
            shown += repr({name: value for name, value in frame.f_locals.items() if name != "params"})
    assert CANARY not in shown
    return str(caught.value)


def test_defaults() -> None:
    import pwd

    me = pwd.getpwuid(os.geteuid()).pw_name
    options = conninfo.parse()
    assert options.addresses == (("localhost", None, 5432),)
    assert options.user == options.database == me
    assert options.password is None
    assert options.scram_password is None
    assert options.startup_parameters == (("user", me), ("database", me), ("client_encoding", "UTF8"))
    assert (options.statement_cache_size, options.max_pipeline, options.connect_timeout) == (100, 1000, None)
    assert options.cleartext_allowed is False


def test_default_host_is_a_socket_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_conninfo_addresses, "SOCKET_FOLDERS", ("/nonexistent", str(tmp_path)))
    (tmp_path / ".s.PGSQL.5433").write_text("no socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / ".s.PGSQL.5432"))
        assert conninfo.parse().addresses == ((str(tmp_path), f"{tmp_path}/.s.PGSQL.5432", 5432),)
        assert conninfo.parse(port=5433).addresses == (("localhost", None, 5433),)


URIS: list[tuple[str, dict[str, str]]] = [
    ("postgresql://", {}),
    ("postgres://", {}),
    ("postgresql:///", {}),
    ("postgresql://localhost", {"host": "localhost"}),
    ("postgresql://localhost:5433", {"host": "localhost", "port": "5433"}),
    ("postgresql://localhost/mydb", {"host": "localhost", "dbname": "mydb"}),
    ("postgresql://user@localhost", {"user": "user", "host": "localhost"}),
    ("postgresql://user:secret@localhost", {"user": "user", "password": "secret", "host": "localhost"}),
    ("postgresql://user:a:b@localhost", {"user": "user", "password": "a:b", "host": "localhost"}),
    ("postgresql://:secret@localhost", {"password": "secret", "host": "localhost"}),
    ("postgresql://@localhost", {"host": "localhost"}),
    ("postgresql://us%40er:p%3A%2F%40%25@h", {"user": "us@er", "password": "p:/@%", "host": "h"}),
    ("postgresql://caf%C3%A9:\u00e9@h", {"user": "café", "password": "é", "host": "h"}),
    ("postgresql://a+b:c+d@h/e+f?options=g+h", {"user": "a+b", "password": "c+d", "host": "h", "dbname": "e+f",
                                                "options": "g+h"}),
    ("postgresql://h1:1,h2:2/db", {"host": "h1,h2", "port": "1,2", "dbname": "db"}),
    ("postgresql://h1,h2:2", {"host": "h1,h2", "port": ",2"}),
    ("postgresql://h1,h2,h3", {"host": "h1,h2,h3", "port": ",,"}),
    ("postgresql://[::1]", {"host": "::1"}),
    ("postgresql://[::1]:5433/db", {"host": "::1", "port": "5433", "dbname": "db"}),
    ("postgresql://[fe80::1%25eth0],h:1", {"host": "fe80::1%eth0,h", "port": ",1"}),
    ("postgresql://%2Fvar%2Frun/db", {"host": "/var/run", "dbname": "db"}),
    ("postgresql:///db?host=/tmp&port=1", {"host": "/tmp", "port": "1", "dbname": "db"}),
    ("postgresql://?user=a&user=b", {"user": "b"}),
    ("postgresql://u@h?user=b&", {"user": "b", "host": "h"}),
    ("postgresql://h/db?application_name=a%20b%26c%3D", {"host": "h", "dbname": "db", "application_name": "a b&c="}),
    ("postgresql://h?pass%77ord=secret", {"host": "h", "password": "secret"}),
    ("postgresql://h?ssl=true", {"host": "h", "sslmode": "require"}),
    ("postgresql://h?requiressl=0", {"host": "h", "sslmode": "prefer"}),
    ("postgresql:// h /db ", {"host": "h", "dbname": "db"}),
    ("postgresql://h/a/b", {"host": "h", "dbname": "a/b"}),
    ("postgresql://h/a@b", {"host": "h", "dbname": "a@b"}),
]  # fmt: skip

PAIRS: list[tuple[str, dict[str, str]]] = [
    ("", {}),
    (" \t\n", {}),
    ("host=localhost", {"host": "localhost"}),
    ("host = localhost  port= 5433\nuser =me", {"host": "localhost", "port": "5433", "user": "me"}),
    ("password='a b' user='o\\'neil'", {"password": "a b", "user": "o'neil"}),
    ("password=a\\ b\\\\c\\'d", {"password": "a b\\c'd"}),
    ("password='' user=x", {"password": "", "user": "x"}),
    ("password= user=x", {"password": "user=x"}),
    ("user=", {"user": ""}),
    ("user=a user=b", {"user": "b"}),
    ("user='a'host='b'", {"user": "a", "host": "b"}),
    ("user=a'b", {"user": "a'b"}),
    ("user=a\\", {"user": "a"}),
    ("password=x=y%20+", {"password": "x=y%20+"}),
    ("options='-c search_path=app -c x=y'", {"options": "-c search_path=app -c x=y"}),
    ("host=h1,h2 port=1,2", {"host": "h1,h2", "port": "1,2"}),
]

MALFORMED = [
    "localhost",
    "host",
    "host localhost",
    "=x",
    "user='abc",
    "user='abc\\'",
    "unknown=1",
    "database=x",
    "USER=x",
    "search_path=app",
    " postgresql://h",
    "POSTGRESQL://h",
    "mysql://h/db?x=1",
    "postgresql://[::1",
    "postgresql://[]",
    "postgresql://[::1]x",
    "postgresql://h%",
    "postgresql://h%2",
    "postgresql://h%zz",
    "postgresql://h% 1",
    "postgresql://h%00",
    "postgresql://u%00:x@h",
    "postgresql://h?x",
    "postgresql://h?user",
    "postgresql://h?user=a=b",
    "postgresql://h?&user=a",
    "postgresql://h?unknown=1",
    "postgresql://h?search_path=app",
    "postgresql://h?ssl=false",
    "postgresql://a b@h",
    "postgresql://h/a b",
]

NARROWER_THAN_LIBPQ = [
    "postgresql://h%FF",  # not UTF-8
    "postgresql://u:p@ss@h",  # two '@'
    "postgresql://u:1/ss@h",  # an '@' where libpq sees a database
]


@pytest.mark.parametrize(("dsn", "expected"), URIS + PAIRS)
def test_dsn(dsn: str, expected: dict[str, str]) -> None:
    assert read_dsn(dsn) == expected


@pytest.mark.parametrize("dsn", MALFORMED + NARROWER_THAN_LIBPQ)
def test_malformed_dsn(dsn: str) -> None:
    with pytest.raises(errors.InterfaceError):
        read_dsn(dsn)
    refused(dsn)


def libpq_reads(dsn: str) -> dict[str, str] | None:
    from psycopg import Error, pq

    try:
        options = pq.Conninfo.parse(dsn.encode())
    except Error:
        return None
    return {each.keyword.decode(): each.val.decode("latin-1") for each in options if each.val is not None}


def test_f59_dsn_corpus_as_libpq_reads_it() -> None:
    pytest.importorskip("psycopg", exc_type=ImportError)
    for dsn, expected in URIS + PAIRS:
        found = libpq_reads(dsn)
        assert found is not None, dsn
        assert {name: value.encode("latin-1").decode() for name, value in found.items()} == expected, dsn
    for dsn in MALFORMED:
        assert libpq_reads(dsn) is None, dsn
    for dsn in NARROWER_THAN_LIBPQ:
        assert libpq_reads(dsn) is not None, dsn


PIECES = (
    "postgresql:// postgres:// user pass @ : / ? & = host port dbname password sslmode ssl true requiressl 1 %20 %00 "
    "%zz %C3%A9 %FF % + ' \\ [ ] ::1 , h1 5432 é # a options %3D %40 hostaddr x user= password= host= dbname="
).split()
PIECES += [" ", "  ", "\t", "\n"]


def read_or_message(dsn: str) -> dict[str, str] | str:
    try:
        return read_dsn(dsn)
    except errors.InterfaceError as malformed:
        return str(malformed)


def test_f59_random_dsns_as_libpq_reads_them() -> None:
    pytest.importorskip("psycopg", exc_type=ImportError)
    chance = random.Random(59)
    read = 0
    for _ in range(30_000):
        dsn = "".join(chance.choice(PIECES) for _ in range(chance.randint(0, 12)))
        if chance.random() < 0.5:
            dsn = "postgresql://" + dsn
        theirs = libpq_reads(dsn)
        ours = read_or_message(dsn)
        if isinstance(ours, str):
            assert theirs is None or "'@'" in ours or "not UTF-8" in ours, dsn
            continue
        assert theirs is not None, dsn
        assert {name: value.encode("latin-1").decode() for name, value in theirs.items()} == ours, dsn
        read += 1
    assert read > 3000


def test_every_keyword_of_libpq_is_known() -> None:
    pq = pytest.importorskip("psycopg", exc_type=ImportError).pq
    for each in pq.Conninfo.get_defaults():
        name = each.keyword.decode()
        variable = each.envvar.decode() if each.envvar else None
        assert KEYWORDS[name].environment == variable
        if each.compiled and not KEYWORDS[name].served:
            assert each.compiled.decode() in KEYWORDS[name].harmless


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=15).map("".join))
def test_any_text_is_read_or_malformed(text: str) -> None:
    for dsn in (text, "postgresql://" + text):
        read_or_message(dsn)  # raises nothing else


# --- Precedence ---------------------------------------------------------------------------------------------------


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", "env")
    assert conninfo.parse().user == "env"
    assert conninfo.parse("user=dsn").user == "dsn"
    assert conninfo.parse("user=dsn", user="kwarg").user == "kwarg"
    assert conninfo.parse("user=dsn", user=None).user == "dsn"


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGHOST": "10.0.0.1", "PGPORT": "5433", "PGUSER": "u", "PGPASSWORD": "p", "PGDATABASE": "d",
        "PGAPPNAME": "app", "PGOPTIONS": "-c x.y=1", "PGSSLMODE": "disable", "PGCONNECT_TIMEOUT": "7",
        "PGTZ": "UTC", "PGDATESTYLE": "DEFAULT",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    options = conninfo.parse()
    assert options.addresses == (("10.0.0.1", "10.0.0.1", 5433),)
    assert options.password == options.scram_password == "p"
    assert options.connect_timeout == 7
    assert dict(options.startup_parameters) == {
        "user": "u", "database": "d", "client_encoding": "UTF8", "application_name": "app", "options": "-c x.y=1",
        "timezone": "UTC",
    }  # fmt: skip
    assert dict(conninfo.parse(TimeZone="CET").startup_parameters)["TimeZone"] == "CET"
    assert "timezone" not in dict(conninfo.parse(TimeZone="CET").startup_parameters)
    monkeypatch.setenv("PGHOSTADDR", "::1")
    assert conninfo.parse().addresses == (("10.0.0.1", "::1", 5433),)


@pytest.mark.parametrize("name", ["PGUSER", "PGPASSWORD", "PGOPTIONS", "PGTZ"])
def test_environment_that_is_not_utf8(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, CANARY + "\udcff")
    assert name in refused()


def test_empty_values_mean_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = conninfo.parse()
    assert conninfo.parse("user='' host='' port='' password='' dbname='' sslmode='' connect_timeout=''") == plain
    monkeypatch.setenv("PGHOST", "elsewhere")
    assert conninfo.parse("host=''").addresses == plain.addresses


def test_settings() -> None:
    options = conninfo.parse(
        user="u", search_path="a,b", statement_timeout=5000, jit=False, geqo=True, work_mem=None, **{"my.var": ""}
    )
    assert options.startup_parameters[2:] == (
        ("client_encoding", "UTF8"), ("search_path", "a,b"), ("statement_timeout", "5000"), ("jit", "off"),
        ("geqo", "on"), ("my.var", ""),
    )  # fmt: skip
    for value in (1.5, b"x", [1], object()):
        assert "search_path must be str, bool or int" in refused(search_path=value)
    refused(**{"": "x"})
    assert "Client_Encoding" in refused(Client_Encoding="latin1")
    assert "_pq_.x" in refused(**{"_pq_.x": "1"})
    assert "out of range" in refused(statement_timeout=10**5000)
    refused(**{"a\0b": "x"})
    refused(**{"a\udcff": "x"})


def test_names_of_one_thing() -> None:
    assert conninfo.parse(database="d").database == "d"
    assert conninfo.parse("dbname=x", database="d", dbname="d").database == "d"
    assert conninfo.parse("dbname=x", database=None).database == "x"
    assert "database and dbname" in refused(database="a", dbname="b")
    assert "sslmode" in refused(ssl=True)
    assert dict(conninfo.parse(fallback_application_name="f").startup_parameters)["application_name"] == "f"
    both = conninfo.parse(fallback_application_name="f", application_name="a")
    assert dict(both.startup_parameters)["application_name"] == "a"


def test_own_options() -> None:
    options = conninfo.parse(statement_cache_size=0, max_pipeline=1, connect_timeout=0.5)
    assert (options.statement_cache_size, options.max_pipeline, options.connect_timeout) == (0, 1, 0.5)
    assert conninfo.parse(statement_cache_size=None).statement_cache_size == 100
    assert [conninfo.parse(connect_timeout=each).connect_timeout for each in (0, -1, "0", " 3 ")] == [None] * 3 + [3]
    for value in (-1, True, "5", 1.0, 2**31):
        assert "statement_cache_size" in refused(statement_cache_size=value)
    assert "max_pipeline" in refused(max_pipeline=0)
    for seconds in ("x", float("nan"), True, "1_0", b"1"):
        assert "connect_timeout" in refused(connect_timeout=seconds)
    assert '"max_pipeline"' in refused("max_pipeline=1")


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_tls_is_never_ignored(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for message in (
        refused(sslmode=mode),
        refused(f"sslmode={mode}"),
        refused(f"postgresql://h/?sslmode={mode}"),
        refused(f"host=/tmp sslmode={mode}"),
    ):
        assert f"sslmode={mode}" in message
        assert "TLS" in message
    monkeypatch.setenv("PGSSLMODE", mode)
    assert "PGSSLMODE" in refused()
    assert conninfo.parse(sslmode="disable")


def test_sslmode(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("disable", "allow", "prefer", ""):
        conninfo.parse(sslmode=mode)
    for mode in ("Require", "DISABLE", "true", CANARY):
        assert "sslmode: not one of" in refused(sslmode=mode)
    assert "sslmode=require" in refused("postgresql://h?ssl=true")
    assert "sslmode=require" in refused("requiressl=1")
    monkeypatch.setenv("PGREQUIRESSL", "1")
    assert "sslmode=require" in refused()
    assert conninfo.parse("sslmode=prefer")


@pytest.mark.parametrize("name", [name for name, keyword in KEYWORDS.items() if not keyword.served])
def test_later_keywords_are_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = conninfo.parse()
    keyword = KEYWORDS[name]
    for message in (refused(f"{name}=x{CANARY}"), refused(**{name: f"x{CANARY}"})):
        assert f"{name} " in message
        assert "not supported yet" in message
    for value in ("", *keyword.harmless):
        assert conninfo.parse(f"{name}='{value}'") == conninfo.parse(**{name: value}) == plain
    if keyword.environment:
        monkeypatch.setenv(keyword.environment, "x" + CANARY)
        assert keyword.environment in refused()


def test_client_encoding() -> None:
    for name in ("UTF8", "utf-8", "auto", "unicode"):
        assert dict(conninfo.parse(client_encoding=name).startup_parameters)["client_encoding"] == "UTF8"
    assert "UTF8" in refused(client_encoding="latin1")


@pytest.mark.parametrize("name", ["user", "password", "host", "dbname", "search_path", "port", "options", "service"])
def test_f53_nul(name: str) -> None:
    assert "NUL" in refused(**{name: f"{CANARY}\0{CANARY}"})
    assert "NUL" in refused(f"{name}={CANARY}\0")
    assert "%00" in refused(f"postgresql://h?{name}={CANARY}%00")


@pytest.mark.parametrize("dsn", [b"host=h", 1, ["host=h"]])
def test_dsn_of_another_type(dsn: Any) -> None:
    assert f"not {type(dsn).__name__}" in refused(dsn)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "1.5", "1e3", "５", "1" * 5000, "5432,", "1,2,3", "1;2"])
def test_ports_refused(port: str) -> None:
    assert "port" in refused(host="a" if "," in port else "a,b", port=port)
    refused(port=True)


def test_ports() -> None:
    for port in (1, 65535, "05432", " 5432 ", "+5432"):
        assert conninfo.parse(host="::1", port=port).addresses == (("::1", "::1", int(port)),)


# --- Secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{CANARY}@h?unknown=1",
        f"postgresql://u:x@{CANARY}@h",
        f"postgresql://u:{CANARY}/x@h",
        f"postgresql://u:12/{CANARY}@h",
        f"postgresql://u:{CANARY}%@h",
        f"postgresql://u:{CANARY}%ff@h",
        f"postgresql://u:{CANARY} x@h",
        f"postgresql://u:x{CANARY}@h:port",
        f"postgresql://u:{CANARY}",
        f"postgresql://u:1/?{CANARY}@h",
        f"postgresql://u:1/?{CANARY}=1@h",
        f"postgresql://h?password={CANARY}%00",
        f"postgresql://h?pass%77ord=x&{CANARY}=2",
        f"postgresql://h?password=x={CANARY}",
        f"postgresql://h?sslpassword={CANARY}",
        f" postgresql://u:{CANARY}@h?x=1",
        f"u:{CANARY}@h",
        f"password={CANARY} x",
        f"password=x {CANARY}",
        f"password=x {CANARY}=1",
        f"password='{CANARY}",
        f"password='x'{CANARY}",
        f"password={CANARY} unknown=1",
        f"password={CANARY}\udcff",
        f"password={CANARY} sslmode=require",
        f"password={CANARY} port=x",
        f"{CANARY}\0",
    ],
)
def test_s13_password_in_a_bad_dsn(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert CANARY not in refused(dsn)
    assert CANARY not in caplog.text


def test_unknown_key_is_named() -> None:
    assert '"search_pth"' in refused("host=h search_pth=x")
    assert '"search_pth"' in refused("postgresql://h?search_pth=x")
    assert '"search_pth"' in refused("password='x' search_pth=x")


def test_s13_password_in_options() -> None:
    options = conninfo.parse("postgresql://u@h", password=CANARY)
    for shown in (
        repr(options),
        str(options),
        f"{options}",
        repr(options.password),
        str(options.password),
        f"{options.password}",
        f"{options.password!r:>20}",
        repr(tuple(options)),
        str(options[:]),
    ):
        assert CANARY not in shown  # fmt: skip
    assert options.password == CANARY
    assert options.password is not None
    assert options.password.reveal() == CANARY
    assert type(options.password.reveal()) is str
    assert options.password.encode() == CANARY.encode()
    for other in (pickle.loads(pickle.dumps(options)), copy.deepcopy(options), options._replace(user="u")):
        assert other == options
        assert other.password == CANARY
        assert repr(other) == repr(options)
    assert conninfo.Secret(conninfo.Secret("x")) == "x"
    assert conninfo.parse(password=options.password).password == CANARY
    assert CANARY not in repr(conninfo.parse(host="h", pasword=CANARY))


# --- Addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"host": "h1,h2", "port": "1,2"}, (("h1", None, 1), ("h2", None, 2))),
        ({"host": "h1,h2", "port": 7}, (("h1", None, 7), ("h2", None, 7))),
        ({"host": "h1,h2", "port": ",2"}, (("h1", None, 5432), ("h2", None, 2))),
        ({"host": "127.0.0.1,::1"}, (("127.0.0.1", "127.0.0.1", 5432), ("::1", "::1", 5432))),
        ({"host": "fe80::1%lo"}, (("fe80::1%lo", "fe80::1%lo", 5432),)),
        ({"host": "127.1"}, (("127.1", None, 5432),)),
        ({"host": "/tmp", "port": 1}, (("/tmp", "/tmp/.s.PGSQL.1", 1),)),
        ({"host": "@name"}, (("@name", "@name/.s.PGSQL.5432", 5432),)),
        ({"host": ",h"}, (("localhost", None, 5432), ("h", None, 5432))),
        ({"hostaddr": "10.0.0.1"}, (("10.0.0.1", "10.0.0.1", 5432),)),
        ({"host": "h", "hostaddr": "10.0.0.1"}, (("h", "10.0.0.1", 5432),)),
        ({"host": "a,b", "hostaddr": "10.0.0.1,"}, (("a", "10.0.0.1", 5432), ("b", None, 5432))),
        ({"host": "/tmp", "hostaddr": "::1"}, (("/tmp", "::1", 5432),)),
    ],
)
def test_addresses(params: dict[str, Any], expected: object) -> None:
    assert conninfo.parse(**params).addresses == expected


def test_addresses_refused() -> None:
    assert "2 hosts for 1 hostaddr" in refused(host="a,b", hostaddr="::1")
    assert "2 ports for 3 hosts" in refused(host="a,b,c", port="1,2")
    assert "hostaddr" in refused(hostaddr="localhost")
    assert "Unix socket" in refused(host="/" + "x" * 100)
    assert "must be str" in refused(host=["a"])


def test_cleartext_is_for_local_addresses() -> None:
    for host in ("/tmp", "@x", "127.0.0.1", "127.9.9.9", "::1", "/tmp,::1"):
        assert conninfo.parse(host=host).cleartext_allowed
    for host in ("localhost", "10.0.0.1", "/tmp,10.0.0.1", "::ffff:10.0.0.1", "127.evil.example", "1.127.0.0"):
        assert not conninfo.parse(host=host).cleartext_allowed


def answer(*literals: str) -> list[Any]:
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, 0, 0, 0))
        if ":" in each
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0))
        for each in literals
    ]


def test_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def lookup(host: str, port: object, **options: object) -> list[Any]:
        asked.append(host)
        if host == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answer("::1", "127.0.0.1", "127.0.0.1")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    options = conninfo.resolve(host="db,/tmp,nowhere,10.0.0.1,db", port="1,2,3,4,5")
    assert asked == ["db", "nowhere"]
    assert options.addresses == (
        ("db", "::1", 1), ("db", "127.0.0.1", 1), ("/tmp", "/tmp/.s.PGSQL.2", 2), ("10.0.0.1", "10.0.0.1", 4),
        ("db", "::1", 5), ("db", "127.0.0.1", 5),
    )  # fmt: skip
    assert conninfo.unresolved(options) == ()
    assert options.lookup_failures == ('could not find an address of host "nowhere": Name or service not known',)
    assert conninfo.resolve(host="db").cleartext_allowed
    with pytest.raises(errors.OperationalError, match='"nowhere": Name or service not known') as caught:
        conninfo.resolve("postgresql://u@nowhere", password=CANARY)
    for frame, _ in traceback.walk_tb(caught.tb):
        assert CANARY not in repr(frame.f_locals) or frame.f_code.co_filename == __file__
    assert caught.value.safe_to_retry
    assert not isinstance(caught.value, OSError)


def test_literals_never_reach_the_resolver() -> None:
    for host in ("127.0.0.1", "::1", "/tmp", "@x", "10.0.0.1,/var/run"):
        assert conninfo.unresolved(conninfo.resolve(host=host)) == ()


def test_with_addresses() -> None:
    options = conninfo.parse(host="a,b,c,a")
    assert conninfo.unresolved(options) == ("a", "b", "c")
    link_local = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 0, 0, 3))]
    found = conninfo.with_addresses(options, {"a": link_local, "b": UnicodeError("label too long"), "c": []})
    assert found.addresses == (("a", "fe80::1%3", 5432),)
    assert [each.rpartition(":")[2] for each in found.lookup_failures] == [" not a host name", " it has none"]


def test_a_name_that_cannot_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(errors.OperationalError, match="not a host name"):
        conninfo.resolve(host="x" * 64 + ".example")


# --- SASLprep -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("user", "user"),
        ("USER", "USER"),
        ("I\u00adX", "IX"),  # RFC 4013, section 3
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("\u0627\u0031", "\u0627\u0031"),  # prohibited there (direction): left as it is
        ("\x07", "\x07"),
        ("a\u00a0b", "a b"),
        ("a\u200bb", "a b"),
        ("\u00ad", "\u00ad"),
        ("a\u0007\u00aa", "a\u0007\u00aa"),
        ("e\u0301", "\u00e9"),
        ("\u0221", "\u0221"),  # unassigned in Unicode 3.2
        ("\u0627\u00aa\u0627", "\u0627\u00aa\u0627"),
        ("\u0627 \u0627", "\u0627 \u0627"),
        ("\ue000", "\ue000"),
    ],
)
def test_saslprep(password: str, expected: str) -> None:
    assert conninfo.saslprep(password) == expected


def test_saslprep_in_options() -> None:
    options = conninfo.parse(password="I\u00adX")
    assert options.password == "I\u00adX"
    assert options.scram_password == "IX"
    assert type(options.scram_password) is conninfo.Secret


@given(st.text())
def test_saslprep_takes_any_text(password: str) -> None:
    conninfo.saslprep(password)


def test_keepalives_and_user_timeout() -> None:
    options = conninfo.parse()
    assert (options.keepalives, options.keepalives_idle, options.keepalives_interval) == (True, 15, 5)
    assert (options.keepalives_count, options.tcp_user_timeout) == (3, 30_000)
    options = conninfo.parse("keepalives=0 keepalives_idle=' 7 ' keepalives_interval=-1 tcp_user_timeout=0")
    assert (options.keepalives, options.keepalives_idle, options.keepalives_interval) == (False, 7, 0)
    assert (options.keepalives_count, options.tcp_user_timeout) == (3, 0)
    assert conninfo.parse(tcp_user_timeout=5).tcp_user_timeout == 5
    for value in ("x", "1.5", "1_0", "2147483648", "1 2", "-"):
        assert "tcp_user_timeout must be an integer" in refused(tcp_user_timeout=value)
