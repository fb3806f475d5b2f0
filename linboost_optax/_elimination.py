"""Eliminating the bias: what all solvers share. See ``_solvers`` for the algebra."""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp

from linboost_optax._layers import Affine, Layer


def columns(v: chex.Array) -> chex.Array:
    """Returns ``[block, feature]`` as ``[block, feature, 1]``."""
    return v[:, :, None]


def center(g: Affine, mean: chex.Array) -> chex.Array:
    """Returns the right-hand side of the centred problem."""
    if g.b is None:
        return g.w
    return g.w - columns(mean) * g.b[:, None, :]


def uncenter(w: chex.Array, b: chex.Array | None, mean: chex.Array) -> Affine:
    """Returns the solution whose centred part is ``w``."""
    if b is None:
        return Affine(w, None)
    return Affine(w, b - jnp.einsum("kd,kdo->ko", mean, w))


def output_mean(w: Affine, mean: chex.Array) -> chex.Array | None:
    """Returns the mean output ``b + mean^T w``: the bias in centred coordinates."""
    if w.b is None:
        return None
    return w.b + jnp.einsum("kd,kdo->ko", mean, w.w)


def where_seen(seen: chex.Array, new: chex.ArrayTree, old: chex.ArrayTree):
    """Selects ``new`` in the blocks where ``seen``, ``old`` elsewhere."""

    def select(n: chex.Array, o: chex.Array) -> chex.Array:
        return jnp.where(jnp.expand_dims(seen, tuple(range(1, n.ndim))), n, o)

    return jax.tree.map(select, new, old)


def dot(a: Affine, b: Affine) -> chex.Array:
    """Returns the inner product of each block."""
    total = jnp.einsum("kdo,kdo->k", a.w, b.w)
    if a.b is None or b.b is None:
        return total
    return total + jnp.einsum("ko,ko->k", a.b, b.b)


def zeros_like_statistic(layer: Layer) -> Callable[[tuple[int, ...]], chex.Array]:
    """Returns ``jnp.zeros`` in the dtype of the layer's statistic."""
    return partial(jnp.zeros, dtype=jnp.dtype(layer.dtype))
