"""Layer-wise least-squares optimizers for JAX."""

from typing import Any

from linboost_optax import extend, ills
from linboost_optax._adapters.plain import dense_taps
from linboost_optax._moved import forward as _forward
from linboost_optax._solvers import Cholesky, ConjugateGradient, IncompleteCholesky
from linboost_optax._statistics import (
    Auto,
    Counts,
    Gram,
    Inputs,
    Moments,
    Reached,
    Sketch,
)
from linboost_optax._taps import Tap, Taps, only_rows, tap
from linboost_optax._transforms.lnb import ScaleByLNBState, lnb, scale_by_lnb
from linboost_optax._transforms.whiten import WhitenState, whiten

__version__ = "0.1.0"

__all__ = [
    "Auto",
    "Cholesky",
    "ConjugateGradient",
    "Counts",
    "Gram",
    "IncompleteCholesky",
    "Inputs",
    "Moments",
    "Reached",
    "ScaleByLNBState",
    "Sketch",
    "Tap",
    "Taps",
    "WhitenState",
    "dense_taps",
    "extend",
    "ills",
    "lnb",
    "only_rows",
    "scale_by_lnb",
    "tap",
    "whiten",
]


def __getattr__(name: str) -> Any:
    return _forward(name)
