r"""Combine directions by regression on their effects (step 2 of the method).

The residual is regressed on what the directions do to the output, to first order,
with the last layer eliminated (variable projection): for effects ``E`` and last-layer
inputs ``A``, with everything weighted,

.. math::
    (E^\top E - E^\top A (A^\top A)^{-1} A^\top E) \alpha
        = E^\top R - E^\top A (A^\top A)^{-1} A^\top R.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax.ills._model.matrices import Matrices, forward, kernel_mask
from linboost_optax.ills._numerics.chunks import Batch, sum_over_chunks
from linboost_optax.ills._numerics.least_squares import (
    add_diagonal,
    factorize,
    solve,
    weighted_gram,
)
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.combine import Combine, Directions


class Sums(NamedTuple):
    """What the data contribute to the combination.

    Attributes:
      gram: ``E^T E``, ``[direction, direction]``.
      rhs: ``E^T R``, ``[direction]``.
      cross: ``A^T E``, ``[input + 1, output, direction]``.
      last_gram: ``A^T A``, ``[group, input + 1, input + 1]``.
      last_rhs: ``A^T R``, ``[input + 1, output]``.
    """

    gram: jax.Array
    rhs: jax.Array
    cross: jax.Array
    last_gram: jax.Array
    last_rhs: jax.Array


def best_steps(
    settings: Settings,
    combine: Combine,
    matrices: Matrices,
    directions: Directions,
    damping: jax.Array,
    working: Batch,
) -> Matrices:
    """Returns the best damped combination, one step for every hidden layer."""
    sums = _accumulate(settings, combine, matrices, directions, working)
    sums = _penalize(settings, combine, matrices, directions, sums)
    coefficients = _solve_damped(*_eliminate_last_layer(sums), damping)
    return combine.expand(directions, coefficients)


def _accumulate(
    settings: Settings,
    combine: Combine,
    matrices: Matrices,
    directions: Directions,
    working: Batch,
) -> Sums:
    def chunk(part: Batch) -> Sums:
        f = forward(settings.network, matrices, part.inputs)
        effects = combine.effects(settings.network, matrices, directions, f)
        weights = jnp.broadcast_to(part.weights, part.targets.shape)
        weighted = effects * weights[None]
        residual = part.targets - f.out
        count, outputs, samples = effects.shape
        flat = weighted.reshape(count, -1)
        a = f.inputs[-1]
        cross = a @ weighted.reshape(-1, samples).T
        return Sums(
            gram=flat @ effects.reshape(count, -1).T,
            rhs=flat @ residual.reshape(-1),
            cross=cross.reshape(-1, count, outputs).swapaxes(1, 2),
            last_gram=weighted_gram(a, part.weights),
            last_rhs=a @ (weights * residual).T,
        )

    return sum_over_chunks(chunk, working, settings.chunk_size, settings.axis_name)


def _penalize(
    settings: Settings,
    combine: Combine,
    matrices: Matrices,
    directions: Directions,
    sums: Sums,
) -> Sums:
    """Adds the ridge penalties, which are least squares on the weights."""
    last = settings.network.last
    mask = settings.output_ridge * kernel_mask(last, sums.rhs.dtype)
    sums = sums._replace(
        last_gram=add_diagonal(sums.last_gram, mask[None, :, 0]),
        last_rhs=sums.last_rhs - mask * matrices[-1],
    )
    ridge = settings.hidden_ridge
    if ridge is None:
        return sums
    eye = jnp.eye(combine.count(directions), dtype=sums.rhs.dtype)
    basis = jax.vmap(lambda c: combine.expand(directions, c))(eye)
    gram, rhs = sums.gram, sums.rhs
    for layer, w, vectors in zip(
        settings.network.hidden, matrices[:-1], basis, strict=True
    ):
        keep = kernel_mask(layer, w.dtype)
        flat = (vectors * keep[None]).reshape(len(eye), -1)
        gram = gram + ridge * (flat @ flat.T)
        rhs = rhs - ridge * (flat @ w.reshape(-1))
    return sums._replace(gram=gram, rhs=rhs)


def _eliminate_last_layer(sums: Sums) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the projected system, and the diagonal before, to judge rounding by."""
    scale, factor = factorize(sums.last_gram)
    width, outputs, count = sums.cross.shape
    both = jnp.concatenate([sums.cross, sums.last_rhs[:, :, None]], axis=2)
    shared = factor.shape[0] == 1
    both = both.reshape(1, width, -1) if shared else both.transpose(1, 0, 2)
    half = jax.lax.linalg.triangular_solve(
        factor, both * scale[:, :, None], left_side=True, lower=True
    ).reshape(outputs * width, count + 1)
    cross, rhs = half[:, :count], half[:, count]
    return (
        sums.gram - cross.T @ cross,
        sums.rhs - cross.T @ rhs,
        jnp.diagonal(sums.gram),
    )


def _solve_damped(
    gram: jax.Array, rhs: jax.Array, before: jax.Array, damping: jax.Array
) -> jax.Array:
    """Solves with ``damping`` added to the Gram matrix scaled to unit diagonal."""
    diagonal = jnp.diagonal(gram)
    # What is left after the elimination may be rounding only: such a direction does
    # nothing that the last layer cannot do, and is left out.
    usable = diagonal > 16 * jnp.finfo(gram.dtype).eps * before
    scale = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, diagonal, 1)), 0)
    unit = gram * scale[:, None] * scale[None, :]
    unit = add_diagonal(unit, damping + jnp.where(usable, 0, 1).astype(gram.dtype))
    return scale * solve(unit[None], (rhs * scale)[:, None])[:, 0]
