"""faults.md 2.1, rows 1 to 3: recorded dialogues with a real server, ended at every byte of either stream.

Each flow is played once to learn how long its streams are, then with the connection cut, reset or silent after byte k.
A flow ends in right answers or errors of ours, in time; the connection says at once that it is closed, or (silent) can
be ended at once. PGPOLL_STRIDE: every how many bytes; 1 is all of them, some 15,000 cases for each loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest

import pgpoll
import server as _server
from pgpoll import errors
from proxy import End, Faults, Proxy
from sanity import Sanity

STRIDE = int(os.environ.get("PGPOLL_STRIDE", "131"))
TERMINATE = 5  # bytes
AT_ONCE = 12  # cases
PATIENCE = 0.25  # seconds, of a verb where the proxy falls silent; else nothing may come near to
LONG = 20.0

Connect = Callable[..., Awaitable[pgpoll.Connection]]
Flow = Callable[[Connect, float], Awaitable[list[Any]]]
Stream = Literal["server", "client"]


async def plain(connect: Connect, patience: float) -> list[Any]:
    await connect(user="postgres")
    return []


async def scram(connect: Connect, patience: float) -> list[Any]:
    await connect(user="pgpoll_scram", password=_server.PASSWORD)
    return []


async def query(connect: Connect, patience: float) -> list[Any]:
    conn = await connect(user="postgres")
    return [await expect(3, conn.fetchval("select $1::int4 + 1", 2, timeout=patience))]


async def pipelined(connect: Connect, patience: float) -> list[Any]:
    conn = await connect(user="postgres")
    one = "select $1::int4, 'five'"
    return list(await asyncio.gather(*(expect(n, conn.fetchval(one, n, timeout=patience)) for n in range(5))))


async def error_in_a_pipeline(connect: Connect, patience: float) -> list[Any]:
    conn = await connect(user="postgres")
    five = await asyncio.gather(
        expect(1, conn.fetchval("select $1::int4", 1, timeout=patience)),
        expect(errors.DivisionByZero, conn.fetchval("select 1 / $1::int4", 0, timeout=patience)),
        expect(2, conn.fetchval("select $1::int4", 2, timeout=patience)),
        expect(errors.SyntaxError, conn.fetchval("selec", timeout=patience)),
        expect(3, conn.fetchval("select $1::int4", 3, timeout=patience)),
    )
    return list(five)


async def cancelled(connect: Connect, patience: float) -> list[Any]:
    """The server is told to stop, and the next request waits for the drain."""
    conn = await connect(user="postgres")
    first = await expect(pgpoll.QueryTimeout, conn.execute("select pg_sleep(1)", timeout=0.03))
    return [first, await expect(7, conn.fetchval("select 7", timeout=patience))]


async def listening(connect: Connect, patience: float) -> list[Any]:
    conn = await connect(user="postgres")

    async def hear() -> str | None:
        async with conn.listen("sweep", timeout=patience) as notifications:
            await conn.execute("notify sweep, 'heard'", timeout=patience)
            note = await notifications.next(timeout=patience)
            if note is None:
                raise pgpoll.QueryTimeout("nothing came")
            return note.payload

    return [await expect("heard", hear())]


FLOWS: dict[str, Flow] = {
    each.__name__: each for each in (plain, scram, query, pipelined, error_in_a_pipeline, cancelled, listening)
}


async def expect(answer: Any, request: Awaitable[Any]) -> BaseException | None:
    """None for the right answer, which an error may be; else what was raised. A wrong answer is no outcome."""
    try:
        got = await request
    except pgpoll.Error as error:
        return None if isinstance(answer, type) and isinstance(error, answer) else error
    assert got == answer, f"{answer} was answered by {got}"
    return None


async def play(sane: Sanity, name: str, faults: Faults) -> Proxy:
    """One case."""
    made: list[pgpoll.Connection] = []
    patience = PATIENCE if faults.end == "stall" else LONG
    proxy = sane.through(faults)

    async def connect(**changes: Any) -> pgpoll.Connection:
        how = sane.parameters(proxy, {"connect_timeout": patience} | changes)
        made.append(await pgpoll.connect(**how))
        return made[0]

    try:
        async with asyncio.timeout(30):
            raised = [each for each in await FLOWS[name](connect, patience) if each is not None]
    except pgpoll.Error as error:
        raised = [error]
    for each in raised:
        closed = isinstance(each, pgpoll.InterfaceError) and made and made[0].closed  # before it was asked
        assert isinstance(each, pgpoll.OperationalError) or closed, repr(each)
        sane.examine(each)
    for conn in made:
        if faults.end in ("cut", "reset") and proxy.ended_at is not None:
            await sane.until(lambda conn=conn: conn.closed, 2)  # type: ignore[misc]
            with sane.raises(pgpoll.InterfaceError):
                await conn.execute("select 1")
        conn.terminate()
        assert conn.closed
    if faults.end in ("cut", "reset"):
        assert raised == [] or proxy.ended_at is not None, f"{raised}, and the proxy has done nothing"
        assert not any(isinstance(each, pgpoll.QueryTimeout) for each in raised), raised
    proxy.close()
    sane.proxies.remove(proxy)
    return proxy


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FLOWS)
async def test_f01_f02_f03_at_every_byte(
    assert_sane: Sanity, server: _server.Server, name: str, record_property: Callable[[str, object], None]
) -> None:
    assert_sane.dsn = server.dsn
    assert_sane.blocking_allowed = True  # a dozen cases at once, each with its SCRAM and its proxy
    whole = await play(assert_sane, name, Faults())
    assert min(whole.streams.values()) > 50
    ends: tuple[End, ...] = ("cut", "reset", "stall")
    streams: tuple[Stream, ...] = ("server", "client")
    start = list(FLOWS).index(name) * 7 % STRIDE  # not the same offsets of the start-up in each flow
    cases = [
        Faults(end=end, at=at, stream=stream)
        for shift, end in enumerate(ends)
        for stream in streams
        for at in range((start + shift * 5) % STRIDE, whole.streams[stream] - TERMINATE, STRIDE)
    ]
    todo = iter(cases)
    reached = 0

    async def work() -> None:
        nonlocal reached
        for faults in todo:
            try:
                proxy = await play(assert_sane, name, faults)
                reached += proxy.ended_at is not None
            except BaseException as error:
                error.add_note(f"{name}, {faults}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    # Where a query is cancelled it depends on the moment how much the server says.
    assert reached >= len(cases) * (0.6 if name == "cancelled" else 0.97), f"{reached} of {len(cases)} cases"
    record_property("cases", len(cases))
    print(f"{name}: {len(cases)} cases")
