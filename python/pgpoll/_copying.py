"""COPY FROM STDIN, in both faces: the flows.

    copy_in        from a source of bytes, fed by slices
    copy_records   from records, in the binary format, of a table's columns

A COPY owns its connection while it lasts (a Hold): whoever is inside of it, its own source for instance, can't use the
connection; all others wait.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pgpoll import core, errors
from pgpoll._copy_sources import SLICE, chunks, records
from pgpoll._flows import END, Flow, Item, News, Sent, answered, check_callback, started
from pgpoll._turns import caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pgpoll._loop import Driver as LoopDriver
    from pgpoll._threads import Driver as ThreadDriver
    from pgpoll._turns import Block, Hold

    Driver: TypeAlias = LoopDriver | ThreadDriver
    Progress = Callable[[int | None, int], object]


def copy_in(
    driver: Driver, via: Block | None, sql: str, source: Any, progress: Progress | None, *, asynchronous: bool
) -> Flow[core.Result]:
    """COPY FROM STDIN: its Result."""
    check_callback("on_progress", progress)
    hold = driver.hold("COPY", partial(driver.core.start_copy_in, sql), via, caller())
    return (yield from _fed(driver, hold, partial(chunks, source, asynchronous=asynchronous), progress))


def copy_records(
    driver: Driver,
    via: Block | None,
    relation: tuple[str | None, str],
    columns: Iterable[str] | None,
    source: Any,
    progress: Progress | None,
    *,
    asynchronous: bool,
) -> Flow[core.Result]:
    """Records into a table, in the binary format: its Result."""
    check_callback("on_progress", progress)
    schema, table = relation
    name = quoted(table, "table")
    if schema is not None:
        name = f"{quoted(schema, 'schema')}.{name}"
    wanted = None if columns is None else _names(columns)
    request = driver.turn(partial(driver.core.start_execute, _COLUMNS_OF, (name,)), via)
    try:
        rows = yield from answered(driver.blocks, request)
    except (errors.UndefinedTable, errors.InvalidSchemaName) as error:
        _explain(error, table, schema)
        raise
    found = _Columns(rows, name, wanted)
    where = f" ({', '.join(quoted(each, 'a column') for each in found.names)})" if found.names else ""
    sql = f"COPY {name}{where} FROM STDIN (FORMAT binary)"
    encoder = partial(_encoder, found)
    hold = driver.hold("COPY", partial(driver.core.start_copy_in, sql), via, caller())
    return (yield from _fed(driver, hold, partial(records, source, encoder, asynchronous=asynchronous), progress))


def _explain(error: errors.Error, table: str, schema: str | None) -> None:
    """Why there may be no such table, for those who expect a name to be parsed as in SQL."""
    if schema is None and "." in table:
        error.add_note(f"{table!r} is one identifier: pass the schema's name as schema=")
        return
    for name in (table,) if schema is None else (schema, table):
        if '"' in name:
            error.add_note(f"{name!r} is taken to the letter, quotes included")
        elif name != name.lower():
            error.add_note(f"{name!r} is taken to the letter: without quotes it would be {name.lower()!r}")


def _fed(driver: Driver, hold: Hold, open_source: Callable[[], Any], progress: Progress | None) -> Flow[core.Result]:
    source = open_source()
    hold.block.within = True
    operation = yield from started(driver.blocks, hold)
    hold.block.carry()
    try:
        yield from _feed(operation, source, progress)
        while not operation.done():
            yield News(operation)
    except BaseException:
        driver.drop(hold.block)
        raise
    finally:
        hold.block.drop()
    driver.blocks.settle()
    result: core.Result = operation.result()
    return result


def _feed(operation: core.Operation[Any], source: Any, progress: Progress | None) -> Flow[None]:
    """All of the source, as fast as the server takes it. Where the server fails there is no more; see the result."""
    while True:
        while not operation.feeds:
            if operation.stopped:
                operation.finish_feed()  # has been looked at
                return
            yield News(operation)
        try:
            data = yield Item(source)
            if data is END:
                operation.finish_feed()
                return
            operation.feed(data)
            if progress is not None:
                progress(getattr(source, "count", None), operation.copied)
        except Exception as error:
            operation.fail_feed(f"{type(error).__name__} in the client")
            while not operation.done():
                yield News(operation)
            raise
        if len(data) < SLICE:  # a slow source; else the operation is full before long
            yield Sent(operation)


# The columns of a table that can be written, or that can't for being generated; domains as what they are made of.
_COLUMNS_OF = """
with recursive c(attnum, attname, generated, declared, typid) as (
  select attnum, attname, attgenerated <> '', atttypid, atttypid
    from pg_catalog.pg_attribute
   where attrelid = $1::text::pg_catalog.regclass and attnum > 0 and not attisdropped
  union all
  select c.attnum, c.attname, c.generated, c.declared, t.typbasetype
    from c join pg_catalog.pg_type t on t.oid = c.typid where t.typtype = 'd'
)
select c.attname, t.oid, pg_catalog.format_type(c.declared, null), c.generated, t.typtype = 'e' or p.proname in
       ('textrecv', 'varcharrecv', 'bpcharrecv', 'namerecv', 'citextrecv', 'xml_recv')
  from c
  join pg_catalog.pg_type t on t.oid = c.typid
  join pg_catalog.pg_proc p on p.oid = t.typreceive
 where t.typtype <> 'd'
 order by c.attnum
""".strip()


class _Columns:
    """The columns to write: names, type OIDs and the types' names."""

    def __init__(self, rows: Iterable[Any], table: str, wanted: tuple[str, ...] | None) -> None:
        found = {row[0]: row for row in rows}
        if wanted is None:
            wanted = tuple(name for name, row in found.items() if not row[3])
        for name in wanted:
            if (row := found.get(name)) is None:
                raise errors.InterfaceError(f"{table} has no column {name!r}")
            if row[3]:
                raise errors.InterfaceError(f"column {name!r} of {table} is generated: it can't be written")
            if not row[4] and not core._binary(row[1]):
                raise errors.InterfaceError(
                    f"column {name!r} of {table} is of type {row[2]}, which the driver can't write in binary: "
                    "leave it out (columns=), or use copy_in() with text or CSV"
                )
        self.names = wanted
        self.oids = tuple(found[name][1] for name in wanted)
        self.types = tuple(found[name][2] for name in wanted)


def _encoder(columns: _Columns, source: Any) -> core._RecordEncoder:
    return core._RecordEncoder(source, columns.names, columns.oids, columns.types)


def _names(columns: Iterable[str]) -> tuple[str, ...]:
    if isinstance(columns, str):
        raise errors.InterfaceError("columns is a str: pass a sequence of names")
    try:
        names = tuple(columns)
    except TypeError as error:
        raise errors.InterfaceError(f"columns must be a sequence of names, not {type(columns).__name__}") from error
    if not names:
        raise errors.InterfaceError("columns is empty: leave it out for all that can be written")
    return names


def quoted(name: object, what: str) -> str:
    if not isinstance(name, str):
        raise errors.InterfaceError(f"{what} must be a str, not {type(name).__name__}")
    if "\0" in name:
        raise errors.InterfaceError(f"{what} {name!r} has a NUL character")
    return '"' + name.replace('"', '""') + '"'
