"""Normal equations and their safe solution.

How this differs from ``jnp.linalg.lstsq``: the matrix is a weighted sum over samples,
so that it accumulates over chunks and devices; many regressions (one a unit) are
solved at once; a singular matrix gives a finite answer, never NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np


def weighted_gram(a: jax.Array, weights: jax.Array) -> jax.Array:
    r"""Returns Gram matrices :math:`\sum_i c_{ij} a_i a_i^\top`, one a group ``j``.

    Args:
      a: ``[feature, sample]``.
      weights: ``[group, sample]``; one row means one shared matrix.

    Returns:
      ``[group, feature, feature]``, the dtype of ``a``.
    """
    width = a.shape[0]
    if weights.shape[0] == 1:
        return ((a * weights) @ a.T)[None]
    # All products of two features against all weights: one matrix product, of which
    # the symmetric half is enough.
    row, column = np.triu_indices(width)
    first, second = (jnp.take(a, at, axis=0, mode="clip") for at in (row, column))
    half = (first * second) @ weights.T
    position = np.zeros((width, width), np.int32)
    position[row, column] = position[column, row] = np.arange(len(row))
    return jnp.moveaxis(half[position], -1, 0)


def add_diagonal(gram: jax.Array, diagonal: jax.Array) -> jax.Array:
    """Returns ``gram [..., p, p]`` plus a diagonal that broadcasts to ``[..., p]``."""
    eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    return gram + jnp.expand_dims(diagonal, -1) * jnp.expand_dims(
        eye, tuple(range(gram.ndim - 2))
    )


def relative_ridge(gram: jax.Array, ridge: float | jax.Array) -> jax.Array:
    """Returns ``gram`` plus ``ridge`` times its mean diagonal."""
    mean = jnp.mean(jnp.diagonal(gram, axis1=-2, axis2=-1), axis=-1, keepdims=True)
    return add_diagonal(gram, ridge * mean)


def solve(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """Solves ``gram[j] x[:, j] = rhs[:, j]`` by Cholesky, finite whatever comes.

    The matrix is scaled to unit diagonal first. Where it is not positive definite to
    working precision, a growing multiple of the identity is added until it is; where
    no answer is finite, the answer is 0.

    Args:
      gram: ``[group, p, p]``; one group is shared by all columns.
      rhs: ``[p, column]``.

    Returns:
      ``[p, column]``, finite.
    """
    return substitute(factorize(gram), rhs)


def substitute(factors: tuple[jax.Array, jax.Array], rhs: jax.Array) -> jax.Array:
    """Solves as ``solve`` does, with what ``factorize`` made of the matrices."""
    scale, factor = factors
    if factor.shape[0] == 1:
        half = jax.scipy.linalg.solve_triangular(
            factor[0], rhs * scale[0][:, None], lower=True
        )
        x = jax.scipy.linalg.solve_triangular(factor[0], half, lower=True, trans=1)
        x = x * scale[0][:, None]
    else:
        columns = (rhs.T * scale)[..., None]
        half = jax.lax.linalg.triangular_solve(
            factor, columns, left_side=True, lower=True
        )
        x = jax.lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )
        x = (x[..., 0] * scale).T
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def factorize(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Factors ``gram``, scaled to unit diagonal, with jitter where it is needed.

    Args:
      gram: ``[group, p, p]``, symmetric positive semi-definite up to rounding.

    Returns:
      ``scale`` ``[group, p]`` and lower ``factor`` ``[group, p, p]`` such that
      ``gram`` is about ``D L L^T D`` with ``D = diag(1 / scale)``.
    """
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    alive = diagonal > 0
    scale = jnp.where(alive, jax.lax.rsqrt(jnp.where(alive, diagonal, 1)), 1)
    unit = gram * scale[:, :, None] * scale[:, None, :]
    # A feature that is always 0 gets a unit pivot, hence coefficient 0.
    unit = add_diagonal(unit, jnp.where(alive, 0, 1).astype(gram.dtype))
    epsilon = gram.shape[-1] * float(jnp.finfo(gram.dtype).eps)
    jitters = jnp.asarray([0, *(epsilon * 10**k for k in range(7))], gram.dtype)

    def good(factor):
        return jnp.all(jnp.isfinite(factor), axis=(-2, -1), keepdims=True)

    def unfinished(carry):
        tries, factor = carry
        return (tries < len(jitters)) & ~jnp.all(good(factor))

    def attempt(carry):
        tries, factor = carry
        again = jax.lax.linalg.cholesky(
            add_diagonal(unit, jitters[tries][None, None]), symmetrize_input=False
        )
        return tries + 1, jnp.where(good(factor), factor, again)

    start = (jnp.int32(0), jnp.full_like(unit, jnp.nan))
    return scale, jax.lax.while_loop(unfinished, attempt, start)[1]
