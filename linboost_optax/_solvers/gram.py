"""Exact solves on a Gram matrix: its inverse, or the inverse of its factor, cached.

Two metrics with two types of what they cache, rather than one root for both: solving
takes one product with the inverse and would take two with the root.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers import refreshed
from linboost_optax._solvers.damping import Damping
from linboost_optax._solvers.elimination import (
    center,
    output_mean,
    uncenter,
    where_seen,
)
from linboost_optax._solvers.refreshed import Refreshed
from linboost_optax._statistics.gram import BlockGram, Gram


class Inverse(NamedTuple):
    """The inverse of the centred metric, ``[block, feature, feature]``."""

    inverse: jax.Array

    @classmethod
    def of_root(cls, root: jax.Array) -> "Inverse":
        """Returns the inverse whose lower factor's inverse is given."""
        return cls(jnp.einsum("kfd,kfe->kde", root, root))


class Root(NamedTuple):
    """The inverse of its Cholesky factor, ``[block, feature, feature]``, lower."""

    root: jax.Array


@dataclass(frozen=True)
class _OnGram:
    """What solving and whitening on a Gram matrix share: all but what is cached."""

    damping: Damping
    decay: float
    every: int
    layer: Layer
    statistic: Gram

    nameless: ClassVar[bool] = True
    cached: ClassVar[Callable[[jax.Array], Any]]

    def init(self) -> Refreshed:
        d, zeros = self.layer.features, self.layer.zeros
        cached = type(self).cached(zeros(d, d))
        return refreshed.init(self.layer, (zeros(d), zeros(d, d)), cached)

    def read(self, value: Any) -> BlockGram:
        return self.statistic.second_moment(self.layer, value)

    def update(self, state: Refreshed, view: BlockGram, step: jax.Array) -> Refreshed:
        def factorise(averages: Any) -> tuple[jax.Array, Any]:
            mean, root = _root(averages, self.damping, self.layer.biased)
            return mean, type(self).cached(root)

        return refreshed.update(
            state,
            (view.mean, view.outer),
            view.count > 0,
            step,
            factorise,
            decay=self.decay,
            every=self.every,
        )


class GramInverse(_OnGram):
    """``Cholesky`` on a layer with a Gram matrix, to solve."""

    cached = Inverse.of_root

    def solve(self, state: Refreshed, view: Any, g: Affine) -> Affine:
        del view
        mean, value, ready = state.factor
        w = jnp.einsum("kde,keo->kdo", value.inverse, center(g, mean))
        return where_seen(ready, uncenter(w, g.b, mean), g)


class GramRoot(_OnGram):
    """``Cholesky`` on a layer with a Gram matrix, to whiten."""

    cached = Root

    def whiten(self, state: Refreshed, g: Affine) -> Affine:
        mean, value, ready = state.factor
        w = jnp.einsum("kde,keo->kdo", value.root, center(g, mean))
        return where_seen(ready, Affine(w, g.b), g)

    def unwhiten(self, state: Refreshed, u: Affine) -> Affine:
        mean, value, ready = state.factor
        w = jnp.einsum("ked,keo->kdo", value.root, u.w)
        return where_seen(ready, uncenter(w, u.b, mean), u)

    def coordinates(self, state: Refreshed, w: Affine) -> Affine:
        # A triangular solve, paid only by who reads it.
        mean, value, ready = state.factor
        eye = jnp.eye(value.root.shape[-1], dtype=value.root.dtype)
        root = jnp.where(ready[:, None, None], value.root, eye)
        v = jax.lax.linalg.triangular_solve(
            root, w.w, left_side=True, lower=True, transpose_a=True
        )
        return where_seen(ready, Affine(v, output_mean(w, mean)), w)


def _root(
    averages: tuple[jax.Array, jax.Array], damping: Damping, biased: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the inverse of the Cholesky factor of the metric."""
    mean, outer = averages
    info = jnp.finfo(outer.dtype)
    # Of every feature its own: a column a thousand times the others' would hide them.
    rounding = outer.shape[-1] * info.eps * jnp.diagonal(outer, axis1=1, axis2=2)
    if (
        damping.ridge == 0
    ):  # features that were never there have no scale but the others'
        rounding = rounding + jnp.max(rounding, axis=1, keepdims=True)
    if biased:
        outer = outer - mean[:, :, None] * mean[:, None, :]
    identity = jnp.broadcast_to(
        jnp.eye(outer.shape[-1], dtype=outer.dtype), outer.shape
    )
    variance = jnp.maximum(jnp.diagonal(outer, axis1=1, axis2=2), 0)
    added = damping.shrinkage * variance + damping.ridge + rounding + info.tiny
    metric = damping.kept * outer + added[:, None, :] * identity
    return mean, jax.lax.linalg.triangular_solve(
        jnp.linalg.cholesky(metric), identity, left_side=True, lower=True
    )
