"""Recorded dialogues, by what they are about."""

from dialogues import (
    abandon,
    asynchronous,
    batches,
    begin,
    copy,
    copying,
    ending,
    execute,
    failing,
    listening,
    portal,
    recovery,
    startup,
    stream,
)
from dialogues.registry import DIALOGUES

__all__ = [
    "DIALOGUES",
    "abandon",
    "asynchronous",
    "batches",
    "begin",
    "copy",
    "copying",
    "ending",
    "execute",
    "failing",
    "listening",
    "portal",
    "recovery",
    "startup",
    "stream",
]
