"""The examples of README.md and docs/ run as they are written."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import pgpoll
from server import Server

ROOT = Path(__file__).parent.parent

TABLES = """
    create temp table item (id int4 primary key, name text, price int4);
    insert into item select i, 'n' || i, i % 20 from generate_series(1, 999) as t(i);
    create temp table account (id int4 primary key, balance int4);
    insert into account values (1, 100), (2, 0);
    create temp table t (id int4, name text);
    create temp table orders (id int4, customer text);
    create temp table lines (order_id int4, item_id int4);
"""
FOREVER = "print(each.channel, each.payload, each.pid)"  # ends by itself nowhere


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


async def run(code: str, names: dict[str, Any]) -> None:
    code = code.replace(FOREVER, f"{FOREVER}; break")
    exec("async def example():\n" + textwrap.indent(code, "    "), names)
    await names["example"]()


@pytest.mark.parametrize("name", ["streaming", "copy", "listening", "batches"])
async def test_page(dsn: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("id,name\n1,one\n")

    async def send(_: str) -> None:
        pass

    found = blocks(f"docs/{name}.md")
    assert found
    async with pgpoll.connect(dsn) as conn:
        await conn.executescript(TABLES)
        for code in found:
            names = {"conn": conn, "pathlib": pathlib, "send": send, "write": list, "rows": [(1, "a"), (2, "b")]}
            await run(code, names)


@contextlib.asynccontextmanager
async def schema(dsn: str) -> AsyncIterator[tuple[pgpoll.Connection, str]]:
    """A connection with tables that last in a schema of its own, and the schema's name."""
    name = f"docs_{os.getpid()}"
    async with pgpoll.connect(dsn, search_path=name) as conn:
        await conn.execute(f"create schema {name}")
        try:
            await conn.executescript(TABLES.replace("temp ", ""))
            yield conn, name
        finally:
            await conn.execute(f"drop schema {name} cascade")


async def test_transactions(server: Server) -> None:
    async with schema(server.dsn) as (conn, _):
        for code in blocks("docs/transactions.md"):
            await run(code, {"conn": conn})
        assert await conn.prepared_transactions() == []
        assert await conn.fetchval("select sum(balance) from account") == 100


async def test_readme(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = blocks("README.md")[:2]
    async with schema(dsn) as (conn, name):
        where = f'{dsn!r}, search_path="{name}"'
        first = first.replace('"postgresql://ann@localhost/shop"', where).replace("asyncio.run(main())", "await main()")
        second = second.replace('"host=localhost dbname=shop user=ann"', where)
        await run(first, {})
        assert "item_pkey" in capsys.readouterr().out
        await conn.execute("delete from item where id = 9")
        await run(second, {"pgpoll": pgpoll})
        assert capsys.readouterr().out.split() == ["998"]
