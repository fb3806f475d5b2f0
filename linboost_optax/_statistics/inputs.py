"""A layer's inputs themselves, for products that never form a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine
from linboost_optax._statistics.base import (
    BlockMoments,
    Statistic,
    batched_ones,
    per_block,
    struct,
)
from linboost_optax._statistics.counts import or_counts

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Layer


class InputRows(NamedTuple):
    """A layer's inputs.

    Attributes:
      x: the inputs in the layer's own shape, ``[*stack, ...]``.
      uses: how often the layer was used, shape ``[*stack, 1]``. Inputs are not
        additive, so a value other than one marks them as unusable.
    """

    x: jax.Array
    uses: jax.Array


class BlockRows(NamedTuple):
    """The design matrix of each block.

    Attributes:
      count: number of samples, ``[block]``; zero where inputs were added up.
      x: ``[block, sample, feature]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    x: jax.Array

    def product(self, v: Affine) -> Affine:
        z = jnp.einsum("knd,kdo->kno", self.x, v.w)
        z = z if v.b is None else z + v.b[:, None, :]
        w = jnp.einsum("knd,kno->kdo", self.x, z) / self.x.shape[1]
        return Affine(w, None if v.b is None else jnp.mean(z, axis=1))


@dataclass(frozen=True)
class Inputs(Statistic):
    r"""The inputs themselves, ``[sample, feature]``: matrix-free products with them.

    .. math:: E[x x^T] v = X^T (X v) / n

    They fix the batch's shape and do not add up, so a layer that is used more than
    once is refused.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> print(linen.taps(nn.Dense(2), jnp.ones((8, 3)), statistic=lbo.Inputs()))
      path  kind          kernel  inputs  statistic  bytes
      .     Dense + bias  3x2     8x3     inputs       100
      statistics: 100 bytes

    References:
      Munoz (2025), arXiv:2502.01131, section 4: the matrix-free algorithm.
    """

    name: ClassVar[str] = "inputs"
    additive: ClassVar[bool] = False

    def choose(self, kind: Kind) -> Statistic:
        return or_counts(self, kind)

    def shapes(self, layer: Layer) -> InputRows:
        return InputRows(struct(layer, *layer.input_shape), struct(layer, 1))

    def measure(
        self, layer: Layer, x: jax.Array, g: jax.Array | None = None
    ) -> InputRows:
        del g
        dtype = jnp.dtype(layer.dtype)
        first = x.reshape(-1)[:1].astype(dtype)
        return InputRows(x.astype(dtype), batched_ones(first, dtype))

    def moments(self, layer: Layer, value: InputRows) -> BlockMoments:
        x = value.x.reshape(-1, *layer.input_shape)
        x = jax.vmap(layer.kind.samples)(x)
        x = jnp.moveaxis(x, 1, 2).reshape(layer.blocks, -1, layer.kind.channels)
        count = self._count(layer, value, x.shape[1])

        mean, mean_sq = jnp.mean(x, axis=1), jnp.mean(x * x, axis=1)
        per_feature = layer.kind.per_feature
        return BlockMoments(count, per_feature(mean), per_feature(mean_sq))

    def second_moment(self, layer: Layer, value: InputRows) -> BlockRows:
        """Returns the design matrices, to be multiplied by."""
        x = value.x.reshape(-1, *layer.input_shape)
        x = jax.vmap(layer.kind.design)(x).reshape(layer.blocks, -1, layer.features)
        return BlockRows(self._count(layer, value, x.shape[1]), x)

    def _count(self, layer: Layer, value: InputRows, rows: int) -> jax.Array:
        once = per_block(layer, value.uses) == 1
        return jnp.where(once, rows, 0).astype(value.x.dtype)
