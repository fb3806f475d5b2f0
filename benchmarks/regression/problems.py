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

Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]
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
    return _teacher(seed, (10,))


@problem(20, 20)
def teacher2(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random network of two hidden layers."""
    return _teacher(seed, (10, 10))


def load(name: str, corruption: str, seed: int) -> Split:
    """Draw one problem: 70 % training, 10 % validation, 20 % test."""
    x, y = PROBLEMS[name].draw(seed)
    parts: Any = train_test_split(x, y, test_size=0.2, random_state=seed)
    x, x_test, y, y_test = parts
    parts = train_test_split(x, y, test_size=0.125, random_state=seed)
    x, x_val, y, y_val = parts
    x_mean, x_std = x.mean(0), x.std(0)
    y_mean, y_std = y.mean(0), y.std(0)
    # Pixels that never change would be divided by zero.
    x_std[x_std == 0], y_std[y_std == 0] = 1, 1

    def scaled(a: np.ndarray, b: np.ndarray) -> tuple[jax.Array, jax.Array]:
        a, b = (a - x_mean) / x_std, (b - y_mean) / y_std
        return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)

    y = y_mean + y_std * _corrupt((y - y_mean) / y_std, corruption, seed)
    return Split(scaled(x, y), scaled(x_val, y_val), scaled(x_test, y_test))


def _corrupt(y: np.ndarray, corruption: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if corruption == "noise":
        return y + 0.3 * rng.normal(size=y.shape)
    if corruption == "outliers":
        hit = rng.uniform(size=y.shape) < 0.1
        return np.where(hit, y + 10 * rng.choice([-1, 1], size=y.shape), y)
    return y


def _teacher(seed: int, hidden: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    key_x, key_w = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key_x, (1500, 5))
    params = ills.init_mlp(key_w, (5, *hidden, 1))
    params = [(2 * w, b) for w, b in params]
    return np.asarray(x), np.asarray(ills.predict(ills.network(params), params, x))
