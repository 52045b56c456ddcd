"""LISTEN: who listens to which channel, and what has come for whom. For both faces; knows neither asyncio nor threads.

    Mailbox      what has come for one listener and nobody has taken: bounded, and what finds no room is told of
    Listening    the channels of one connection: what the server has been told, and the mailboxes of each
    enter        the flow that makes a mailbox a listener's: LISTEN where nobody listens yet, and its answer
    Listens      what both faces' listeners share

- LISTEN and UNLISTEN are requests of their own, outside of any block: LISTEN stands in the line as its caller's,
  UNLISTEN as nobody's, and nobody waits for its answer. A block delays what is delivered, for the server delivers
  nothing within a transaction; so one's own is refused.
- What the server listens to is known by the answers alone. Several commands for one channel may be on their way, in
  order; where they end and who listens decide what is sent next (`_steer`). Who goes away while LISTEN is on its way
  leaves that to be answered, and UNLISTEN follows; what was not written yet is never sent.
- The core keeps notifications while somebody listens. `hand_over` spreads them; it runs no caller's code.

The sync face holds its mutex, the asyncio face is in its loop's thread, whenever a method of Listening is called.
Mailbox has a lock of its own, so that one thread may take from it while another drives the connection.

Sources: PostgreSQL manual, LISTEN, UNLISTEN, NOTIFY; "Asynchronous Operations" (NotificationResponse).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from pgpoll import errors
from pgpoll._flows import started
from pgpoll._turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgpoll import core
    from pgpoll._blocks import Blocks, Engine
    from pgpoll._flows import Flow
    from pgpoll._turns import Block

__all__ = ["Notification"]

BOUND = 10_000  # notifications that a listener keeps
MAX_NAME = 63  # bytes of a channel's name, as the server is built
_AT_A_TIME = 100
_AT_LEAST = 6_000  # in each turn of the loop: one poll() brings no more, so that who takes them loses none

_log = logging.getLogger("pgpoll")


class Notification(NamedTuple):
    """What a NOTIFY on a channel has told its listeners."""

    channel: str
    payload: str
    """Empty where NOTIFY gave none."""
    pid: int
    """The process id of the backend that sent it; one's own connection's too, see `Connection.backend_pid`."""


NEW = "has not been entered"
ENTERING = "is being entered"
OPEN = "is open"
LEFT = "has been left"
LOST = "has lost its connection"


class Mailbox:
    """What has come for one listener and nobody has taken."""

    __slots__ = ("_items", "_lock", "_wakes", "channels", "entry", "state", "unanswered")

    def __init__(self, channels: tuple[str, ...]) -> None:
        self.channels = channels
        self.state = NEW
        self.unanswered: set[str] = set()  # of its channels, those that the server has not said to listen to
        self.entry: Turn | None = None  # decided when there are none, or one can't be listened to
        self._items: deque[tuple[str, str | None, int]] = deque()  # as core.take_notifications() gives them
        self._wakes: list[Callable[[], None]] = []
        self._lock = threading.RLock()  # a finalizer may end it within

    def put(self, item: tuple[str, str | None, int]) -> None:
        """One more; where there is no room, or some were lost before, the number of the lost ones stands there."""
        with self._lock:
            items = self._items
            if item[1] is None or len(items) >= BOUND:
                lost = 1 if item[1] is not None else item[2]
                if items and items[-1][1] is None:
                    lost += items.pop()[2]
                item = "", None, lost
            items.append(item)
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def take(self) -> Notification | None:
        """The oldest; None where there is none. Raises NotificationsLost in the place of those that were lost."""
        with self._lock:
            if not self._items:
                return None
            channel, payload, pid = self._items.popleft()
        if payload is None:
            error = errors.NotificationsLost(
                f"{pid} notification(s) were lost here: they came while {BOUND:,} waited to be taken"
            )
            error.lost = pid
            raise error
        return Notification(channel, payload, pid)

    @property
    def waiting(self) -> bool:
        """Whether there is nothing to take, and nothing to be told, but there may be later."""
        return self.state in (ENTERING, OPEN) and not self._items

    def attend(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from any thread, whenever that changes."""
        with self._lock:
            self._wakes.append(wake)

    def unattend(self, wake: Callable[[], None]) -> None:
        """No more."""
        with self._lock:
            self._wakes.remove(wake)

    def end(self, state: str) -> None:
        """Nothing comes any more; what is there may still be taken, unless it was left."""
        with self._lock:
            if self.state not in (LEFT, LOST):
                self.state = state
            if state is LEFT:
                self._items.clear()
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()


