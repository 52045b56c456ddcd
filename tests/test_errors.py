"""The hierarchy: names, bases, attributes, and that every error survives pickle and copy."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pgpoll import errors

ROOT = Path(__file__).resolve().parent.parent

FIELDS = {
    "S": "FEHLER",
    "V": "ERROR",
    "C": "23505",
    "M": 'duplicate key value violates unique constraint "t_pkey"',
    "D": "Key (id)=(1) already exists.",
    "H": "Try another.",
    "P": "7",
    "p": "3",
    "q": "insert into t values (1)",
    "W": "PL/pgSQL function f() line 1 at SQL statement",
    "s": "public",
    "t": "t",
    "c": "id",
    "d": "int4",
    "n": "t_pkey",
    "F": "nbtinsert.c",
    "L": "666",
    "R": "_bt_check_unique",
    "?": "a field that does not exist yet",
}
ATTRIBUTES = {
    "severity": "ERROR",
    "sqlstate": "23505",
    "message": FIELDS["M"],
    "detail": FIELDS["D"],
    "hint": FIELDS["H"],
    "position": 7,
    "internal_position": 3,
    "internal_query": FIELDS["q"],
    "where": FIELDS["W"],
    "schema_name": "public",
    "table_name": "t",
    "column_name": "id",
    "datatype_name": "int4",
    "constraint_name": "t_pkey",
    "source_file": "nbtinsert.c",
    "source_line": 666,
    "source_function": "_bt_check_unique",
}


def attributes(error: errors.Error) -> dict[str, object]:
    return {name: getattr(error, name) for name in ATTRIBUTES}


def test_pep249_bases() -> None:
    assert issubclass(errors.Error, Exception)
    assert issubclass(errors.InterfaceError, errors.Error)
    assert issubclass(errors.BusyError, errors.InterfaceError)
    for base in "DataError OperationalError IntegrityError InternalError ProgrammingError NotSupportedError".split():
        assert issubclass(getattr(errors, base), errors.DatabaseError)
    assert not issubclass(errors.InterfaceError, errors.DatabaseError)


@pytest.mark.parametrize(
    ("name", "sqlstate", "base"),
    [
        ("UniqueViolation", "23505", errors.IntegrityError),
        ("DivisionByZero", "22012", errors.DataError),
        ("InFailedSqlTransaction", "25P02", errors.InternalError),
        ("IdleInTransactionSessionTimeout", "25P03", errors.InternalError),
        ("TransactionTimeout", "25P04", errors.InternalError),
        ("UndefinedTable", "42P01", errors.ProgrammingError),
        ("SyntaxError", "42601", errors.ProgrammingError),
        ("QueryCanceled", "57014", errors.OperationalError),
        ("AdminShutdown", "57P01", errors.OperationalError),
        ("CrashShutdown", "57P02", errors.OperationalError),
        ("CannotConnectNow", "57P03", errors.OperationalError),
        ("IdleSessionTimeout", "57P05", errors.OperationalError),
        ("ConnectionFailure", "08006", errors.OperationalError),
        ("ProtocolViolation", "08P01", errors.OperationalError),
        ("SerializationFailure", "40001", errors.OperationalError),
        ("DeadlockDetected", "40P01", errors.OperationalError),
        ("InvalidPassword", "28P01", errors.OperationalError),
        ("FeatureNotSupported", "0A000", errors.NotSupportedError),
        ("RaiseException", "P0001", errors.ProgrammingError),
        ("InternalError_", "XX000", errors.InternalError),
        ("NoData", "02000", errors.DatabaseError),
    ],
)
def test_condition(name: str, sqlstate: str, base: type[errors.DatabaseError]) -> None:
    kind = getattr(errors, name)
    assert kind.sqlstate == sqlstate
    assert kind.__bases__ == (base,)
    assert kind.__module__ == "pgpoll.errors"
    assert type(errors.make_server_error({"C": sqlstate, "M": "x"})) is kind


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("22ZZZ", errors.DataError),
        ("42ZZZ", errors.ProgrammingError),
        ("F0123", errors.OperationalError),
        ("XX999", errors.InternalError),
        ("01000", errors.DatabaseError),
        ("QQ001", errors.DatabaseError),
        ("", errors.DatabaseError),
        ("é", errors.DatabaseError),
    ],
)
def test_unknown_sqlstate_falls_back_to_its_class(sqlstate: str, kind: type) -> None:
    error = errors.make_server_error({"C": sqlstate, "M": "x"})
    assert type(error) is kind
    assert error.sqlstate == sqlstate


def test_same_classes_as_psycopg() -> None:
    psycopg = pytest.importorskip("psycopg", exc_type=ImportError)
    from pgpoll._sqlstate import CONDITIONS

    compared = 0
    for sqlstate, kind in CONDITIONS.items():
        try:
            theirs = psycopg.errors.lookup(sqlstate)
        except KeyError:
            continue
        assert (kind.__name__, kind.__bases__[0].__name__) == (theirs.__name__, theirs.__bases__[0].__name__)
        compared += 1
    assert compared > 240


def test_generated_file_is_current() -> None:
    script = ROOT / "scripts" / "generate_sqlstate.py"
    subprocess.run([sys.executable, script, "--check"], check=True)


def test_fields() -> None:
    error = errors.make_server_error(FIELDS)
    assert type(error) is errors.UniqueViolation
    assert attributes(error) == ATTRIBUTES
    assert str(error) == f"{FIELDS['M']}\nDETAIL: {FIELDS['D']}\nHINT: {FIELDS['H']}"
    assert repr(error) == f"UniqueViolation({FIELDS['M']!r})"
    assert error.safe_to_retry is False


def test_absent_fields_are_none() -> None:
    error = errors.make_server_error({})
    assert attributes(error) == {name: "" if name == "message" else None for name in ATTRIBUTES}
    assert str(error) == ""


def test_localised_severity_of_an_old_server() -> None:
    assert errors.make_server_error({"S": "ERROR", "M": "x"}).severity == "ERROR"


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "²", "٣", "9" * 5000])
def test_position_that_is_no_number(value: str) -> None:
    assert errors.make_server_error({"M": "x", "P": value}).position is None


CODES = ("23505", "22012", "25P02", "25P03", "3D000", "57P01", "42501", "XX000", "QQQQQ", "22ZZZ", "XX999", "01000")
OURS = "ConnectionLost CommitUnknown ProtocolError QueryTimeout InterfaceError BusyError Error OperationalError".split()


def every_kind() -> list[errors.Error]:
    served = [
        errors.make_server_error(FIELDS | {"C": code, "V": severity})
        for code in CODES
        for severity in ("ERROR", "FATAL", "PANIC")
    ]
    return [*served, *(getattr(errors, name)("message") for name in OURS)]


@pytest.mark.parametrize("error", every_kind(), ids=lambda error: type(error).__name__)
def test_pickle_and_copy(error: errors.Error) -> None:
    error.safe_to_retry = True
    error.add_note("a note")
    error.anything = ["else"]  # type: ignore[attr-defined]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert_same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert_same(copy.copy(error), error)
    assert_same(copy.deepcopy(error), error)


def assert_same(other: errors.Error, error: errors.Error) -> None:
    assert type(other) is type(error)
    assert other.args == error.args
    assert other.__dict__ == error.__dict__
    assert str(other) == str(error)


def test_subclass_of_a_user_pickles() -> None:
    assert_same(pickle.loads(pickle.dumps(OwnViolation("x"))), OwnViolation("x"))


class OwnViolation(errors.UniqueViolation):
    pass


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("severity", ["FATAL", "PANIC"])
def test_fatal_is_also_operational(code: str, severity: str) -> None:
    error = errors.make_server_error({"C": code, "V": severity, "S": "FATALE", "M": "gone"})
    assert isinstance(error, errors.OperationalError)
    assert isinstance(error, errors.condition(code))
    assert type(error).__name__ == errors.condition(code).__name__ or type(error) is errors.OperationalError
    assert type(errors.make_server_error({"C": code, "V": severity})) is type(error)
    assert error.sqlstate == code
    assert not isinstance(error, OSError)


def test_lost_with_an_error_is_also_operational() -> None:
    error = errors.make_server_error({"C": "42501", "V": "ERROR", "M": "gone"}, lost=True)
    assert isinstance(error, errors.InsufficientPrivilege)
    assert isinstance(error, errors.OperationalError)


def test_our_own_kinds() -> None:
    assert issubclass(errors.ProtocolError, errors.ProtocolViolation)
    assert errors.ProtocolError("x").sqlstate == "08P01"
    assert issubclass(errors.CommitUnknown, errors.TransactionResolutionUnknown)
    assert errors.CommitUnknown("x").sqlstate == "08007"
    assert issubclass(errors.QueryTimeout, errors.OperationalError)
    assert issubclass(errors.QueryTimeout, TimeoutError)
    assert str(errors.QueryTimeout("too late")) == "too late"
    assert issubclass(errors.ConnectionLost, errors.OperationalError)
    assert not issubclass(errors.ConnectionLost, OSError)
    assert errors.ConnectionLost("closed").sqlstate is None


def test_classes_are_plain() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type):
            assert "__slots__" not in vars(kind)
            assert issubclass(kind, errors.Error)


def test_everything_is_exported_once() -> None:
    assert len(errors.__all__) == len(set(errors.__all__))
    for name in errors.__all__:
        assert hasattr(errors, name)
