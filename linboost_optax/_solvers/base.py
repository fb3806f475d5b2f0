r"""What a solver of one layer's least-squares problem :math:`(M + \gamma P) H = G` is.

:math:`M = E[\tilde x \tilde x^T]` is the second moment of a layer's inputs with
the constant of the bias appended, :math:`P` is 1 on weights and 0 on the bias.
Eliminating the bias leaves a *centred* problem of the width of the weights,

.. math::
  (\Sigma + \gamma I) H_w = G_w - \mu G_b, \qquad H_b = G_b - \mu^T H_w,

with the covariance :math:`\Sigma` (without a bias: :math:`\mu = 0` and the second
moment itself). Every solver here is this elimination with another
:math:`\Sigma`. All arrays carry one leading block axis; see ``_layer``.

A solver is a frozen dataclass of options. It is bound once to every layer, which is
where a layer with the wrong statistic is refused; what is bound knows the layer's facts
and is asked for nothing but numbers. A view of the statistic is read first, so that
what a solver does not read costs nothing, and need not be finite.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, runtime_checkable

import jax

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.as_is import AsIs


class Metric(Protocol):
    """The metric of one layer: a state that follows the layer's statistics.

    A frozen dataclass whose numbers do not depend on the names in its layer may say so,
    ``nameless: ClassVar[bool] = True``: layers that are alike are then traced once.
    """

    @abstractmethod
    def init(self) -> Any:
        """Returns the state of a layer that has seen nothing."""

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Returns what is needed of the statistic, by block: a tree of arrays.

        Its attribute ``count``, ``[block]``, is the number of samples; zero where there
        was none.
        """

    @abstractmethod
    def update(self, state: Any, view: Any, step: jax.Array) -> Any:
        """Returns the state after one batch; blocks without samples keep theirs."""


class Solves(Metric, Protocol):
    """A metric that solves."""

    @abstractmethod
    def solve(self, state: Any, view: Any, g: Affine) -> Affine:
        """Returns ``H``."""


@runtime_checkable
class SolvesFrom(Metric, Protocol):
    """A metric that solves by iterations, from the previous solution on."""

    @abstractmethod
    def solve_from(self, start: Affine, state: Any, view: Any, g: Affine) -> Affine:
        """Returns ``H``; ``start`` is the previous one, zeros at first."""


class Whitens(Metric, Protocol):
    r"""A metric with a factor :math:`M + \gamma P = C C^T` to change coordinates by."""

    @abstractmethod
    def whiten(self, state: Any, g: Affine) -> Affine:
        """Returns ``C^-1 g``."""

    @abstractmethod
    def unwhiten(self, state: Any, u: Affine) -> Affine:
        """Returns ``C^-T u``."""

    @abstractmethod
    def coordinates(self, state: Any, w: Affine) -> Affine:
        """Returns ``C^T w``."""


@runtime_checkable
class Solver(Protocol):
    """Options of a solver, static and hashable."""

    def bind(self, layer: Layer) -> Solves | SolvesFrom:
        """Returns the solver of one layer.

        Raises:
          ValueError: if it cannot solve with the layer's statistic.
        """
        ...


@runtime_checkable
class WhiteningSolver(Solver, Protocol):
    """Options of a solver that has a factor, too."""

    def bind_factor(self, layer: Layer) -> Whitens:
        """Returns the factor of one layer's metric.

        Raises:
          ValueError: if there is none with the layer's statistic.
        """
        ...


def check(solver: object) -> Solver:
    """Returns ``solver``; raises unless it is one, bound to nothing yet."""
    if isinstance(solver, type) or not isinstance(solver, Solver):
        raise TypeError(
            "`solver` must be IncompleteCholesky(), ConjugateGradient() or Cholesky(), "
            f"got {solver!r}. Pass an instance, e.g. lbo.Cholesky(ridge=0.1)."
        )
    return solver


def bind_factor(solver: Solver, layer: Layer) -> Whitens:
    """Returns the factor of one layer's metric; raises where there is none."""
    if not layer.statistic.whitens:
        return AsIs(layer)
    if not isinstance(solver, WhiteningSolver):
        raise no_factor(solver, layer)
    return solver.bind_factor(layer)


def no_factor(solver: Solver, layer: Layer) -> ValueError:
    """Returns the error of a solver that cannot whiten a layer."""
    return ValueError(
        f"`solver` {solver} has no factor for layer '{layer}' with "
        f"statistic '{layer.statistic.name}', and whitening needs one. Use "
        "IncompleteCholesky(), or Cholesky() with statistic 'gram' or 'sketch'."
    )
