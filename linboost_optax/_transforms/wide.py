"""Sums in float32 at least: narrow floats overflow in them, and forget.

float16 ends at 65504, the square of 256. bfloat16 has 8 bits: 0.999 is 1 in it, and a
moving average that changes by less than its 256th part in a step does not change.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linboost_optax._statistics import accumulation_dtype


def dtype(of: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype to add up numbers of a dtype in: narrow floats in float32."""
    floating = jnp.issubdtype(of, jnp.floating)
    return accumulation_dtype(of) if floating else jnp.dtype(of)


def widen(tree: Any) -> Any:
    """Returns a tree with its narrow floats in float32, all else as it is."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype(leaf.dtype)), tree)


def zeros_like(tree: Any) -> Any:
    """Returns zeros to add up arrays like those of a tree in."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype(leaf.dtype)), tree)


def narrow_like(
    tree: Any, updates: optax.Updates, params: optax.Params | None
) -> optax.Updates:
    """Returns updates in the dtype of the parameters, or else of the gradients."""
    like = updates if params is None else params
    return jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), tree, like)


def narrow_leaves(tree: Any) -> list[jax.Array]:
    """Returns the leaves of a tree that are narrow floats: casts to them overflow."""
    return [leaf for leaf in jax.tree.leaves(tree) if dtype(leaf.dtype) != leaf.dtype]


def norm(h: Sequence[jax.Array], g: Sequence[jax.Array]) -> jax.Array:
    r"""Returns :math:`\sqrt{\langle h, g \rangle}`, 0 where the product is negative.

    It is finite if and only if all numbers are: products may overflow.
    """
    if not h:
        return jnp.zeros(())
    # Not `jnp.result_type`: it refuses mixed dtypes under strict promotion.
    common = np.result_type(*(leaf.real.dtype for leaf in (*h, *g)))

    def inner(h: Sequence[jax.Array], g: Sequence[jax.Array]) -> jax.Array:
        products = [
            jnp.sum((jnp.conj(a) * b).real).astype(common) for a, b in zip(h, g)
        ]
        return sum(products[1:], products[0])

    def root(squared: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.maximum(squared, 0))

    def scaled() -> jax.Array:
        # What is infinite is not a number after the division, whatever its sign.
        one, other = _largest(h, common), _largest(g, common)
        h_scaled = [a / one.astype(a.real.dtype) for a in h]
        g_scaled = [b / other.astype(b.real.dtype) for b in g]
        return root(inner(h_scaled, g_scaled)) * jnp.sqrt(one) * jnp.sqrt(other)

    squared = inner(h, g)
    return jax.lax.cond(jnp.isfinite(squared), lambda: root(squared), scaled)


def _largest(leaves: Sequence[jax.Array], common: np.dtype) -> jax.Array:
    each = [jnp.max(jnp.abs(leaf), initial=0).astype(common) for leaf in leaves]
    return jnp.max(jnp.stack(each))
