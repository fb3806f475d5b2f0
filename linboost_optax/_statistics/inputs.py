"""A layer's inputs themselves, for products that never form a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine
from linboost_optax._statistics.base import (
    BlockMoments,
    Statistic,
    batched_ones,
    only,
    per_block,
    struct,
)
from linboost_optax._statistics.counts import or_counts
from linboost_optax._statistics.spectrum import Spectrum, of_rows

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Layer


class InputRows(NamedTuple):
    """A layer's inputs.

    Attributes:
      x: the inputs in the layer's own shape, ``[*stack, ...]``.
      rows: one for each sample that counts, zero for the others, ``[*stack, sample]``.
      uses: how often the layer was used, shape ``[*stack, 1]``. Inputs are not
        additive, so a value other than one marks them as unusable.
    """

    x: jax.Array
    rows: jax.Array
    uses: jax.Array


class BlockRows(NamedTuple):
    """The design matrix of each block.

    Attributes:
      count: number of samples that count, ``[block]``; zero where inputs were added up.
      x: ``[block, sample, feature]``, zero for samples that do not count.
      rows: one for each sample that counts, zero for the others, ``[block, sample]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    x: jax.Array
    rows: jax.Array

    def product(self, v: Affine) -> Affine:
        z = jnp.einsum("knd,kdo->kno", self.x, v.w)
        z = z if v.b is None else z + v.b[:, None, :]
        z = z * self.rows[:, :, None]
        number = jnp.maximum(self.count, 1)[:, None]
        w = jnp.einsum("knd,kno->kdo", self.x, z) / number[..., None]
        return Affine(w, None if v.b is None else jnp.sum(z, axis=1) / number)


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
      .     Dense + bias  3x2     8x3     inputs       132
      statistics: 132 bytes

    References:
      Munoz (2025), arXiv:2502.01131, section 4: the matrix-free algorithm.
    """

    name: ClassVar[str] = "inputs"
    reads_rows: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    def choose(self, kind: Kind) -> Statistic:
        return or_counts(self, kind)

    def shapes(self, layer: Layer) -> InputRows:
        own = struct(layer, *layer.input_shape)
        samples = jax.eval_shape(layer.kind.design, own).shape[1]
        return InputRows(own, struct(layer, samples), struct(layer, 1))

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> InputRows:
        del g
        dtype = jnp.dtype(layer.dtype)
        first = x.reshape(-1)[:1].astype(dtype)
        once = batched_ones(first, dtype)
        seen = only(rows, jnp.broadcast_to(once, self.shapes(layer).rows.shape))
        return InputRows(x.astype(dtype), seen, once)

    def flops(self, layer: Layer) -> float:
        """Returns zero: inputs are kept as they are."""
        del layer
        return 0.0

    def spectrum(self, layer: Layer, value: InputRows) -> Spectrum:
        return of_rows(*self.second_moment(layer, value), biased=layer.biased)

    def moments(self, layer: Layer, value: InputRows) -> BlockMoments:
        x = value.x.reshape(-1, *layer.input_shape)
        x = jax.vmap(layer.kind.samples)(x)
        x = jnp.moveaxis(x, 1, 2).reshape(layer.blocks, -1, layer.kind.channels)
        seen = value.rows.reshape(math.prod(layer.stack), -1) != 0
        seen = jax.vmap(lambda rows: layer.kind.read_by(rows, layer.input_shape))(seen)
        seen = self._by_block(layer, seen)
        x = jnp.where(seen[:, :, None], x, jnp.zeros((), x.dtype))
        count = self._count(layer, value, seen)
        # A mean of all rows stays one: constant inputs keep a variance of zero.
        total = jnp.sum(seen, axis=1).astype(x.dtype)
        share = (x.shape[1] / jnp.maximum(total, 1))[:, None]
        mean, mean_sq = jnp.mean(x, axis=1) * share, jnp.mean(x * x, axis=1) * share
        per_feature = layer.kind.per_feature
        return BlockMoments(count, per_feature(mean), per_feature(mean_sq))

    def second_moment(self, layer: Layer, value: InputRows) -> BlockRows:
        """Returns the design matrices, to be multiplied by."""
        x = value.x.reshape(-1, *layer.input_shape)
        x = jax.vmap(layer.kind.design)(x).reshape(layer.blocks, -1, layer.features)
        rows = value.rows.reshape(math.prod(layer.stack), -1)
        seen = self._by_block(layer, rows != 0)
        count = self._count(layer, value, seen)
        x = jnp.where(seen[:, :, None], x, jnp.zeros((), x.dtype))
        return BlockRows(count, x, seen.astype(x.dtype))

    def _by_block(self, layer: Layer, rows: jax.Array) -> jax.Array:
        groups = layer.kind.groups
        return jnp.repeat(rows, groups, axis=0, total_repeat_length=layer.blocks)

    def _count(self, layer: Layer, value: InputRows, seen: jax.Array) -> jax.Array:
        once = per_block(layer, value.uses) == 1
        total = jnp.sum(seen, axis=1).astype(value.x.dtype)
        return jnp.where(once, total, jnp.zeros((), value.x.dtype))
