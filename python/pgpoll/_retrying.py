"""When a transaction is run again, and how long after: `run_transaction` of both faces."""

from __future__ import annotations

from pgpoll import errors

__all__ = ["RETRYABLE", "Attempts", "check_function"]

RETRYABLE = (errors.SerializationFailure, errors.DeadlockDetected)
"""40001 and 40P01: what the server rolls back for another's sake, and what another attempt mends."""

FIRST_SECONDS = 0.01
MOST_SECONDS = 1.0


def check_function(fn: object) -> None:
    """InterfaceError where it is none."""
    if not callable(fn):
        raise errors.InterfaceError(f"run_transaction takes a function, not {type(fn).__name__}")


class Attempts:
    """Counts the attempts of one transaction, `retries` + 1 at most."""

    __slots__ = ("_made", "_retries")

    def __init__(self, retries: int) -> None:
        if type(retries) is not int or retries < 0:
            raise errors.InterfaceError(f"retries must be an int of at least 0, not {retries!r}")
        self._retries = retries
        self._made = 0

    def pause(self, error: errors.Error, *, closed: bool) -> float | None:
        """How many seconds to wait before the next attempt; None where there is none, which is noted on the error.

        At random below a bound that doubles each time: whoever collided once should not do so again.
        """
        self._made += 1
        if closed or self._made > self._retries:
            error.add_note(f"(run_transaction made {self._made} attempt{'s' if self._made > 1 else ''})")
            return None
        import random  # which is not cheap to load, and rarely needed

        return random.uniform(0.0, min(MOST_SECONDS, FIRST_SECONDS * 2**self._made))
