"""Bad numbers pass by: a step that is not finite changes nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number in a tree is finite."""
    # A sum is finite only if its terms are (or overflow together, as bad a sign),
    # and reads each array once.
    finite = [jnp.isfinite(jnp.sum(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def keep_if(
    good: jax.Array, updates: optax.Updates, new: Any, old: Any
) -> tuple[optax.Updates, Any]:
    """Returns the step, or zero updates and the old state."""
    updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros_like(u)), updates)
    return updates, jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
