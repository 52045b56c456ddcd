"""What both faces' connections and transactions say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgpoll import core


class Facts:
    """The properties that need no waiting."""

    __slots__ = ("_core",)

    def __init__(self, connection: core.Connection) -> None:
        self._core = connection

    @property
    def closed(self) -> bool:
        """Whether the connection has ended: closed, or lost."""
        return self._core.closed

    @property
    def backend_pid(self) -> int:
        """The process id of the server's backend; 0 where the server has not told."""
        return self._core.backend_pid

    @property
    def server_parameters(self) -> dict[str, str]:
        """A copy of what the server has reported (ParameterStatus): server_version, TimeZone, ..."""
        return self._core.server_parameters

    @property
    def transaction_status(self) -> str:
        """The last ReadyForQuery's: "I" idle, "T" in a transaction, "E" in a failed one."""
        return self._core.transaction_status

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"pid={self.backend_pid} status={self.transaction_status}"
        return f"<{type(self).__module__}.{type(self).__qualname__} {state}>"
