"""The list of dialogues that test_session.py plays once and test_session_splits.py in every other way."""

from __future__ import annotations

from collections.abc import Callable

from script import Script

DIALOGUES: dict[str, Callable[[], Script]] = {}


def dialogue(make: Callable[[], Script]) -> Callable[[], Script]:
    assert make.__name__ not in DIALOGUES
    DIALOGUES[make.__name__] = make
    return make
