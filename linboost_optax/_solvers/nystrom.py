"""Solves on a sketch: low rank plus diagonal, no matrix as wide as it is high."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers import refreshed
from linboost_optax._solvers.damping import Damping
from linboost_optax._solvers.elimination import (
    center,
    columns,
    output_mean,
    uncenter,
    where_seen,
)
from linboost_optax._solvers.refreshed import Refreshed
from linboost_optax._statistics.low_rank import nystrom
from linboost_optax._statistics.sketch import BlockSketch, Sketch, probes

# The approximation is only as good as its r x r products; they cost next to nothing.
_HIGH = jax.lax.Precision.HIGHEST


class LowRank(NamedTuple):
    r"""The metric :math:`D^{1/2} (I + B B^T) D^{1/2}`, ready to be applied.

    The columns of :math:`B` are orthogonal, and :math:`s` the square roots of the
    eigenvalues of :math:`I + B B^T` along them, so that every power of it is one plus
    low rank. With :math:`U = B / s` its inverse is :math:`I - U U^T`, and other powers
    are :math:`I + U\, c(s)\, U^T` with a coefficient of their own.

    Attributes:
      scale: :math:`D^{1/2}`, ``[block, feature]``.
      basis: :math:`U`, ``[block, feature, rank]``.
      stretch: :math:`s`, ``[block, rank]``.
    """

    scale: jax.Array
    basis: jax.Array
    stretch: jax.Array


@dataclass(frozen=True)
class Nystrom:
    r"""``Cholesky`` on a layer with a sketch: the Nystrom approximation.

    .. math::
      Y = \Sigma \Omega, \qquad
      \Sigma \approx L + \mathrm{diag}(\Sigma - L), \qquad
      L = Y (\Omega^T Y)^+ Y^T

    What it misses of the covariance stays on the diagonal. Diagonals are exact, and so
    is everything where inputs span no more than ``rank`` dimensions; rank 0 would be
    the incomplete Cholesky factorisation.

    References:
      Frangella, Tropp and Udell (2023), "Randomized Nystrom preconditioning", SIAM
      J. Matrix Anal. Appl. 44(2); there with a multiple of the identity for the rest.
    """

    damping: Damping
    decay: float
    every: int
    layer: Layer
    statistic: Sketch

    nameless: ClassVar[bool] = True

    def init(self) -> Refreshed:
        rank = self.statistic.rank_of(self.layer)
        d, zeros = self.layer.features, self.layer.zeros
        metric = LowRank(zeros(d), zeros(d, rank), zeros(rank))
        return refreshed.init(self.layer, (zeros(d), zeros(d), zeros(d, rank)), metric)

    def read(self, value: Any) -> BlockSketch:
        return self.statistic.sketched(self.layer, value)

    def update(self, state: Refreshed, view: BlockSketch, step: jax.Array) -> Refreshed:
        return refreshed.update(
            state,
            (view.mean, view.mean_sq, view.outer),
            view.count > 0,
            step,
            self._factorise,
            decay=self.decay,
            every=self.every,
        )

    def _factorise(self, averages: tuple[jax.Array, ...]) -> tuple[jax.Array, LowRank]:
        mean, mean_sq, sketched = averages
        features, rank = sketched.shape[1:]
        omega = probes(features, rank, sketched.dtype)
        variance = mean_sq
        if self.layer.biased:
            seen = jnp.einsum("kd,dr->kr", mean, omega, precision=_HIGH)
            sketched = sketched - columns(mean) * seen[:, None, :]
            variance = jnp.maximum(mean_sq - mean**2, 0)

        low = self.damping.kept**0.5 * nystrom(sketched, omega)
        rest = jnp.maximum(variance - jnp.sum(low**2, axis=2), 0)
        # Powers are applied as differences: beyond this they would lose their sign.
        info = jnp.finfo(mean_sq.dtype)
        rounding = 16 * features * info.eps * mean_sq
        if self.damping.ridge == 0:  # features never seen have no scale but the others'
            rounding = rounding + jnp.max(rounding, axis=1, keepdims=True)
        scale = jnp.sqrt(rest + self.damping.ridge + rounding + info.tiny)

        low = low / columns(scale)
        inner = jnp.einsum("kdr,kds->krs", low, low, precision=_HIGH)
        vectors, values = jax.lax.linalg.eigh(inner, symmetrize_input=False)
        stretch = jnp.sqrt(1 + jnp.maximum(values, 0))
        basis = jnp.einsum(
            "kdr,krs->kds", low, vectors / stretch[:, None, :], precision=_HIGH
        )
        return mean, LowRank(scale, basis, stretch)

    def solve(self, state: Refreshed, view: Any, g: Affine) -> Affine:
        del view
        mean, metric, ready = _usable(state)
        w = _inverse(metric, center(g, mean) / columns(metric.scale))
        return where_seen(ready, uncenter(w / columns(metric.scale), g.b, mean), g)

    def whiten(self, state: Refreshed, g: Affine) -> Affine:
        """Returns ``C^-1 g``, with ``C = D^{1/2} (I + B B^T)^{1/2}``."""
        mean, metric, ready = _usable(state)
        w = _inverse_root(metric, center(g, mean) / columns(metric.scale))
        return where_seen(ready, Affine(w, g.b), g)

    def unwhiten(self, state: Refreshed, u: Affine) -> Affine:
        mean, metric, ready = _usable(state)
        w = _inverse_root(metric, u.w) / columns(metric.scale)
        return where_seen(ready, uncenter(w, u.b, mean), u)

    def coordinates(self, state: Refreshed, w: Affine) -> Affine:
        mean, metric, ready = _usable(state)
        v = _root(metric, w.w * columns(metric.scale))
        return where_seen(ready, Affine(v, output_mean(w, mean)), w)


def _usable(state: Refreshed) -> tuple[jax.Array, LowRank, jax.Array]:
    mean, metric, ready = state.factor
    # The identity until there is one: zeros are no metric, and not to divide by.
    scale, stretch = (
        jnp.where(ready[:, None], leaf, 1) for leaf in (metric.scale, metric.stretch)
    )
    return mean, LowRank(scale, metric.basis, stretch), ready


# The columns of U have the squared norm 1 - 1 / s^2, so I + c U U^T has the eigenvalue
# 1 + c (1 - 1 / s^2) along each. Written so, none is divided by its norm: it may be 0.


def _inverse(metric: LowRank, w: jax.Array) -> jax.Array:
    return w - _along(metric.basis, metric.basis, w)


def _inverse_root(metric: LowRank, w: jax.Array) -> jax.Array:
    s = metric.stretch
    return w - _along(metric.basis * (s / (s + 1))[:, None, :], metric.basis, w)


def _root(metric: LowRank, w: jax.Array) -> jax.Array:
    s = metric.stretch
    return w + _along(metric.basis * (s**2 / (s + 1))[:, None, :], metric.basis, w)


def _along(scaled: jax.Array, basis: jax.Array, w: jax.Array) -> jax.Array:
    # Coefficients scale the basis: between the two products they would be fused into
    # the second, which was measured to cost more than both.
    along = jnp.einsum("kdr,kdo->kro", scaled, w)
    return jnp.einsum("kdr,kro->kdo", basis, along)
