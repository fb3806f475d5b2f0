"""Layer-wise least-squares optimizers for JAX."""

from linboost_optax._lnb import ScaleByLNBState, lnb, scale_by_lnb
from linboost_optax._solvers import Cholesky, ConjugateGradient, IncompleteCholesky
from linboost_optax._statistics import Gram, Inputs, Moments
from linboost_optax._taps import Taps, dense_taps, tap
from linboost_optax._whiten import WhitenState, whiten

__version__ = "0.1.0"

__all__ = [
    "Cholesky",
    "ConjugateGradient",
    "Gram",
    "IncompleteCholesky",
    "Inputs",
    "Moments",
    "ScaleByLNBState",
    "Taps",
    "WhitenState",
    "dense_taps",
    "lnb",
    "scale_by_lnb",
    "tap",
    "whiten",
]
