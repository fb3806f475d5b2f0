"""The arrow-shaped factor: exact mean, diagonal covariance."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax import _checks
from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.elimination import (
    center,
    columns,
    output_mean,
    uncenter,
    where_seen,
)
from linboost_optax._statistics.base import BlockMoments


class MomentsState(NamedTuple):
    """Moving averages of the inputs' moments, not yet corrected for their start.

    Attributes:
      count: number of updates, ``[block]``.
      mean: ``[block, feature]``.
      mean_sq: ``[block, feature]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: jax.Array
    mean_sq: jax.Array


@dataclass(frozen=True)
class IncompleteCholesky:
    r"""Diagonal covariance with the exact mean: costs about what Adam costs.

    .. math::
      s^2 = (1 - a) \max(0, \nu - \mu^2) + a\, \overline{\max(0, \nu - \mu^2)}, \quad
      H_w = (G_w - \mu G_b) / s^2, \quad H_b = G_b - \mu^T H_w

    and :math:`H_w = G_w / (s^2 + \mu^2)` without a bias. Unlike a textbook
    incomplete Cholesky factorisation, the pattern is an arrow: the row of the
    constant 1 is kept exactly, the rest is diagonal.

    Args:
      b_mu: decay of the mean, in [0, 1); default 0.9.
      b_nu: decay of the mean square, in [0, 1); default 0.999.
      shrinkage: weight of the average variance in each variance, in [0, 1];
        default 0.1.

    Raises:
      ValueError: if a hyper-parameter is out of range.

    Example:
      >>> import linboost_optax as lbo
      >>> lbo.IncompleteCholesky(shrinkage=0.2)
      IncompleteCholesky(b_mu=0.9, b_nu=0.999, shrinkage=0.2)

    References:
      Munoz (2025), arXiv:2502.01131: the approximate metric.
    """

    b_mu: float = 0.9
    b_nu: float = 0.999
    shrinkage: float = 0.1

    def __post_init__(self):
        _checks.fraction("b_mu", self.b_mu)
        _checks.fraction("b_nu", self.b_nu)
        _checks.between("shrinkage", self.shrinkage, 0, 1)

    def bind(self, layer: Layer) -> "ArrowMetric":
        """Returns the solver of one layer, whatever its statistic."""
        return arrow_on(layer.statistic, self, layer)

    def bind_factor(self, layer: Layer) -> "ArrowMetric":
        """Returns the factor of one layer's metric, whatever its statistic."""
        return arrow_on(layer.statistic, self, layer)


@singledispatch
def arrow_on(statistic: Any, solver: IncompleteCholesky, layer: Layer) -> Any:
    """Returns what ``solver`` is on a layer with this statistic.

    Moments of the inputs are all that it reads, so only a statistic of more than one
    kind of inputs registers another.

    Args:
      statistic: the layer's.
      solver: the options.
      layer: the layer.
    """
    del statistic
    return ArrowMetric(solver, layer)


@dataclass(frozen=True)
class ArrowMetric:
    """``IncompleteCholesky`` on one layer."""

    options: IncompleteCholesky
    layer: Layer

    nameless: ClassVar[bool] = True

    def init(self) -> MomentsState:
        # One buffer a leaf: a step that donates its state must not see one twice.
        zeros, d = self.layer.zeros, self.layer.features
        count = jnp.zeros(self.layer.blocks, jnp.int32)
        return MomentsState(count, zeros(d), zeros(d))

    def read(self, value: Any) -> BlockMoments:
        return self.layer.statistic.moments(self.layer, value)

    def update(
        self, state: MomentsState, view: BlockMoments, step: jax.Array
    ) -> MomentsState:
        del step
        b_mu, b_nu = self.options.b_mu, self.options.b_nu
        new = MomentsState(
            state.count + 1,
            b_mu * state.mean + (1 - b_mu) * view.mean,
            b_nu * state.mean_sq + (1 - b_nu) * view.mean_sq,
        )
        return where_seen(view.count > 0, new, state)

    def scales(self, state: MomentsState) -> tuple[jax.Array, jax.Array]:
        """Returns the mean and the diagonal of the metric."""
        options = self.options
        steps = jnp.maximum(state.count, 1)[:, None].astype(state.mean.dtype)
        mean = state.mean / (1 - options.b_mu**steps)
        mean_sq = state.mean_sq / (1 - options.b_nu**steps)
        variance = jnp.maximum(mean_sq - mean**2, 0)
        average = jnp.mean(variance, axis=1, keepdims=True)
        metric = (1 - options.shrinkage) * variance + options.shrinkage * average
        if not self.layer.biased:
            metric = metric + mean**2
        # Inputs that never vary would divide rounding errors by zero.
        info = jnp.finfo(metric.dtype)
        floor = 16 * info.eps * jnp.mean(mean_sq, axis=1, keepdims=True) + info.tiny
        return mean, jnp.maximum(metric, floor)

    def solve(self, state: MomentsState, view: Any, g: Affine) -> Affine:
        del view
        mean, metric = self.scales(state)
        return uncenter(center(g, mean) / columns(metric), g.b, mean)

    def whiten(self, state: MomentsState, g: Affine) -> Affine:
        mean, metric = self.scales(state)
        return Affine(center(g, mean) / columns(jnp.sqrt(metric)), g.b)

    def unwhiten(self, state: MomentsState, u: Affine) -> Affine:
        mean, metric = self.scales(state)
        return uncenter(u.w / columns(jnp.sqrt(metric)), u.b, mean)

    def coordinates(self, state: MomentsState, w: Affine) -> Affine:
        mean, metric = self.scales(state)
        return Affine(w.w * columns(jnp.sqrt(metric)), output_mean(w, mean))
