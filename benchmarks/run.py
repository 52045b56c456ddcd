#!/usr/bin/env python3
"""pgpoll beside asyncpg, psycopg and psqlpy: round trips, many tasks, rows, the blocking face, memory.

    python benchmarks/run.py                     # all cases, under 5 minutes
    python benchmarks/run.py --quick             # a rough look, under a minute
    python benchmarks/run.py --cases one-task,sync --rounds 15
    python benchmarks/run.py --dsn "postgresql://user@/db?host=/run/postgresql"

All drivers run in this one process in interleaved rounds; ratios are medians of per-round ratios. Placement decides
much, so each figure names it: SAME is client and backend on one CPU, CROSS is each on its own, FREE is whatever the
scheduler chose (where the backend could not be pinned; such figures cannot be compared between runs). Without --dsn it
starts its own PostgreSQL, reached over a Unix socket. Every driver's rows are compared with the base's once.
Differences of less than about 20% in one run are noise.

Exit code 1: pgpoll failed a case or gave wrong values, or --hold was given and a figure was missed. 2: bad arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cases import CASES, Variant, variants
from contenders import ASYNC, SYNC, Contender, SyncContender
from database import database
from floor import Raw
from hold import judge, lines
from measure import Outcome, Settings, describe, run_async, run_sync
from memory import run_memory
from placement import Placer
from plot import write_plot
from report import Progress, environment, table, write_json

BUSY = 0.7
"""The load average above which a run says that it cannot be trusted."""


def main() -> int:
    options = arguments()
    versions, contenders, blocking = load(options.drivers)
    placer = Placer()
    uvloop = importlib.util.find_spec("uvloop") is not None
    if not uvloop:
        shout("uvloop is not installed: its half of the cases is left out (pip install uvloop)")
    if not placer.two_cpus:
        shout("only one CPU may be used: the CROSS placement is left out")
    names = options.cases.split(",") if options.cases else None
    try:
        chosen = variants(names, quick=options.quick, full=options.full, two_cpus=placer.two_cpus, uvloop=uvloop)
    except ValueError as error:
        shout(str(error))
        return 2
    rounds = options.rounds or (3 if options.quick else 15 if options.full else 9)
    load_before = os.getloadavg()[0]
    if load_before > BUSY:
        shout(
            f"the machine is busy (load average {load_before:.1f}): expect figures that do not repeat, CROSS above all"
        )
    with database(options.dsn) as dsn:
        placer.pin_client()
        settings = Settings(dsn, rounds, 0.05 if options.quick else 0.15)
        server = asyncio.run(server_version(contenders, dsn)) if contenders else "unknown"
        outcomes = run_all(chosen, contenders, blocking, settings, placer)
    if placer.refusal:
        shout(f"{placer.refusal}: figures named FREE cannot be compared between runs")
    head = environment(versions, server)
    verdicts = judge(outcomes, chosen)
    print_report(head, outcomes, rounds)
    print("\n" + "\n".join(["pgpoll's own figures:", *lines(verdicts)]) if verdicts else "")
    cpus = {"client_cpu": placer.client_cpu, "other_cpu": placer.other_cpu}
    kept = {
        **cpus,
        "rounds": rounds,
        "slice": settings.slice,
        "quick": options.quick,
        "full": options.full,
        "cases": names,
    }
    write_json(options.json, head, outcomes, verdicts, kept)
    print(f"\nevery round: {options.json}")
    try:
        drivers = ", ".join(f"{name} {version}" for name, version in versions.items())
        caption = (
            f"{drivers}, uvloop {head['uvloop']}, {head['server']}, Python {head['python']}; lines: all {rounds} rounds"
        )
        write_plot(options.plot, outcomes, caption)
        print(f"plot: {options.plot}")
    except (ImportError, ValueError) as error:
        shout(f"no plot: {error}")
    failed = [o.variant.label for o in outcomes for m in o.measured if m.contender == "pgpoll" and m.error is not None]
    if failed:
        shout(f"pgpoll failed in: {'; '.join(failed)}")
    fell = options.hold and ("pgpoll" not in versions or any(v.word in ("NOT HELD", "not measured") for v in verdicts))
    return 1 if failed or fell else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="3 short rounds, fewer cases: a look, not a result")
    kind.add_argument("--full", action="store_true", help="15 rounds, and rows in both placements")
    parser.add_argument("--cases", help=f"comma-separated: {', '.join(case.id for case in CASES)}")
    parser.add_argument("--drivers", help="comma-separated; a ratio needs its base (asyncpg; psycopg for sync)")
    parser.add_argument("--rounds", type=int, help="rounds of each case (default 9)")
    parser.add_argument(
        "--dsn", help="measure against this server; it writes temporary tables only (default: an own server)"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/latest.json"), help="default: %(default)s"
    )
    parser.add_argument("--plot", type=Path, default=Path("benchmarks/results/latest.svg"), help="default: %(default)s")
    parser.add_argument(
        "--hold", action="store_true", help="exit code 1 where a figure to hold is missed or not measured"
    )
    return parser.parse_args()


def load(wanted: str | None) -> tuple[dict[str, str], list[Contender], list[SyncContender]]:
    """Import every driver that is there; report loudly each that is not."""
    names = wanted.split(",") if wanted else [kind.name for kind in ASYNC]
    if unknown := set(names) - {kind.name for kind in ASYNC}:
        raise SystemExit(f"no such driver: {', '.join(sorted(unknown))}")
    versions: dict[str, str] = {}
    contenders: list[Contender] = []
    blocking: list[SyncContender] = []
    for contender in (kind() for kind in ASYNC if kind.name in names):
        try:
            versions[contender.name] = contender.load()
            contenders.append(contender)
        except Exception as error:
            shout(f"MISSING: {contender.name} is not measured: {describe(error)}")
    faces: list[type[SyncContender]] = [*(kind for kind in SYNC if kind.name in versions), Raw]
    for face in (kind() for kind in faces):
        try:
            face.load()
            blocking.append(face)
        except Exception as error:
            shout(f"MISSING: {face.name}'s blocking face is not measured: {describe(error)}")
    return versions, contenders, blocking


def run_all(
    chosen: Sequence[Variant],
    contenders: Sequence[Contender],
    blocking: Sequence[SyncContender],
    settings: Settings,
    placer: Placer,
) -> list[Outcome]:
    """Every variant in turn, under one progress bar."""
    progress = Progress(sum(steps(v, settings, len(contenders), len(blocking)) for v in chosen))
    outcomes = []
    for variant in chosen:
        progress.case(variant.label)
        if variant.case.kind == "sync":
            outcomes.append(run_sync(variant, blocking, settings, placer, progress.step))
        elif variant.case.kind == "memory":
            outcomes.append(run_memory(variant, contenders, settings, progress.step))
        else:
            taking_part = [each for each in contenders if each.streams or variant.case.kind != "stream"]
            outcomes.append(run_async(variant, taking_part, settings, placer, progress.step))
    progress.end()
    return outcomes


def steps(variant: Variant, settings: Settings, contenders: int, blocking: int) -> int:
    """How often the progress bar moves in a variant."""
    rounds = min(settings.rounds, variant.case.most_rounds or settings.rounds)
    return rounds * (blocking if variant.case.kind == "sync" else contenders)


async def server_version(contenders: Sequence[Contender], dsn: str) -> str:
    """The server's version text, asked through the first driver that can."""
    for contender in contenders:
        try:
            connection = await contender.connect(dsn)
            rows = await connection.fetch("select current_setting('server_version')")
            await connection.close()
            return f"PostgreSQL {connection.values(rows[0])[0]}"
        except Exception as error:
            shout(f"{contender.name} cannot reach the server: {describe(error)}")
    raise SystemExit("no driver reaches the server")


def print_report(head: dict[str, object], outcomes: Sequence[Outcome], rounds: int) -> None:
    """The table, with what was measured on what."""
    print(f"{head['server']}, Python {head['python']}, uvloop {head['uvloop']}, {head['cpus']} CPUs: {head['cpu']}")
    drivers = head["drivers"]
    if isinstance(drivers, dict):
        print("drivers: " + ", ".join(f"{name} {version}" for name, version in drivers.items()))
    print(f"medians of {rounds} interleaved rounds; ratios are medians of per-round ratios")
    print("\n".join(table(outcomes)))


def shout(text: str) -> None:
    """Say what the reader must not overlook."""
    print(f"*** {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
