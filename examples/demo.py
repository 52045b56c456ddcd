"""A guided run of pgpoll against a real server: PGPOLL_DSN, or libpq's PG* variables.

    scripts/demo                       builds everything and runs this against a private PostgreSQL
    python examples/demo.py            where pgpoll is installed and a server runs

Every paragraph of the output is one thing the driver does, with what really came back.
"""

import asyncio
import os
import random
import textwrap
import time

import pgpoll
import poll_select
from pgpoll import core

DSN = os.environ.get("PGPOLL_DSN")
TASKS = 1000


def tell(title: str, *lines: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")
    for line in lines:
        print(textwrap.fill(line, width=100, subsequent_indent="  "))


async def connect_and_execute() -> None:
    async with pgpoll.connect(DSN, application_name="pgpoll demo") as conn:
        tell(
            "1. Connect and execute",
            f"Connected to PostgreSQL {conn.server_parameters['server_version']}, backend process {conn.backend_pid}.",
        )
        result = await conn.execute(
            "select n as number, sqrt(n::float8) as root, now() as at from generate_series(1, $1::int4) as t(n)", 3
        )
        columns = ", ".join(f"{column.name} {column.type_name}" for column in result.columns)
        print(f"execute() gave {result.tag!r} with the columns {columns}:")
        for row in result:
            print(f"  {row.number}  {row.root:.6f}  {row.at:%Y-%m-%d %H:%M:%S} UTC")
        upper = await conn.fetchval("select upper($1::text)", "many tasks, one connection")
        print(f"fetchval() with a parameter: {upper}")


async def many_tasks() -> None:
    async with pgpoll.connect(DSN) as conn:
        began = time.perf_counter()
        answers = await asyncio.gather(*(conn.fetchval("select $1::int4 * 2", n) for n in range(TASKS)))
        seconds = time.perf_counter() - began
        right = sum(answer == n * 2 for n, answer in enumerate(answers))
        tell(
            f"2. {TASKS:,} tasks on one connection",
            f"{right:,} of {TASKS:,} tasks got their own right answer in {seconds * 1000:.0f} ms, through one socket"
            " and one server process: requests were pipelined, replies came in order.",
        )


async def an_error_beside_them() -> None:
    async with pgpoll.connect(DSN) as conn:
        answers = await asyncio.gather(
            *(conn.fetchval("select 100 / $1::int4", n % 5) for n in range(50)), return_exceptions=True
        )
        errors = [answer for answer in answers if isinstance(answer, pgpoll.errors.DivisionByZero)]
        tell(
            "3. An error belongs to its own task",
            f"Of 50 divisions sent together, {len(errors)} were by zero and raised"
            f" {type(errors[0]).__name__} (SQLSTATE {errors[0].sqlstate}); the other {50 - len(errors)} have their"
            " results.",
        )


async def a_cancelled_task() -> None:
    async with pgpoll.connect(DSN) as conn:
        sleeper = asyncio.create_task(conn.execute("select pg_sleep(60)"))
        await asyncio.sleep(0.1)
        began = time.perf_counter()
        sleeper.cancel()
        try:
            await sleeper
        except asyncio.CancelledError:
            told = time.perf_counter() - began
        after = await conn.fetchval("select 'still here'")
        free = time.perf_counter() - began
        tell(
            "4. Cancelling a task is safe",
            f"A task in pg_sleep(60) was cancelled: it was told after {told * 1000:.1f} ms, and the server stopped the"
            f" query, so the same connection answered {after!r} {free * 1000:.0f} ms after the cancel.",
        )

        tasks = [asyncio.create_task(conn.fetchval("select $1::int4", n)) for n in range(TASKS)]
        victims = set(random.Random(1).sample(range(TASKS), TASKS // 3))
        await asyncio.sleep(0)
        for n in victims:
            tasks[n].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        right = sum(answers[n] == n for n in range(TASKS) if n not in victims)
        print(
            f"Then {len(victims)} of {TASKS:,} tasks on it were cancelled in mid-flight:"
            f" all {right} others got their own answers."
        )


async def a_transaction() -> None:
    async with pgpoll.connect(DSN) as conn:
        await conn.execute("create temp table account (owner text primary key, balance int4 check (balance >= 0))")
        await conn.execute("insert into account values ('ann', 100), ('bob', 0)")

        async with conn.transaction():
            await conn.execute("update account set balance = balance - 30 where owner = 'ann'")
            await conn.execute("update account set balance = balance + 30 where owner = 'bob'")
            try:
                async with conn.transaction():  # a savepoint
                    await conn.execute("update account set balance = balance - 500 where owner = 'ann'")
            except pgpoll.errors.CheckViolation as error:
                refused = error
        balances = await conn.fetch("select owner, balance from account order by owner")
        tell(
            "5. A transaction with a savepoint in it",
            f"The inner block broke {refused.constraint_name} and was rolled back alone; the outer one was committed:"
            f" {', '.join(f'{row.owner} has {row.balance}' for row in balances)}.",
        )


def blocking() -> None:
    with pgpoll.sync.connect(DSN) as conn:
        rows = conn.fetch("select n, n * n as square from generate_series(1, 5) as t(n)")
        with conn.transaction():
            isolation = conn.fetchval("show transaction_isolation")
        squares = ", ".join(f"{n}^2={square}" for n, square in rows)
        tell(
            "6. The same verbs without await",
            f"pgpoll.sync, which needs no event loop, fetched {squares}; its transaction was {isolation}.",
        )


def bare_poll_loop() -> None:
    tell(
        "7. No framework at all",
        "Everything above stands on a poll API that any loop can drive. This is examples/poll_select.py, a session on"
        f" select.select (flags: WAIT_READ={core.WAIT_READ}, WAIT_WRITE={core.WAIT_WRITE}, READY={core.READY},"
        f" IDLE={core.IDLE}, CLOSED={core.CLOSED}):",
    )
    poll_select.main()


async def asynchronous() -> None:
    await connect_and_execute()
    await many_tasks()
    await an_error_beside_them()
    await a_cancelled_task()
    await a_transaction()


def main() -> None:
    print("pgpoll: a PostgreSQL driver with a poll API. What follows really happens, against a real server.")
    asyncio.run(asynchronous())
    blocking()
    bare_poll_loop()
    print("\nThat was all of it. README.md shows the API, scripts/test runs every check.")


if __name__ == "__main__":
    main()
