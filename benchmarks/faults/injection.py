"""The faults that are put into a run: of some batches, and of the features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.faults.training import Batches

Poison = Callable[[Batches, np.ndarray], Batches]
Feature = Callable[[np.ndarray], np.ndarray]


def hit(steps: int, rate: float, seed: int) -> np.ndarray:
    """The numbers of the batches that are poisoned; at least one, and the first."""
    rng = np.random.default_rng([2, seed])
    chosen = rng.choice(steps, max(1, round(rate * steps)), replace=False)
    # The first step is the one without any state to fall back on.
    return np.union1d(chosen[1:], [0])


def inputs(value: float) -> Poison:
    """One number of one row of the inputs."""
    return lambda data, steps: _set(data, "x", (steps, 0, 0), value)


def added(name: str, value: float) -> Poison:
    """Every number of the ``"loss"``, the ``"gradient"`` or the ``"statistics"``."""
    return lambda data, steps: _set(data, name, steps, value)


def hidden_rows(value: float) -> Poison:
    """A row that has no weight in the loss: taps see it all the same."""

    def poison(data: Batches, steps: np.ndarray) -> Batches:
        data = _set(data, "weight", (steps, -1), 0.0)
        return _set(data, "x", (steps, -1), value)

    return poison


def targets(factor: float) -> Poison:
    """Targets that are finite and absurd."""

    def poison(data: Batches, steps: np.ndarray) -> Batches:
        return _set(data, "y", steps, factor * data.y[steps])

    return poison


POISONS: dict[str, Poison] = {
    "NaN in the inputs": inputs(np.nan),
    "infinity in the inputs": inputs(np.inf),
    "NaN in the gradient": added("gradient", np.nan),
    "infinity in the gradient": added("gradient", -np.inf),
    "NaN in the loss": added("loss", np.nan),
    "infinity in the loss": added("loss", np.inf),
    "NaN in the statistics": added("statistics", np.nan),
    "infinity in the statistics": added("statistics", np.inf),
    "NaN in a row without weight": hidden_rows(np.nan),
    "1e25 in a row without weight": hidden_rows(1e25),
}

# Not bad numbers, so that nothing but the method itself can stand up to them.
OUTLIERS: dict[str, Poison] = {"targets times 1,000": targets(1e3)}


def mixed(x: np.ndarray) -> np.ndarray:
    """Zero, constant, duplicated, huge and tiny features, all in one layer."""
    x = x.copy()
    x[..., 0] = 0
    x[..., 1] = 7
    x[..., 2] = x[..., 3]
    x[..., 4] *= 1e15
    x[..., 5] *= 1e-15
    x[..., 6] = 1e15
    x[..., 7] = -1e15 * x[..., 3]
    return x


FEATURES: dict[str, Feature] = {
    "all zero": np.zeros_like,
    "all constant": lambda x: np.full_like(x, 3.0),
    "all the same": lambda x: np.repeat(x[..., :1], x.shape[-1], axis=-1),
    "all times 1e15": lambda x: x * np.float32(1e15),
    "all times 1e-15": lambda x: x * np.float32(1e-15),
    "far from zero, x + 1e4": lambda x: x + np.float32(1e4),
    "one times 1,000": lambda x: _one(x, 1e3),
    "one times 1e15": lambda x: _one(x, 1e15),
    "zero, constant, duplicated, huge and tiny in one layer": mixed,
}


def _one(x: np.ndarray, factor: float) -> np.ndarray:
    scales = np.ones(x.shape[-1], np.float32)
    scales[0] = factor
    return x * scales


def _set(data: Batches, name: str, where: object, value: object) -> Batches:
    changed = getattr(data, name).copy()
    changed[where] = value
    return data._replace(**{name: changed})
