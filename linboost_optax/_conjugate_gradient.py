"""A few steps of conjugate gradients, matrix-free where there is no matrix."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from linboost_optax import _checks, _layers
from linboost_optax._elimination import center, columns, dot, uncenter, where_seen
from linboost_optax._incomplete_cholesky import IncompleteCholesky, MomentsState
from linboost_optax._layers import Affine, Layer
from linboost_optax._statistics import Gram, Inputs, Statistic


@dataclass(frozen=True)
class ConjugateGradient:
    r"""A few conjugate-gradient steps on the current batch's metric.

    Solves :math:`(M + \gamma P) H = G` for all outputs of a layer at once, warm
    started from the previous ``H`` and preconditioned by ``IncompleteCholesky``.
    Unlike the textbook routine for several right-hand sides, the step lengths are
    shared by all outputs. ``M`` is a Gram matrix, or products with the inputs
    themselves where the layer's statistic is ``Inputs``: the iterates are the same.

    Args:
      ridge: :math:`\gamma`, >= 0, absolute; default 0.1.
      iterations: most steps a solve, >= 1; default 2.
      tolerance: stop at this residual relative to ``G``, >= 0; default 1e-5.
      b_mu: decay of the preconditioner's mean, in [0, 1); default 0.9.
      b_nu: decay of its mean square, in [0, 1); default 0.999.
      shrinkage: of its variances, in [0, 1]; default 0.1.

    Raises:
      ValueError: if a hyper-parameter is out of range.

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

    has_factor: ClassVar[bool] = False
    warm_start: ClassVar[bool] = True

    def __post_init__(self):
        _checks.at_least("ridge", self.ridge, 0)
        _checks.whole("iterations", self.iterations, 1)
        _checks.at_least("tolerance", self.tolerance, 0)
        IncompleteCholesky(self.b_mu, self.b_nu, self.shrinkage)

    @property
    def preconditioner(self) -> IncompleteCholesky:
        """The solver that preconditions this one."""
        return IncompleteCholesky(self.b_mu, self.b_nu, self.shrinkage)

    def init(self, layer: Layer) -> MomentsState:
        """Returns the state of a layer that has seen nothing."""
        return self.preconditioner.init(layer)

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: MomentsState,
        step: jax.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> MomentsState:
        """Returns the state after one batch."""
        return self.preconditioner.update(
            layer, statistic, state, step, biased=biased, factored=factored
        )

    def solve(
        self,
        layer: Layer,
        statistic: Statistic,
        state: MomentsState,
        g: Affine,
        start: Affine | None = None,
    ) -> Affine:
        """Returns ``H``, from ``start`` (default zero) on."""
        if start is None:
            start = Affine(jnp.zeros_like(g.w), g.b if g.b is None else g.b * 0)
        mean, metric = self.preconditioner.scales(state, g.b is not None)
        product, count = _second_moment(layer, statistic)

        def operator(v: Affine) -> Affine:
            h = product(v)
            return h._replace(w=h.w + self.ridge * v.w)

        def precondition(r: Affine) -> Affine:
            return uncenter(center(r, mean) / columns(metric), r.b, mean)

        solution = _conjugate_gradient(
            operator, precondition, g, start, self.iterations, self.tolerance
        )
        # A block whose solve broke down keeps its last solution.
        good = (count > 0) & jnp.isfinite(dot(solution, solution))
        return where_seen(good, solution, start)


def _second_moment(layer: Layer, statistic: Statistic):
    """Returns ``v -> M v`` and the counts, from a Gram matrix or from inputs."""
    if isinstance(statistic, Inputs):
        x, count = _layers.block_inputs(layer, statistic)
        rows = x.shape[1]

        def product(v: Affine) -> Affine:
            z = jnp.einsum("knd,kdo->kno", x, v.w)
            z = z if v.b is None else z + v.b[:, None, :]
            w = jnp.einsum("knd,kno->kdo", x, z) / rows
            return Affine(w, None if v.b is None else jnp.mean(z, axis=1))

        return product, count
    assert isinstance(statistic, Gram)
    outer, count = _layers.block_outer(layer, statistic)
    mean = _layers.block_moments(layer, statistic).mean

    def product(v: Affine) -> Affine:
        w = jnp.einsum("kde,keo->kdo", outer, v.w)
        if v.b is None:
            return Affine(w, None)
        b = jnp.einsum("kd,kdo->ko", mean, v.w) + v.b
        return Affine(w + columns(mean) * v.b[:, None, :], b)

    return product, count


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
