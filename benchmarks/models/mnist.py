"""MNIST in NNX: two convolutions with BatchNorm and dropout, two dense layers."""

from __future__ import annotations

import jax
from flax import nnx

from benchmarks.models._example import Example


class CNN(nnx.Module):
    """Random numbers are an argument of the call, as in a loop that owns them."""

    def __init__(self, side: int, widths: tuple[int, int, int], rngs: nnx.Rngs):
        first, second, hidden = widths
        self.conv1 = nnx.Conv(1, first, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(first, rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(second, rngs=rngs)
        self.hidden = nnx.Linear((side // 4) ** 2 * second, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.025)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        x = self.norm1(self.dropout(self.conv1(x), rngs=rngs))
        x = nnx.avg_pool(nnx.relu(x), (2, 2), strides=(2, 2))
        x = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        x = self.hidden(x.reshape(x.shape[0], -1))
        return self.out(nnx.relu(self.dropout(x, rngs=rngs)))


def mnist(tiny: bool = False) -> Example:
    """The classifier of 28 x 28 images."""
    side, widths, batch = (8, (2, 3, 4), 4) if tiny else (28, (32, 64, 256), 128)
    return Example(
        title="MNIST CNN",
        model=lambda rngs: CNN(side, widths, rngs),
        sample=lambda key: (jax.random.uniform(key, (batch, side, side, 1)),),
        rngs=("dropout",),
    )
