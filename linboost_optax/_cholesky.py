"""Exact solves: a factored Gram matrix, or the dual problem of raw inputs."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax import _average, _checks, _layers
from linboost_optax._average import Average, Factored
from linboost_optax._elimination import (
    center,
    output_mean,
    uncenter,
    where_seen,
    zeros_like_statistic,
)
from linboost_optax._layers import Affine, Layer
from linboost_optax._statistics import Gram, Inputs, Statistic


class CholeskyState(NamedTuple):
    """State of ``Cholesky``.

    Attributes:
      average: of the mean ``[block, feature]`` and the outer product
        ``[block, feature, feature]``.
      factor: the last good inverse, of the metric or of its factor,
        ``[block, feature, feature]``.
    """

    average: Average
    factor: Factored


@dataclass(frozen=True)
class Cholesky:
    r"""Exact solve on a moving average of the Gram matrix, refactored every k steps.

    .. math::
      L L^T = \Sigma + \gamma I, \qquad H_w = L^{-T} L^{-1} (G_w - \mu G_b)

    Unlike the textbook routine, no triangular system is solved in a step: the
    inverse is explicit, refreshed every ``every`` steps, and applied as a matrix
    product. A factorisation that is not finite leaves the last good one in place.
    On ``Sketch`` it uses the low-rank approximation of the matrix that the sketch
    holds, on ``Inputs`` it solves the dual problem of the current batch.

    Args:
      ridge: :math:`\gamma`, >= 0, absolute; default 0.1. Rounding errors of the
        Gram matrix are added, so that 0 is safe with rank-deficient inputs.
      decay: of the moving average of the Gram matrix, in [0, 1); default 0.95.
      every: refactor every so many steps, >= 1; default 10.

    Raises:
      ValueError: if a hyper-parameter is out of range.

    Example:
      >>> import linboost_optax as lbo
      >>> lbo.Cholesky(ridge=0.01)
      Cholesky(ridge=0.01, decay=0.95, every=10)

    References:
      Munoz (2025), arXiv:2502.01131: the metric, here solved exactly.
    """

    ridge: float = 0.1
    decay: float = 0.95
    every: int = 10

    has_factor: ClassVar[bool] = True
    warm_start: ClassVar[bool] = False

    def __post_init__(self):
        _checks.at_least("ridge", self.ridge, 0)
        _checks.fraction("decay", self.decay)
        _checks.whole("every", self.every, 1)

    def init(self, layer: Layer) -> CholeskyState:
        """Returns the state of a layer that has seen nothing."""
        blocks, d, zeros = layer.blocks, layer.features, zeros_like_statistic(layer)
        square = (blocks, d, d)
        return CholeskyState(
            Average(zeros((blocks,)), (zeros((blocks, d)), zeros(square))),
            Factored(zeros((blocks, d)), zeros(square), jnp.zeros(blocks, jnp.bool_)),
        )

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: CholeskyState,
        step: jax.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> CholeskyState:
        """Returns the state after one batch.

        ``state.factor`` is the inverse of the metric, with ``factored`` of its factor.
        """
        assert isinstance(statistic, Gram)
        outer, count = _layers.block_outer(layer, statistic)
        mean = _layers.block_moments(layer, statistic).mean
        seen = count > 0
        average = _average.advance(state.average, (mean, outer), seen, self.decay)
        factor = _average.refresh(
            _average.due(step, self.every, seen, state.factor.ready),
            average,
            state.factor,
            lambda moments: self._factorise(moments, biased, factored),
        )
        return CholeskyState(average, factor)

    def _factorise(
        self, moments: tuple[jax.Array, jax.Array], biased: bool, factored: bool
    ) -> tuple[jax.Array, jax.Array]:
        mean, outer = moments
        info = jnp.finfo(outer.dtype)
        largest = jnp.max(jnp.diagonal(outer, axis1=1, axis2=2), axis=1)
        rounding = outer.shape[-1] * info.eps * largest + info.tiny
        if biased:
            outer = outer - mean[:, :, None] * mean[:, None, :]
        identity = jnp.broadcast_to(
            jnp.eye(outer.shape[-1], dtype=outer.dtype), outer.shape
        )
        damping = (self.ridge + rounding)[:, None, None] * identity
        inverse = jax.lax.linalg.triangular_solve(
            jnp.linalg.cholesky(outer + damping), identity, left_side=True, lower=True
        )
        if not factored:
            inverse = jnp.einsum("kfd,kfe->kde", inverse, inverse)
        return mean, inverse

    def solve(
        self,
        layer: Layer,
        statistic: Statistic,
        state: CholeskyState,
        g: Affine,
        start: Affine | None = None,
    ) -> Affine:
        """Returns ``H``, with the inverse of the metric."""
        del layer, statistic, start
        mean, inverse, ready = state.factor
        w = jnp.einsum("kde,keo->kdo", inverse, center(g, mean))
        return where_seen(ready, uncenter(w, g.b, mean), g)

    def whiten(self, state: CholeskyState, g: Affine) -> Affine:
        """Returns ``C^-1 g``, with the inverse of the factor."""
        mean, inverse, ready = state.factor
        w = jnp.einsum("kde,keo->kdo", inverse, center(g, mean))
        return where_seen(ready, Affine(w, g.b), g)

    def unwhiten(self, state: CholeskyState, u: Affine) -> Affine:
        """Returns ``C^-T u``."""
        mean, inverse, ready = state.factor
        w = jnp.einsum("ked,keo->kdo", inverse, u.w)
        return where_seen(ready, uncenter(w, u.b, mean), u)

    def coordinates(self, state: CholeskyState, w: Affine) -> Affine:
        """Returns ``C^T w``: a triangular solve, paid only by who reads it."""
        mean, inverse, ready = state.factor
        eye = jnp.eye(inverse.shape[-1], dtype=inverse.dtype)
        inverse = jnp.where(ready[:, None, None], inverse, eye)
        v = jax.lax.linalg.triangular_solve(
            inverse, w.w, left_side=True, lower=True, transpose_a=True
        )
        return where_seen(ready, Affine(v, output_mean(w, mean)), w)


@dataclass(frozen=True)
class DualCholesky:
    r"""Exact solve on the current inputs when there are fewer samples than features.

    .. math::
      (X^T X / n + \gamma I)^{-1} V
      = \big(V - X^T (X X^T + n \gamma I)^{-1} X V\big) / \gamma

    with centred inputs :math:`X`, so that only an n x n matrix is factored. Made
    by ``Cholesky`` for layers whose statistic is ``Inputs``.

    Args:
      ridge: :math:`\gamma`, > 0, absolute.
    """

    ridge: float

    has_factor: ClassVar[bool] = False
    warm_start: ClassVar[bool] = False

    def init(self, layer: Layer) -> tuple[()]:
        """Returns no state: the inputs of one batch are all there is."""
        del layer
        return ()

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: tuple[()],
        step: jax.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> tuple[()]:
        """Returns no state."""
        del layer, statistic, step, biased, factored
        return state

    def solve(
        self,
        layer: Layer,
        statistic: Statistic,
        state: tuple[()],
        g: Affine,
        start: Affine | None = None,
    ) -> Affine:
        """Returns ``H``."""
        del state, start
        assert isinstance(statistic, Inputs)
        x, _ = _layers.block_inputs(layer, statistic)
        rows = x.shape[1]
        mean = jnp.mean(x, axis=1)
        if g.b is not None:
            x = x - mean[:, None, :]
        v = center(g, mean)
        kernel = jnp.einsum("knd,kmd->knm", x, x)
        kernel = kernel + rows * self.ridge * jnp.eye(rows, dtype=x.dtype)[None]
        inner = jnp.einsum("knd,kdo->kno", x, v)
        inner = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(kernel), True), inner)
        w = (v - jnp.einsum("knd,kno->kdo", x, inner)) / self.ridge
        return uncenter(w, g.b, mean)
