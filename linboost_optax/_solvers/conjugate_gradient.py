"""A few steps of conjugate gradients, matrix-free where there is no matrix."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax import _checks
from linboost_optax._layer import Affine, Layer, dot
from linboost_optax._solvers.elimination import where_seen
from linboost_optax._solvers.incomplete_cholesky import (
    ArrowMetric,
    IncompleteCholesky,
    MomentsState,
)
from linboost_optax._statistics.base import (
    BlockMoments,
    HasSecondMoment,
    SecondMoment,
)


@dataclass(frozen=True)
class ConjugateGradient:
    r"""A few conjugate-gradient steps on the current batch's metric.

    Solves :math:`(M + \gamma P) H = G` for all outputs of a layer at once, warm
    started from the previous ``H`` and preconditioned by ``IncompleteCholesky``.
    Unlike the textbook routine for several right-hand sides, the step lengths are
    shared by all outputs. ``M`` is a Gram matrix of all rows of the batch, or products
    with the inputs themselves where the layer's statistic is ``Inputs``: the iterates
    are the same. Other statistics are refused: of some rows, of a sketch or of moments
    this would be another algorithm.

    Args:
      ridge: :math:`\gamma`, >= 0, absolute; default 0.1.
      iterations: most steps a solve, >= 1; default 2.
      tolerance: stop at this residual relative to ``G``, >= 0; default 1e-5.
      b_mu: decay of the preconditioner's mean, in [0, 1); default 0.9.
      b_nu: decay of its mean square, in [0, 1); default 0.999.
      shrinkage: of its variances, in [0, 1]; default 0.1.

    Raises:
      ValueError: if a hyper-parameter is out of range; when bound to layers that keep
        less than the second moment of the whole batch.

    Example:
      >>> import linboost_optax as lbo
      >>> lbo.ConjugateGradient(ridge=1.0).iterations
      2

    References:
      Munoz (2025), arXiv:2502.01131: the online algorithm.
    """

    ridge: float = 0.1
    iterations: int = 2
    tolerance: float = 1e-5
    b_mu: float = 0.9
    b_nu: float = 0.999
    shrinkage: float = 0.1

    def __post_init__(self):
        _checks.at_least("ridge", self.ridge, 0)
        _checks.whole("iterations", self.iterations, 1)
        _checks.at_least("tolerance", self.tolerance, 0)
        IncompleteCholesky(self.b_mu, self.b_nu, self.shrinkage)

    @property
    def preconditioner(self) -> IncompleteCholesky:
        """The solver that preconditions this one."""
        return IncompleteCholesky(self.b_mu, self.b_nu, self.shrinkage)

    def bind(self, layer: Layer) -> "Krylov":
        """Returns the solver of one layer.

        Raises:
          ValueError: if its statistic is not of the whole batch's second moment.
        """
        statistic = layer.statistic
        if not isinstance(statistic, HasSecondMoment):
            raise _too_little(self, layer, "has no products with it")
        if not statistic.is_whole:
            raise _too_little(self, layer, "is of some of its rows")
        return Krylov(self, layer, statistic, self.preconditioner.bind(layer))


def _too_little(solver: ConjugateGradient, layer: Layer, why: str) -> ValueError:
    return ValueError(
        f"`solver` {solver} solves with the second moment of the whole batch, and "
        f"the statistic {layer.statistic} of layer '{layer}' {why}. Make "
        "the taps with `statistic='gram'`, or with 'inputs' where a layer is wider "
        "than its batch; or use Cholesky(), which takes any statistic."
    )


class KrylovView(NamedTuple):
    """What conjugate gradients read of a batch.

    Attributes:
      moments: for the preconditioner.
      second: to multiply by.
    """

    moments: BlockMoments
    second: SecondMoment

    @property
    def count(self) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Number of samples, ``[block]``."""
        return self.second.count


@dataclass(frozen=True)
class Krylov:
    """``ConjugateGradient`` on one layer."""

    options: ConjugateGradient
    layer: Layer
    statistic: HasSecondMoment
    preconditioner: ArrowMetric

    nameless: ClassVar[bool] = True

    def init(self) -> MomentsState:
        return self.preconditioner.init()

    def read(self, value: Any) -> KrylovView:
        second = self.statistic.second_moment(self.layer, value)
        return KrylovView(self.preconditioner.read(value), second)

    def update(
        self, state: MomentsState, view: KrylovView, step: jax.Array
    ) -> MomentsState:
        return self.preconditioner.update(state, view.moments, step)

    def solve_from(
        self, start: Affine, state: MomentsState, view: KrylovView, g: Affine
    ) -> Affine:
        options = self.options

        def operator(v: Affine) -> Affine:
            h = view.second.product(v)
            return h._replace(w=h.w + options.ridge * v.w)

        def precondition(r: Affine) -> Affine:
            return self.preconditioner.solve(state, view.moments, r)

        solution = _conjugate_gradient(
            operator, precondition, g, start, options.iterations, options.tolerance
        )
        # A block whose solve broke down keeps its last solution.
        good = (view.count > 0) & jnp.isfinite(dot(solution, solution))
        return where_seen(good, solution, start)


def _conjugate_gradient(
    operator, precondition, g: Affine, start: Affine, iterations: int, tolerance: float
) -> Affine:
    """Runs preconditioned conjugate gradients, one step length a block."""

    def along(x: Affine, scale: jax.Array, p: Affine) -> Affine:
        return jax.tree.map(
            lambda a, b: a + jnp.expand_dims(scale, tuple(range(1, b.ndim))) * b, x, p
        )

    def ratio(a: jax.Array, b: jax.Array, active: jax.Array) -> jax.Array:
        return jnp.where(active & (b > 0), a / jnp.where(b > 0, b, 1), 0)

    limit = tolerance**2 * dot(g, g)
    minus = -jnp.ones_like(limit)
    x = start
    r = along(g, minus, operator(start))
    z = precondition(r)
    p, rz = z, dot(r, z)
    # Two or three steps: unrolling beats a loop, and lets the last one stop short.
    for i in range(iterations):
        active = dot(r, r) > limit
        ap = operator(p)
        step = ratio(rz, dot(p, ap), active)
        x = along(x, step, p)
        if i + 1 < iterations:
            r = along(r, -step, ap)
            z = precondition(r)
            rz, previous = dot(r, z), rz
            p = along(z, ratio(rz, previous, active), p)
    return x
