"""A whole session on select.select alone: no event loop, no thread.

    PGPOLL_DSN=postgresql://postgres@127.0.0.1/postgres python examples/poll_select.py

`drive` is all that an event loop does for pgpoll: call poll(), look at what it wants, wait for that.
"""

import os
import select
from typing import Any

import pgpoll
from pgpoll import core


def drive(conn: core.Connection, operation: core.Operation) -> Any:
    """Runs one operation to its end and gives its result, or raises its error."""
    while not operation.done():
        wanted = conn.poll()
        if not operation.done():
            fd = [conn.fileno()]  # asked anew each time: it may change while connecting
            select.select(fd if wanted & core.WAIT_READ else [], fd if wanted & core.WAIT_WRITE else [], [])
    return operation.result()


def main() -> None:
    # Reads the DSN and looks names up, which may block; from here on nothing does but our own select().
    options = pgpoll.conninfo.resolve(os.environ.get("PGPOLL_DSN"))
    conn = core.Connection(options)
    drive(conn, conn.start_connect())
    print(f"connected to backend {conn.backend_pid}, PostgreSQL {conn.server_parameters['server_version']}")

    result = drive(
        conn, conn.start_execute("select i, i * i as square from generate_series(1, $1::int4) as t(i)", (4,))
    )
    for row in result:
        print(f"  {row.i} squared is {row.square}")

    try:
        drive(conn, conn.start_execute("select 1 / $1::int4", (0,)))
    except pgpoll.errors.DivisionByZero as error:
        print(f"an error is only its own request's: {error.sqlstate} {error.message}")

    # One at a time is the default: a second request is refused and changes nothing. See poll_selectors.py for many.
    sleeping = conn.start_execute("select pg_sleep(0.1)")
    try:
        conn.start_execute("select 2")
    except pgpoll.errors.BusyError as error:
        print(f"a second one meanwhile: {error}")
    drive(conn, sleeping)

    drive(conn, conn.start_close())
    print("closed")


if __name__ == "__main__":
    main()
