"""A moving average of a statistic, and a factor of it that is refreshed now and then.

What the solvers with a matrix share: the average forgets, corrects for its start, and
skips blocks that saw no sample; its factor is remade every k steps, and a factor that
is not finite leaves the last good one in place.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer
from linboost_optax._solvers.elimination import where_seen

_Tree = TypeVar("_Tree")


class Average(NamedTuple):
    """Moving averages, not yet corrected for their start.

    Attributes:
      weight: weight of the averages so far, ``[block]``.
      total: any tree of arrays ``[block, ...]``.
    """

    weight: jax.Array
    total: Any


class Factored(NamedTuple):
    """What a solver makes of an average.

    Attributes:
      center: the mean that goes with ``value``, ``[block, feature]``.
      value: any tree of arrays ``[block, ...]``; of the identity until it is computed,
        so that no one has to ask.
      ready: whether it was ever computed, ``[block]``.
    """

    center: jax.Array
    value: Any
    ready: jax.Array


class Refreshed(NamedTuple):
    """State of a solver that follows a moving average.

    Attributes:
      average: of what the solver reads of every batch.
      factor: the last good one.
    """

    average: Average
    factor: Factored


def init(layer: Layer, averaged: Any, center: jax.Array, value: Any) -> Refreshed:
    """Returns the state of a layer that has seen nothing.

    Args:
      layer: gives blocks and dtype.
      averaged: zeros like what is averaged.
      center: the mean that goes with the identity.
      value: what would be made of the identity.
    """
    ready = jnp.zeros(layer.blocks, jnp.bool_)
    factor = Factored(center, value, ready)
    return Refreshed(Average(layer.zeros(), averaged), factor)


def update(
    state: Refreshed,
    batch: Any,
    seen: jax.Array,
    step: jax.Array,
    factorise: Callable[[Any], tuple[jax.Array, Any]],
    *,
    decay: float,
    every: int,
) -> Refreshed:
    """Returns the state after one batch.

    Args:
      state: the state before.
      batch: what is averaged, a tree of arrays ``[block, ...]``.
      seen: whether a block saw a sample, ``[block]``.
      step: number of the step.
      factorise: maps averages to a mean and what is made of them.
      decay: of the moving average.
      every: remake the factor every so many steps.
    """
    average = advance(state.average, batch, seen, decay)
    due = (step % every == 0) | jnp.any(seen & ~state.factor.ready)
    return Refreshed(average, refresh(due, average, state.factor, factorise))


def advance(average: Average, batch: Any, seen: jax.Array, decay: float) -> Average:
    """Returns the average after one batch, in the blocks that saw a sample."""
    new = Average(
        decay * average.weight + (1 - decay),
        jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average.total, batch),
    )
    return where_seen(seen, new, average)


def corrected(average: Average) -> Any:
    """Returns the averages proper; zeros where there was never a sample."""
    weight = jnp.where(average.weight > 0, average.weight, 1)

    def correct(a: jax.Array) -> jax.Array:
        return a / jnp.expand_dims(weight, tuple(range(1, a.ndim)))

    return jax.tree.map(correct, average.total)


def refresh(
    due: jax.Array,
    average: Average,
    old: Factored,
    factorise: Callable[[Any], tuple[jax.Array, Any]],
) -> Factored:
    """Returns the factor, remade by ``factorise`` where that is due and works."""

    def remake() -> Factored:
        center, value = factorise(corrected(average))
        good = (average.weight > 0) & finite(value)
        return where_seen(good, Factored(center, value, good), old)

    # Only the factor leaves the branches: averages would be copied on their way.
    return jax.lax.cond(due, remake, lambda: old)


def finite(value: Any) -> jax.Array:
    """Returns in which blocks all numbers of a tree are finite, ``[block]``."""
    # A sum is finite only if its terms are; scaled down it cannot overflow.
    sums = [
        jnp.sum(leaf * 2.0**-60, axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(value)
    ]
    return functools.reduce(jnp.logical_and, map(jnp.isfinite, sums))
