"""ILLS on targets with noise, gross outliers and gaps, with early stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import figures
from benchmarks.job import Job, Options, Result
from benchmarks.regression import corruption
from benchmarks.regression.corruption import by_adam, by_ills, by_trainer
from benchmarks.regression.problems import Rows
from benchmarks.tables import over_seeds, table


@dataclass(frozen=True)
class Sweep:
    """One kind of corruption, from none to much, and who is to bear it."""

    title: str
    axis: str
    levels: tuple[float, ...]
    draw: Callable[[int], Rows]
    corrupt: Callable[[float], corruption.Corrupt]
    fits: Mapping[str, corruption.Fit]


SWEEPS = {
    "noise": Sweep(
        "Noise on Friedman's first function",
        "noise, standard deviations",
        (0.0, 0.1, 0.3, 1.0),
        corruption.friedman1,
        corruption.noise,
        {
            "ILLS": by_ills(),
            "Adam": by_trainer("adam"),
            "L-BFGS": by_trainer("lbfgs"),
        },
    ),
    "outliers": Sweep(
        "Outliers of 10 standard deviations on Friedman's first function",
        "share of outliers",
        (0.0, 0.02, 0.05, 0.1, 0.2),
        corruption.friedman1,
        corruption.outliers,
        {
            "ILLS": by_ills(),
            "ILLS, Huber": by_ills("huber"),
            "ILLS, Tukey": by_ills("tukey"),
            "Adam, Huber": by_adam("huber"),
        },
    ),
    "missing": Sweep(
        "Missing targets of a 5-10-4 teacher, noise of 0.1",
        "share missing",
        (0.0, 0.2, 0.5, 0.8),
        corruption.teacher4,
        corruption.missing,
        {
            "ILLS, mask": by_ills(),
            "Adam, mask": by_adam(),
            "ILLS, complete rows": corruption.on_complete_rows(by_ills()),
            "Adam, complete rows": corruption.on_complete_rows(by_adam()),
        },
    ),
}


def run(name: str, options: Options) -> Result:
    """All trainers at one level after another."""
    sweep = SWEEPS[name]
    levels = sweep.levels[1:2] if options.quick else sweep.levels

    def errors(level: float, fit: corruption.Fit) -> list[float]:
        return [
            fit(
                corruption.load(sweep.draw(seed), sweep.corrupt(level), seed),
                options.quick,
            )
            for seed in range(options.seeds)
        ]

    return {
        "title": sweep.title,
        "axis": sweep.axis,
        "seeds": options.seeds,
        "levels": list(levels),
        "test": {
            label: [errors(level, fit) for level in tqdm(levels, desc=label)]
            for label, fit in sweep.fits.items()
        },
    }


def describe(result: Result) -> str:
    """A row a level, a column a trainer."""
    rows = [
        [f"{level:g}", *(over_seeds(each[at], "{:.4f}") for each in _of(result))]
        for at, level in enumerate(result["levels"])
    ]
    return table([result["axis"], *result["test"]], rows)


def draw(result: Result, path: Path) -> None:
    """Test errors over the level, medians with their range."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(result["levels"]))
    for number, (label, found) in enumerate(result["test"].items()):
        # JSON has null where there was nothing to train on.
        seeds = np.array(
            [[np.nan if value is None else value for value in each] for each in found]
        )
        seeds[~np.isfinite(seeds)] = np.nan
        middle, low, high = np.median(seeds, 1), seeds.min(1), seeds.max(1)
        edges = [middle - low, high - middle]
        style = figures.style_of(number)
        axis.errorbar(
            places, middle, yerr=edges, marker="o", capsize=2, label=label, **style
        )
    axis.set_xticks(places, [f"{level:g}" for level in result["levels"]])
    axis.set_yscale("log")
    axis.set_xlabel(result["axis"])
    axis.set_ylabel("clean test error, standard deviations")
    axis.set_title(result["title"], fontsize="medium")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    figures.save(figure, path)


def _of(result: Result) -> list[list[list[Any]]]:
    return list(result["test"].values())


JOB = Job(
    name="ills_robust",
    title="ILLS on noisy, outlying and missing targets",
    reading=(
        "RMSE on clean test data, in standard deviations of the clean targets, after "
        "early stopping: at the least error on a fifth of the data that is corrupted "
        "like the training data, of the whole run of Adam (2,000 iterations, the best "
        "of four rates) and L-BFGS (1,000); ILLS stops by itself. That error is the "
        "mean squared one, for robust losses the mean absolute one. Adam's Huber is "
        "linear beyond one standard deviation of the targets, that of ILLS beyond one "
        "of the residuals. Medians over the seeds with their range in brackets. Of "
        "1,500 rows 900 are trained on; one hidden layer of 20. Targets are missing "
        "one by one, at random; a row is complete if none of its four is, and "
        f'"-" says that fewer than {corruption.FEWEST} rows were, to train on or to '
        "stop by."
    ),
    tasks=tuple(SWEEPS),
    seeds=5,
    run=run,
    table=describe,
    figure=draw,
)
