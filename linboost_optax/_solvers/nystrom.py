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
    are :math:`I + U\, c(s)\, U^T` with a coefficient of their own: the columns of U
    have the squared norm :math:`1 - 1 / s^2`, none is divided by its norm, which may be
    zero.

    Attributes:
      scale: :math:`D^{1/2}`, ``[block, feature]``.
      basis: :math:`U`, ``[block, feature, rank]``.
      stretch: :math:`s`, ``[block, rank]``.
    """

    scale: jax.Array
    basis: jax.Array
    stretch: jax.Array

    def along(self, w: jax.Array, weight: jax.Array) -> jax.Array:
        """Returns ``U c U^T w``.

        Coefficients ``c``, ``[block, rank]``, scale the basis: between the two products
        they would be fused into the second, which was measured to cost more than both.
        """
        weighted = self.basis * weight[:, None, :]
        seen = jnp.einsum("kdr,kdo->kro", weighted, w)
        return jnp.einsum("kdr,kro->kdo", self.basis, seen)

    def divide(self, g: Affine, mean: jax.Array, weight: jax.Array) -> jax.Array:
        """Returns ``(I - U c U^T) D^{-1/2}`` times the right-hand side, centred.

        The product is that of ``g`` as it is, and what centring changes is taken off
        after: one pass less over an array as large as a kernel.
        """
        weighted = self.basis * (weight[:, None, :] / columns(self.scale))
        seen = jnp.einsum("kdr,kdo->kro", weighted, g.w)
        if g.b is not None:
            shift = jnp.einsum("kdr,kd->kr", weighted, mean)
            seen = seen - columns(shift) * g.b[:, None, :]
        inner = center(g, mean) / columns(self.scale)
        return inner - jnp.einsum("kdr,kro->kdo", self.basis, seen)


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
        one = LowRank(zeros(d) + 1, zeros(d, rank), zeros(rank) + 1)
        averaged = (zeros(d), zeros(d), zeros(d, rank))
        return refreshed.init(self.layer, averaged, zeros(d), one)

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
        mean, metric, _ = state.factor
        w = metric.divide(g, mean, jnp.ones_like(metric.stretch))
        return uncenter(w / columns(metric.scale), g.b, mean)

    def whiten(self, state: Refreshed, g: Affine) -> Affine:
        """Returns ``C^-1 g``, with ``C = D^{1/2} (I + B B^T)^{1/2}``."""
        mean, metric, _ = state.factor
        s = metric.stretch
        return Affine(metric.divide(g, mean, s / (s + 1)), g.b)

    def unwhiten(self, state: Refreshed, u: Affine) -> Affine:
        mean, metric, _ = state.factor
        s = metric.stretch
        w = u.w - metric.along(u.w, s / (s + 1))
        return uncenter(w / columns(metric.scale), u.b, mean)

    def coordinates(self, state: Refreshed, w: Affine) -> Affine:
        mean, metric, _ = state.factor
        v = w.w * columns(metric.scale)
        s = metric.stretch
        v = v + metric.along(v, s**2 / (s + 1))
        return Affine(v, output_mean(w, mean))