class _Channel:
    """One channel of one connection."""

    __slots__ = ("boxes", "flight", "listening", "name", "turn")

    def __init__(self, name: str) -> None:
        self.name = name
        self.boxes: tuple[Mailbox, ...] = ()
        self.listening = False  # as far as the server has answered
        self.flight: deque[tuple[core.Operation[str], bool]] = deque()  # LISTEN (True) and UNLISTEN, in order
        self.turn: Turn | None = None  # an UNLISTEN that waits for its turn

    @property
    def heading(self) -> bool:
        """Whether the server listens once all is answered."""
        return self.flight[-1][1] if self.flight else self.listening


class Listening:
    """The channels that one connection listens to."""

    def __init__(self, connection: core.Connection, blocks: Blocks, engine: Engine) -> None:
        self._core = connection
        self._blocks = blocks
        self._engine = engine
        self._channels: dict[str, _Channel] = {}
        self._taken: deque[tuple[str, str | None, int]] = deque()  # of the core, and not spread yet
        self._told = False  # of notifications that nobody listens to
        self._busy = False
        connection.keep_notifications(True)

    # -- listeners

    def begin(self, box: Mailbox) -> Any:
        """The turn of an entry has come: LISTEN leaves for the channels that nobody listens to."""
        self._core.keep_notifications(True)
        for name in box.channels:
            channel = self._channels.setdefault(name, _Channel(name))
            channel.boxes = (*channel.boxes, box)
            if not channel.heading:
                self._send(channel, True)
            if not channel.listening or len(channel.flight) > 0:
                box.unanswered.add(name)
        if not box.unanswered:
            self._entered(box)

    def leave(self, box: Mailbox) -> None:
        """It listens no more, whatever it had come to. UNLISTEN follows where it was the last one, without anyone."""
        box.end(LEFT)
        for name in box.channels:
            channel = self._channels.get(name)
            if channel is not None and box in channel.boxes:
                channel.boxes = tuple(each for each in channel.boxes if each is not box)
                self._steer(channel)

    def lost(self) -> None:
        """The connection has ended: every listener is told, after what has come for it."""
        self.hand_over(None)
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            for box in channel.boxes:
                box.end(LOST)

    def lost_error(self) -> Exception:
        """What a listener is told at its end: what the server said, or ConnectionLost."""
        return self._core.why_closed or errors.ConnectionLost("the connection was lost")

    def check_outside(self, who: object) -> None:
        """InterfaceError where a live block is this task's or thread's own: it would wait for itself."""
        for block in self._blocks.stack:
            if who is not None and block.owner is who:
                raise _inside(block, "waiting for a notification")

    def check_entry(self, turn: Turn) -> None:
        """InterfaceError where LISTEN would be part of a transaction."""
        for block in self._blocks.inside(turn):
            raise _inside(block, "listen()")
        if not self._blocks.stack and self._core.transaction_status in ("T", "E") and not self._core.in_flight:
            raise errors.InterfaceError("listen() inside of a transaction that was begun by hand: end it first")

    # -- after an exception of a signal handler, see _mending.py

    def mend(self, watched: set[core.Operation[Any]]) -> None:
        """Watch what was started and is not in `watched` yet."""
        self._busy = False
        for channel in self._channels.values():
            for operation, _ in channel.flight:
                if operation not in watched:
                    watched.add(operation)
                    self._engine.watch(operation, partial(self._answered, channel, operation))
            if channel.turn is not None and not self._blocks.in_line(channel.turn):
                channel.turn = None

    def resume(self) -> None:
        """Tell whom nobody has told, and the server what nobody listens to."""
        for channel in tuple(self._channels.values()):
            if not channel.flight and channel.boxes and not channel.listening:
                error = errors.InterfaceError("interrupted while it was started")
                for box in channel.boxes:
                    self._entered(box, error)
            elif not channel.flight:
                self._listened(channel)
            self._steer(channel)

    # -- notifications

    @property
    def unspread(self) -> bool:
        """Whether Ctrl-C has left some to be handed over."""
        return bool(self._taken)

    def hand_over(self, seconds: float | None) -> bool:
        """All that have come, or for about so many seconds, but _AT_LEAST. True where some may be left."""
        if self._busy:  # by way of a finalizer, or a handler of the log: whoever called that goes on
            return False
        self._busy = True
        try:
            until = None if seconds is None else monotonic() + seconds
            taken, handed = self._taken, 0
            while True:
                if not taken:
                    if until is not None and handed >= _AT_LEAST and monotonic() >= until:
                        return True
                    taken.extend(self._core.take_notifications(_AT_A_TIME))
                    handed += _AT_A_TIME
                    if not taken:
                        return False
                self._spread(taken[0])
                taken.popleft()  # not before: Ctrl-C may come in between
        finally:
            self._busy = False

    def _spread(self, item: tuple[str, str | None, int]) -> None:
        if (channel := self._channels.get(item[0])) is None:
            self._unheard(item)
            return
        for box in channel.boxes:
            box.put(item)
        if not channel.boxes and not channel.flight:
            self._steer(channel)  # an UNLISTEN has failed

    def _unheard(self, item: tuple[str, str | None, int]) -> None:
        if not item[0]:  # lost ones, anyone's
            for box in {box for channel in tuple(self._channels.values()) for box in channel.boxes}:
                box.put(item)
            return
        if not self._told:
            self._told = True
            _log.warning("a notification on channel %r has no listener: use listen(), not LISTEN", item[0])
        if not self._channels:
            self._core.keep_notifications(False)

    # -- what the server listens to

    def _entered(self, box: Mailbox, error: BaseException | None = None) -> None:
        if (entry := box.entry) is None or entry.decided:
            return
        if error is None and box.state is ENTERING:
            box.state = OPEN
        entry.error, entry.decided = error, True
        entry.wake()

    def _send(self, channel: _Channel, listen: bool) -> None:
        command = f"{'LISTEN' if listen else 'UNLISTEN'} {quoted(channel.name)}"
        # started and known of at once, whatever a signal does
        channel.flight.extend(zip(map(self._core.start_command, (command,)), (listen,), strict=True))
        operation = channel.flight[-1][0]
        self._engine.watch(operation, partial(self._answered, channel, operation))

    def _answered(self, channel: _Channel, operation: core.Operation[str]) -> None:
        """The server has answered a LISTEN or an UNLISTEN, or never will."""
        sent = next((each for each in channel.flight if each[0] is operation), None)
        if sent is None:
            return  # taken back
        listen, failure = sent[1], None
        try:
            operation.result()
            channel.listening = listen
        except errors.Error as error:
            failure = error.with_traceback(None)
        channel.flight.remove(sent)
        if listen and failure is not None and not channel.flight:
            for box in channel.boxes:
                self._entered(box, failure)
        elif channel.listening and not channel.flight:
            self._listened(channel)
        if failure is None or not channel.listening:  # else it is tried again when it is heard of
            self._steer(channel)

    def _listened(self, channel: _Channel) -> None:
        for box in channel.boxes:
            box.unanswered.discard(channel.name)
            if not box.unanswered:
                self._entered(box)

    def _steer(self, channel: _Channel) -> None:
        """Nobody listens to it any more: so shall the server."""
        if channel.boxes or self._channels.get(channel.name) is not channel:
            return
        if channel.heading and channel.flight and not channel.flight[-1][0].written:
            channel.flight.pop()[0].abandon()
            self._engine.flush()
        if channel.heading and channel.turn is None:
            channel.turn = Turn(partial(self._unlisten, channel), None, None, monotonic())
            with contextlib.suppress(errors.InterfaceError):  # the connection has ended, or ends: lost() follows
                self._blocks.go_unowned(channel.turn)
        if not channel.flight and not channel.listening:
            self._channels.pop(channel.name, None)

    def _unlisten(self, channel: _Channel) -> Any:
        """Its turn has come."""
        channel.turn = None
        if not channel.boxes and channel.heading:
            self._send(channel, False)


