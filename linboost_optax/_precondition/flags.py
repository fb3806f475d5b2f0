"""Flags in a state as numbers: some wrappers of Optax interpolate between states.

``optax.contrib.sam`` and ``optax.lookahead`` choose one of two states by arithmetic,
``c * new + (1 - c) * old``, which makes integers of booleans: the state would not keep
its dtypes. An optimizer holds integers from the start, its solvers see booleans.
"""

from typing import Any

import jax
import jax.numpy as jnp


def to_numbers(states: Any) -> Any:
    """Returns states with 0 and 1 for their booleans."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.int32) if leaf.dtype == jnp.bool_ else leaf, states
    )


def from_numbers(states: Any, like: Any) -> Any:
    """Undoes ``to_numbers``, given states with the dtypes that solvers ask for."""
    return jax.tree.map(
        lambda leaf, old: leaf.astype(old.dtype) if old.dtype == jnp.bool_ else leaf,
        states,
        like,
    )
