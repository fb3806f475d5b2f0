"""ILLS against other trainers and scikit-learn's MLP on bundled regression data.

For every problem the target is the final training error of the best full-batch Adam of
a grid; iterations and seconds are those that each trainer needs to get there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from sklearn.neural_network import MLPRegressor
from tqdm import tqdm

from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.regression import tables
from benchmarks.regression.problems import CORRUPTIONS, PROBLEMS, Split, load
from benchmarks.regression.trainers import TRAINERS, Trainer
from linboost_optax import ills

ROUNDS = 5  # of the clock
SKLEARN = "sklearn"  # its own loop, which has no curve: errors at the end only


def run(name: str, options: Options) -> Result:
    """Every trainer on clean, noisy and outlying data."""
    bar = tqdm(CORRUPTIONS[:1] if options.quick else CORRUPTIONS, desc=name)
    return {
        "title": name,
        "hidden": list(PROBLEMS[name].hidden),
        "seeds": options.seeds,
        "data": {corruption: _cell(name, corruption, options) for corruption in bar},
    }


def _cell(name: str, corruption: str, options: Options) -> dict[str, Any]:
    first = _start(name, corruption, 0)
    trainers = {
        key: TRAINERS[key]
        for key in options.optimizers
        if key in TRAINERS and TRAINERS[key].competes(corruption, first[0], first[2])
    }
    rows = []
    for seed in range(options.seeds):
        start = _start(name, corruption, seed)
        rows.append(_seed(start, trainers, options.quick))
        if SKLEARN in options.optimizers:
            mlp = _mlp(start[0], PROBLEMS[name].hidden, seed, options.quick)
            rows[-1][SKLEARN] = mlp
    seconds = _seconds(first, trainers, options.quick)

    def entry(key: str) -> dict[str, Any]:
        known = trainers.get(key)
        return {
            "label": known.label if known else "MLPRegressor",
            "unit": known.unit if known else "iterations",
            "seconds_an_iteration": seconds.get(key),
            **{error: [row[key][error] for row in rows] for error in rows[0][key]},
        }

    samples = len(first[0].train[0])
    return {"samples": samples, "trainers": {key: entry(key) for key in rows[0]}}


def _start(name: str, corruption: str, seed: int) -> tuple[Split, Any, Any]:
    split = load(name, corruption, seed)
    inputs, targets = split.train
    sizes = (inputs.shape[1], *PROBLEMS[name].hidden, targets.shape[1])
    params = ills.init_mlp(jax.random.key(seed), sizes)
    return split, ills.network(params), params


def _train(trainer: Trainer, start: Any, rate: Any, steps: int, full: bool) -> Any:
    split, network, params = start
    return trainer.train(
        network, params, split, rate, steps=steps, full=full, loss=trainer.loss
    )


def _seed(start: Any, trainers: dict[str, Trainer], quick: bool) -> dict[str, Any]:
    """Curves of every trainer from one start, reduced to the numbers reported."""
    curves: dict[str, list[np.ndarray]] = {}
    for key, trainer in trainers.items():
        steps = 3 if quick else trainer.steps
        runs = (_train(trainer, start, rate, steps, True) for rate in trainer.rates)
        curves[key] = [np.asarray(curve) for _, curve in runs]
    target = float(min(curve[-1, 0] for curve in curves[BASELINE]))
    return {key: reduced(runs, target) for key, runs in curves.items()}


def reduced(runs: list[np.ndarray], target: float) -> dict[str, float]:
    """Best of a grid by training error; for early stopping by validation error.

    A run has a row an iteration: training, validation and test error.
    """
    best = min(runs, key=lambda run: np.nan_to_num(run[-1, 0], nan=np.inf))
    stopped = min(runs, key=lambda run: np.nanmin(run[:, 1]))
    at = int(np.nanargmin(stopped[:, 1]))
    return {
        "iterations": min(first_below(run[:, 0], target) for run in runs),
        "train": float(best[-1, 0]),
        "test": float(best[-1, 2]),
        "test_early_stopping": float(stopped[at, 2]),
    }


def first_below(curve: np.ndarray, target: float) -> float:
    """Iterations until the error is at the target; infinite if it never is."""
    hit = np.flatnonzero(curve <= target)
    return float(hit[0] + 1) if len(hit) else float("inf")


def _mlp(
    split: Split, hidden: tuple[int, ...], seed: int, quick: bool
) -> dict[str, float]:
    x, y = (np.asarray(a) for a in split.train)
    model = MLPRegressor(
        hidden_layer_sizes=hidden,
        activation="tanh",
        max_iter=3 if quick else 500,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It seldom converges in its iterations.
        model.fit(x, y.squeeze())

    def error(data: Any) -> float:
        inputs, targets = (np.asarray(a) for a in data)
        predicted = np.reshape(model.predict(inputs), targets.shape)
        return float(np.sqrt(np.mean((predicted - targets) ** 2)))

    return {
        "iterations": float("inf"),
        "train": error(split.train),
        "test": error(split.test),
        "test_early_stopping": float("nan"),
    }


def _seconds(start: Any, trainers: dict[str, Trainer], quick: bool) -> dict[str, float]:
    """Seconds an iteration: least of interleaved rounds, compiled beforehand."""
    steps = {key: 3 if quick else trainer.timed for key, trainer in trainers.items()}

    def train(key: str) -> float:
        begin = time.perf_counter()
        trainer = trainers[key]
        rate = None if trainer.rates == (None,) else 1e-2
        jax.block_until_ready(_train(trainer, start, rate, steps[key], False))
        return (time.perf_counter() - begin) / steps[key]

    for key in trainers:
        train(key)
    rounds = range(1 if quick else ROUNDS)
    seconds = [{key: train(key) for key in trainers} for _ in rounds]
    return {key: min(spent[key] for spent in seconds) for key in trainers}


def across(results: Sequence[Result]) -> str:
    """Clean and noisy data, a row a trainer; then outliers, a row a problem."""
    parts = [tables.to_target(results)]
    if any("outliers" in result["data"] for result in results):
        parts.append(
            "Test error at the best validation error, with 10 % of the training "
            "targets moved by 10 standard deviations:"
        )
        parts.append(tables.outliers(results))
    return "\n\n".join(parts)


JOB = Job(
    name="ills",
    title="ILLS against its rivals on small regression problems",
    reading=(
        "The target is the final training error (RMSE, in standard deviations) of the "
        "best full-batch Adam of four rates; iterations and seconds are those to reach "
        'it ("not": within 300 iterations of ILLS, 1,000 of L-BFGS, 200 of '
        "Levenberg-Marquardt and variable projection, or 100 epochs), medians over the "
        "seeds with their range in brackets, ratios are to full-batch Adam. All "
        "options are at their defaults; validation and test data are clean, and early "
        "stopping is by squared error on the validation data. Levenberg-Marquardt is "
        "Optimistix's; variable projection is the same on the hidden layers alone, "
        "with the last one eliminated (Kaufman's Jacobian). Both compete where the "
        "Jacobian has at most 2^20 entries."
    ),
    tasks=tuple(PROBLEMS),
    optimizers=(*TRAINERS, SKLEARN),
    all_optimizers=(*TRAINERS, SKLEARN),
    seeds=5,
    run=run,
    table=lambda result: across([result]),
    across=across,
    single=False,
    figure=tables.draw,
)
