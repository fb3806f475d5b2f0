"""Pictures of a trial; colours belong to competitors and are the same in all."""

from __future__ import annotations

import math
from typing import Any

from linboost_optax._trial.analysis import Record, first_rung, working
from linboost_optax._trial.competitors import OWN, TUNED
from linboost_optax._trial.phrases import LOSSES
from linboost_optax._trial.svg import TEXT, legend, new_figure, to_svg

# Told apart by colour-blind eyes, on white and on black (Okabe and Ito, 2008), and by
# their markers in print.
_STYLES = {
    OWN: ("#888888", "o", "-"),
    TUNED: ("#888888", "s", "--"),
    "adam": ("#56B4E9", "^", "-"),
    "muon": ("#009E73", "v", "-"),
    "lnb": ("#E69F00", "D", "-"),
    "polar": ("#D55E00", "P", "-"),
}
_CURVES = "Losses over steps and over time: medians over the seeds, and their range"
_SENSITIVITY = (
    "Loss at the end of short runs, over the learning rate: below the dotted line a "
    "rate works"
)
_CONDITIONS = (
    "Condition numbers of every layer's inputs at the end, as they are and whitened"
)
_RANGE = 8  # of losses above the start that are shown: one that ran away flattens all


def pictures(record: Record) -> dict[str, str]:
    """All that there is something to draw for: SVG by caption."""
    entries = record["entries"].values()
    found = {}
    if any(entry["curves"] for entry in entries):
        found[_CURVES] = curves(record)
    if any(first_rung(entry) for entry in entries):
        found[_SENSITIVITY] = sensitivity(record)
    if record["conditions"]:
        found[_CONDITIONS] = conditions(record)
    return found


def curves(record: Record) -> str:
    """Each loss, over steps and over seconds."""
    import numpy as np

    some = next(e for e in record["entries"].values() if e["curves"])["curves"][0]
    losses = [key for key in LOSSES if key in some]
    figure = new_figure(9, 3.2 * len(losses))
    axes = figure.subplots(len(losses), 2, squeeze=False, sharey="row")
    for row, key in zip(axes, losses):
        shown: list[float] = []
        for name, entry in record["entries"].items():
            if not entry["curves"]:
                continue
            length = min(len(each[key]) for each in entry["curves"])
            runs = np.array([each[key][:length] for each in entry["curves"]], float)
            shown += [value for value in runs.ravel() if math.isfinite(value)]
            for axis, over in zip(row, ("step", "seconds")):
                x = np.median([e[over][:length] for e in entry["curves"]], axis=0)
                line = _line(name, length)
                axis.plot(x, np.median(runs, axis=0), label=_name(entry), **line)
                low, high = runs.min(axis=0), runs.max(axis=0)
                axis.fill_between(x, low, high, alpha=0.18, lw=0, color=line["color"])
        start = record["start"][key]
        for axis in row:
            _scale(axis, shown, start)
        row[0].set_ylabel(LOSSES[key])
    axes[-1][0].set_xlabel("steps")
    axes[-1][1].set_xlabel("seconds of training")
    legend(figure, axes[0][0])
    return to_svg(figure)


def sensitivity(record: Record) -> str:
    """Loss over learning rate; the user's own is circled."""
    figure = new_figure(9, 3.4)
    axis = figure.subplots()
    target, shown = record["target"], []
    start = record["start"][target]
    for name, entry in record["entries"].items():
        losses = first_rung(entry)
        if not losses or name == TUNED:
            continue
        rates = sorted(losses)
        values = [losses[rate] for rate in rates]
        shown += [value for value in values if math.isfinite(value)]
        works, tried = working(record, name)
        line = _line(name, 1)
        axis.plot(
            rates, values, label=f"{entry['label']}: {works} of {tried} work", **line
        )
        own = entry["centre"]
        if name == OWN and own in losses:  # not yet where the runs were interrupted
            axis.plot(own, losses[own], "o", ms=11, mfc="none", mec=TEXT)
    bar = record["bar"]
    if math.isfinite(bar):
        axis.axhline(bar, color=TEXT, ls=":", lw=1)
    _scale(axis, shown, start)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel(f"{LOSSES[target]} at the end")
    legend(figure, axis)
    return to_svg(figure)


def conditions(record: Record) -> str:
    """Two marks a layer, from the first to the last."""
    found = record["conditions"]
    figure = new_figure(9, 0.9 + 0.28 * len(found))
    axis = figure.subplots()
    places = range(len(found), 0, -1)
    for place, (before, after) in zip(places, found.values()):
        axis.plot([before, after], [place, place], color=_STYLES[OWN][0], lw=1)
    before, after = zip(*found.values())
    axis.plot(before, places, "o", color=_STYLES["adam"][0], label="as they are")
    axis.plot(after, places, "P", color=_STYLES["polar"][0], label="whitened")
    axis.set_yticks(list(places), list(found))
    axis.set_xscale("log")
    axis.set_xlabel("condition number")
    axis.set_xlim(left=0.7)
    axis.set_ylim(0.4, len(found) + 0.6)
    legend(figure, axis)
    return to_svg(figure)


def _name(entry: Record) -> str:
    return f"{entry['label']}, {entry['rate']:g}"


def _line(name: str, points: int) -> dict[str, Any]:
    colour, marker, line = _STYLES[name]
    every = max(1, points // 8)
    return {
        "color": colour,
        "marker": marker,
        "linestyle": line,
        "markevery": every,
        "markersize": 5,
        "linewidth": 1.6,
    }


def _scale(axis: Any, shown: list[float], start: float) -> None:
    """Logarithmic where all losses are positive; what ran away is cut off."""
    axis.grid(alpha=0.25, color=TEXT)
    kept = [value for value in shown if value <= start + _RANGE * abs(start)]
    if not kept:
        return
    low, high = min(kept), max([*[v for v in kept if v <= start], start])
    if low > 0:
        axis.set_yscale("log")
        axis.set_ylim(low / 1.15, high * 1.4)
    else:
        margin = 0.08 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
