"""The picture of a claim: a row a case, a mark a competitor, a line at the limit."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import figures
from benchmarks.evidence.claim import Case, Claim, quartiles

MARKS = ("o", "s", "D", "^", "v", "P", "X")
COLOURS = (3, 1, 2, 0, *range(4, 18))  # of `figures.style_of`


def draw(claim: Claim, cases: Sequence[Case], competitors: Sequence[str]) -> Figure:
    """Medians with quartiles, every seed in pale; what never got there at the edge.

    The competitors of the whole page have the same colours in all its pictures.
    """
    taking_part = {label for case in cases for label in case.values}
    labels = [label for label in competitors if label in taking_part]
    size = 1.3 + len(cases) * max(0.34, 0.13 * len(labels) + 0.08)
    figure = Figure(figsize=(8, size), layout="constrained")
    axis = figure.subplots()
    edge = _edge(claim, cases)
    for number, label in enumerate(labels):
        index = competitors.index(label)
        colour = figures.style_of(COLOURS[index % len(COLOURS)])["color"]
        shift = 0.7 * ((number + 0.5) / len(labels) - 0.5)
        drawn = label
        for row, case in enumerate(cases):
            if label not in case.values:
                continue
            height = row + shift
            low, middle, high = quartiles(case.values[label])
            known = [v for v in case.values[label] if v is not None and v < edge]
            axis.plot(known, [height] * len(known), "|", color=colour, alpha=0.5, ms=5)
            axis.plot([min(low, edge), min(high, edge)], [height] * 2, color=colour)
            mark = MARKS[index % len(MARKS)] if middle < edge else ">"
            axis.plot(min(middle, edge), height, mark, color=colour, ms=6, label=drawn)
            drawn = "_"  # once in the legend
    axis.axvline(claim.limit, color="grey", linestyle=":")
    if claim.log:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=_ticks(axis.get_xlim())))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(range(len(cases)), [_wrapped(case.label) for case in cases])
    axis.set_ylim(len(cases) - 0.4, -0.6)
    axis.set_xlabel("\n".join(textwrap.wrap(claim.quantity, 60)))
    axis.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure


def _ticks(limits: tuple[float, float]) -> tuple[float, ...]:
    """Fewer where many powers of ten have to be named."""
    return (1, 2, 5) if limits[1] < 100 * limits[0] else (1,)


def _wrapped(label: str) -> str:
    """A label on as many lines as leave room for the axis."""
    return "\n".join(textwrap.wrap(label, 38))


def _edge(claim: Claim, cases: Sequence[Case]) -> float:
    """Where marks are put that have no place on the axis."""
    known = [
        value
        for case in cases
        for values in case.values.values()
        for value in values
        if value is not None and math.isfinite(value)
    ]
    largest = max([*known, claim.limit])
    return 1.5 * largest if claim.log else largest + 0.1 * abs(largest or 1)
