"""`IllsRegressor` with early stopping, beside others that stop early."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from tqdm import tqdm

from benchmarks.job import Job, Options, Result
from benchmarks.regression import corruption, races
from benchmarks.regression.estimators import early_stopped
from benchmarks.regression.functions import FUNCTIONS
from benchmarks.regression.problems import PROBLEMS, Rows, as_split, standardised
from benchmarks.regression.trainers import TRAINERS
from benchmarks.tables import number, over_seeds, table
from linboost_optax.sklearn import IllsRegressor

TASKS = PROBLEMS | FUNCTIONS
NOISE = {"clean": 0.0, "noise": 0.3}  # standard deviations
HELD_OUT = 0.125
FIRST_SEED = 20  # the defaults were chosen on others


class Data(NamedTuple):
    """Rows to train and to stop by, all as noisy; clean rows to test on; the network.

    Targets have mean 0 and spread 1 before there is noise.
    """

    seen: Rows
    test: Rows
    hidden: tuple[int, ...]
    seed: int


Fit = Callable[[Data, bool], float]  # also told to be quick; test error


def load(name: str, noise: float, seed: int) -> Data:
    """Four fifths to learn from, of which each holds out an eighth, and the test."""
    problem = TASKS[name]
    parts: Any = train_test_split(*problem.draw(seed), test_size=0.2, random_state=seed)
    x, x_test, y, y_test = parts
    (x, y), test = standardised((x, y), (x_test, y_test))
    rng = np.random.default_rng(seed)
    return Data((x, corruption.noise(noise)(y, rng)), test, problem.hidden, seed)


def by_estimator(make: Callable[..., Any]) -> Fit:
    """An estimator with early stopping, and all else by default."""

    def fit(data: Data, quick: bool) -> float:
        model = early_stopped(
            make,
            data.hidden,
            (data.seen[0], data.seen[1].squeeze()),
            data.seed,
            quick=quick,
            validation_fraction=HELD_OUT,
        )
        x_test, y_test = data.test
        off = np.reshape(model.predict(x_test), y_test.shape) - y_test
        return float(np.sqrt(np.mean(off**2)))

    return fit


def by_trainer(name: str) -> Fit:
    """Of all rates and iterations the one with the least held-out error."""

    def fit(data: Data, quick: bool) -> float:
        parts: Any = train_test_split(
            *data.seen, test_size=HELD_OUT, random_state=data.seed
        )
        x, x_held, y, y_held = parts
        split = as_split((x, y), (x_held, y_held), data.test)
        start = races.begin(split, data.hidden, data.seed)
        return races.best_on_held_out(TRAINERS[name], start, quick=quick)

    return fit


FITS: dict[str, tuple[str, Fit]] = {
    "ills": ("ILLS", by_estimator(IllsRegressor)),
    "adam": ("Adam", by_trainer("adam")),
    "lbfgs": ("L-BFGS", by_trainer("lbfgs")),
    "mlp": ("MLPRegressor", by_estimator(MLPRegressor)),
}


def run(name: str, options: Options) -> Result:
    """Everyone on clean and on noisy targets."""
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    found: dict[str, Any] = {}
    for label, noise in tqdm(NOISE.items(), desc=name):
        trainers = {
            key: {"label": shown, "test_early_stopping": [], "seconds": []}
            for key, (shown, _) in FITS.items()
        }
        for seed in seeds:
            data = load(name, noise, seed)
            for key, (_, fit) in FITS.items():
                began = time.perf_counter()
                error = fit(data, options.quick)
                trainers[key]["test_early_stopping"].append(error)
                trainers[key]["seconds"].append(time.perf_counter() - began)
        found[label] = {"trainers": trainers}
    return {"title": name, "hidden": list(TASKS[name].hidden), "data": found} | {
        "first_seed": FIRST_SEED,
        "seeds": options.seeds,
    }


def across(results: Sequence[Result]) -> str:
    """A row a problem and a kind of targets."""
    rows = []
    for result in results:
        for label, cell in result["data"].items():
            found = cell["trainers"].values()
            errors = (each["test_early_stopping"] for each in found)
            spent = (median(each["seconds"]) for each in found)
            row = [f"{result['title']}, {label}"]
            row += [over_seeds(each, "{:.4f}") for each in errors]
            rows.append(row + [number(each, "{:.2f}") for each in spent])
    labels = [label for label, _ in FITS.values()]
    seconds = [f"seconds a fit, {label}" for label in labels]
    return table(["problem", *labels, *seconds], rows)


JOB = Job(
    name="ills_regressor",
    title="`IllsRegressor` with early stopping",
    reading=(
        "RMSE on clean test data, in standard deviations of the targets, of which the "
        "noise has 0.3. Each holds an eighth of the rows out, as noisy as the rest, to "
        "stop by: `IllsRegressor` and `MLPRegressor` with early stopping and all else "
        "by default; full-batch Adam (2,000 iterations, the best of four rates) and "
        "L-BFGS (1,000) at the least held-out error of the whole run. Medians "
        "over the seeds, their range in brackets; seconds are medians, and the first "
        "seed compiles. No default was chosen on these seeds, nor on the last four "
        "problems. `teacher2` and `robot_arm` have two hidden layers of 20, all others "
        "one."
    ),
    tasks=tuple(TASKS),
    seeds=5,
    run=run,
    table=lambda result: across([result]),
    across=across,
    single=False,
)
