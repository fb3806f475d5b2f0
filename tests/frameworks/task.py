"""What twins are trained on, and from where: weights, batches and the loss."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from tests.frameworks.twin import SHAPES, Common


def weights(model: str) -> Common:
    """Returns the common initial weights; no two outputs, nor biases, are alike."""
    rng = np.random.default_rng(0)
    common = {}
    for name, shape in SHAPES[model].items():
        fan_in = int(np.prod(shape[:-1])) if name.endswith(".w") else 16
        common[name] = rng.normal(size=shape) / np.sqrt(fan_in)
        common[name] += name.endswith(".scale")
    return common


def batches(
    model: str, steps: int, *, many: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns inputs and labels of every step.

    Args:
      model: name in ``SHAPES``.
      steps: number of batches.
      many: whether layers get more than the 128 rows of which ``lbo.Auto()`` makes a
        matrix, those of embeddings and of a layer behind a mean left out.
    """
    rng = np.random.default_rng(1)
    if model == "transformer":
        tokens = [rng.integers(0, 11, (24 if many else 4, 7)) for _ in range(steps)]
        return [(t[:, :-1], t[:, 1:]) for t in tokens]
    few, more, sample = {
        "mlp": (16, 150, (5,)),
        "cnn": (8, 16, (6, 6, 2)),  # 9 rows an image
        "gru": (8, 150, (5, 4)),  # one row a sequence and step
    }[model]
    mix = rng.normal(size=(sample[-1], sample[-1]))

    def batch():
        x = rng.normal(size=(more if many else few, *sample))
        x = x @ mix + 0.5  # correlated, with a mean
        return x, rng.integers(0, 3, len(x))

    return [batch() for _ in range(steps)]


def loss_of(forward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns the loss of every twin, of parameters, inputs and labels."""

    def loss_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = forward(params, x)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    return loss_fn
