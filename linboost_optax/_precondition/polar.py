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
from linboost_optax._precondition.placement import Placement
from linboost_optax._precondition.roots import Root
from linboost_optax._solvers import refreshed
from linboost_optax._solvers.elimination import where_seen
from linboost_optax._solvers.refreshed import Average


class PolarState(NamedTuple):
    """What is kept of one layer's momentum; ``side`` is the shorter of its sides.

    Attributes:
      average: moving average of the Gram matrix of the momentum, of unit norm,
        ``[block, side, side]``, or its product with probes, ``[block, side, probe]``.
      root: its inverse square root.
    """

    average: Average
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
        inputs, outputs = self.sides
        return roots.of(min(self.sides), columns=inputs >= outputs)

    def init(self, dtype: jnp.dtype) -> PolarState:
        """Returns the state of a layer that has not moved: its root is the identity."""
        blocks, root = self.layer.blocks, self.root
        average = Average(jnp.zeros(blocks, dtype), root.zeros(blocks, dtype))
        return PolarState(average, root.identity(blocks, dtype))

    def placed(self, state: PolarState, place: Placement) -> PolarState:
        """Returns a state that lies on a mesh as the shorter side of the kernel.

        Where the outputs are shorter and rows are sharded, it is sharded as these: its
        basis is small beside what is said of a kernel that is in pieces.
        """
        inputs, outputs = self.sides
        name = place.feature
        if inputs >= outputs:
            name = name if place.output is None else place.output
        return place.along(name, min(self.sides), state)

    def direction(
        self, state: PolarState, momentum: Affine, step: jax.Array
    ) -> tuple[Affine, PolarState]:
        """Returns the factor, its elements of mean square 1, and the new state."""
        w, norm = momentum.w, _norm(momentum.w)
        # A norm near the smallest number has no inverse to multiply a root with.
        moved = norm > 2.0**30 * jnp.finfo(norm.dtype).tiny
        inverse = jnp.where(moved, 1 / jnp.where(moved, norm, 1), 0)

        def remake() -> PolarState:
            seen = self.root.seen(w * inverse[:, None, None])
            average = refreshed.advance(state.average, seen, moved, self.decay)
            root = self.root.inverse(refreshed.corrected(average))
            good = moved & refreshed.finite(root)
            return where_seen(good, PolarState(average, root), state)

        # Blocks that never moved have no root yet.
        new = moved & (state.average.weight == 0)
        due = (step % self.every == 0) | jnp.any(new)
        state = jax.lax.cond(due, remake, lambda: state)
        factor = self.root.apply(state.root, inverse, w)
        # A root that is older than the momentum may stretch it where it has turned to.
        length = jnp.sqrt(jnp.sum(factor * factor, axis=(1, 2)))
        longest = min(self.sides) ** 0.5
        scale = max(self.sides) ** 0.5 * longest / jnp.maximum(length, longest)
        return Affine(factor * scale[:, None, None], None), state


def _norm(w: jax.Array) -> jax.Array:
    """Returns the Frobenius norm of each block; squares may overflow or vanish."""
    squares = jnp.sum(w * w, axis=(1, 2))
    # With a margin: what is lost of a sum this large is rounding.
    info = jnp.finfo(squares.dtype)
    usual = jnp.isfinite(squares) & (squares > info.tiny / info.eps**2)

    def scaled() -> jax.Array:
        largest = jnp.max(jnp.abs(w), axis=(1, 2))
        divisor = jnp.where(largest > 0, largest, 1)
        return divisor * jnp.sqrt(
            jnp.sum((w / divisor[:, None, None]) ** 2, axis=(1, 2))
        )

    return jax.lax.cond(jnp.all(usual), lambda: jnp.sqrt(squares), scaled)
