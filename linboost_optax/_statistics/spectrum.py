r"""The eigenvalues of a second moment, from what holds all of it.

The second moment of a layer with a bias is :math:`M = E[\tilde x \tilde x^T]` with the
constant appended, :math:`\Sigma` is the covariance of its inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Spectrum(NamedTuple):
    r"""What is known of the eigenvalues of each block's second moment.

    Attributes:
      condition: :math:`\lambda_1 / \lambda_k` of :math:`M`, ``[block]``, with ``k`` the
        directions that there can be: features that are not always zero, and the
        constant; or samples, where they are fewer. Infinite below rounding errors, NaN
        where there was no sample.
      rank: participation ratio :math:`(\mathrm{tr}\,\Sigma)^2 / \mathrm{tr}\,\Sigma^2`,
        ``[block]``: in how many directions inputs vary, were it equally in each.
      exact: whether these are the numbers themselves, a scalar; else ``condition`` is
        a lower bound and ``rank`` an upper one.
    """

    condition: jax.Array
    rank: jax.Array
    exact: jax.Array


def of_matrix(
    count: jax.Array, mean: jax.Array, outer: jax.Array, biased: bool
) -> Spectrum:
    """Returns the spectrum of the mean outer product ``[block, feature, feature]``."""
    square = jnp.diagonal(outer, axis1=1, axis2=2)
    augmented = outer
    if biased:
        column = mean[:, :, None]
        one = jnp.ones_like(column[:, :1])
        augmented = jnp.block([[outer, column], [column.mT, one]])
    values = jnp.linalg.eigvalsh(augmented)[:, ::-1]
    covariance = outer - mean[:, :, None] * mean[:, None, :]
    squares = jnp.sum(covariance**2, axis=(1, 2))
    return Spectrum(
        _ratio(values, directions(count, square, biased)),
        participation(count, mean, square, squares),
        jnp.asarray(True),
    )


def of_rows(count: jax.Array, x: jax.Array, rows: jax.Array, biased: bool) -> Spectrum:
    """Returns the spectrum of the second moment of ``x``, without forming it.

    Args:
      count: number of samples that count, ``[block]``.
      x: ``[block, sample, feature]``, zero where samples do not count.
      rows: one for samples that count, zero for the others, ``[block, sample]``.
      biased: whether the constant is a feature.
    """
    number = jnp.maximum(count, 1)
    mean = jnp.sum(x, axis=1) / number[:, None]
    square = jnp.sum(x**2, axis=1) / number[:, None]
    augmented = jnp.concatenate([x, rows[:, :, None]], axis=2) if biased else x
    values = jnp.linalg.svd(augmented, compute_uv=False)
    centred = (x - mean[:, None, :]) * rows[:, :, None]
    wide = x.shape[2] > x.shape[1]
    product = jnp.einsum(
        "knd,kmd->knm" if wide else "knd,kne->kde", centred, centred, precision=HIGH
    )
    squares = jnp.sum((product / number[:, None, None]) ** 2, axis=(1, 2))
    return Spectrum(
        # Singular values of inputs are the roots of eigenvalues.
        _ratio(values, directions(count, square, biased)) ** 2,
        participation(count, mean, square, squares),
        jnp.asarray(True),
    )


def of_frequencies(count: jax.Array, share: jax.Array, biased: bool) -> Spectrum:
    """Returns the spectrum of one-hot inputs, whose second moment is diagonal."""
    smallest = jnp.min(jnp.where(share > 0, share, jnp.inf), axis=1)
    condition = jnp.max(share, axis=1) / smallest
    if biased:  # one-hot inputs add up to the constant
        condition = jnp.full_like(condition, jnp.inf)
    square, cube = (jnp.sum(share**i, axis=1) for i in (2, 3))
    squares = square - 2 * cube + square**2  # of diag(p) - p p^T
    rank = participation(count, share, share, squares)
    return Spectrum(or_nan(count, condition), rank, jnp.asarray(True))


def directions(count: jax.Array, square: jax.Array, biased: bool) -> jax.Array:
    """Returns in how many directions there can be anything, int32 ``[block]``."""
    live = jnp.sum(square > 0, axis=1, dtype=jnp.int32) + int(biased)
    return jnp.minimum(live, count.astype(jnp.int32))


def participation(
    count: jax.Array, mean: jax.Array, mean_sq: jax.Array, squares: jax.Array
) -> jax.Array:
    """Returns the participation ratio, given the trace of the squared covariance."""
    total = jnp.sum(variance(mean, mean_sq), axis=1)
    varies = (total > 0) & (squares > 0)
    ratio = jnp.where(varies, total**2 / jnp.where(varies, squares, 1), 0)
    most = jnp.clip(count - 1, 0, mean_sq.shape[1])  # the mean takes one direction
    return or_nan(count, jnp.minimum(ratio, most))


def variance(mean: jax.Array, mean_sq: jax.Array) -> jax.Array:
    """Returns the variances of the features, zero below rounding errors."""
    found = mean_sq - mean**2
    return jnp.where(found > rounding(mean_sq), found, 0)


def rounding(mean_sq: jax.Array) -> jax.Array:
    """Returns how far rounding may move a mean square."""
    return 16 * jnp.finfo(mean_sq.dtype).eps * mean_sq


def or_nan(count: jax.Array, x: jax.Array) -> jax.Array:
    """Returns ``x`` in blocks that saw a sample, NaN in others."""
    return jnp.where(count > 0, x, jnp.nan)


def _ratio(values: jax.Array, k: jax.Array) -> jax.Array:
    """Returns the first over the k-th of falling values, infinite below rounding."""
    largest = values[:, 0]
    where = jnp.clip(k - 1, 0, values.shape[1] - 1)
    smallest = jnp.take_along_axis(values, where[:, None], axis=1)[:, 0]
    least = values.shape[1] ** 0.5 * jnp.finfo(values.dtype).eps * largest
    good = smallest > least
    ratio = jnp.where(good, largest / jnp.where(good, smallest, 1), jnp.inf)
    return or_nan(k, ratio)


HIGH = jax.lax.Precision.HIGHEST
