"""The run as a picture: one line a variant, one mark a driver, wall clock and client CPU side by side."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import Outcome

STYLES = {
    "pgpoll": ("#c1272d", "o"),
    "asyncpg": ("#555555", "|"),
    "psycopg": ("#1f6fb4", "s"),
    "psqlpy": ("#d98e04", "^"),
}


def write_plot(path: Path, outcomes: Sequence[Outcome], caption: str) -> None:
    """Draw the ratios to each case's base as an SVG (or what the suffix says). ImportError without matplotlib."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pgpoll"
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    drawn = [o for o in outcomes if o.variant.case.kind != "memory" and any(m.samples for m in o.measured)]
    if not drawn:
        raise ValueError("nothing was measured that could be drawn")
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 1.8 + 0.34 * len(drawn)), sharey=True)
    for axis, what, title in zip(axes, ("wall", "cpu"), ("wall clock", "client CPU"), strict=True):
        _panel(axis, drawn, what)
        axis.set_title(f"{title}: times asyncpg's speed (1x), right is better", fontsize=10)
    names = {handle.get_label(): handle for axis in axes for handle in axis.get_legend_handles_labels()[0]}
    axes[0].set_yticks(range(len(drawn)), [_label(outcome) for outcome in drawn], fontsize=8)
    axes[0].invert_yaxis()
    rows = figure.get_figheight()
    figure.legend(names.values(), names.keys(), loc="upper center", ncols=4, frameon=False)
    figure.text(0.01, 0.1 / rows, caption, fontsize=7, color="#555555", va="bottom")
    figure.tight_layout(rect=(0, 0.35 / rows, 1, 1 - 0.3 / rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _panel(axis: Any, outcomes: Sequence[Outcome], what: str) -> None:
    ticker: Any = importlib.import_module("matplotlib.ticker")
    seen: set[str] = set()
    for place, outcome in enumerate(outcomes):
        for measured in outcome.measured:
            values = outcome.ratios(measured.contender, what)
            middle = outcome.ratio(measured.contender, what)
            if middle is None or measured.contender == outcome.variant.case.base:
                continue
            color, mark = STYLES.get(measured.contender, ("#333333", "x"))
            label = measured.contender if measured.contender not in seen else None
            seen.add(measured.contender)
            axis.plot([min(values), max(values)], [place, place], color=color, alpha=0.35, linewidth=2)
            axis.plot([middle], [place], color=color, marker=mark, linestyle="none", label=label)
            if measured.contender == "pgpoll":
                axis.annotate(
                    f"{middle:.1f}x", (middle, place), (0, 5), textcoords="offset points", ha="center", fontsize=7
                )
    axis.axvline(1, color="#555555", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.grid(axis="both", color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)


def _label(outcome: Outcome) -> str:
    variant = outcome.variant
    parts = [variant.case.id, *([] if variant.loop == "none" else [variant.loop]), outcome.placement]
    base = "" if variant.case.base == "asyncpg" else f" (1x is {variant.case.base})"
    return ", ".join(parts) + base
