"""Markdown tables and the figures in their cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False
) -> str:
    """A Markdown table, aligned: first column left, the others right but for words."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 or words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    edge = "-" if words else ":"
    rule = ["-" * widths[0], *("-" * (width - 1) + edge for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def number(value: float | None, form: str = "{:.4g}") -> str:
    """A figure, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return form.format(value)


def ratio(value: float, reference: float) -> str:
    """A multiple of a reference, or a dash where the reference is nothing."""
    return number(value / reference if reference else None, "{:.2f}x")


def spread(middle: float | None, low: float | None, high: float | None) -> str:
    """A median with its quartiles."""
    centre, *quartiles = (number(value, "{:.2f}") for value in (middle, low, high))
    return f"{centre} [{', '.join(quartiles)}]"


def over_seeds(values: Sequence[float | None], form: str = "{:.4g}") -> str:
    """Median and range over the seeds; a count where only some seeds have a value."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers:
        return "-"
    if len(numbers) < len(values):
        return f"{len(numbers)} of {len(values)} seeds"
    low, high = (form.format(edge) for edge in (min(numbers), max(numbers)))
    centre = form.format(median(numbers))
    return centre if low == high else f"{centre} ({low.removesuffix('x')} to {high})"
