"""The Gram matrix of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax import _checks
from linboost_optax._layer import Affine
from linboost_optax._sharding import rows_whole
from linboost_optax._statistics.base import (
    BlockMoments,
    Statistic,
    mean_of,
    ones_of,
    only,
    per_block,
    rows_taken,
    struct,
    with_constant,
)
from linboost_optax._statistics.counts import or_counts
from linboost_optax._statistics.moments import (
    MomentSums,
    block_moments,
    channel_shapes,
    channels_of,
)
from linboost_optax._statistics.spectrum import Spectrum, of_matrix

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Layer


class GramSums(NamedTuple):
    r"""The augmented Gram matrix :math:`\sum \tilde x \tilde x^T`, in its blocks.

    With :math:`\tilde x = [x; 1]` the corner is the count, the last column the
    sum; they are kept apart so that no product has an odd width.

    Attributes:
      count: number of samples in the matrix, shape ``[*stack, 1]``.
      sum: shape ``[*stack, group, feature]``.
      outer: shape ``[*stack, group, feature, feature]``.
      channels: the moments per channel over *all* samples, where they cannot be read
        off the matrix: it has some of the rows only, or is over patches. Else None.
        Under ``jit`` they cost nothing unless a solver reads them.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: jax.Array
    outer: jax.Array
    channels: MomentSums | None = None


class BlockGram(NamedTuple):
    """The second moment of each block as a matrix.

    Attributes:
      count: number of samples, ``[block]``.
      mean: ``[block, feature]``.
      outer: mean outer product, ``[block, feature, feature]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: jax.Array
    outer: jax.Array

    def product(self, v: Affine) -> Affine:
        product = jnp.einsum("kde,keo->kdo", self.outer, v.w)
        return with_constant(self.mean, product, v)


@dataclass(frozen=True)
class Gram(Statistic):
    r"""The Gram matrix of the inputs, of a convolution's patches: O(d^2) numbers.

    .. math:: n, \quad \sum x, \quad \sum x x^T

    Args:
      max_samples: most rows of a batch that the matrix is made of, a fixed random
        choice; a moving average over steps sees many more. Default None takes all, as
        the published solvers ask for.

    Raises:
      TypeError: if ``max_samples`` is not a whole number.
      ValueError: if ``max_samples`` is not positive.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> print(linen.taps(nn.Dense(2), jnp.ones((8, 3)), statistic=lbo.Gram()))
      path  kind          kernel  inputs  statistic  bytes
      .     Dense + bias  3x2     8x3     gram          52
      statistics: 52 bytes

    References:
      Munoz (2025), arXiv:2502.01131, section 3.
    """

    max_samples: int | None = None

    name: ClassVar[str] = "gram"
    reads_rows: ClassVar[bool] = True

    def __post_init__(self):
        _checks.optional_whole("max_samples", self.max_samples, 1)

    def choose(self, kind: Kind) -> Statistic:
        return or_counts(self, kind)

    def shapes(self, layer: Layer) -> GramSums:
        group, d = layer.kind.groups, layer.features
        return GramSums(
            struct(layer, 1),
            struct(layer, group, d),
            struct(layer, group, d, d),
            channel_shapes(layer, self.max_samples),
        )

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> GramSums:
        del g
        dtype = jnp.dtype(layer.dtype)
        design = rows_whole(layer.kind.design(x, self.max_samples))
        sums = gram_sums(design, dtype, layer.kind.rows_of(rows, self.max_samples))
        channels = channels_of(layer, x, self.max_samples, rows)
        return sums._replace(channels=channels)

    def flops(self, layer: Layer) -> float:
        """Returns a product and a sum a number of the matrix, and the sum, by row."""
        d = layer.features
        each = 2 * d * d + d
        return 1.0 * layer.kind.groups * rows_taken(layer, self.max_samples) * each

    def spectrum(self, layer: Layer, value: GramSums) -> Spectrum:
        return of_matrix(*self.second_moment(layer, value), biased=layer.biased)

    @property
    def is_whole(self) -> bool:
        return self.max_samples is None

    def moments(self, layer: Layer, value: GramSums) -> BlockMoments:
        if value.channels is not None:
            return block_moments(layer, value.channels)
        square = jnp.diagonal(value.outer, axis1=-2, axis2=-1)
        return block_moments(layer, MomentSums(value.count, value.sum, square))

    def second_moment(self, layer: Layer, value: GramSums) -> BlockGram:
        """Returns the mean outer product of the rows that the matrix is made of."""
        count = per_block(layer, value.count)
        mean, outer = (mean_of(layer, s, count) for s in (value.sum, value.outer))
        return BlockGram(count, mean, outer)


def gram_sums(
    design: jax.Array, dtype: jnp.dtype, rows: jax.Array | None = None
) -> GramSums:
    """Returns the sums of a ``[group, sample, feature]`` design matrix.

    Narrow floats stay narrow in the product, whose sum runs in ``dtype``.
    """
    design = only(rows, design, axis=1)
    kind = design.dtype
    if not jnp.issubdtype(kind, jnp.floating) or kind.itemsize > dtype.itemsize:
        design = design.astype(dtype)
    count = jnp.sum(ones_of(design[0, :, :1], dtype, rows), axis=0)
    outer = jnp.einsum("gnd,gne->gde", design, design, preferred_element_type=dtype)
    return GramSums(count, jnp.sum(design.astype(dtype), axis=1), outer)
