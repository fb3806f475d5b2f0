"""Trainers from one start: their curves, what these come to, and the time of a step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.job import BASELINE
from benchmarks.regression.errors import rmse
from benchmarks.regression.problems import Split
from benchmarks.regression.trainers import Trainer
from linboost_optax import ills

ROUNDS = 5  # of the clock
QUICK = 3  # steps


class Start(NamedTuple):
    """What all trainers begin with."""

    split: Split
    network: ills.Network
    params: Any


def begin(
    split: Split, hidden: tuple[int, ...], seed: int, activation: str = "tanh"
) -> Start:
    """Random weights of a network that fits the data."""
    inputs, targets = split.train
    sizes = (inputs.shape[1], *hidden, targets.shape[1])
    params = ills.init_mlp(jax.random.key(seed), sizes)
    return Start(split, ills.network(params, activation), params)


def shortened(trainers: Mapping[str, Trainer]) -> dict[str, Trainer]:
    """The same with a few steps, which prove only that they run."""
    return {key: _short(each) for key, each in trainers.items()}


def _short(trainer: Trainer) -> Trainer:
    return replace(trainer, steps=QUICK, timed=QUICK)


def race(start: Start, trainers: Mapping[str, Trainer]) -> dict[str, Any]:
    """Curves of every trainer from one start, reduced to the numbers reported."""
    curves: dict[str, list[np.ndarray]] = {}
    for key, trainer in trainers.items():
        runs = (train(trainer, start, rate, full=True) for rate in trainer.rates)
        curves[key] = [np.asarray(curve) for _, curve in runs]
    target = float(min(curve[-1, 0] for curve in curves[BASELINE]))
    return {key: reduced(runs, target) for key, runs in curves.items()}


def stopped(trainer: Trainer, start: Start) -> float | None:
    """Test error of a trainer that stops early by itself; None if it does not."""
    if trainer.stop is None:
        return None
    split, network, params = start
    params = trainer.stop(
        network, params, split, steps=trainer.steps, loss=trainer.loss
    )
    return float(rmse(network, params, split.test))


def best_on_held_out(trainer: Trainer, start: Start, *, quick: bool) -> float:
    """Test error at the least validation error of all rates and iterations."""
    if quick:
        trainer = _short(trainer)
    curves = [
        np.asarray(train(trainer, start, rate, full=True)[1]) for rate in trainer.rates
    ]
    return reduced(curves, target=0.0)["test_early_stopping"]


def entry(
    rows: Sequence[Mapping[str, float]],
    label: str,
    unit: str = "iterations",
    seconds: float | None = None,
) -> dict[str, Any]:
    """One trainer in a result: a list over the seeds for every number of `reduced`."""
    facts = {"label": label, "unit": unit, "seconds_an_iteration": seconds}
    return facts | {key: [row[key] for row in rows] for key in rows[0]}


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


def seconds(
    start: Start, trainers: Mapping[str, Trainer], rounds: int = ROUNDS
) -> dict[str, float]:
    """Seconds an iteration: least of interleaved rounds, compiled beforehand."""

    def spend(key: str) -> float:
        trainer = trainers[key]
        trainer = replace(trainer, steps=trainer.timed)
        rate = None if trainer.rates == (None,) else 1e-2
        began = time.perf_counter()
        jax.block_until_ready(train(trainer, start, rate, full=False))
        return (time.perf_counter() - began) / trainer.steps

    for key in trainers:
        spend(key)
    spent = [{key: spend(key) for key in trainers} for _ in range(rounds)]
    return {key: min(each[key] for each in spent) for key in trainers}


def train(trainer: Trainer, start: Start, rate: Any, *, full: bool) -> Any:
    """The trained weights and a curve, with `full` of three errors an iteration."""
    split, network, params = start
    return trainer.train(
        network,
        params,
        split,
        rate,
        steps=trainer.steps,
        full=full,
        loss=trainer.loss,
    )
