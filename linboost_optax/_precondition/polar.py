"""The polar factor of a layer's momentum, by an inverse root that is kept for a while.

An orthogonalised step costs five products of three matrices if it is made by
iterations, every time. Its inverse root changes slowly; kept for some steps, a step
costs one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._precondition import roots
from linboost_optax._precondition.roots import Root
from linboost_optax._solvers.elimination import where_seen


class PolarState(NamedTuple):
    """What is kept of one layer's momentum; ``side`` is the shorter of its sides.

    Attributes:
      weight: of the moving average so far, ``[block]``.
      average: moving average of the Gram matrix of the momentum, of unit norm,
        ``[block, side, side]``, or its product with probes, ``[block, side, probe]``.
      root: its inverse square root.
    """

    weight: jax.Array
    average: jax.Array
    root: Any


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

    @property
    def root(self) -> Root:
        """How the Gram matrix of the shorter side is kept."""
        return roots.of(min(self.sides))

    def init(self, dtype: jnp.dtype) -> PolarState:
        """Returns the state of a layer that has not moved: its root is the identity."""
        blocks, root = self.layer.blocks, self.root
        nothing = root.zeros(blocks, dtype)
        return PolarState(
            jnp.zeros(blocks, dtype), nothing, root.identity(blocks, dtype)
        )

    def direction(
        self, state: PolarState, momentum: Affine, step: jax.Array
    ) -> tuple[Affine, PolarState]:
        """Returns the factor, its elements of mean square 1, and the new state."""
        inputs, outputs = self.sides
        unit = momentum.w / _or_one(_norm(momentum.w))
        moved = _norm(unit)[:, 0, 0] > 0
        tall = inputs >= outputs
        unit = unit.mT if tall else unit  # the shorter side first

        def remake() -> PolarState:
            weight = self.decay * state.weight + (1 - self.decay)
            seen = self.root.seen(unit)
            average = self.decay * state.average + (1 - self.decay) * seen
            root = self.root.inverse(average / weight[:, None, None])
            good = moved
            for leaf in jax.tree.leaves(root):
                axes = tuple(range(1, leaf.ndim))
                good &= jnp.all(jnp.isfinite(leaf), axis=axes)
            return where_seen(good, PolarState(weight, average, root), state)

        # Blocks that never moved have no root yet.
        due = (step % self.every == 0) | jnp.any(moved & (state.weight == 0))
        state = jax.lax.cond(due, remake, lambda: state)
        factor = self.root.apply(state.root, unit)
        factor = factor.mT if tall else factor
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
