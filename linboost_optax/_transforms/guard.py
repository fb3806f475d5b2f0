"""Bad numbers pass by: a step that is not finite changes nothing, and is counted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linboost_optax._transforms import wide

# Scaled down, none of fewer than 2**60 terms of a sum overflows; what is bad stays bad.
_SMALL = 2.0**-60


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number in a tree is finite; their sums may overflow."""
    # A sum is finite only if its terms are, and is the cheapest look at an array.
    return _finite([jnp.sum(leaf * _SMALL) for leaf in _floats(tree)])


def squares_finite(tree: Any) -> jax.Array:
    """Returns whether every number in a tree is finite, and its square is."""
    return _finite([jnp.sum(leaf * leaf * _SMALL) for leaf in _floats(tree)])


def _floats(tree: Any) -> list[jax.Array]:
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    kept = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return [leaf.astype(wide.dtype(leaf.dtype)) for leaf in kept]


def _finite(sums: list[jax.Array]) -> jax.Array:
    if not sums:
        return jnp.ones((), jnp.bool_)
    common = np.result_type(*(each.dtype for each in sums))
    return jnp.all(jnp.isfinite(jnp.stack([each.astype(common) for each in sums])))


def keep_if(
    good: jax.Array, updates: optax.Updates, new: Any, old: Any
) -> tuple[optax.Updates, Any]:
    """Returns the step, or zero updates and the old state with one more in `skipped`.

    Args:
      good: whether the step is taken.
      updates: the step.
      new: the state after it.
      old: the state before it, which counts skipped steps in its field ``skipped``.
    """
    updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros_like(u)), updates)
    kept = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    return updates, kept._replace(skipped=count_unless(good, old.skipped))


def count_unless(good: jax.Array, skipped: jax.Array) -> jax.Array:
    """Returns the number of skipped steps after this one; it stops at its largest."""
    return jnp.where(good, skipped, optax.safe_increment(skipped))
