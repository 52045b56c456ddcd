"""The model server's part of channels: portals that are read in parts, COPY, and LISTEN.

series of                    SERIES rows: the number of its only parameter times 100, and on from there
series 7 of 41               so many, from 4100 on
series 7 of 41 failing 3     the fourth can't be had
copy from 41                 takes whatever comes; its effect is durable as that of insert is
copy from 41 failing 3       the third CopyData is refused; "failing end": CopyDone is
copy to 5 of 41              five pieces of data; "failing 3" as above
copy away 41                 the server copies by itself
listen 41, unlisten 41       from the end of its transaction on
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import backend
from backend import FrontendMessage, error_response, int4
from model import Effect, ModelServer, Portal, failure

SERIES = 9
STEP = 100


def piece(number: int, place: int) -> bytes:
    """What COPY brings at that place, in both directions."""
    return f"{number}\t{place}\n".encode()


@dataclass
class ChannelServer(ModelServer):
    given: Counter[int] = field(default_factory=Counter)  # rows of each series
    coming: list[bytes] = field(default_factory=list)  # pieces of the COPY that runs
    copied: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    missed: set[str] = field(default_factory=set)  # portals that were asked for when they were gone
    listens: bool = False
    will_listen: bool = False
    raised: list[str] = field(default_factory=list)  # notifications that wait for the end of what runs
    told: list[str] = field(default_factory=list)  # and those that were sent
    idle: bool = False  # nothing was asked since the last ReadyForQuery

    def notify(self, payload: str) -> None:
        """Of another backend. An idle one tells at once."""
        if self.listens:
            self.raised.append(payload)
            if self.idle and self.status == "I":
                self.tell()

    def tell(self) -> None:
        self.send(*[backend.notification("events", each) for each in self.raised])
        self.told += self.raised
        self.raised.clear()

    def ready(self) -> None:
        if self.status == "I":
            self.listens = self.will_listen
            self.tell()
        self.idle = True
        super().ready()

    def fail(self, error: bytes) -> None:
        if self.status == "I":
            self.will_listen = self.listens
        self.coming.clear()
        super().fail(error)

    def work(self) -> None:
        self.idle = False
        super().work()

    def on_Execute(self, message: FrontendMessage) -> None:
        if message["portal"] and message["portal"] not in self.portals:
            self.missed.add(message["portal"])
        super().on_Execute(message)

    def run(self, sql: str, portal: Portal | None, limit: int = 0) -> None:
        match sql.split():
            case ["series", *words]:
                assert portal is not None, "series are not asked for in simple queries"
                self.run_series(words, portal, limit)
            case ["copy", "from", *_]:
                self.copying = True
                self.send(backend.copy_in_response())
            case ["copy", "to", count, "of", number, *fails]:
                last = int(fails[1]) if fails else int(count)
                pieces = [backend.copy_data(piece(int(number), place)) for place in range(last)]
                ends = [backend.copy_done(), backend.command_complete(f"COPY {count}")]
                self.send(backend.copy_out_response(), *pieces[: last // 2])
                self.running = [*pieces[last // 2 :], *([failure(sql)] if fails else ends)]
            case ["copy", "away", number]:
                self.send(backend.command_complete(f"COPY {number}"))
            case ["listen" | "unlisten" as word, _]:
                self.will_listen = word == "listen"
                self.send(backend.command_complete(word.upper()))
            case _:
                super().run(sql, portal, limit)

    def run_series(self, words: list[str], portal: Portal, limit: int) -> None:
        """PortalSuspended wherever as many rows have gone as were asked for."""
        first, count, fails = portal.arguments[0] if portal.arguments else None, SERIES, None
        number = int.from_bytes(first, "big") if first is not None else int(words[2])
        if first is None:
            count, fails = int(words[0]), int(words[4]) if words[3:] else None
        if portal.rows is None:
            last = count if fails is None else fails
            portal.rows = [backend.data_row(int4(number * STEP + place)) for place in range(last)]
        now, portal.rows = (portal.rows[:limit], portal.rows[limit:]) if limit else (portal.rows, [])
        self.given[number] += len(now)
        self.send(*now)
        if limit and len(now) == limit:
            self.running = [backend.portal_suspended()]
        else:
            self.running = [
                failure(portal.sql) if fails is not None else backend.command_complete(f"SELECT {len(now)}")
            ]

    def go_on_copying(self, message: FrontendMessage) -> None:
        """A CopyData, or the end; `copy 41` is no channel's: it waits for its CopyFail."""
        if message.name == "CopyFail":
            return self.fail(error_response("57014", "COPY from stdin failed"))
        _, word, number, *fails = self.bound.split()
        assert word == "from", message
        if message.name == "CopyData":
            self.coming.append(message["data"])
            return self.fail(failure(self.bound)) if fails and fails[1] == str(len(self.coming)) else None
        assert message.name == "CopyDone", message
        if fails and fails[1] == "end":
            return self.fail(failure(self.bound))
        self.copying = False
        self.copied[int(number)] += self.coming
        self.effects.append(Effect(int(number), self.transaction))
        self.send(backend.command_complete(f"COPY {len(self.coming)}"))
        return self.coming.clear()
