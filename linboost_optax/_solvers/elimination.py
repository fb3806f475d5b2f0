"""Eliminating the bias: what all solvers share. See ``base`` for the algebra."""

from typing import TypeVar

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine

_Tree = TypeVar("_Tree")


def columns(v: jax.Array) -> jax.Array:
    """Returns ``[block, feature]`` as ``[block, feature, 1]``."""
    return v[:, :, None]


def center(g: Affine, mean: jax.Array) -> jax.Array:
    """Returns the right-hand side of the centred problem."""
    if g.b is None:
        return g.w
    return g.w - columns(mean) * g.b[:, None, :]


def uncenter(w: jax.Array, b: jax.Array | None, mean: jax.Array) -> Affine:
    """Returns the solution whose centred part is ``w``."""
    if b is None:
        return Affine(w, None)
    return Affine(w, b - jnp.einsum("kd,kdo->ko", mean, w))


def output_mean(w: Affine, mean: jax.Array) -> jax.Array | None:
    """Returns the mean output ``b + mean^T w``: the bias in centred coordinates."""
    if w.b is None:
        return None
    return w.b + jnp.einsum("kd,kdo->ko", mean, w.w)


def where_seen(seen: jax.Array, new: _Tree, old: _Tree) -> _Tree:
    """Selects ``new`` in the blocks where ``seen``, ``old`` elsewhere."""

    def select(n: jax.Array, o: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(seen, tuple(range(1, n.ndim))), n, o)

    return jax.tree.map(select, new, old)
