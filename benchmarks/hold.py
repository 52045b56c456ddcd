"""The project's own performance figures, and whether a run reached, held or missed each.

`hold` is the figure that pgpoll must not fall below, `reached` what a prototype without features once reached. Both are
ratios to the case's base (above 1 is better), but for memory, which is in bytes a row (less is better).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cases import CASES, Variant
from measure import Outcome

What = Literal["wall", "cpu", "memory"]


@dataclass(frozen=True)
class Figure:
    """One figure to hold."""

    case: str
    loop: str
    placement: str
    what: What
    hold: float
    reached: float


@dataclass(frozen=True)
class Verdict:
    """A figure beside what this run measured; `measured` is None where the run has no such value."""

    figure: Figure
    measured: float | None
    why: str = ""

    @property
    def word(self) -> str:
        """One of "reached", "held", "NOT HELD", "not measured"."""
        if self.measured is None:
            return "not measured"
        sign = -1 if self.figure.what == "memory" else 1
        if sign * self.measured >= sign * self.figure.reached:
            return "reached"
        return "held" if sign * self.measured >= sign * self.figure.hold else "NOT HELD"


FIGURES: tuple[Figure, ...] = (
    Figure("one-task", "asyncio", "SAME", "wall", 2.3, 3.3),
    Figure("one-task", "uvloop", "SAME", "wall", 1.9, 2.5),
    Figure("one-task", "asyncio", "CROSS", "wall", 1.25, 1.5),
    Figure("one-task", "uvloop", "CROSS", "wall", 1.15, 1.3),
    Figure("sync", "none", "SAME", "wall", 2.8, 3.6),
    Figure("sync", "none", "CROSS", "wall", 1.25, 1.5),
    Figure("tasks", "asyncio", "SAME", "wall", 6.0, 11.0),
    Figure("tasks", "asyncio", "CROSS", "wall", 6.0, 11.0),
    Figure("tasks", "uvloop", "SAME", "wall", 3.0, 5.7),
    Figure("tasks", "uvloop", "CROSS", "wall", 3.0, 5.7),
    Figure("rows-10k", "asyncio", "CROSS", "wall", 2.0, 3.1),
    Figure("rows-10k", "asyncio", "CROSS", "cpu", 4.0, 4.9),
    Figure("rows-wide", "asyncio", "CROSS", "wall", 1.05, 1.1),
    Figure("rows-wide", "asyncio", "CROSS", "cpu", 1.5, 1.7),
    Figure("rows-1m", "asyncio", "CROSS", "wall", 3.5, 4.7),
    Figure("stream-1m", "asyncio", "CROSS", "wall", 1.5, 3.0),
    Figure("memory", "asyncio", "FREE", "memory", 24.0, 15.0),
)


def judge(outcomes: Sequence[Outcome], variants: Sequence[Variant]) -> list[Verdict]:
    """A verdict on every figure whose variant was to run."""
    chosen = {(v.case.id, v.loop, v.placement) for v in variants}
    verdicts = []
    for figure in FIGURES:
        key = (figure.case, figure.loop, figure.placement)
        if key not in chosen:
            continue
        outcome = next((o for o in outcomes if (o.variant.case.id, o.variant.loop, o.variant.placement) == key), None)
        verdicts.append(_judge(figure, outcome))
    return verdicts


def _judge(figure: Figure, outcome: Outcome | None) -> Verdict:
    if outcome is None:
        return Verdict(figure, None, "did not run")
    if outcome.placement != figure.placement:
        return Verdict(figure, None, f"placement was {outcome.placement}")
    mine = outcome.of("pgpoll")
    if figure.what == "memory":
        return Verdict(figure, mine.bytes_a_row if mine else None, "" if mine else "pgpoll has no result")
    value = outcome.ratio("pgpoll", figure.what)
    return Verdict(figure, value, "" if value is not None else "pgpoll or its base has no result")


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """The verdicts as a table, one line each under a head."""
    bases = {case.id: case.base for case in CASES}
    text = [f"{'figure':<40}{'hold':>8}{'reached':>9}{'now':>8}  verdict"]
    for verdict in verdicts:
        figure, unit = verdict.figure, "" if verdict.figure.what == "memory" else "x"
        loop = "" if figure.loop == "none" else f"{figure.loop}, "
        name = f"{figure.case}, {loop}{figure.placement}, {figure.what}"
        if figure.what == "memory":
            name = "memory, bytes a row (less is better)"
        elif bases[figure.case] != "asyncpg":
            name += f" / {bases[figure.case]}"
        now = "-" if verdict.measured is None else f"{verdict.measured:.2f}{unit}"
        hold, reached = f"{figure.hold:g}{unit}", f"{figure.reached:g}{unit}"
        text.append(
            f"{name:<40}{hold:>8}{reached:>9}{now:>8}  {verdict.word}{f' ({verdict.why})' if verdict.why else ''}"
        )
    return text
