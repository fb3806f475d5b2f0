r"""Solvers of one layer's least-squares problem :math:`(M + \gamma P) H = G`.

:math:`M = E[\tilde x \tilde x^T]` is the second moment of a layer's inputs with
the constant of the bias appended, :math:`P` is 1 on weights and 0 on the bias.
Eliminating the bias leaves a *centred* problem of the width of the weights,

.. math::
  (\Sigma + \gamma I) H_w = G_w - \mu G_b, \qquad H_b = G_b - \mu^T H_w,

with the covariance :math:`\Sigma` (without a bias: :math:`\mu = 0` and the second
moment itself). Every solver here is this elimination with another
:math:`\Sigma`. All arrays carry one leading block axis; see ``_layers``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from linboost_optax import _checks, _layers
from linboost_optax._layers import Affine, BlockMoments, Layer
from linboost_optax._statistics import Gram, Inputs, Statistic


def _columns(v: chex.Array) -> chex.Array:
    return v[:, :, None]


def _center(g: Affine, mean: chex.Array) -> chex.Array:
    """Returns the right-hand side of the centred problem."""
    if g.b is None:
        return g.w
    return g.w - _columns(mean) * g.b[:, None, :]


def _uncenter(w: chex.Array, b: chex.Array | None, mean: chex.Array) -> Affine:
    """Returns the solution whose centred part is ``w``."""
    if b is None:
        return Affine(w, None)
    return Affine(w, b - jnp.einsum("kd,kdo->ko", mean, w))


def _zeros(layer: Layer) -> Callable[[tuple[int, ...]], chex.Array]:
    return partial(jnp.zeros, dtype=jnp.dtype(layer.dtype))


def where_seen(seen: chex.Array, new: chex.ArrayTree, old: chex.ArrayTree):
    """Selects ``new`` in the blocks where ``seen``, ``old`` elsewhere."""

    def select(n: chex.Array, o: chex.Array) -> chex.Array:
        return jnp.where(jnp.expand_dims(seen, tuple(range(1, n.ndim))), n, o)

    return jax.tree.map(select, new, old)


def _dot(a: Affine, b: Affine) -> chex.Array:
    """Returns the inner product of each block."""
    total = jnp.einsum("kdo,kdo->k", a.w, b.w)
    if a.b is None or b.b is None:
        return total
    return total + jnp.einsum("ko,ko->k", a.b, b.b)


class MomentsState(NamedTuple):
    """Moving averages of the inputs' moments, not yet corrected for their start.

    Attributes:
      count: number of updates, ``[block]``.
      mean: ``[block, feature]``.
      mean_sq: ``[block, feature]``.
    """

    count: chex.Array
    mean: chex.Array
    mean_sq: chex.Array


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

    def init(self, layer: Layer, like: Affine) -> MomentsState:
        """Returns the state of a layer that has seen nothing."""
        del like
        zeros = _zeros(layer)
        shape = (layer.blocks, layer.features)
        # One buffer a leaf: a step that donates its state must not see one twice.
        return MomentsState(
            jnp.zeros(layer.blocks, jnp.int32), zeros(shape), zeros(shape)
        )

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: MomentsState,
        step: chex.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> MomentsState:
        """Returns the state after one batch."""
        del step, biased, factored
        batch = _layers.block_moments(layer, statistic)
        return self.accumulate(batch, state)

    def accumulate(self, batch: BlockMoments, state: MomentsState) -> MomentsState:
        """Returns the moving averages after ``batch``."""
        new = MomentsState(
            state.count + 1,
            self.b_mu * state.mean + (1 - self.b_mu) * batch.mean,
            self.b_nu * state.mean_sq + (1 - self.b_nu) * batch.mean_sq,
        )
        return where_seen(batch.count > 0, new, state)

    def scales(
        self, state: MomentsState, biased: bool
    ) -> tuple[chex.Array, chex.Array]:
        """Returns the mean and the diagonal of the metric."""
        steps = jnp.maximum(state.count, 1)[:, None].astype(state.mean.dtype)
        mean = state.mean / (1 - self.b_mu**steps)
        mean_sq = state.mean_sq / (1 - self.b_nu**steps)
        variance = jnp.maximum(mean_sq - mean**2, 0)
        average = jnp.mean(variance, axis=1, keepdims=True)
        metric = (1 - self.shrinkage) * variance + self.shrinkage * average
        if not biased:
            metric = metric + mean**2
        # Inputs that never vary would divide rounding errors by zero.
        info = jnp.finfo(metric.dtype)
        floor = info.eps * jnp.mean(mean_sq, axis=1, keepdims=True) + info.tiny
        return mean, jnp.maximum(metric, floor)

    def solve(
        self, layer: Layer, statistic: Statistic, state: MomentsState, g: Affine
    ) -> tuple[Affine, MomentsState]:
        """Returns ``H`` and the state."""
        del layer, statistic
        mean, metric = self.scales(state, g.b is not None)
        return _uncenter(_center(g, mean) / _columns(metric), g.b, mean), state


class ConjugateGradientState(NamedTuple):
    """State of ``ConjugateGradient``.

    Attributes:
      moments: state of the preconditioner.
      solution: the previous ``H``, where the next solve starts.
    """

    moments: MomentsState
    solution: Affine


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

    def __post_init__(self):
        _checks.at_least("ridge", self.ridge, 0)
        _checks.at_least("iterations", self.iterations, 1)
        _checks.at_least("tolerance", self.tolerance, 0)
        IncompleteCholesky(self.b_mu, self.b_nu, self.shrinkage)

    @property
    def preconditioner(self) -> IncompleteCholesky:
        """The solver that preconditions this one."""
        return IncompleteCholesky(self.b_mu, self.b_nu, self.shrinkage)

    def init(self, layer: Layer, like: Affine) -> ConjugateGradientState:
        """Returns the state of a layer that has seen nothing."""
        moments = self.preconditioner.init(layer, like)
        return ConjugateGradientState(moments, jax.tree.map(jnp.zeros_like, like))

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: ConjugateGradientState,
        step: chex.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> ConjugateGradientState:
        """Returns the state after one batch."""
        del factored
        moments = self.preconditioner.update(
            layer, statistic, state.moments, step, biased=biased
        )
        return state._replace(moments=moments)

    def solve(
        self,
        layer: Layer,
        statistic: Statistic,
        state: ConjugateGradientState,
        g: Affine,
    ) -> tuple[Affine, ConjugateGradientState]:
        """Returns ``H`` and the state that remembers it."""
        mean, metric = self.preconditioner.scales(state.moments, g.b is not None)
        product, count = _second_moment(layer, statistic)

        def operator(v: Affine) -> Affine:
            h = product(v)
            return h._replace(w=h.w + self.ridge * v.w)

        def precondition(r: Affine) -> Affine:
            return _uncenter(_center(r, mean) / _columns(metric), r.b, mean)

        solution = _conjugate_gradient(
            operator, precondition, g, state.solution, self.iterations, self.tolerance
        )
        # A block whose solve broke down keeps its last solution.
        good = (count > 0) & jnp.isfinite(_dot(solution, solution))
        solution = where_seen(good, solution, state.solution)
        return solution, state._replace(solution=solution)


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
    outer, count = _layers.block_gram(layer, statistic)
    mean = _layers.block_moments(layer, statistic).mean

    def product(v: Affine) -> Affine:
        w = jnp.einsum("kde,keo->kdo", outer, v.w)
        if v.b is None:
            return Affine(w, None)
        b = jnp.einsum("kd,kdo->ko", mean, v.w) + v.b
        return Affine(w + _columns(mean) * v.b[:, None, :], b)

    return product, count


def _conjugate_gradient(
    operator, precondition, g: Affine, start: Affine, iterations: int, tolerance: float
) -> Affine:
    """Runs preconditioned conjugate gradients, one step length a block."""

    def along(x: Affine, scale: chex.Array, p: Affine) -> Affine:
        return jax.tree.map(
            lambda a, b: a + jnp.expand_dims(scale, tuple(range(1, b.ndim))) * b, x, p
        )

    def ratio(a: chex.Array, b: chex.Array, active: chex.Array) -> chex.Array:
        return jnp.where(active & (b > 0), a / jnp.where(b > 0, b, 1), 0)

    limit = tolerance**2 * _dot(g, g)
    minus = -jnp.ones_like(limit)
    x = start
    r = along(g, minus, operator(start))
    z = precondition(r)
    p, rz = z, _dot(r, z)
    # Two or three steps: unrolling beats a loop, and lets the last one stop short.
    for i in range(iterations):
        active = _dot(r, r) > limit
        ap = operator(p)
        step = ratio(rz, _dot(p, ap), active)
        x = along(x, step, p)
        if i + 1 < iterations:
            r = along(r, -step, ap)
            z = precondition(r)
            rz, previous = _dot(r, z), rz
            p = along(z, ratio(rz, previous, active), p)
    return x


class CholeskyState(NamedTuple):
    """State of ``Cholesky``.

    Attributes:
      weight: weight of the moving averages so far, ``[block]``.
      mean: moving average of the mean, ``[block, feature]``.
      outer: moving average of the outer product, ``[block, feature, feature]``.
      center: the mean that goes with ``inverse``, ``[block, feature]``.
      inverse: the last good inverse factor, ``[block, feature, feature]``.
      ready: whether ``inverse`` was ever computed, ``[block]``.
    """

    weight: chex.Array
    mean: chex.Array
    outer: chex.Array
    center: chex.Array
    inverse: chex.Array
    ready: chex.Array


@dataclass(frozen=True)
class Cholesky:
    r"""Exact solve on a moving average of the Gram matrix, refactored every k steps.

    .. math::
      L L^T = \Sigma + \gamma I, \qquad H_w = L^{-T} L^{-1} (G_w - \mu G_b)

    Unlike the textbook routine, no triangular system is solved in a step: the
    inverse is explicit, refreshed every ``every`` steps, and applied as a matrix
    product. A factorisation that is not finite leaves the last good one in place.
    On ``Inputs`` it solves the dual problem of the current batch instead.

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

    def __post_init__(self):
        _checks.at_least("ridge", self.ridge, 0)
        _checks.fraction("decay", self.decay)
        _checks.at_least("every", self.every, 1)

    def init(self, layer: Layer, like: Affine) -> CholeskyState:
        """Returns the state of a layer that has seen nothing."""
        del like
        blocks, d, zeros = layer.blocks, layer.features, _zeros(layer)
        return CholeskyState(
            weight=zeros((blocks,)),
            mean=zeros((blocks, d)),
            outer=zeros((blocks, d, d)),
            center=zeros((blocks, d)),
            inverse=zeros((blocks, d, d)),
            ready=jnp.zeros(blocks, jnp.bool_),
        )

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: CholeskyState,
        step: chex.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> CholeskyState:
        """Returns the state after one batch.

        ``state.inverse`` is that of the metric, with ``factored`` of its factor.
        """
        assert isinstance(statistic, Gram)
        outer, count = _layers.block_gram(layer, statistic)
        mean = _layers.block_moments(layer, statistic).mean
        seen = count > 0
        state = where_seen(
            seen,
            state._replace(
                weight=self.decay * state.weight + (1 - self.decay),
                mean=self.decay * state.mean + (1 - self.decay) * mean,
                outer=self.decay * state.outer + (1 - self.decay) * outer,
            ),
            state,
        )
        due = (step % self.every == 0) | jnp.any(seen & ~state.ready)
        return jax.lax.cond(
            due, lambda s: self._refresh(s, biased, factored), lambda s: s, state
        )

    def _refresh(
        self, state: CholeskyState, biased: bool, factored: bool
    ) -> CholeskyState:
        weight = jnp.where(state.weight > 0, state.weight, 1)[:, None]
        mean = state.mean / weight
        outer = state.outer / weight[:, None]
        largest = jnp.max(jnp.diagonal(outer, axis1=1, axis2=2), axis=1)
        rounding = outer.shape[-1] * jnp.finfo(outer.dtype).eps * largest
        if biased:
            outer = outer - mean[:, :, None] * mean[:, None, :]
        identity = jnp.broadcast_to(
            jnp.eye(outer.shape[-1], dtype=outer.dtype), outer.shape
        )
        damping = self.ridge + rounding + jnp.finfo(outer.dtype).tiny
        factor = jnp.linalg.cholesky(outer + damping[:, None, None] * identity)
        inverse = jax.lax.linalg.triangular_solve(
            factor, identity, left_side=True, lower=True
        )
        if not factored:
            inverse = jnp.einsum("kfd,kfe->kde", inverse, inverse)
        good = jnp.all(jnp.isfinite(inverse), axis=(1, 2)) & (state.weight > 0)
        new = state._replace(center=mean, inverse=inverse, ready=good)
        return where_seen(good, new, state)

    def solve(
        self, layer: Layer, statistic: Statistic, state: CholeskyState, g: Affine
    ) -> tuple[Affine, CholeskyState]:
        """Returns ``H`` and the state."""
        del layer, statistic
        w = jnp.einsum("kde,keo->kdo", state.inverse, _center(g, state.center))
        return where_seen(state.ready, _uncenter(w, g.b, state.center), g), state


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

    def init(self, layer: Layer, like: Affine) -> tuple[()]:
        """Returns no state: the inputs of one batch are all there is."""
        del layer, like
        return ()

    def update(
        self,
        layer: Layer,
        statistic: Statistic,
        state: tuple[()],
        step: chex.Array,
        *,
        biased: bool,
        factored: bool = False,
    ) -> tuple[()]:
        """Returns no state."""
        del layer, statistic, step, biased, factored
        return state

    def solve(
        self, layer: Layer, statistic: Statistic, state: tuple[()], g: Affine
    ) -> tuple[Affine, tuple[()]]:
        """Returns ``H`` and no state."""
        assert isinstance(statistic, Inputs)
        x, _ = _layers.block_inputs(layer, statistic)
        rows = x.shape[1]
        mean = jnp.mean(x, axis=1)
        if g.b is not None:
            x = x - mean[:, None, :]
        v = _center(g, mean)
        kernel = jnp.einsum("knd,kmd->knm", x, x)
        kernel = kernel + rows * self.ridge * jnp.eye(rows, dtype=x.dtype)[None]
        inner = jnp.einsum("knd,kdo->kno", x, v)
        inner = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(kernel), True), inner)
        w = (v - jnp.einsum("knd,kno->kdo", x, inner)) / self.ridge
        return _uncenter(w, g.b, mean), state


