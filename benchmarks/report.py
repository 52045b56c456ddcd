"""What a run prints and keeps: the progress bar, the table, the JSON file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hold import Verdict
from measure import Measured, Outcome


class Progress:
    """A progress bar on stderr: redrawn in place on a terminal, one line a case elsewhere."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done, self._start, self._label = max(steps, 1), 0, time.monotonic(), ""
        self._terminal = sys.stderr.isatty()

    def case(self, label: str) -> None:
        """Begin another case."""
        self._label = label
        if not self._terminal:
            self._write(f"{self._head()} {label}\n")

    def step(self, contender: str) -> None:
        """One contender's turn in a round begins."""
        if self._terminal:
            self._write(f"\r\x1b[K{self._head()} {self._label}, {contender}")
        self._done += 1

    def end(self) -> None:
        """Clear the bar."""
        if self._terminal:
            self._write("\r\x1b[K")

    def _head(self) -> str:
        share = min(self._done / self._steps, 1.0)
        filled = round(share * 24)
        seconds = int(time.monotonic() - self._start)
        return f"[{'#' * filled}{'.' * (24 - filled)}] {share:4.0%} {seconds // 60}:{seconds % 60:02}"

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The whole run in lines: a block for each variant, a line for each contender."""
    text: list[str] = []
    case = ""
    for outcome in outcomes:
        if outcome.variant.case.id != case:
            case = outcome.variant.case.id
            text += ["", f"{case}: {outcome.variant.case.title}"]
            text.append(_memory_head() if outcome.variant.case.kind == "memory" else _head(outcome.variant.case.base))
        text += [_line(outcome, measured) for measured in outcome.measured]
    return text


def _head(base: str) -> str:
    return (
        f"  {'loop':<8}{'placed':<7}{'driver':<9}{'wall/op':>10}{'CPU/op':>10}"
        f"{'wall ratio':>12}{'(lowest - highest)':>20}{'CPU ratio':>11}   ratios: {base} = 1, more is better"
    )


def _memory_head() -> str:
    return f"  {'driver':<9}{'held, bytes a row':>18}{'peak, bytes a row':>19}"


def _line(outcome: Outcome, measured: Measured) -> str:
    variant = outcome.variant
    loop = "-" if variant.loop == "none" else variant.loop
    start = f"  {loop:<8}{outcome.placement:<7}{measured.contender:<9}"
    if variant.case.kind == "memory":
        start = f"  {measured.contender:<9}"
    if measured.error is not None:
        return f"{start}  FAILED: {measured.error}"
    if measured.bytes_a_row is not None and measured.peak_bytes_a_row is not None:
        return f"{start}{measured.bytes_a_row:>18.1f}{measured.peak_bytes_a_row:>19.1f}"
    ratios = outcome.ratios(measured.contender)
    wall, cpu = outcome.ratio(measured.contender), outcome.ratio(measured.contender, "cpu")
    if wall is None or cpu is None:
        return f"{start}{duration(measured.wall()):>10}{duration(measured.cpu()):>10}   no base to compare with"
    spread = f"({min(ratios):.2f} - {max(ratios):.2f})"
    return (
        f"{start}{duration(measured.wall()):>10}{duration(measured.cpu()):>10}{wall:>11.2f}x{spread:>20}{cpu:>10.2f}x"
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds:.2f} s"


def environment(versions: dict[str, str], server: str) -> dict[str, Any]:
    """Versions and hardware, as they matter to the figures."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    except OSError:
        cpu = "unknown"
    uvloop = "missing"
    if any(found.name == "uvloop" for found in importlib.metadata.distributions()):
        uvloop = importlib.metadata.version("uvloop")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "server": server,
        "uvloop": uvloop,
        "drivers": versions,
    }


def write_json(
    path: Path, head: dict[str, Any], outcomes: Sequence[Outcome], verdicts: Sequence[Verdict], options: dict[str, Any]
) -> None:
    """Keep everything: each round of each contender, the ratios, and the verdicts."""
    document = {
        "environment": head,
        "options": options,
        "cases": [_outcome(outcome) for outcome in outcomes],
        "figures": [
            {**dataclasses.asdict(v.figure), "measured": v.measured, "verdict": v.word, "why": v.why} for v in verdicts
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _outcome(outcome: Outcome) -> dict[str, Any]:
    variant = outcome.variant
    contenders = {}
    for measured in outcome.measured:
        contenders[measured.contender] = {
            "error": measured.error,
            "bytes_a_row": measured.bytes_a_row,
            "peak_bytes_a_row": measured.peak_bytes_a_row,
            "wall_ratio": outcome.ratio(measured.contender) if measured.samples else None,
            "cpu_ratio": outcome.ratio(measured.contender, "cpu") if measured.samples else None,
            "rounds": [dataclasses.asdict(sample) for sample in measured.samples],
        }
    return {
        "case": variant.case.id,
        "title": variant.case.title,
        "sql": variant.case.sql,
        "loop": variant.loop,
        "placement_asked": variant.placement,
        "placement": outcome.placement,
        "base": variant.case.base,
        "contenders": contenders,
    }
