"""Exact solves on a moving average, by what a layer's statistic allows."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from linboost_optax import _checks
from linboost_optax._layer import Layer
from linboost_optax._solvers.base import Solves, Whitens, no_factor
from linboost_optax._solvers.damping import Damping
from linboost_optax._solvers.dual import Dual
from linboost_optax._solvers.gram import GramInverse, GramRoot
from linboost_optax._solvers.incomplete_cholesky import IncompleteCholesky
from linboost_optax._solvers.nystrom import Nystrom
from linboost_optax._statistics import Gram, Inputs, Sketch


@dataclass(frozen=True)
class Cholesky:
    r"""Exact solve on a moving average of the Gram matrix, refactored every k steps.

    .. math::
      L L^T = (1 - a) \Sigma + a\, \mathrm{diag}(\Sigma) + \gamma I, \qquad
      H_w = L^{-T} L^{-1} (G_w - \mu G_b)

    Unlike the textbook routine, no triangular system is solved in a step: the
    inverse is explicit, refreshed every ``every`` steps, and applied as a matrix
    product. A factorisation that is not finite leaves the last good one in place.
    On ``Sketch`` it uses the low-rank approximation of the matrix that the sketch
    holds, on ``Inputs`` it solves the dual problem of the current batch, and where a
    layer has moments only, embeddings included, it is ``IncompleteCholesky`` with
    mean and mean square of one age. So one choice covers a whole model. Its defaults
    are the measured ones.

    Args:
      ridge: :math:`\gamma`, >= 0, absolute; default 0.03. Rounding errors of the
        Gram matrix are added, so that 0 is safe with rank-deficient inputs. Embeddings,
        and layers with moments only, have none.
      decay: of the moving average of the Gram matrix, in [0, 1); default 0.95.
      every: refactor every so many steps, >= 1; default 10.
      shrinkage: :math:`a`, by which correlations are reduced, in [0, 1]; default 0.1.
        1 leaves a diagonal matrix. Where a layer has moments only, 0.1 is that of
        ``IncompleteCholesky``.

    Raises:
      ValueError: if a hyper-parameter is out of range; when bound to layers with raw
        inputs, if the ridge is 0, or to whiten.

    Example:
      >>> import linboost_optax as lbo
      >>> lbo.Cholesky(ridge=0.01)
      Cholesky(ridge=0.01, decay=0.95, every=10, shrinkage=0.1)

    References:
      Munoz (2025), arXiv:2502.01131: the metric, here solved exactly.
    """

    ridge: float = 0.03
    decay: float = 0.95
    every: int = 10
    shrinkage: float = 0.1

    def __post_init__(self):
        _checks.at_least("ridge", self.ridge, 0)
        _checks.fraction("decay", self.decay)
        _checks.whole("every", self.every, 1)
        _checks.between("shrinkage", self.shrinkage, 0, 1)

    @property
    def damping(self) -> Damping:
        """What is added to the second moment."""
        return Damping(self.ridge, self.shrinkage)

    def bind(self, layer: Layer) -> Solves:
        """Returns the solver of one layer.

        Raises:
          ValueError: if the layer has raw inputs and the ridge is 0.
        """
        return cholesky_on(layer.statistic, self, layer, False)

    def bind_factor(self, layer: Layer) -> Whitens:
        """Returns the factor of one layer's metric.

        Raises:
          ValueError: if the layer has raw inputs.
        """
        return cholesky_on(layer.statistic, self, layer, True)


@singledispatch
def cholesky_on(statistic: Any, solver: Cholesky, layer: Layer, whitens: bool) -> Any:
    """Returns what ``solver`` is on a layer with this statistic.

    A new statistic registers what it allows beside its own definition.

    Args:
      statistic: the layer's.
      solver: the options.
      layer: the layer.
      whitens: whether what is returned must whiten (``Whitens``) or solve (``Solves``).
    """
    del statistic, whitens
    # Mean and mean square of one age cannot contradict each other while features move.
    return IncompleteCholesky(b_mu=solver.decay, b_nu=solver.decay).bind(layer)


@cholesky_on.register
def _(statistic: Gram, solver: Cholesky, layer: Layer, whitens: bool) -> Any:
    metric = GramRoot if whitens else GramInverse
    return metric(solver.damping, solver.decay, solver.every, layer, statistic)


@cholesky_on.register
def _(statistic: Sketch, solver: Cholesky, layer: Layer, whitens: bool) -> Any:
    del whitens
    return Nystrom(solver.damping, solver.decay, solver.every, layer, statistic)


@cholesky_on.register
def _(statistic: Inputs, solver: Cholesky, layer: Layer, whitens: bool) -> Any:
    if whitens:
        raise no_factor(solver, layer)
    if solver.ridge == 0:
        raise ValueError(
            f"`ridge` must be > 0 for layer '{layer}', whose statistic is "
            "'inputs': the dual problem divides by it. Use a small ridge, e.g. "
            "1e-3, or statistic='gram'."
        )
    return Dual(solver.damping, layer, statistic)
