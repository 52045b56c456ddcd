"""Values of PostgreSQL that no type of the standard library stands for."""

from __future__ import annotations

import dataclasses

__all__ = ["Interval", "RawJson"]


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """An interval with its three fields as the server keeps them; each may be of either sign.

    The driver gives a `datetime.timedelta` for an interval without months, a day being 24 hours as in the server's own
    comparison, and an `Interval` for one with months, which no timedelta can hold. As a parameter an interval takes
    both, so `Interval(days=1)` and `Interval(microseconds=86_400_000_000)` tell "1 day" from "24:00:00" where that
    matters (adding them to a timestamptz over a change of daylight saving time).

    months and days are 32-bit, microseconds is 64-bit; a larger one raises DataError when it is sent.
    Source: PostgreSQL manual, "Date/Time Types", interval input.
    """

    months: int = 0
    days: int = 0
    microseconds: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class RawJson:
    """JSON text that is sent as it is, as a json or jsonb parameter, and checked by the server.

    `RawJson("null")` is JSON's null, where None is SQL's NULL.
    """

    text: str
