"""The polar factor of a layer's momentum, by an inverse root that is kept for a while.

An orthogonalised step costs five products of three matrices if it is made by
iterations, every time. Its inverse root changes slowly; kept for some steps, a step
costs one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.elimination import where_seen

# Of the trace, which is 1. Singular values a thousandth of the whole are noise.
_DAMPING = 1e-6
_ITERATIONS = 24
_HIGH = jax.lax.Precision.HIGHEST


class PolarState(NamedTuple):
    """What is kept of one layer's momentum; ``side`` is the shorter of its sides.

    Attributes:
      weight: of the moving average so far, ``[block]``.
      gram: moving average of the Gram matrix of the momentum, of unit norm,
        ``[block, side, side]``.
      root: its inverse square root, likewise.
    """

    weight: jax.Array
    gram: jax.Array
    root: jax.Array


@dataclass(frozen=True)
class Polar:
    r"""One layer's momentum made orthogonal.

    .. math::
      \mathrm{polar}(M) = M (M^T M)^{-1/2} = U V^T, \qquad M = U S V^T

    with the root on the shorter side. The root is that of a moving average, remade
    every ``every`` steps, so that the factor is an approximation, never longer than a
    polar factor is.

    Attributes:
      decay: of the moving average, from one root to the next.
      every: remake the root every so many steps.
      layer: the layer.
    """

    decay: float
    every: int
    layer: Layer

    nameless: ClassVar[bool] = True

    @property
    def sides(self) -> tuple[int, int]:
        """Inputs and outputs of a block."""
        return self.layer.features, self.layer.kind.outputs

    def init(self, dtype: jnp.dtype) -> PolarState:
        """Returns the state of a layer that has not moved: its root is the identity."""
        blocks, side = self.layer.blocks, min(self.sides)
        zeros = jnp.zeros((blocks, side, side), dtype)
        identity = jnp.broadcast_to(jnp.eye(side, dtype=dtype), zeros.shape)
        return PolarState(jnp.zeros(blocks, dtype), zeros, identity)

    def direction(
        self, state: PolarState, momentum: Affine, step: jax.Array
    ) -> tuple[Affine, PolarState]:
        """Returns the factor, its elements of mean square 1, and the new state."""
        inputs, outputs = self.sides
        unit = momentum.w / _or_one(_norm(momentum.w))
        moved = _norm(unit)[:, 0, 0] > 0
        tall = inputs >= outputs

        def remake() -> PolarState:
            gram = jnp.einsum("kdo,kdp->kop" if tall else "kdo,keo->kde", unit, unit)
            weight = self.decay * state.weight + (1 - self.decay)
            total = self.decay * state.gram + (1 - self.decay) * gram
            root = _inverse_root(total / weight[:, None, None])
            good = moved & jnp.all(jnp.isfinite(root), axis=(1, 2))
            return where_seen(good, PolarState(weight, total, root), state)

        # Blocks that never moved have no root yet.
        due = (step % self.every == 0) | jnp.any(moved & (state.weight == 0))
        state = jax.lax.cond(due, remake, lambda: state)
        product = "kdo,kop->kdp" if tall else "keo,kde->kdo"
        factor = jnp.einsum(product, unit, state.root)
        # A root that is older than the momentum may stretch it where it has turned to.
        longest, length = min(self.sides) ** 0.5, _or_one(_norm(factor))
        scale = max(self.sides) ** 0.5 * jnp.minimum(1, longest / length)
        return Affine(factor * scale, None), state


def _norm(w: jax.Array) -> jax.Array:
    """Returns the Frobenius norm of each block, ``[block, 1, 1]``; it cannot overflow.

    Gradients have any scale: what is squared is divided by its largest element first.
    """
    largest = _or_one(jnp.max(jnp.abs(w), axis=(1, 2), keepdims=True))
    scaled = w / largest
    return largest * jnp.sqrt(jnp.sum(scaled**2, axis=(1, 2), keepdims=True))


def _or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1)


def _inverse_root(gram: jax.Array) -> jax.Array:
    """Returns the damped inverse square root of each block, of trace 1 or 0."""
    # Eigenvectors are found one after another, which accelerators are slow at.
    return jax.lax.platform_dependent(gram, cpu=by_eigenvectors, default=by_products)


def by_eigenvectors(gram: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(gram)
    scaled = vectors * jax.lax.rsqrt(jnp.maximum(values, 0) + _DAMPING)[:, None, :]
    return jnp.einsum("kij,klj->kil", scaled, vectors, precision=_HIGH)


def by_products(gram: jax.Array) -> jax.Array:
    """The same by Newton's coupled iteration for a square root and its inverse.

    Each step lengthens what is left of a small eigenvalue's root by a half, until it is
    of the size of the largest: from a thousandth in 17, and some to converge.
    """
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)[None]
    damped = gram + _DAMPING * identity
    # No eigenvalue is above the norm; divided by it, all are in (0, 1].
    norm = jnp.sqrt(jnp.sum(damped**2, axis=(1, 2), keepdims=True))

    def step(_: int, roots: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        root, inverse = roots
        change = (3 * identity - _product(inverse, root)) / 2
        return _product(root, change), _product(change, inverse)

    start = (damped / norm, jnp.broadcast_to(identity, gram.shape))
    _, inverse = jax.lax.fori_loop(0, _ITERATIONS, step, start)
    return inverse * jax.lax.rsqrt(norm)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("kij,kjl->kil", a, b, precision=_HIGH)
