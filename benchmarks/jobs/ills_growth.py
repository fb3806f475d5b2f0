"""ILLS beside Adam and L-BFGS as width, depth, rows or the activation change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import figures
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.regression import races, tables
from benchmarks.regression.problems import friedman
from benchmarks.regression.sizes import GROWTHS, Point
from benchmarks.regression.trainers import TRAINERS
from benchmarks.tables import over_seeds, table

ROUNDS = 3  # of the clock
# Those that can take all sizes.
SQUARED = tuple(
    key
    for key, each in TRAINERS.items()
    if each.loss == "squared" and each.largest == math.inf
)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
HEADER = (
    "{} | trainer | seeds | at most | iterations | seconds | x iterations | x time "
    "| train | test"
)


def run(name: str, options: Options) -> Result:
    """Every trainer at one size after another."""
    growth = GROWTHS[name]
    points = growth.points[-1:] if options.quick else growth.points
    return {
        "title": growth.title,
        "axis": growth.axis,
        "seeds": options.seeds,
        "points": [_point(each, options) for each in tqdm(points, desc=name)],
    }


def _point(point: Point, options: Options) -> dict[str, Any]:
    trainers = point.trainers({key: TRAINERS[key] for key in options.optimizers})
    rows, rounds = point.rows, ROUNDS
    if options.quick:
        trainers, rows, rounds = races.shortened(trainers), 100, 1
    starts = [
        races.begin(friedman(rows, seed), point.hidden, seed, point.activation)
        for seed in range(min(options.seeds, point.seeds))
    ]
    runs = [races.race(start, trainers) for start in starts]
    seconds = races.seconds(starts[0], trainers, rounds)

    def entry(key: str) -> dict[str, Any]:
        known, of_seeds = trainers[key], [run[key] for run in runs]
        found = races.entry(of_seeds, known.label, known.unit, seconds[key])
        return found | {"at_most": known.steps}

    entries = {key: entry(key) for key in trainers}
    return {"size": point.size, "rows": rows, "trainers": entries}


def describe(result: Result) -> str:
    """A row for every size and trainer."""
    rows = []
    for point in result["points"]:
        baseline = point["trainers"][BASELINE]
        for entry in point["trainers"].values():
            errors = [over_seeds(entry[key], "{:.4f}") for key in ("train", "test")]
            facts = [point["size"], entry["label"], str(len(entry["train"]))]
            facts.append(f"{entry['at_most']:,}")
            rows.append([*facts, *tables.speed(entry, baseline), *errors])
    return table(HEADER.format(result["axis"]).split(" | "), rows)


def draw(result: Result, path: Path) -> None:
    """Time to Adam's error, and errors at the end, over what grows."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    time, *errors = figure.subplots(1, 3)
    points = result["points"]
    for number, key in enumerate(points[0]["trainers"]):
        entries = [point["trainers"][key] for point in points]
        adam = [point["trainers"][BASELINE] for point in points]
        colour = figures.style_of(list(TRAINERS).index(key))["color"]
        style = {"color": colour, "marker": MARKS[number % len(MARKS)]}
        if result["axis"] == "activation":  # There is nothing between two of them.
            style["linestyle"] = "none"
        style["label"] = entries[0]["label"]
        places = range(len(points))
        taken = [tables.time_over(*pair) for pair in zip(entries, adam, strict=True)]
        time.plot(places, np.where(np.isfinite(taken), taken, np.nan), **style)
        for axis, what in zip(errors, ("train", "test"), strict=True):
            values = np.array([_over_seeds(each[what]) for each in entries]).T
            axis.errorbar(places, values[0], yerr=values[1:], capsize=2, **style)
            axis.set_title(f"{what}ing error at the end".replace("testing", "test"))
    time.set_title("time to Adam's error / Adam's")
    for axis in (time, *errors):
        axis.set_yscale("log")
        axis.set_xticks(range(len(points)), [each["size"] for each in points])
        axis.set_xlabel(result["axis"])
        axis.grid(alpha=0.3)
    if result["axis"] in ("activation", "rows"):
        for axis in (time, *errors):
            axis.tick_params(axis="x", rotation=30)
    labels = time.get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{result['title']}; no mark: not reached")
    figures.save(figure, path)


def _over_seeds(values: list[float | None]) -> tuple[float, float, float]:
    """Median, and how far the least is below and the greatest above it."""
    known = np.array([np.nan if value is None else value for value in values])
    middle = float(np.median(known))
    return middle, middle - float(np.min(known)), float(np.max(known)) - middle


JOB = Job(
    name="ills_growth",
    title="ILLS as width, depth, rows and activations change",
    reading=(
        "Friedman's first function without noise. The target is the final training "
        "error (RMSE, in standard deviations) of the best full-batch Adam of four "
        'rates; iterations and seconds are those to reach it ("not": within the '
        'iterations under "at most"), ratios are to Adam; train and test are errors '
        "after all iterations, of Adam at the rate with the least training error. "
        "Medians over the seeds with their range in brackets. With more rows there "
        "are fewer iterations and seeds; from 100,000 on Adam has its two largest "
        "rates only, and with a million ILLS takes 8,192 rows at a time. Data and "
        "start weights change with the seed; all options are at their defaults. "
        "Trainers take turns on the clock, after a first run that compiles."
    ),
    tasks=tuple(GROWTHS),
    optimizers=(BASELINE, "ills", "lbfgs"),
    all_optimizers=SQUARED,
    seeds=5,
    run=run,
    table=describe,
    figure=draw,
)
