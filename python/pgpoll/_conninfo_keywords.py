"""libpq's connection parameters, as PostgreSQL 18 has them: the table that `conninfo.py` works by.

A parameter that pgpoll does not serve yet is known all the same: a value that asks for something is refused, one that
asks for what happens anyway is taken. Nothing is ignored silently.

Source: PostgreSQL 18 manual, "Parameter Key Words" (libpq-paramkeywords) and "Environment Variables" (libpq-envars).
"""

from __future__ import annotations

from typing import NamedTuple

from pgpoll._error_bases import InterfaceError

DEFAULT_PORT = 5432


class Secret(str):
    """A str that does not show itself: repr, str() and format give asterisks; `reveal()` gives the text.

    Everything else is str's, so code that reads it as text (C code too) sees the real characters.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Secret:
        return text if isinstance(text, Secret) else super().__new__(cls, str.__str__(text))

    def __repr__(self) -> str:
        return "'********'"

    def __str__(self) -> str:
        return "********"

    def __format__(self, spec: str) -> str:
        return "********"

    def reveal(self) -> str:
        return str.__str__(self)


class Keyword(NamedTuple):
    environment: str | None = None
    served: bool = True
    harmless: tuple[str, ...] = ()
    """For one that is not served: the values, besides the empty one, that ask for nothing."""
    secret: bool = False


def _later(environment: str | None, *harmless: str, secret: bool = False) -> Keyword:
    return Keyword(environment, False, harmless, secret)


KEYWORDS: dict[str, Keyword] = {
    "host": Keyword("PGHOST"),
    "hostaddr": Keyword("PGHOSTADDR"),
    "port": Keyword("PGPORT"),
    "user": Keyword("PGUSER"),
    "password": Keyword("PGPASSWORD", secret=True),
    "dbname": Keyword("PGDATABASE"),
    "application_name": Keyword("PGAPPNAME"),
    "fallback_application_name": Keyword(),
    "options": Keyword("PGOPTIONS"),
    "connect_timeout": Keyword("PGCONNECT_TIMEOUT"),
    "sslmode": Keyword("PGSSLMODE"),
    "client_encoding": Keyword("PGCLIENTENCODING"),
    "service": _later("PGSERVICE"),
    "passfile": _later("PGPASSFILE"),
    "require_auth": _later("PGREQUIREAUTH"),
    "channel_binding": _later("PGCHANNELBINDING", "prefer", "disable"),
    "keepalives": Keyword(),
    "keepalives_idle": Keyword(),
    "keepalives_interval": Keyword(),
    "keepalives_count": Keyword(),
    "tcp_user_timeout": Keyword(),
    "replication": _later(None, "false", "off", "no", "0"),
    "gssencmode": _later("PGGSSENCMODE", "disable", "prefer"),
    "gsslib": _later("PGGSSLIB"),
    "gssdelegation": _later("PGGSSDELEGATION", "0"),
    "krbsrvname": _later("PGKRBSRVNAME", "postgres"),
    "sslnegotiation": _later("PGSSLNEGOTIATION", "postgres"),
    "sslcompression": _later("PGSSLCOMPRESSION", "0"),
    "sslcert": _later("PGSSLCERT"),
    "sslkey": _later("PGSSLKEY"),
    "sslpassword": _later(None, secret=True),
    "sslcertmode": _later("PGSSLCERTMODE", "disable", "allow"),
    "sslrootcert": _later("PGSSLROOTCERT"),
    "sslcrl": _later("PGSSLCRL"),
    "sslcrldir": _later("PGSSLCRLDIR"),
    "sslsni": _later("PGSSLSNI", "1"),
    "sslkeylogfile": _later(None),
    "ssl_min_protocol_version": _later("PGSSLMINPROTOCOLVERSION", "TLSv1.2"),
    "ssl_max_protocol_version": _later("PGSSLMAXPROTOCOLVERSION"),
    "min_protocol_version": _later("PGMINPROTOCOLVERSION", "3.0"),
    "max_protocol_version": _later("PGMAXPROTOCOLVERSION", "3.0", "3.2", "latest"),
    "requirepeer": _later("PGREQUIREPEER"),
    "target_session_attrs": _later("PGTARGETSESSIONATTRS", "any"),
    "load_balance_hosts": _later("PGLOADBALANCEHOSTS", "disable"),
    "scram_client_key": _later(None, secret=True),
    "scram_server_key": _later(None, secret=True),
    "oauth_issuer": _later(None),
    "oauth_client_id": _later(None),
    "oauth_client_secret": _later(None, secret=True),
    "oauth_scope": _later(None),
}

# What libpq reads from the environment and sends as a server setting, unless it says "default".
ENVIRONMENT_SETTINGS = {"PGDATESTYLE": "datestyle", "PGTZ": "timezone", "PGGEQO": "geqo"}

_PLAIN_SSLMODES = ("disable", "allow", "prefer")
_TLS_SSLMODES = ("require", "verify-ca", "verify-full")
_UTF8_NAMES = ("utf8", "unicode", "auto")


def refuse_unserved(values: dict[str, str]) -> None:
    """Raises InterfaceError for what was asked for and pgpoll cannot do. Values are not shown."""
    for name, value in values.items():
        keyword = KEYWORDS[name]
        if not keyword.served and value and value not in keyword.harmless:
            variable = f" (environment variable {keyword.environment})" if keyword.environment else ""
            raise InterfaceError(f"connection parameter {name}{variable} is not supported yet")
    sslmode = values.get("sslmode") or "prefer"
    if sslmode in _TLS_SSLMODES:
        raise InterfaceError(
            f"sslmode={sslmode} (connection parameter, or environment variable PGSSLMODE) is not supported yet: "
            "this version of pgpoll has no TLS and would send everything in the clear"
        )
    if sslmode not in _PLAIN_SSLMODES:
        raise InterfaceError("sslmode: not one of " + ", ".join(_PLAIN_SSLMODES + _TLS_SSLMODES))
    encoding = values.get("client_encoding") or "auto"
    if encoding.lower().replace("-", "").replace("_", "") not in _UTF8_NAMES:
        raise InterfaceError("client_encoding: pgpoll always speaks UTF8 with the server")
