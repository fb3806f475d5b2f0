r"""What holds of a second moment that is known in part.

The largest eigenvalue of a matrix is at least that of any part of it, the smallest at
most (Cauchy's interlacing theorem), and so with what is nowhere more than the matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine
from linboost_optax._statistics.low_rank import nystrom
from linboost_optax._statistics.spectrum import (
    HIGH,
    Spectrum,
    directions,
    of_matrix,
    or_nan,
    participation,
    rounding,
    variance,
)

if TYPE_CHECKING:
    from linboost_optax._statistics.base import BlockMoments


def of_moments(moments: BlockMoments, biased: bool) -> Spectrum:
    """Returns the bounds that the moments of the features give."""
    top = jnp.max(moments.mean_sq, axis=1, keepdims=True)
    least = jnp.full_like(top[:, 0], jnp.inf)
    return _bounds(moments, biased, top, least, jnp.zeros_like(least))


def of_sketch(
    moments: BlockMoments, outer: jax.Array, omega: jax.Array, biased: bool
) -> Spectrum:
    r"""Returns bounds from :math:`M \Omega`, ``[block, feature, probe]``.

    The Nystrom approximation is never more than the matrix: its eigenvalues are lower
    bounds, and what it leaves on the diagonal adds to the norm.

    Args:
      moments: of the rows that the sketch is made of.
      outer: the sketch.
      omega: the probes, orthonormal columns, ``[feature, probe]``.
      biased: whether the constant is a feature.
    """
    if omega.shape[0] == omega.shape[1]:  # then it holds all of the matrix
        whole = jnp.einsum("kdr,er->kde", outer, omega, precision=HIGH)
        whole = (whole + whole.mT) / 2
        return of_matrix(moments.count, moments.mean, whole, biased)
    top = jnp.linalg.eigvalsh(_square(nystrom(outer, omega)))[:, ::-1]
    probed = jnp.einsum("dr,kds->krs", omega, outer, precision=HIGH)
    least = jnp.linalg.eigvalsh((probed + probed.mT) / 2)[:, 0]
    low, rest = _covariance(moments, outer, omega)
    squares = jnp.sum(_square(low) ** 2, axis=(1, 2)) + jnp.sum(rest**2, axis=1)
    return _bounds(moments, biased, jnp.maximum(top, 0), least, squares)


def on_sketch(
    moments: BlockMoments, outer: jax.Array, omega: jax.Array, v: Affine
) -> jax.Array:
    r"""Returns :math:`E|\tilde x^T v|^2` by block, the rest on the diagonal."""
    low, rest = _covariance(moments, outer, omega)
    along = jnp.einsum("kdr,kdo->kro", low, v.w, precision=HIGH)
    spread = jnp.sum(along**2, axis=1) + jnp.einsum("kd,kdo->ko", rest, v.w**2)
    return jnp.sum(_output_mean(moments, v) ** 2 + spread, axis=1)


def uncorrelated(moments: BlockMoments, v: Affine) -> jax.Array:
    r"""Returns :math:`E|\tilde x^T v|^2` by block, were features uncorrelated."""
    each = variance(moments.mean, moments.mean_sq)
    spread = jnp.einsum("kd,kdo->ko", each, v.w**2)
    return jnp.sum(_output_mean(moments, v) ** 2 + spread, axis=1)


def _output_mean(moments: BlockMoments, v: Affine) -> jax.Array:
    mean = jnp.einsum("kd,kdo->ko", moments.mean, v.w)
    return mean if v.b is None else mean + v.b


def _covariance(
    moments: BlockMoments, outer: jax.Array, omega: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns ``B`` of the covariance, and the variances that it leaves."""
    mean = moments.mean
    seen = jnp.einsum("kd,dr->kr", mean, omega, precision=HIGH)
    low = nystrom(outer - mean[:, :, None] * seen[:, None, :], omega)
    left = variance(mean, moments.mean_sq) - jnp.sum(low**2, axis=2)
    return low, jnp.maximum(left, 0)


def _square(low: jax.Array) -> jax.Array:
    return jnp.einsum("kdr,kds->krs", low, low, precision=HIGH)


def _bounds(
    moments: BlockMoments,
    biased: bool,
    top: jax.Array,
    least: jax.Array,
    squares: jax.Array,
) -> Spectrum:
    r"""Returns bounds, given others.

    Args:
      moments: of the features.
      biased: whether the constant is a feature.
      top: lower bounds of the first eigenvalues of :math:`E[x x^T]`,
        ``[block, number]``.
      least: upper bound of its smallest, ``[block]``.
      squares: lower bound of :math:`\mathrm{tr}\,\Sigma^2`, ``[block]``.
    """
    count, mean, mean_sq = moments
    high, low = mean_sq, mean_sq
    trace = jnp.sum(mean_sq, axis=1)
    if biased:  # a feature and the constant are a part of M: 2 x 2, with eigenvalues
        high = (mean_sq + 1 + jnp.hypot(mean_sq - 1, 2 * mean)) / 2
        low = (jnp.maximum(mean_sq - mean**2, 0) + rounding(mean_sq)) / high
        trace = trace + 1
    live = mean_sq > 0
    largest = jnp.maximum(jnp.max(high, axis=1), top[:, 0])
    least = jnp.minimum(least, jnp.min(jnp.where(live, low, jnp.inf), axis=1))
    # The k-th eigenvalue is at most the mean of those behind the first j.
    k = directions(count, mean_sq, biased)
    j = jnp.clip(k - 1, 0, top.shape[1])
    before = jnp.cumsum(jnp.pad(top, ((0, 0), (1, 0))), axis=1)
    left = trace - jnp.take_along_axis(before, j[:, None], axis=1)[:, 0]
    slack = mean_sq.shape[1] * jnp.finfo(trace.dtype).eps * trace
    behind = jnp.maximum(k - j, 1).astype(trace.dtype)
    smallest = (jnp.maximum(left, 0) + slack) / behind
    whole = k == jnp.sum(live, axis=1, dtype=k.dtype) + int(biased)
    both = jnp.minimum(smallest, least + slack)
    smallest = jnp.where(whole, both, smallest)
    condition = jnp.maximum(largest / smallest, 1)
    diagonal = jnp.sum(variance(mean, mean_sq) ** 2, axis=1)
    squares = jnp.maximum(squares, diagonal)
    rank = participation(count, mean, mean_sq, squares)
    return Spectrum(or_nan(count, condition), rank, jnp.asarray(False))
