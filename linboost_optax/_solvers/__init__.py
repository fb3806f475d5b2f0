"""Solvers of one layer's least-squares problem, one file each; ``base`` says what."""

from linboost_optax._solvers import tied as tied  # teaches the others
from linboost_optax._solvers.base import Solver
from linboost_optax._solvers.cholesky import Cholesky
from linboost_optax._solvers.conjugate_gradient import ConjugateGradient
from linboost_optax._solvers.incomplete_cholesky import IncompleteCholesky

__all__ = ["Cholesky", "ConjugateGradient", "IncompleteCholesky", "Solver"]
