r"""Solvers of one layer's least-squares problem :math:`(M + \gamma P) H = G`.

:math:`M = E[\tilde x \tilde x^T]` is the second moment of a layer's inputs with
the constant of the bias appended, :math:`P` is 1 on weights and 0 on the bias.
Eliminating the bias leaves a *centred* problem of the width of the weights,

.. math::
  (\Sigma + \gamma I) H_w = G_w - \mu G_b, \qquad H_b = G_b - \mu^T H_w,

with the covariance :math:`\Sigma` (without a bias: :math:`\mu = 0` and the second
moment itself). Every solver here is this elimination with another
:math:`\Sigma`. All arrays carry one leading block axis; see ``_layers``.

``Cholesky`` stands for one solver a statistic: itself on a Gram matrix, ``Nystrom`` on
a sketch, ``DualCholesky`` on inputs, ``IncompleteCholesky`` on moments.

A solver is a frozen dataclass, a file of its own, with

- ``init(layer) -> state`` and ``update(layer, statistic, state, step, biased=,
  factored=) -> state``: the metric, without regard to any gradient;
- ``solve(layer, statistic, state, g, start) -> H``; ``warm_start`` says whether it
  reads ``start``, the previous ``H``;
- if ``has_factor``, the maps to whitened coordinates with ``M + gamma P = C C^T``:
  ``whiten`` (``C^-1 g``), ``unwhiten`` (``C^-T u``), ``coordinates`` (``C^T w``).
"""

from typing import TypeAlias

from linboost_optax._cholesky import Cholesky, DualCholesky
from linboost_optax._conjugate_gradient import ConjugateGradient
from linboost_optax._incomplete_cholesky import IncompleteCholesky
from linboost_optax._layers import Layer
from linboost_optax._nystrom import Nystrom

Solver: TypeAlias = IncompleteCholesky | ConjugateGradient | Cholesky
LayerSolver: TypeAlias = Solver | DualCholesky | Nystrom


def for_layer(solver: Solver, layer: Layer) -> LayerSolver:
    """Returns the solver that ``solver`` stands for on ``layer``'s statistic."""
    few = layer.statistic in ("moments", "sketch")
    if few and isinstance(solver, ConjugateGradient):
        return solver.preconditioner
    if layer.statistic == "moments" and isinstance(solver, Cholesky):
        # Mean and mean square of one age, as in the Gram matrix beside it.
        return IncompleteCholesky(b_mu=solver.decay, b_nu=solver.decay)
    if layer.statistic == "sketch" and isinstance(solver, Cholesky):
        return Nystrom(solver.ridge, solver.decay, solver.every)
    if layer.statistic == "inputs" and isinstance(solver, Cholesky):
        if solver.ridge == 0:
            raise ValueError(
                f"`ridge` must be > 0 for layer '{layer.label}', whose statistic is "
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
