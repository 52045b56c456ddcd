"""What tests of transactions and batches share: who asks, what is there, a COMMIT that takes long."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pgpoll


def stranger(verb: Any) -> asyncio.Task[Any]:
    """A task that is inside of no block."""
    return asyncio.create_task(verb, context=contextvars.Context())


async def count(conn: pgpoll.Connection) -> int:
    value: int = await conn.fetchval("select count(*) from t")
    return value


def slow_commit(seconds: float) -> str:
    """A script: a table `d`, and the COMMIT of who has inserted into it takes so long."""
    return (
        "create temp table d (i int4); create function pg_temp.slow() returns trigger language plpgsql as "
        f"$$ begin perform pg_sleep({seconds}); return null; end $$; create constraint trigger slow after insert on d "
        "deferrable initially deferred for each row execute function pg_temp.slow()"
    )
