"""First and second moments per channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._statistics.base import (
    BlockMoments,
    Statistic,
    mean_of,
    ones_of,
    only,
    per_block,
    struct,
)
from linboost_optax._statistics.counts import or_counts

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Layer


class MomentSums(NamedTuple):
    r"""Moments per channel, as sums: :math:`\sum x, \sum x^2`.

    Attributes:
      count: number of samples, shape ``[*stack, 1]``.
      sum: shape ``[*stack, group, channel]``.
      sum_sq: shape ``[*stack, group, channel]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: jax.Array
    sum_sq: jax.Array


@dataclass(frozen=True)
class Moments(Statistic):
    r"""Count, sum and sum of squares of every channel: O(d) numbers a layer.

    .. math:: n, \quad \sum x, \quad \sum x^2

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> print(linen.taps(nn.Dense(2), jnp.ones((8, 3)), statistic=lbo.Moments()))
      path  kind          kernel  inputs  statistic  bytes
      .     Dense + bias  3x2     8x3     moments       28
      statistics: 28 bytes

    References:
      Munoz (2025), arXiv:2502.01131, section 4.
    """

    name: ClassVar[str] = "moments"
    reads_rows: ClassVar[bool] = True

    def choose(self, kind: Kind) -> Statistic:
        return or_counts(self, kind)

    def shapes(self, layer: Layer) -> MomentSums:
        each = struct(layer, layer.kind.groups, layer.kind.channels)
        return MomentSums(struct(layer, 1), each, each)

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> MomentSums:
        del g
        if rows is not None:
            rows = layer.kind.read_by(rows, x.shape)
        return channel_sums(layer.kind.samples(x), jnp.dtype(layer.dtype), rows)

    def flops(self, layer: Layer) -> float:
        """Returns a square and two sums a number of the input."""
        return 3.0 * math.prod(layer.input_shape)

    def moments(self, layer: Layer, value: MomentSums) -> BlockMoments:
        return block_moments(layer, value)


def channel_sums(
    samples: jax.Array, dtype: jnp.dtype, rows: jax.Array | None = None
) -> MomentSums:
    """Returns the sums of ``[sample, group, channel]`` values, as ``dtype``."""
    x = only(rows, samples.astype(dtype))
    count = jnp.sum(ones_of(x[:, 0, :1], dtype, rows), axis=0)
    return MomentSums(count, jnp.sum(x, axis=0), jnp.sum(jnp.square(x), axis=0))


def block_moments(layer: Layer, value: MomentSums) -> BlockMoments:
    """Returns the moments of each feature, from those of its channel."""
    count = per_block(layer, value.count)

    def per_feature(total: jax.Array) -> jax.Array:
        return layer.kind.per_feature(mean_of(layer, total, count))

    return BlockMoments(count, per_feature(value.sum), per_feature(value.sum_sq))


def channel_shapes(layer: Layer, max_samples: int | None) -> MomentSums | None:
    """Returns the shapes of the moments that a matrix has beside it, or None.

    It has none where they can be read off its diagonal: where it is of all rows, and
    every channel is a feature.
    """
    if max_samples is None and layer.kind.repeats == 1:
        return None
    return Moments().shapes(layer)


def channels_of(
    layer: Layer, x: jax.Array, max_samples: int | None, rows: jax.Array | None = None
) -> MomentSums | None:
    """Returns the moments per channel of all samples, where a matrix needs them."""
    if channel_shapes(layer, max_samples) is None:
        return None
    return Moments().measure(layer, x, None, rows)