Solver: TypeAlias = IncompleteCholesky | ConjugateGradient | Cholesky
LayerSolver: TypeAlias = Solver | DualCholesky


def for_layer(solver: Solver, layer: Layer) -> LayerSolver:
    """Returns the solver that ``solver`` stands for on ``layer``'s statistic."""
    if layer.statistic == "moments" and isinstance(solver, ConjugateGradient):
        return solver.preconditioner
    if layer.statistic == "moments" and isinstance(solver, Cholesky):
        return IncompleteCholesky()
    if layer.statistic == "inputs" and isinstance(solver, Cholesky):
        if solver.ridge == 0:
            raise ValueError(
                f"`ridge` must be > 0 for layer '{layer.key}', whose statistic is "
                "'inputs': the dual problem divides by it. Use a small ridge, e.g. "
                "1e-3, or statistic='gram'."
            )
        return DualCholesky(solver.ridge)
    return solver


def check(solver: object) -> None:
    """Raises unless ``solver`` is one of ours."""
    if not isinstance(solver, IncompleteCholesky | ConjugateGradient | Cholesky):
        raise TypeError(
            "`solver` must be IncompleteCholesky(), ConjugateGradient() or Cholesky(), "
            f"got {solver!r}. Pass an instance, e.g. lbo.Cholesky(ridge=0.1)."
        )
