"""Recorded dialogues, by what they are about."""

from dialogues import abandon, asynchronous, copy, copying, ending, execute, failing, recovery, startup
from dialogues.registry import DIALOGUES

__all__ = [
    "DIALOGUES",
    "abandon",
    "asynchronous",
    "copy",
    "copying",
    "ending",
    "execute",
    "failing",
    "recovery",
    "startup",
]
