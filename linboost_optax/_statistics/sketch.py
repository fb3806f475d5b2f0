"""A Gram matrix seen by a few fixed probes: linear in it, and never formed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax import _checks
from linboost_optax._layer import Affine
from linboost_optax._sharding import rows_whole
from linboost_optax._statistics import bounds
from linboost_optax._statistics.base import (
    BlockMoments,
    Statistic,
    mean_of,
    ones_of,
    only,
    per_block,
    rows_taken,
    struct,
)
from linboost_optax._statistics.counts import or_counts
from linboost_optax._statistics.moments import (
    MomentSums,
    block_moments,
    channel_shapes,
    channels_of,
)
from linboost_optax._statistics.spectrum import Spectrum

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Layer


class SketchSums(NamedTuple):
    r"""The sketch :math:`\sum x x^T \Omega`, and the moments of the same rows.

    Attributes:
      count: number of samples in the sketch, shape ``[*stack, 1]``.
      sum: shape ``[*stack, group, feature]``.
      sum_sq: shape ``[*stack, group, feature]``.
      outer: shape ``[*stack, group, feature, probe]``.
      channels: as in ``GramSums``: the moments per channel over all samples, or None.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: jax.Array
    sum_sq: jax.Array
    outer: jax.Array
    channels: MomentSums | None = None


class BlockSketch(NamedTuple):
    """The second moment of each block, seen by the probes.

    Attributes:
      count: number of samples, ``[block]``.
      mean: ``[block, feature]``.
      mean_sq: ``[block, feature]``.
      outer: mean outer product times the probes, ``[block, feature, probe]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: jax.Array
    mean_sq: jax.Array
    outer: jax.Array


@dataclass(frozen=True)
class Sketch(Statistic):
    r"""The Gram matrix times a few fixed probes: O(rank d) numbers a layer.

    .. math::
      n, \quad \sum x, \quad \sum x^2, \quad \sum x x^T \Omega

    Args:
      rank: number of probes, at most one a feature; default 64.
      max_samples: most rows of a batch that it is made of, as for ``Gram``; default
        None takes all.

    Raises:
      TypeError: if an argument is not a whole number.
      ValueError: if an argument is not positive.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> taps = linen.taps(nn.Dense(2), jnp.ones((8, 500)), statistic=lbo.Sketch(16))
      >>> taps.zeros()[""].value.outer.shape
      (1, 500, 16)

    References:
      Frangella, Tropp and Udell (2023), SIAM J. Matrix Anal. Appl. 44(2).
    """

    rank: int = 64
    max_samples: int | None = None

    name: ClassVar[str] = "sketch"
    reads_rows: ClassVar[bool] = True

    def __post_init__(self):
        _checks.whole("rank", self.rank, 1)
        _checks.optional_whole("max_samples", self.max_samples, 1)

    def rank_of(self, layer: Layer) -> int:
        """Returns the number of probes of a layer."""
        return min(self.rank, layer.features)

    @property
    def is_whole(self) -> bool:
        return self.max_samples is None

    def choose(self, kind: Kind) -> Statistic:
        return or_counts(self, kind)

    def shapes(self, layer: Layer) -> SketchSums:
        each = struct(layer, layer.kind.groups, layer.features)
        return SketchSums(
            struct(layer, 1),
            each,
            each,
            struct(layer, *each.shape, self.rank_of(layer)),
            channel_shapes(layer, self.max_samples),
        )

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> SketchSums:
        del g
        dtype = jnp.dtype(layer.dtype)
        design = rows_whole(layer.kind.design(x, self.max_samples))
        rows_seen = layer.kind.rows_of(rows, self.max_samples)
        sums = sketch_sums(design, self.rank_of(layer), dtype, rows_seen)
        channels = channels_of(layer, x, self.max_samples, rows)
        return sums._replace(channels=channels)

    def flops(self, layer: Layer) -> float:
        """Returns the products of a row with the probes and back, and its moments."""
        each = layer.features * (4 * self.rank_of(layer) + 3)
        return 1.0 * layer.kind.groups * rows_taken(layer, self.max_samples) * each

    def spectrum(self, layer: Layer, value: SketchSums) -> Spectrum:
        return bounds.of_sketch(*self._seen(layer, value), biased=layer.biased)

    def mean_square(self, layer: Layer, value: SketchSums, v: Affine) -> jax.Array:
        """Returns it with the covariance that the default solver makes of a sketch."""
        return bounds.on_sketch(*self._seen(layer, value), v)

    def _seen(
        self, layer: Layer, value: SketchSums
    ) -> tuple[BlockMoments, jax.Array, jax.Array]:
        """Returns the moments of the sketched rows, the sketch and the probes."""
        *moments, outer = self.sketched(layer, value)
        omega = probes(layer.features, self.rank_of(layer), outer.dtype)
        return BlockMoments(*moments), outer, jnp.asarray(omega)

    def moments(self, layer: Layer, value: SketchSums) -> BlockMoments:
        if value.channels is not None:
            return block_moments(layer, value.channels)
        return block_moments(layer, MomentSums(value.count, value.sum, value.sum_sq))

    def sketched(self, layer: Layer, value: SketchSums) -> BlockSketch:
        """Returns the second moment seen by the probes, and the moments of its rows."""
        count = per_block(layer, value.count)
        sums = (value.sum, value.sum_sq, value.outer)
        return BlockSketch(count, *(mean_of(layer, s, count) for s in sums))


@functools.lru_cache(maxsize=64)  # one object a width: traces keep one constant
def probes(features: int, rank: int, dtype: jnp.dtype) -> np.ndarray:
    r"""Returns :math:`\Omega`, ``[feature, rank]`` with orthonormal columns.

    Random columns of a cosine transform, its rows with random signs. Always the same,
    so that sketches add up.
    """
    rng = np.random.default_rng(0)
    columns = np.sort(rng.choice(features, rank, replace=False))
    signs = rng.choice([-1.0, 1.0], features)
    rows = np.arange(features) + 0.5
    cosines = np.cos(np.outer(rows, columns) * (np.pi / features))
    norms = np.where(columns == 0, features, features / 2) ** -0.5
    return (signs[:, None] * cosines * norms).astype(dtype)


def sketch_sums(
    design: jax.Array, rank: int, dtype: jnp.dtype, rows: jax.Array | None = None
) -> SketchSums:
    """Returns the sketch of a ``[group, sample, feature]`` design matrix."""
    x = only(rows, design.astype(dtype), axis=1)
    count = jnp.sum(ones_of(x[0, :, :1], dtype, rows), axis=0)
    # Full precision: the sketch must be that of one positive semi-definite matrix.
    high = jax.lax.Precision.HIGHEST
    omega = probes(x.shape[-1], rank, dtype)
    seen = jnp.einsum("gnd,dr->gnr", x, omega, precision=high)
    outer = jnp.einsum("gnd,gnr->gdr", x, seen, precision=high)
    return SketchSums(count, jnp.sum(x, axis=1), jnp.sum(jnp.square(x), axis=1), outer)
