"""f73: an error in the k-th of n pipelined requests, each with its own Sync, is that one's alone: all k <= n <= 20."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import pgpoll
from model import ModelServer
from peers import options
from pgpoll import core, errors
from script import error_of, plain

MOST = 20


class Pipeline:
    """A session and a model server; what is started leaves together."""

    def __init__(self) -> None:
        self.client = core.Session(options())
        self.server = ModelServer()
        self.client.start_connect()
        self.settle()

    def settle(self) -> None:
        """All that leaves is answered, message by message."""
        while self.leave() or self.server.busy:
            while self.server.busy:
                self.server.work()
            for message in self.server.answer:
                self.client.receive(message)
                self.client.pump()
            self.server.answer.clear()

    def leave(self) -> bytes:
        data = bytes(self.client.outbound())
        self.server.feed(data)
        return data

    def handed(self) -> Iterator[core.Operation]:
        while (done := self.client.next_completed()) is not None:
            yield done


@pytest.mark.parametrize("failure", ["fail parse", "fail bind", "fail execute", "fail late", "fail sync"])
@pytest.mark.parametrize("n", range(1, MOST + 1))
def test_f73_error_in_the_kth_of_n_pipelined_requests(n: int, failure: str) -> None:
    pipeline = Pipeline()
    client = pipeline.client
    known = [client.start_prepare("echo")]
    if failure != "fail parse":  # it is never known
        known.append(client.start_prepare(f"{failure} 7"))
    pipeline.settle()
    list(pipeline.handed())
    for k in range(n):
        started = [
            client.start_execute(f"{failure} 7") if i == k else client.start_execute("echo", (1000 * n + i,))
            for i in range(n)
        ]
        if failure != "fail parse":
            syncs = pipeline.leave().count(b"S\0\0\0\4")
            assert syncs == n, "they did not leave in one pipeline, each with its own Sync"
        pipeline.settle()
        assert list(pipeline.handed()) == started, "handed out in another order, or not once"
        for i, operation in enumerate(started):
            if i == k:
                error = error_of(operation)
                assert isinstance(error, errors.DatabaseError)
                assert (str(error), error.sqlstate) == (f"{failure} 7", "P0001")
            else:
                assert plain(operation.result()) == ([(1000 * n + i,)], "SELECT 1")


@pytest.fixture
async def conn(conn: pgpoll.Connection) -> pgpoll.Connection:
    await conn.execute("create temp table u (i int4 unique deferrable initially deferred)")
    await conn.execute("insert into u values (0)")
    return conn


WRONG = {
    "at Parse": ("selec $1::int4", "42601"),
    "at Bind": ("select $1::int4 / (1 / 0)", "22012"),  # folded while it is planned
    "amid rows": ("select 1 / (3 - i) from generate_series(1, $1::int4 + 9) i", "22012"),
    "at Sync": ("insert into u values ($1::int4 * 0)", "23505"),
}


@pytest.mark.parametrize("where", WRONG)
async def test_f73_error_in_the_kth_of_n_at_a_server(conn: pgpoll.Connection, where: str) -> None:
    wrong, sqlstate = WRONG[where]
    token = 0
    for n in range(1, MOST + 1):
        for k in range(n):
            token += n
            answers = await asyncio.gather(
                *(
                    conn.execute(wrong, token + i) if i == k else conn.fetchval("select $1::int4", token + i)
                    for i in range(n)
                ),
                return_exceptions=True,
            )
            error = answers.pop(k)
            assert isinstance(error, errors.DatabaseError)
            assert error.sqlstate == sqlstate
            assert answers == [token + i for i in range(n) if i != k]
    assert await conn.fetchval("select count(*) from u") == 1
