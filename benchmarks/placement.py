"""On which CPUs the client and the backends run, and what may be said of a run where that could not be decided."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from cases import Placement


class Placer:
    """Pins this process to one CPU for good, and backends to the same or to another one, as a case asks.

    The client is pinned before any driver starts a thread, and threads inherit it. Backends are pinned by process id,
    which takes the right to do so (root, or the server's own user) and a server on this machine.
    """

    def __init__(self) -> None:
        self.cpus = sorted(os.sched_getaffinity(0))
        self.client_cpu = self.cpus[0]
        self.other_cpu = self.cpus[1] if len(self.cpus) > 1 else None
        self.refusal: str | None = None
        """Why the last backend could not be pinned; its figures are then FREE."""

    @property
    def two_cpus(self) -> bool:
        """Whether CROSS can be measured."""
        return self.other_cpu is not None

    def pin_client(self) -> None:
        """Pin this process to the first CPU that it may use."""
        os.sched_setaffinity(0, {self.client_cpu})

    def pin_backends(self, pids: Iterable[int], placement: Placement) -> Placement:
        """Pin the backends and return the placement that was reached: the one asked for, or FREE."""
        cpu = self.client_cpu if placement == "SAME" else self.other_cpu
        if placement == "FREE" or cpu is None:
            return "FREE"
        try:
            for pid in pids:
                _require_postgres(pid)
                os.sched_setaffinity(pid, {cpu})
        except OSError as error:
            self.refusal = f"backend not pinned ({error.strerror}): the server is remote or belongs to another user"
            return "FREE"
        return placement


def _require_postgres(pid: int) -> None:
    """Raise ProcessLookupError where a remote server's process id happens to name another process on this machine."""
    if b"postgres" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        raise ProcessLookupError(errno.ESRCH, "no such backend here")
