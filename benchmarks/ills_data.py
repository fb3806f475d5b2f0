"""Regression problems for the ILLS benchmark: bundled or generated, nothing fetched."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

import linboost_optax as lbo

PROBLEMS = (
    "diabetes",
    "digits",
    "friedman1",
    "friedman2",
    "friedman3",
    "teacher",
    "teacher2",
)
CORRUPTIONS = ("clean", "noise", "outliers")


class Split(NamedTuple):
    """Standardised training, validation and test data; the last two uncorrupted."""

    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


def load(problem: str, corruption: str, seed: int) -> Split:
    """Draw one problem: 70 % training, 10 % validation, 20 % test."""
    x, y = _raw(problem, seed)
    parts: Any = train_test_split(x, y, test_size=0.2, random_state=seed)
    x, x_test, y, y_test = parts
    parts = train_test_split(x, y, test_size=0.125, random_state=seed)
    x, x_val, y, y_val = parts
    x_mean, x_std = x.mean(0), x.std(0)
    y_mean, y_std = y.mean(0), y.std(0)
    # Pixels that never change would be divided by zero.
    x_std[x_std == 0], y_std[y_std == 0] = 1, 1

    def scaled(a, b):
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


def _raw(problem: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if problem == "diabetes":
        bunch: Any = datasets.load_diabetes()
        return bunch.data, bunch.target[:, None]
    if problem == "digits":  # Lower half of the image from the upper half.
        bunch = datasets.load_digits()
        pixels = bunch.data
        return pixels[:, :32], pixels[:, 32:]
    if problem.startswith("friedman"):
        make = getattr(datasets, f"make_{problem}")
        x, y = make(n_samples=1500, random_state=seed)
        return x, y[:, None]
    hidden = (10,) if problem == "teacher" else (10, 10)
    key_x, key_w = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key_x, (1500, 5))
    params = lbo.init_mlp(key_w, (5, *hidden, 1))
    params = [(2 * w, b) for w, b in params]
    return np.asarray(x), np.asarray(lbo.predict(lbo.network(params), params, x))
