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
)
from linboost_optax._solvers.refreshed import Refreshed
from linboost_optax._solvers.triangular import lower_inverse
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
        identity = zeros(d, d) + jnp.eye(d, dtype=self.layer.dtype)[None]
        cached = type(self).cached(identity)
        return refreshed.init(self.layer, (zeros(d), zeros(d, d)), zeros(d), cached)

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
        mean, value, _ = state.factor
        w = jnp.einsum("kde,keo->kdo", value.inverse, center(g, mean))
        return uncenter(w, g.b, mean)


class GramRoot(_OnGram):
    """``Cholesky`` on a layer with a Gram matrix, to whiten."""

    cached = Root

    def whiten(self, state: Refreshed, g: Affine) -> Affine:
        mean, value, _ = state.factor
        return Affine(jnp.einsum("kde,keo->kdo", value.root, center(g, mean)), g.b)

    def unwhiten(self, state: Refreshed, u: Affine) -> Affine:
        mean, value, _ = state.factor
        return uncenter(jnp.einsum("ked,keo->kdo", value.root, u.w), u.b, mean)

    def coordinates(self, state: Refreshed, w: Affine) -> Affine:
        # The factor itself is made of its inverse, for those who read it alone.
        mean, value, _ = state.factor
        v = jnp.einsum("ked,keo->kdo", lower_inverse(value.root), w.w)
        return Affine(v, output_mean(w, mean))


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
    identity = jnp.eye(outer.shape[-1], dtype=outer.dtype)[None]
    variance = jnp.maximum(jnp.diagonal(outer, axis1=1, axis2=2), 0)
    added = damping.shrinkage * variance + damping.ridge + rounding + info.tiny
    metric = damping.kept * outer + added[:, None, :] * identity
    return mean, lower_inverse(jnp.linalg.cholesky(metric))
