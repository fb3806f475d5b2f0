"""Layer-wise least-squares optimizers for JAX."""

from typing import Any

from linboost_optax import ills
from linboost_optax._lnb import ScaleByLNBState, lnb, scale_by_lnb
from linboost_optax._moved import forward as _forward
from linboost_optax._solvers import Cholesky, ConjugateGradient, IncompleteCholesky
from linboost_optax._statistics import Gram, Inputs, Moments, Sketch
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
    "Sketch",
    "Taps",
    "WhitenState",
    "dense_taps",
    "ills",
    "lnb",
    "scale_by_lnb",
    "tap",
    "whiten",
]


def __getattr__(name: str) -> Any:
    return _forward(name)
