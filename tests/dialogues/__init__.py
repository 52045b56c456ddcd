"""Recorded dialogues, by what they are about."""

from dialogues import abandon, asynchronous, batches, copy, ending, execute, failing, recovery, startup
from dialogues.registry import DIALOGUES

__all__ = [
    "DIALOGUES",
    "abandon",
    "asynchronous",
    "batches",
    "copy",
    "ending",
    "execute",
    "failing",
    "recovery",
    "startup",
]
