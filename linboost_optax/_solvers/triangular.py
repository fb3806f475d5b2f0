"""The inverse of a triangular matrix, mostly by products.

BLAS solves triangular systems of more than a few columns on threads of its own, which
then wait for more work by spinning. On a machine of few cores that slows down the
compiler's own threads for many steps, by more than the solve has cost. Products are
the compiler's.
"""

import jax
import jax.numpy as jnp

_BASE = 16  # widest block that is solved: on one thread, everywhere
_HIGH = jax.lax.Precision.HIGHEST


def lower_inverse(lower: jax.Array) -> jax.Array:
    r"""Returns the inverses of lower triangular matrices, ``[block, n, n]``.

    .. math::
      \begin{pmatrix} A & 0 \\ B & C \end{pmatrix}^{-1} =
      \begin{pmatrix} A^{-1} & 0 \\ -C^{-1} B A^{-1} & C^{-1} \end{pmatrix}

    Blocks along the diagonal are inverted at once, then joined in pairs until one is
    left.
    """
    blocks, n, _ = lower.shape
    pieces = 1
    while pieces * _BASE < n:
        pieces *= 2
    size = -(-n // pieces)
    padded = _padded(lower, pieces * size - n)
    start = _diagonal(padded, size)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), start.shape)
    inverse = jax.lax.linalg.triangular_solve(
        start, identity, left_side=True, lower=True
    )
    while size < padded.shape[1]:
        below = _diagonal(padded, 2 * size)[:, :, size:, :size]
        first, second = inverse[:, 0::2], inverse[:, 1::2]
        joined = jnp.einsum("kpij,kpjl->kpil", below, first, precision=_HIGH)
        joined = -jnp.einsum("kpij,kpjl->kpil", second, joined, precision=_HIGH)
        top = jnp.concatenate([first, jnp.zeros_like(first)], axis=3)
        bottom = jnp.concatenate([joined, second], axis=3)
        inverse = jnp.concatenate([top, bottom], axis=2)
        size *= 2
    return inverse.reshape(blocks, size, size)[:, :n, :n]


def _padded(lower: jax.Array, more: int) -> jax.Array:
    """Returns the matrices with some rows of the identity below them."""
    if not more:
        return lower
    n = lower.shape[1]
    ones = jnp.diag((jnp.arange(n + more) >= n).astype(lower.dtype))
    return jnp.pad(lower, ((0, 0), (0, more), (0, more))) + ones[None]


def _diagonal(x: jax.Array, size: int) -> jax.Array:
    """Returns the square pieces along the diagonal, ``[block, piece, size, size]``."""
    blocks, n, _ = x.shape
    tiles = x.reshape(blocks, n // size, size, n // size, size)
    return jnp.moveaxis(jnp.diagonal(tiles, axis1=1, axis2=3), -1, 1)
