"""Regression problems: bundled or generated, nothing fetched.

A new one is one function under one decorator: it draws inputs and targets from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

from linboost_optax import ills

Rows = tuple[np.ndarray, np.ndarray]  # inputs and targets
Draw = Callable[[int], Rows]
CORRUPTIONS = ("clean", "noise", "outliers")


@dataclass(frozen=True)
class Problem:
    """How to draw the data, and the hidden layers that learn them."""

    draw: Draw
    hidden: tuple[int, ...]


class Split(NamedTuple):
    """Standardised training, validation and test data; the last two uncorrupted."""

    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


PROBLEMS: dict[str, Problem] = {}


def problem(*hidden: int) -> Callable[[Draw], Draw]:
    """List a function as a problem, under its own name."""

    def add(draw: Draw) -> Draw:
        PROBLEMS[draw.__name__] = Problem(draw, hidden)
        return draw

    return add


@problem(20)
def diabetes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    del seed
    bunch: Any = datasets.load_diabetes()
    return bunch.data, bunch.target[:, None]


@problem(20)
def digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower half of the image from the upper half."""
    del seed
    bunch: Any = datasets.load_digits()
    return bunch.data[:, :32], bunch.data[:, 32:]


@problem(20)
def friedman1(seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = datasets.make_friedman1(n_samples=1500, random_state=seed)
    return x, y[:, None]


@problem(20)
def friedman2(seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = datasets.make_friedman2(n_samples=1500, random_state=seed)
    return x, y[:, None]


@problem(20)
def friedman3(seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = datasets.make_friedman3(n_samples=1500, random_state=seed)
    return x, y[:, None]


@problem(20)
def teacher(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random network of one hidden layer."""
    return network_data(seed, (10,))


@problem(20, 20)
def teacher2(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random network of two hidden layers."""
    return network_data(seed, (10, 10))


def load(name: str, corruption: str, seed: int) -> Split:
    """Draw one problem: 70 % training, 10 % validation, 20 % test."""
    x, y = PROBLEMS[name].draw(seed)
    parts: Any = train_test_split(x, y, test_size=0.2, random_state=seed)
    x, x_test, y, y_test = parts
    parts = train_test_split(x, y, test_size=0.125, random_state=seed)
    x, x_val, y, y_val = parts
    (x, y), *others = standardised((x, y), (x_val, y_val), (x_test, y_test))
    return as_split((x, _corrupt(y, corruption, seed)), *others)


def standardised(*parts: Rows) -> list[Rows]:
    """Inputs and targets at mean 0 and spread 1 of the first part, which is trained."""
    x, y = parts[0]
    x_mean, x_std = x.mean(0), x.std(0)
    y_mean, y_std = y.mean(0), y.std(0)
    # Pixels that never change would be divided by zero.
    x_std[x_std == 0], y_std[y_std == 0] = 1, 1
    return [((a - x_mean) / x_std, (b - y_mean) / y_std) for a, b in parts]


def as_split(*parts: Rows) -> Split:
    """Training, validation and test data, as the trainers take them."""

    def arrays(part: Rows) -> tuple[jax.Array, jax.Array]:
        x, y = part
        return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    return Split(*map(arrays, parts))


def friedman(rows: int, seed: int) -> Split:
    """Friedman's first function without noise, with this many training rows."""
    held = 200, 500
    total = rows + sum(held)
    x, y = datasets.make_friedman1(n_samples=total, random_state=seed)
    ends = rows, rows + held[0]
    cut = zip(np.split(x, ends), np.split(y[:, None], ends), strict=True)
    return as_split(*standardised(*cut))


def _corrupt(y: np.ndarray, corruption: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if corruption == "noise":
        return y + 0.3 * rng.normal(size=y.shape)
    if corruption == "outliers":
        hit = rng.uniform(size=y.shape) < 0.1
        return np.where(hit, y + 10 * rng.choice([-1, 1], size=y.shape), y)
    return y


def network_data(seed: int, hidden: tuple[int, ...], outputs: int = 1) -> Rows:
    """Inputs of five features, and the outputs of a random tanh network."""
    key_x, key_w = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key_x, (1500, 5))
    params = ills.init_mlp(key_w, (5, *hidden, outputs))
    params = [(2 * w, b) for w, b in params]
    return np.asarray(x), np.asarray(ills.predict(ills.network(params), params, x))
