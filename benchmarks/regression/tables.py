"""What the `ills` job found as tables and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import figures
from benchmarks.job import BASELINE, Result
from benchmarks.regression.trainers import TRAINERS
from benchmarks.tables import over_seeds, table

ERRORS = ("train", "test", "test_early_stopping")


def to_target(results: Sequence[Result]) -> str:
    """A row for every problem, kind of data and trainer; no outliers."""
    header = "problem | data | trainer | iterations | seconds | x iterations | "
    header += "x time | train | test | test, early stopping"
    rows = []
    for result in results:
        for corruption, cell in result["data"].items():
            if corruption == "outliers":
                continue
            baseline = cell["trainers"][BASELINE]
            for entry in cell["trainers"].values():
                errors = [over_seeds(entry[key], "{:.4f}") for key in ERRORS]
                row = [result["title"], corruption, entry["label"]]
                rows.append([*row, *speed(entry, baseline), *errors])
    return table(header.split(" | "), rows)


def outliers(results: Sequence[Result]) -> str:
    """Test error at the best validation error: a row a problem, a column a trainer."""
    cells = {
        result["title"]: result["data"]["outliers"]["trainers"]
        for result in results
        if "outliers" in result["data"]
    }

    def error(entry: dict[str, Any] | None) -> str:
        return over_seeds(entry[ERRORS[-1]] if entry else [], "{:.4f}")

    labels = {  # but for those that do not stop early
        key: entry["label"]
        for cell in cells.values()
        for key, entry in cell.items()
        if error(entry) != "-"
    }
    rows = [
        [title, *(error(cell.get(key)) for key in labels)]
        for title, cell in cells.items()
    ]
    return table(["problem", *labels.values()], rows)


def draw(result: Result, path: Path) -> None:
    """Time to the target over Adam's: a group a kind of data, a bar a trainer."""
    keys = [key for key in TRAINERS if any(key in c for c in _trainers(result))]
    keys.remove(BASELINE)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / max(1, len(keys))
    for at, key in enumerate(keys):
        times = [time_over(cell.get(key), cell[BASELINE]) for cell in _trainers(result)]
        places = np.arange(len(times)) + width * (at - (len(keys) - 1) / 2)
        # Bars hang from 1 or stand on it: a logarithmic axis has no zero to start at.
        over = np.where(np.isfinite(times), times, np.nan) - 1
        colour = figures.style_of(list(TRAINERS).index(key))["color"]
        label = TRAINERS[key].label
        axis.bar(places, over, bottom=1, width=width, label=label, color=colour)
    axis.axhline(1, color="grey", linestyle=":")
    axis.set_yscale("log")
    axis.set_xticks(np.arange(len(result["data"])), list(result["data"]))
    axis.set_ylabel("time to Adam's final error / Adam's time")
    axis.set_title(f"{result['title']}, medians over seeds; no bar: not reached")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figures.save(figure, path)


def speed(entry: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """Iterations, seconds, and both as multiples of the baseline's."""
    taken = _iterations(entry)
    if not math.isfinite(np.median(taken)):
        return ["not", "", "", ""]
    ratio = float(np.median(taken) / np.median(_iterations(baseline)))
    per_step = entry["seconds_an_iteration"]
    unit = "" if entry["unit"] == "iterations" else f" {entry['unit']}"
    return [
        _range(taken, "{:.0f}") + unit,
        _range(taken * per_step, "{:.3f}"),
        # An epoch is many steps: no ratio of it means anything.
        "" if unit else f"{ratio:.3f}",
        f"{ratio * per_step / baseline['seconds_an_iteration']:.2f}",
    ]


def _range(values: np.ndarray, form: str) -> str:
    """Median and range, where a run that never arrives counts as the longest."""
    low, middle, high = (
        form.format(value) if math.isfinite(value) else "not"
        for value in (values.min(), np.median(values), values.max())
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def _iterations(entry: dict[str, Any]) -> np.ndarray:
    """By seed; JSON has null for a target never reached."""
    taken = entry["iterations"]
    return np.array([math.inf if value is None else value for value in taken])


def _trainers(result: Result) -> list[dict[str, Any]]:
    return [cell["trainers"] for cell in result["data"].values()]


def time_over(entry: dict[str, Any] | None, baseline: dict[str, Any]) -> float:
    """Time to the target relative to the baseline's, infinite where not reached."""
    if entry is None:
        return math.inf
    own, reference = (
        np.median(_iterations(each)) * each["seconds_an_iteration"]
        for each in (entry, baseline)
    )
    return float(own / reference)