def enter(listening: Listening, blocks: Blocks, box: Mailbox, turn: Turn) -> Flow[None]:
    """Make `box` a listener's; `turn` is its caller's, and starts `listening.begin`. None is left where it fails."""
    if box.state is not NEW:
        raise errors.InterfaceError(f"the listener {box.state}: make a new one")
    listening.check_entry(turn)
    box.state = ENTERING
    box.entry = entry = Turn(turn.start, None, None, turn.since)
    try:
        yield from started(blocks, turn)
        if not entry.decided:
            yield entry
        if entry.error is not None:
            raise entry.error
    except BaseException:
        listening.leave(box)
        box.state = NEW
        raise


class Listens:
    """What both faces' listeners share."""

    __slots__ = ("__weakref__", "_box", "_parent", "_timeout")

    def __init__(self, parent: Any, channels: tuple[str, ...], timeout: float | None) -> None:
        self._box = Mailbox(checked(channels))
        self._timeout = timeout  # of entering it
        self._parent = parent  # keeps the connection

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that it was made for."""
        return self._box.channels

    def _enter(self) -> Flow[None]:
        driver = self._parent._driver
        listening = driver.listening
        return enter(listening, driver.blocks, self._box, driver.turn(partial(listening.begin, self._box), None))

    def _at_hand(self) -> Notification | None:
        """What has come and nobody has taken; None where it may come later, or never will as it has been left.

        Raises NotificationsLost, InterfaceError inside of one's own block, and the error that ended the connection.
        """
        driver, box = self._parent._driver, self._box
        if driver.blocks.stack:
            driver.listening.check_outside(driver.who())
        if (found := box.take()) is None and box.state is LOST:
            raise driver.listening.lost_error()
        return found

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self.channels))
        return f"<pgpoll.{type(self).__qualname__} of {names}, {self._box.state}>"


def checked(channels: tuple[str, ...]) -> tuple[str, ...]:
    """The names of channels, each once; InterfaceError where one is none."""
    if not channels:
        raise errors.InterfaceError("listen() takes the names of one channel or more")
    for name in channels:
        if not isinstance(name, str):
            raise errors.InterfaceError(f"a channel's name must be str, not {type(name).__name__}")
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise errors.InterfaceError(f"the channel name {name!r} has a lone surrogate") from None
        if not size or "\0" in name:
            raise errors.InterfaceError(f"the channel name {name!r} {'has a NUL character' if size else 'is empty'}")
        if size > MAX_NAME:
            raise errors.InterfaceError(
                f"the channel name {name!r} has {size} bytes: the server would cut it after {MAX_NAME}"
            )
    return tuple(dict.fromkeys(channels))


def quoted(name: str) -> str:
    """As an identifier: what it says, to the letter."""
    return '"' + name.replace('"', '""') + '"'


def _inside(block: Block, what: str) -> errors.InterfaceError:
    return errors.InterfaceError(
        f"{what} inside of the {block.kind} entered at {block.where}: the server delivers nothing "
        "before its end; listen outside of it, or on another connection"
    )
