"""Corrupted training data, and trainers that stop early on data corrupted alike.

The validation error is the mean squared one, or for robust losses the mean absolute
one: what `fit_ills` takes, and so Adam does, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.regression.errors import rmse
from benchmarks.regression.problems import (
    PROBLEMS,
    Rows,
    as_split,
    network_data,
    standardised,
)
from benchmarks.regression.races import QUICK, Start, begin, best_on_held_out
from benchmarks.regression.trainers import RATES, TRAINERS
from linboost_optax import ills

HIDDEN = (20,)
OUTLIER = 10.0  # standard deviations
OUTPUTS = 4  # of the problem with missing targets
NOISE = 0.1  # of the known ones, standard deviations
FEWEST = 10  # rows without a gap that one can train on


class Corrupted(NamedTuple):
    """Start, and which targets are known of the training and the validation data."""

    start: Start
    known: tuple[jax.Array, jax.Array]


Corrupt = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Fit = Callable[[Corrupted, bool], float]  # also told to be quick; clean test error


def noise(level: float) -> Corrupt:
    """Normal noise of this many standard deviations."""
    return lambda y, rng: y + level * rng.normal(size=y.shape)


def outliers(share: float) -> Corrupt:
    """A share of the targets moved far, up or down."""

    def corrupt(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        hit = rng.uniform(size=y.shape) < share
        return np.where(hit, y + OUTLIER * rng.choice([-1, 1], size=y.shape), y)

    return corrupt


def missing(share: float) -> Corrupt:
    """Noise, and a share of the targets unknown, NaN until `load` takes them out."""

    def corrupt(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noisy = noise(NOISE)(y, rng)
        return np.where(rng.uniform(size=y.shape) < share, np.nan, noisy)

    return corrupt


def load(rows: Rows, corrupt: Corrupt, seed: int) -> Corrupted:
    """60 % to train on, 20 % to stop by, corrupted alike, and 20 % clean to test on."""
    x, y = rows
    order = np.random.default_rng(seed).permutation(len(x))
    ends = len(x) * 3 // 5, len(x) * 4 // 5
    cut = zip(np.split(x[order], ends), np.split(y[order], ends), strict=True)
    *seen, test = standardised(*cut)
    rng = np.random.default_rng(1000 + seed)
    dirty = [(inputs, corrupt(targets, rng)) for inputs, targets in seen]
    known = [np.isfinite(targets) for _, targets in dirty]
    filled = [(inputs, np.nan_to_num(targets)) for inputs, targets in dirty]
    start = begin(as_split(*filled, test), HIDDEN, seed)
    return Corrupted(start, (jnp.asarray(known[0]), jnp.asarray(known[1])))


def friedman1(seed: int) -> Rows:
    """One target."""
    return PROBLEMS["friedman1"].draw(seed)


def teacher4(seed: int) -> Rows:
    """A random network of four outputs."""
    return network_data(seed, (10,), OUTPUTS)


def complete(data: Corrupted) -> Corrupted:
    """The same without the rows that have a gap."""
    train, validation = (
        jnp.broadcast_to(jnp.all(known, axis=1, keepdims=True), known.shape)
        for known in data.known
    )
    return data._replace(known=(train, validation))


def by_trainer(name: str) -> Fit:
    """One of the job `ills`, with squared loss; all targets are known."""

    def fit(data: Corrupted, quick: bool) -> float:
        return best_on_held_out(TRAINERS[name], data.start, quick=quick)

    return fit


def by_ills(loss: str = "squared") -> Fit:
    """`fit_ills` with all options at their defaults but the loss."""

    def fit(data: Corrupted, quick: bool) -> float:
        (train, validation, test), network, params = data.start
        steps = QUICK if quick else TRAINERS["ills"].steps
        result = ills.fit_ills(
            network,
            params,
            *train,
            mask=data.known[0],
            validation=(*validation, None, data.known[1]),
            max_iter=steps,
            loss=loss,
        )
        return float(rmse(network, result.params, test))

    return fit


def by_adam(loss: str = "squared") -> Fit:
    """Full-batch Adam at the rate with the least validation error."""

    def fit(data: Corrupted, quick: bool) -> float:
        steps = QUICK if quick else TRAINERS["adam"].steps
        split, network, params = data.start
        curves = np.concatenate(
            [
                adam(network, params, split, data.known, rate, steps=steps, loss=loss)
                for rate in RATES
            ]
        )
        return float(curves[np.nanargmin(curves[:, 0]), 1])

    return fit


def on_complete_rows(fit: Fit) -> Fit:
    """The same without the rows that have a gap; infinite where too few are left."""

    def restricted(data: Corrupted, quick: bool) -> float:
        data = complete(data)
        rows = (int(jnp.sum(known[:, 0])) for known in data.known)
        return fit(data, quick) if min(rows) >= FEWEST else float("inf")

    return restricted


@functools.partial(jax.jit, static_argnames=("network", "steps", "loss"))
def adam(network, params, split, known, rate, *, steps, loss):
    """Validation and test error after every step, of known targets alone."""
    tx = optax.adam(rate)

    def mean(p, data, known, of):
        inputs, targets = data
        residual = jnp.where(known, ills.predict(network, p, inputs) - targets, 0)
        return jnp.sum(of(residual)) / jnp.sum(known)

    robust = loss != "squared"
    trained_on = optax.losses.huber_loss if robust else jnp.square
    stopped_by = jnp.abs if robust else jnp.square

    def step(carry, _):
        params, state = carry
        grads = jax.grad(mean)(params, split[0], known[0], trained_on)
        updates, state = tx.update(grads, state)
        params = optax.apply_updates(params, updates)
        held_out = mean(params, split[1], known[1], stopped_by)
        return (params, state), jnp.stack([held_out, rmse(network, params, split[2])])

    _, curve = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
    return curve
