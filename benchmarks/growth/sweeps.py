"""What grows, and what is trained at each of its sizes. All else stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.scaling.layouts import Chain, Stack, sines
from benchmarks.steps import Batch
from benchmarks.tasks._models import Transformer

ROWS = 128  # of a batch
FEATURES = 512
SEQUENCES, VOCABULARY, TRANSFORMER_WIDTH, TRANSFORMER_BLOCKS = 4, 256, 128, 2


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over all outputs."""
    return jnp.mean((outputs - targets) ** 2)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over all labels."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@dataclass(frozen=True)
class Point:
    """What is trained at one size.

    Attributes:
      model: a Flax module.
      batch: inputs and targets.
      criterion: the loss of outputs and targets.
    """

    model: Any
    batch: Batch
    criterion: Callable[[jax.Array, jax.Array], jax.Array] = squared_error

    def loss(self, params: Any, batch: Batch) -> jax.Array:
        """The loss of a batch."""
        x, y = batch
        return self.criterion(self.model.apply({"params": params}, x), y)


@dataclass(frozen=True)
class Sweep:
    """One size that grows.

    Attributes:
      title: the heading of its table.
      axis: the name of the size.
      sizes: from the smallest.
      quick: for a run that proves only that it runs.
      build: makes what is trained at a size.
    """

    title: str
    axis: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    build: Callable[[int], Point]


def width(size: int) -> Point:
    """Dense layers of as many inputs as outputs."""
    return Point(Chain((size,) * 3), sines(ROWS, size, size))


def depth(size: int) -> Point:
    """Residual blocks in one loop, `nn.scan`."""
    return Point(Stack(128, size), sines(ROWS, 128, 128))


def batch(size: int) -> Point:
    """Rows of a batch."""
    return Point(Chain((256,) * 3), sines(size, 256, 256))


def outputs(size: int) -> Point:
    """Outputs of the last of two layers, such as classes or words."""
    return Point(Chain((FEATURES, size)), sines(ROWS, FEATURES, size))


def tokens(size: int) -> Point:
    """Tokens of a sequence."""
    model = Transformer(VOCABULARY, TRANSFORMER_WIDTH, TRANSFORMER_BLOCKS)
    shape = (SEQUENCES, size + 1)
    text = jax.random.randint(jax.random.key(0), shape, 0, VOCABULARY)
    return Point(model, (text[:, :-1], text[:, 1:]), cross_entropy)


SWEEPS = {
    "width": Sweep(
        f"Width of three dense layers, {ROWS} rows",
        "width",
        (64, 128, 256, 512, 1024, 2048, 4096),
        (8, 16),
        width,
    ),
    "depth": Sweep(
        f"Blocks of a scanned stack, each 128-256-128, {ROWS} rows",
        "depth",
        (2, 6, 24, 96),
        (1, 2),
        depth,
    ),
    "batch": Sweep(
        "Rows of a batch, three dense layers of 256",
        "batch",
        (32, 256, 2048, 8192),
        (8, 16),
        batch,
    ),
    "outputs": Sweep(
        f"Outputs of the last of two dense layers, {FEATURES} wide, {ROWS} rows",
        "outputs",
        (10, 128, 1024, 8192),
        (4, 8),
        outputs,
    ),
    "tokens": Sweep(
        f"Tokens of {SEQUENCES} sequences, transformer of {TRANSFORMER_BLOCKS} blocks, "
        f"{TRANSFORMER_WIDTH} wide",
        "tokens",
        (16, 128, 512),
        (4, 8),
        tokens,
    ),
}
