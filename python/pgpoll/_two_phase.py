"""Two-phase commit: what PREPARE TRANSACTION and its followers are given, checked and quoted. For both faces.

Sources: PostgreSQL manual, PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED, pg_prepared_xacts.
"""

from __future__ import annotations

from pgpoll import errors

__all__ = ["PREPARED", "quoted"]

MAX_BYTES = 199  # GIDSIZE is 200, its NUL included

PREPARED = (
    'select gid, prepared, owner::text as owner, transaction::text::int8 as "transaction"'
    " from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database() order by prepared, gid"
)


def quoted(gid: str) -> str:
    """The global transaction identifier as a literal. InterfaceError where the server could not take it."""
    if not isinstance(gid, str):
        raise errors.InterfaceError(f"gid must be str, not {type(gid).__name__}")
    if "\0" in gid:
        raise errors.InterfaceError("gid has a NUL character")
    try:
        size = len(gid.encode())
    except UnicodeEncodeError:
        raise errors.InterfaceError("gid has a lone surrogate, which UTF-8 can't express") from None
    if size > MAX_BYTES:
        raise errors.InterfaceError(f"gid has {size} bytes: {MAX_BYTES} are allowed")
    text = gid.replace("'", "''")
    if "\\" in text:  # whatever standard_conforming_strings is
        return "E'" + text.replace("\\", "\\\\") + "'"
    return f"'{text}'"
