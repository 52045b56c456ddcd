"""SASLprep (RFC 4013) of a password, as PostgreSQL does it on both of its sides.

PostgreSQL differs from the RFC on purpose: a password of ASCII only is left alone, control characters and all; what
is prohibited, unassigned or breaks the rules of direction makes the password be used as it is; and prohibited and
unassigned characters are looked for in what was mapped, not in what was normalised.

Sources: RFC 4013, RFC 3454; PostgreSQL manual, "SCRAM-SHA-256 Authentication" (sasl-scram-sha-256).
"""

from __future__ import annotations


def saslprep(password: str) -> str:
    """The password to derive SCRAM keys from: normalised, or as it is where SASLprep does not allow it.

    Never raises for a str.
    """
    if password.isascii():
        return password
    import stringprep  # 30 ms and 1 MB of tables, only for those who need them
    from unicodedata import normalize

    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in password
        if stringprep.in_table_c12(char) or not stringprep.in_table_b1(char)
    )
    if not mapped:
        return password
    prohibited = (
        stringprep.in_table_a1,
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
    )
    if any(refuses(char) for char in mapped for refuses in prohibited):
        return password
    if any(map(stringprep.in_table_d1, mapped)):  # right to left: nothing left to right, and both ends so too
        ends_fit = stringprep.in_table_d1(mapped[0]) and stringprep.in_table_d1(mapped[-1])
        if not ends_fit or any(map(stringprep.in_table_d2, mapped)):
            return password
    return normalize("NFKC", mapped)
