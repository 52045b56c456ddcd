"""Recorded dialogues, by what they are about."""

from dialogues import abandon, asynchronous, copy, ending, execute, failing, portal, recovery, startup, stream
from dialogues.registry import DIALOGUES

__all__ = [
    "DIALOGUES",
    "abandon",
    "asynchronous",
    "copy",
    "ending",
    "execute",
    "failing",
    "portal",
    "recovery",
    "startup",
    "stream",
]
