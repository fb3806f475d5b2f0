"""Who competes under the UCI protocol: each maps a split to its test RMSE.

All see the same standardised split, hold a tenth of its training part out, and stop by
that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor

from benchmarks.regression.estimators import early_stopped
from benchmarks.regression.problems import as_split
from benchmarks.regression.races import begin, best_on_held_out
from benchmarks.regression.trainers import BATCH, TRAINERS
from benchmarks.uci.data import Part
from linboost_optax.sklearn import IllsRegressor

EPOCHS, STEPS = 100, 8000  # of mini-batch Adam: whichever is more


class Method(NamedTuple):
    """Test RMSE of a split, by its number, with so many hidden units."""

    label: str
    error: Callable[[Part, int, int, bool], float]


def by_estimator(make: Callable[..., Any]) -> Callable[[Part, int, int, bool], float]:
    """An estimator as it is, but for early stopping."""

    def error(part: Part, units: int, seed: int, quick: bool) -> float:
        model = early_stopped(make, (units,), (part.x, part.y), seed, quick=quick)
        return rmse(model.predict(part.x_test), part)

    return error


def _adam(part: Part, units: int, seed: int, quick: bool) -> float:
    """Mini-batch Adam: the rate and the epoch that are best on what is held out."""
    parts: Any = train_test_split(part.x, part.y, test_size=0.1, random_state=seed)
    x, x_held, y, y_held = parts
    pairs = ((x, y), (x_held, y_held), (part.x_test, part.y_test))
    split = as_split(*((inputs, targets[:, None]) for inputs, targets in pairs))
    epochs = max(EPOCHS, math.ceil(STEPS / (len(x) // BATCH)))
    trainer = replace(TRAINERS["adam_batches"], steps=epochs)
    start = begin(split, (units,), seed)
    return best_on_held_out(trainer, start, quick=quick) * part.unit


def rmse(predicted: Any, part: Part) -> float:
    """In the targets' own units."""
    return float(part.unit * np.sqrt(np.mean((predicted - part.y_test) ** 2)))


METHODS = {
    "ills": Method("ILLS", by_estimator(IllsRegressor)),
    "adam": Method("Adam", _adam),
    "mlp": Method("MLPRegressor", by_estimator(MLPRegressor)),
}
