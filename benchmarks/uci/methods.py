"""Who competes under the UCI protocol: each maps a split to its test RMSE.

All see the same standardised split, hold a tenth of its training part out, and stop by
that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor

from benchmarks.regression.problems import Split
from benchmarks.regression.trainers import BATCH, TRAINERS
from benchmarks.uci.data import Part
from linboost_optax import ills
from linboost_optax.sklearn import IllsRegressor

EPOCHS, STEPS = 100, 8000  # of mini-batch Adam: whichever is more


class Method(NamedTuple):
    """Test RMSE of a split, by its number, with so many hidden units."""

    label: str
    error: Callable[[Part, int, int, bool], float]


def _ills(part: Part, units: int, seed: int, quick: bool) -> float:
    few: dict[str, Any] = {"max_iter": 3} if quick else {}
    model = IllsRegressor((units,), early_stopping=True, random_state=seed, **few)
    model.fit(part.x, part.y)
    return rmse(model.predict(part.x_test), part)


def _mlp(part: Part, units: int, seed: int, quick: bool) -> float:
    model = MLPRegressor(
        hidden_layer_sizes=(units,),
        early_stopping=True,
        max_iter=3 if quick else 200,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It may not converge in its iterations.
        model.fit(part.x, part.y)
    return rmse(model.predict(part.x_test), part)


def _adam(part: Part, units: int, seed: int, quick: bool) -> float:
    """Mini-batch Adam: the rate and the epoch that are best on what is held out."""
    parts: Any = train_test_split(part.x, part.y, test_size=0.1, random_state=seed)
    x, x_held, y, y_held = parts
    pairs = ((x, y), (x_held, y_held), (part.x_test, part.y_test))
    split = Split(
        *(
            (jnp.asarray(a, jnp.float32), jnp.asarray(b[:, None], jnp.float32))
            for a, b in pairs
        )
    )
    params = ills.init_mlp(jax.random.key(seed), (x.shape[1], units, 1))
    trainer = TRAINERS["adam_batches"]
    steps = 3 if quick else max(EPOCHS, math.ceil(STEPS / (len(x) // BATCH)))
    runs = []
    for rate in trainer.rates:
        _, curve = trainer.train(
            ills.network(params), params, split, rate, steps=steps, full=True
        )
        runs.append(np.asarray(curve))
    return stopped(runs) * part.unit


def stopped(runs: list[np.ndarray]) -> float:
    """Test error where the held-out error of all runs is least.

    A run has a row an epoch: training, held-out and test error.
    """
    rows = np.concatenate(runs)
    return float(rows[np.nanargmin(rows[:, 1]), 2])


def rmse(predicted: Any, part: Part) -> float:
    """In the targets' own units."""
    return float(part.unit * np.sqrt(np.mean((predicted - part.y_test) ** 2)))


METHODS = {
    "ills": Method("ILLS", _ills),
    "adam": Method("Adam", _adam),
    "mlp": Method("MLPRegressor", _mlp),
}
