"""A matrix of low rank in the place of one that is known by some products."""

import jax
import jax.numpy as jnp
import numpy as np

_HIGH = jax.lax.Precision.HIGHEST


def nystrom(sketched: jax.Array, omega: jax.Array | np.ndarray) -> jax.Array:
    r"""Returns ``B``, ``[block, feature, probe]``, with :math:`B B^T \preceq M`.

    .. math:: B B^T = Y (\Omega^T Y)^+ Y^T, \qquad Y = M \Omega

    Directions below rounding are left out.

    Args:
      sketched: ``Y``, ``[block, feature, probe]``.
      omega: orthonormal probes, ``[feature, probe]``.

    References:
      Frangella, Tropp and Udell (2023), "Randomized Nystrom preconditioning", SIAM
      J. Matrix Anal. Appl. 44(2).
    """
    rank = omega.shape[1]
    inner = jnp.einsum("dr,kds->krs", omega, sketched, precision=_HIGH)
    vectors, values = jax.lax.linalg.eigh(inner + inner.mT, symmetrize_input=False)
    values = values / 2
    smallest = rank * jnp.finfo(values.dtype).eps * values[:, -1:]
    kept = values > smallest
    root = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
    return jnp.einsum(
        "kdr,krs->kds", sketched, vectors * root[:, None, :], precision=_HIGH
    )
