"""What the child of a fork finds of the blocking connections that were made before: none of them is of use.

Another thread may have had a connection's mutex, and nobody gives that back here. So there is another one in its place,
which nobody gets.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from pgpoll import errors

if TYPE_CHECKING:
    from pgpoll._threads import Driver

drivers: WeakSet[Driver] = WeakSet()


def refuse() -> NoReturn:
    """What all its verbs come to."""
    raise errors.InterfaceError("the connection was made before a fork: it belongs to the parent process")


class Parents:
    """The mutex, in the child."""

    def __enter__(self) -> NoReturn:
        refuse()

    def __exit__(self, *_: object) -> None:
        """Never: it was not entered."""

    def __getattr__(self, name: str) -> Any:
        refuse()


def _forked() -> None:
    for driver in tuple(drivers):
        driver.mutex = Parents()  # type: ignore[assignment]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
