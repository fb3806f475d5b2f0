"""SOAP: Adam in the eigenbasis of Shampoo's second moments.

Vyas et al. (2024), arXiv:2409.11321, algorithm 3, with two differences: eigenvectors
come from `eigh` at every refresh, not from a step of power iteration, and the first
step is taken in the basis of the first gradient, not skipped. Adam's decays are those
of the baseline, 0.9 and 0.999; the paper's own runs have 0.95 for both.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.rivals._matrices import Sides, as_matrix, averaged, split, zero_sides


class SoapState(NamedTuple):
    """Of matrices alone; `nu` is in the eigenbasis, `mu` is not."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: optax.Updates
    nu: optax.Updates
    moments: Any
    bases: Any


def soap(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SOAP on both sides of every matrix, plain Adam on everything else."""
    return optax.chain(
        split(scale_by_soap(), optax.scale_by_adam()),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_soap(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.95,
    every: int = 10,
) -> optax.GradientTransformation:
    """SOAP's direction; `decay` is that of the second moments of the two sides."""

    def init(params: optax.Params) -> SoapState:
        sides = jax.tree.map(zero_sides, params)
        mu = jax.tree.map(jnp.zeros_like, params)
        nu = jax.tree.map(lambda leaf: jnp.zeros_like(as_matrix(leaf)), params)
        return SoapState(jnp.zeros((), jnp.int32), mu, nu, sides, sides)

    def update(updates: optax.Updates, state: Any, params: Any = None) -> Any:
        del params
        moments = jax.tree.map(
            functools.partial(averaged, decay=decay), updates, state.moments
        )
        bases = jax.lax.cond(
            state.count % every == 0,
            lambda: jax.tree.map(lambda moment: jnp.linalg.eigh(moment)[1], moments),
            lambda: state.bases,
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = jax.tree.map(
            lambda g, v, basis: b2 * v + (1 - b2) * _rotate(as_matrix(g), basis) ** 2,
            updates,
            state.nu,
            bases,
        )

        def direction(m: jax.Array, v: jax.Array, basis: Sides) -> jax.Array:
            m_hat = _rotate(as_matrix(m), basis) / (1 - b1**count)
            step = m_hat / (jnp.sqrt(v / (1 - b2**count)) + eps)
            return (basis.left @ step @ basis.right.T).reshape(m.shape)

        updates = jax.tree.map(direction, mu, nu, bases)
        return updates, SoapState(count, mu, nu, moments, bases)

    return optax.GradientTransformation(init, update)


def _rotate(matrix: jax.Array, basis: Sides) -> jax.Array:
    return basis.left.T @ matrix @ basis.right
