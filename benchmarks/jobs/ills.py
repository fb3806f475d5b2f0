"""ILLS against other trainers and scikit-learn's MLP on bundled regression data.

For every problem the target is the final training error of the best full-batch Adam of
a grid; iterations and seconds are those that each trainer needs to get there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.neural_network import MLPRegressor
from tqdm import tqdm

from benchmarks.job import Job, Options, Result
from benchmarks.regression import races, tables
from benchmarks.regression.problems import CORRUPTIONS, PROBLEMS, Split, load
from benchmarks.regression.trainers import TRAINERS

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
        if key in TRAINERS
        and TRAINERS[key].competes(corruption, first.split, first.params)
    }
    if options.quick:
        trainers = races.shortened(trainers)
    rows = []
    for seed in range(options.seeds):
        start = _start(name, corruption, seed)
        rows.append(races.race(start, trainers))
        for key, trainer in trainers.items():
            error = races.stopped(trainer, start)
            if error is not None:
                rows[-1][key]["test_early_stopping"] = error
        if SKLEARN in options.optimizers:
            mlp = _mlp(start.split, PROBLEMS[name].hidden, seed, options.quick)
            rows[-1][SKLEARN] = mlp
    seconds = races.seconds(first, trainers, 1 if options.quick else races.ROUNDS)

    def entry(key: str) -> dict[str, Any]:
        of_seeds = [row[key] for row in rows]
        if key == SKLEARN:
            return races.entry(of_seeds, "MLPRegressor")
        known = trainers[key]
        return races.entry(of_seeds, known.label, known.unit, seconds[key])

    samples = len(first.split.train[0])
    return {"samples": samples, "trainers": {key: entry(key) for key in rows[0]}}


def _start(name: str, corruption: str, seed: int) -> races.Start:
    return races.begin(load(name, corruption, seed), PROBLEMS[name].hidden, seed)


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
        'it ("not": within 300 iterations of ILLS, 1,000 of L-BFGS, 100 of '
        "Levenberg-Marquardt and variable projection, or 100 epochs), medians over the "
        "seeds with their range in brackets, ratios are to full-batch Adam. All "
        "options are at their defaults; validation and test data are clean, and early "
        "stopping is by squared error on the validation data: of Adam the best rate, "
        "of ILLS the best of the paths that `fit_ills` tries, by absolute error where "
        "its loss is robust. Levenberg-Marquardt is "
        "Optimistix's; variable projection is the same on the hidden layers alone, "
        "with the last one eliminated (Kaufman's Jacobian). Both compete where the "
        "Jacobian has at most 2^19 entries."
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
