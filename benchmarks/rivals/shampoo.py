"""Shampoo with exponential moving averages, grafted onto Adam.

Gupta et al. (2018), arXiv:1802.09568: an inverse fourth root on either side. Anil et
al. (2020), arXiv:2002.09018: averages that forget, roots that are remade now and then
with a ridge of 1e-6 of the largest eigenvalue, and the norm of every layer's step from
another optimizer. The momentum goes in front of the roots, so that the norm is Adam's
own; averages need no correction for their start, as the norm takes their scale away.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.rivals._matrices import Sides, as_matrix, averaged, split, zero_sides


class ShampooState(NamedTuple):
    """Of matrices alone."""

    adam: Any
    moments: Any
    roots: Any


def shampoo(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Shampoo on both sides of every matrix, plain Adam on everything else."""
    return optax.chain(
        split(scale_by_shampoo(), optax.scale_by_adam()),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_shampoo(
    decay: float = 0.95, every: int = 10, ridge: float = 1e-6
) -> optax.GradientTransformation:
    """Shampoo's direction with the norm of Adam's, parameter by parameter."""
    adam = optax.scale_by_adam()

    def init(params: optax.Params) -> ShampooState:
        sides = jax.tree.map(zero_sides, params)
        return ShampooState(adam.init(params), sides, sides)

    def update(updates: optax.Updates, state: Any, params: Any = None) -> Any:
        del params
        moments = jax.tree.map(
            functools.partial(averaged, decay=decay), updates, state.moments
        )
        roots = jax.lax.cond(
            state.adam.count % every == 0,
            lambda: jax.tree.map(lambda moment: fourth_root(moment, ridge), moments),
            lambda: state.roots,
        )
        norms, adam_state = adam.update(updates, state.adam)
        assert isinstance(adam_state, optax.ScaleByAdamState)

        def direction(like: jax.Array, momentum: jax.Array, root: Sides) -> jax.Array:
            step = root.left @ as_matrix(momentum) @ root.right
            # Adam's momentum cannot vanish where its step does not.
            size = jnp.maximum(jnp.linalg.norm(step), jnp.finfo(step.dtype).tiny)
            return (step * (jnp.linalg.norm(like) / size)).reshape(like.shape)

        updates = jax.tree.map(direction, norms, adam_state.mu, roots)
        return updates, ShampooState(adam_state, moments, roots)

    return optax.GradientTransformation(init, update)


def fourth_root(matrix: jax.Array, ridge: float) -> jax.Array:
    """The inverse fourth root, with a ridge relative to the largest eigenvalue."""
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.maximum(values, 0) + ridge * jnp.max(values)
    values = jnp.maximum(values, jnp.finfo(values.dtype).tiny)
    return vectors * values[None] ** -0.25 @ vectors.T
