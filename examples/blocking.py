"""The blocking face in a script: rows in bounded memory, COPY, many rows at once, batches, notifications, retries.

    PGPOLL_DSN=postgresql://postgres@127.0.0.1/postgres python examples/blocking.py

Every verb has its twin with `await` in the asyncio face; see examples/demo.py for that one.
"""

from __future__ import annotations

import io
import os
from typing import Any

import pgpoll


def rows_in_bounded_memory(conn: pgpoll.sync.Connection) -> None:
    """A stream holds so many rows as it prefetches, however many there are."""
    with conn.stream("select i, i::int8 * i as square from generate_series(1, 100000) as t(i)", prefetch=500) as rows:
        total = sum(row.square for row in rows)
    print(f"streamed {rows.rowcount} rows, the squares add up to {total}")


def into_a_table_and_out(conn: pgpoll.sync.Connection) -> None:
    """Records in the binary format, bytes in any other; the source may be an iterator that is never all in memory."""
    conn.execute("create temp table measured (id int4 primary key, name text, value float8)")
    copied = conn.copy_records("measured", ((n, f"sensor {n % 10}", n / 7) for n in range(10_000)))
    csv = io.BytesIO()
    conn.copy_out("copy (select * from measured where id < 3 order by id) to stdout (format csv, header)", csv)
    print(f"copied {copied.rowcount} records in; the first ones as CSV:\n{csv.getvalue().decode().rstrip()}")


def many_at_once(conn: pgpoll.sync.Connection) -> None:
    """One statement for many rows, or many statements: all or none of them, in one flight as a rule."""
    inserted = conn.executemany(
        "insert into measured values ($1, $2, $3)", ((n, "late", 0.5) for n in range(10_000, 10_100))
    )
    with conn.batch() as batch:
        count = batch.fetchval("select count(*) from measured")
        highest = batch.fetchval("select max(value) from measured where name = $1", "sensor 3")
    print(f"inserted {inserted.rowcount} more, now {count.result()}; the highest of sensor 3 is {highest.result():.3f}")
    try:
        with conn.batch() as batch:
            batch.execute("delete from measured")
            batch.execute("insert into measured values (1, 'one', 1), (1, 'twice', 2)")
    except pgpoll.errors.UniqueViolation as error:
        left = conn.fetchval("select count(*) from measured")
        print(f"a batch that failed at item {error.item} took nothing away: {left}")


def notifications(conn: pgpoll.sync.Connection) -> None:
    """They come while the connection is used for other requests."""
    with conn.listen("news") as listener:
        conn.execute("select pg_notify('news', 'hello')")
        note = listener.next(timeout=5)
        assert note is not None
        print(
            f"notified on {note.channel!r} by {note.pid}: {note.payload!r}; nothing more: {listener.next(timeout=0.05)}"
        )


def again_where_that_helps(conn: pgpoll.sync.Connection) -> None:
    """A transaction that is run again after a serialization failure or a deadlock."""

    def raise_all(tx: Any) -> int:
        tx.execute("update measured set value = value + 1 where id < 10")
        return len(tx.fetch("select id from measured where id < 10"))

    print(f"raised {conn.run_transaction(raise_all, isolation='serializable')} values in a transaction")


def main() -> None:
    with pgpoll.sync.connect(os.environ.get("PGPOLL_DSN")) as conn:
        rows_in_bounded_memory(conn)
        into_a_table_and_out(conn)
        many_at_once(conn)
        notifications(conn)
        again_where_that_helps(conn)
        statement = conn.prepare("select * from measured where id = $1")
        print("planned as:", statement.explain(1)[0]["Plan"]["Node Type"])


if __name__ == "__main__":
    main()
