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

    def inner(scale: float | None) -> jax.Array:
        sums = []
        for a, b in zip(h, g):
            if scale is not None:  # of the widest: in float32 it may be zero
                a, b = (x.astype(np.result_type(x.dtype, common)) for x in (a, b))
                a, b = a * scale, b * scale
            sums.append(jnp.sum((jnp.conj(a) * b).real).astype(common))
        return sum(sums[1:], sums[0])

    def scaled() -> jax.Array:
        # Where products overflow, both of their factors are at least about one, and a
        # power of two makes them small without rounding.
        small = 2.0 ** -(np.finfo(common).maxexp // 2 + 16)
        squared = inner(small)
        root = jnp.sqrt(jnp.maximum(squared, 0)) / small
        return jnp.where(jnp.isfinite(squared), root, jnp.nan)

    squared = inner(None)
    return jax.lax.cond(
        jnp.isfinite(squared), lambda: jnp.sqrt(jnp.maximum(squared, 0)), scaled
    )
