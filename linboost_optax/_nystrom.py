"""Solves on a sketch: low rank plus diagonal, no matrix as wide as it is high."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax import _average, _layers, _statistics
from linboost_optax._average import Average, Factored
from linboost_optax._elimination import (
    center,
    columns,
    output_mean,
    uncenter,
    where_seen,
    zeros_like_statistic,
)
from linboost_optax._layers import Affine, Layer
from linboost_optax._statistics import Sketch, Statistic

# The approximation is only as good as its r x r products; they cost next to nothing.
_HIGH = jax.lax.Precision.HIGHEST


class LowRank(NamedTuple):
    r"""The metric :math:`D^{1/2} (I + B B^T) D^{1/2}`, ready to be applied.

    Attributes:
      scale: :math:`D^{1/2}`, ``[block, feature]``.
      basis: :math:`U` of the inverse :math:`I - U U^T` of :math:`I + B B^T`, or of
        its symmetric square root, ``[block, feature, rank]``.
      stretch: singular values of that root along ``basis``, ``[block, rank]``.
    """

    scale: jax.Array
    basis: jax.Array
    stretch: jax.Array


class NystromState(NamedTuple):
    """State of ``Nystrom``.

    Attributes:
      average: of the mean and the mean square ``[block, feature]``, and of the
        sketched outer product ``[block, feature, rank]``.
      factor: the last good ``LowRank``.
    """

    average: Average
    factor: Factored


@dataclass(frozen=True)
class Nystrom:
    r"""The Nystrom approximation of the covariance, what it misses on the diagonal.

    .. math::
      Y = \Sigma \Omega, \qquad
      \Sigma \approx L + \mathrm{diag}(\Sigma - L), \qquad
      L = Y (\Omega^T Y)^+ Y^T

    Diagonals are exact, and so is everything where inputs span no more than ``rank``
    dimensions; rank 0 would be the incomplete Cholesky factorisation. Made by
    ``Cholesky`` for layers whose statistic is ``Sketch``.

    Args:
      ridge: added to the diagonal, >= 0, absolute.
      decay: of the moving averages, in [0, 1).
      every: refactor every so many steps, >= 1.

    References:
      Frangella, Tropp and Udell (2023), "Randomized Nystrom preconditioning", SIAM
      J. Matrix Anal. Appl. 44(2); there with a multiple of the identity for the rest.
    """

    ridge: float
    decay: float
    every: int

    has_factor: ClassVar[bool] = True
    warm_start: ClassVar[bool] = False

    def init(self, layer: Layer) -> NystromState:
        """Returns the state of a layer that has seen nothing."""
        blocks, zeros = layer.blocks, zeros_like_statistic(layer)
        each, tall = (blocks, layer.features), (blocks, layer.features, layer.probes)
        low_rank = LowRank(zeros(each), zeros(tall), zeros((blocks, layer.probes)))
        return NystromState(
            Average(zeros((blocks,)), (zeros(each), zeros(each), zeros(tall))),
            Factored(zeros(each), low_rank, jnp.zeros(blocks, jnp.bool_)),
        )

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: NystromState,
        step: jax.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> NystromState:
        """Returns the state after one batch.

        ``state.factor`` inverts the metric, with ``factored`` its factor.
        """
        assert isinstance(statistic, Sketch)
        sketched, count = _layers.block_outer(layer, statistic)
        moments = _layers.block_moments(layer, statistic)
        seen = count > 0
        batch = (moments.mean, moments.mean_sq, sketched)
        average = _average.advance(state.average, batch, seen, self.decay)
        factor = _average.refresh(
            _average.due(step, self.every, seen, state.factor.ready),
            average,
            state.factor,
            lambda averages: self._factorise(averages, biased, factored),
        )
        return NystromState(average, factor)

    def _factorise(
        self, averages: tuple[jax.Array, ...], biased: bool, factored: bool
    ) -> tuple[jax.Array, LowRank]:
        mean, mean_sq, sketched = averages
        features, rank = sketched.shape[1:]
        omega = _statistics.probes(features, rank, sketched.dtype)
        variance = mean_sq
        if biased:
            seen = jnp.einsum("kd,dr->kr", mean, omega, precision=_HIGH)
            sketched = sketched - columns(mean) * seen[:, None, :]
            variance = jnp.maximum(mean_sq - mean**2, 0)

        # Of the r x r matrix between, directions below rounding are left out.
        inner = jnp.einsum("dr,kds->krs", omega, sketched, precision=_HIGH)
        values, vectors = jnp.linalg.eigh(inner + inner.mT)
        values = values / 2
        smallest = rank * jnp.finfo(values.dtype).eps * values[:, -1:]
        kept = values > smallest
        root = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
        low = jnp.einsum(
            "kdr,krs->kds", sketched, vectors * root[:, None, :], precision=_HIGH
        )
        rest = jnp.maximum(variance - jnp.sum(low**2, axis=2), 0)
        # I - U U^T is applied as a difference: beyond this it would lose its sign.
        info = jnp.finfo(mean_sq.dtype)
        rounding = 16 * info.eps * jnp.sum(mean_sq, axis=1) + info.tiny
        scale = jnp.sqrt(rest + self.ridge + rounding[:, None])

        low = low / columns(scale)
        inner = jnp.einsum("kdr,kds->krs", low, low, precision=_HIGH)
        values, vectors = jnp.linalg.eigh(inner)
        stretch = jnp.sqrt(1 + jnp.maximum(values, 0))
        # I - U U^T is 1 / stretch^2 along a direction, its root 1 / stretch. Written
        # so, no difference is taken here, and no direction is divided by its norm.
        size = stretch * (stretch + 1) if factored else stretch**2
        basis = jnp.einsum(
            "kdr,krs->kds", low, vectors / jnp.sqrt(size)[:, None, :], precision=_HIGH
        )
        return mean, LowRank(scale, basis, stretch)

    def solve(
        self,
        layer: Layer,
        statistic: Statistic,
        state: NystromState,
        g: Affine,
        start: Affine | None = None,
    ) -> Affine:
        """Returns ``H``, with the inverse of the metric."""
        del layer, statistic, start
        mean, metric, ready = _usable(state)
        w = _shrink(metric, center(g, mean) / columns(metric.scale))
        return where_seen(ready, uncenter(w / columns(metric.scale), g.b, mean), g)

    def whiten(self, state: NystromState, g: Affine) -> Affine:
        """Returns ``C^-1 g``, with ``C = D^{1/2} (I + B B^T)^{1/2}``."""
        mean, metric, ready = _usable(state)
        w = _shrink(metric, center(g, mean) / columns(metric.scale))
        return where_seen(ready, Affine(w, g.b), g)

    def unwhiten(self, state: NystromState, u: Affine) -> Affine:
        """Returns ``C^-T u``."""
        mean, metric, ready = _usable(state)
        w = _shrink(metric, u.w) / columns(metric.scale)
        return where_seen(ready, uncenter(w, u.b, mean), u)

    def coordinates(self, state: NystromState, w: Affine) -> Affine:
        """Returns ``C^T w``."""
        mean, metric, ready = _usable(state)
        v = w.w * columns(metric.scale)
        along = jnp.einsum("kdr,kdo->kro", metric.basis, v) * columns(metric.stretch)
        v = v + jnp.einsum("kdr,kro->kdo", metric.basis, along)
        return where_seen(ready, Affine(v, output_mean(w, mean)), w)


def _usable(state: NystromState) -> tuple[jax.Array, LowRank, jax.Array]:
    mean, metric, ready = state.factor
    scale = jnp.where(ready[:, None], metric.scale, 1)
    return mean, metric._replace(scale=scale), ready


def _shrink(metric: LowRank, w: jax.Array) -> jax.Array:
    along = jnp.einsum("kdr,kdo->kro", metric.basis, w)
    return w - jnp.einsum("kdr,kro->kdo", metric.basis, along)
