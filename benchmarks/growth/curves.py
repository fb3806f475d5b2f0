"""Curves over the size that grows, told apart in black and white."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks import figures
from benchmarks.job import BASELINE, Result

MARKS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


def mark(name: str, number: int) -> dict[str, Any]:
    """Colour, line and marker of an optimizer, the one of this number in a figure."""
    return {
        "color": figures.style(name)["color"],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKS[number % len(MARKS)],
        "markerfacecolor": "white" if number % 2 else None,
        "markersize": 5,
    }


def step_time(axis: Axes, result: Result) -> None:
    """Medians of ratios to Adam's step, and quartiles."""

    def draw(sizes: list[int], entries: list[Any], **style: Any) -> None:
        low, middle, high = zip(
            *(each["ratio_quartiles"] for each in entries), strict=True
        )
        below = [m - edge for m, edge in zip(middle, low, strict=True)]
        above = [edge - m for m, edge in zip(middle, high, strict=True)]
        axis.errorbar(sizes, middle, yerr=[below, above], capsize=2, **style)

    _over_sizes(axis, result, draw)


def state_bytes(axis: Axes, result: Result) -> None:
    """Multiples of Adam's state."""
    adam = [point["optimizers"][BASELINE]["state_bytes"] for point in result["points"]]

    def draw(sizes: list[int], entries: list[Any], **style: Any) -> None:
        held = [each["state_bytes"] for each in entries]
        axis.plot(sizes, [a / b for a, b in zip(held, adam, strict=True)], **style)

    _over_sizes(axis, result, draw)


def doubling(axis: Axes, sizes: list[int]) -> None:
    """A logarithmic axis of sizes, of which as many have numbers as have room."""
    axis.set_xscale("log", base=2)
    step = -(-len(sizes) // 4)
    axis.set_xticks(sizes[::-1][::step][::-1])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)


def from_zero(axis: Axes) -> None:
    """An axis of multiples, or of bytes, with its zero."""
    axis.set_ylim(0, 1.1 * axis.dataLim.ymax)


def _over_sizes(axis: Axes, result: Result, draw: Callable[..., None]) -> None:
    sizes = [point["size"] for point in result["points"]]
    axis.axhline(1, color="grey", linestyle=":")
    for number, name in enumerate(result["points"][0]["optimizers"]):
        if name != BASELINE:
            entries = [point["optimizers"][name] for point in result["points"]]
            draw(sizes, entries, label=entries[0]["label"], **mark(name, number))
    doubling(axis, sizes)
    from_zero(axis)
    axis.set_xlabel(result["axis"])
