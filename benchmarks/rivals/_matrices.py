"""Parameters as matrices: the second moment of a gradient on either of its sides."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Sides(NamedTuple):
    """One matrix for the rows of a parameter, one for its columns.

    Attributes:
      left: shape `[in, in]`.
      right: shape `[out, out]`.
    """

    left: jax.Array
    right: jax.Array


def split(
    matrices: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One transformation for parameters of two axes and more, another for the rest."""

    def is_matrix(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)

    return optax.partition({True: matrices, False: others}, is_matrix)


def as_matrix(leaf: jax.Array) -> jax.Array:
    """Kernels map their leading axes to their last; an embedding is one already."""
    return leaf.reshape(-1, leaf.shape[-1])


def zero_sides(leaf: jax.Array) -> Sides:
    """Zeros for the sides of a parameter."""
    rows, columns = as_matrix(leaf).shape
    dtype = leaf.dtype
    return Sides(jnp.zeros((rows, rows), dtype), jnp.zeros((columns, columns), dtype))


def averaged(gradient: jax.Array, sides: Sides, decay: float) -> Sides:
    """Moving averages of `G G^T` and `G^T G`, not corrected for their start."""
    g = as_matrix(gradient)
    return jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, sides, Sides(g @ g.T, g.T @ g)
    )
