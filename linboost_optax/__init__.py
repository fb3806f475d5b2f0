"""Layer-wise least-squares optimizers for JAX."""

import importlib
from typing import Any

from linboost_optax import extend, ills, plot
from linboost_optax._adapters.by_hand import dense_taps
from linboost_optax._adapters.functions import taps, value_and_grad, without_taps
from linboost_optax._diagnose import LayerDiagnosis, as_scalars, diagnose
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
from linboost_optax._transforms.multi_steps import MultiStepsState, multi_steps
from linboost_optax._transforms.polar import (
    ScaleByPolarState,
    polar,
    scale_by_polar,
)
from linboost_optax._transforms.state_sharding import state_sharding
from linboost_optax._transforms.whiten import WhitenState, whiten
from linboost_optax._trial import Trial, TrialError, trial

__version__ = "0.1.0"

__all__ = [
    "Auto",
    "Cholesky",
    "ConjugateGradient",
    "Counts",
    "Gram",
    "IncompleteCholesky",
    "Inputs",
    "LayerDiagnosis",
    "Moments",
    "MultiStepsState",
    "Reached",
    "ScaleByLNBState",
    "ScaleByPolarState",
    "Sketch",
    "Tap",
    "Taps",
    "Trial",
    "TrialError",
    "WhitenState",
    "as_scalars",
    "dense_taps",
    "diagnose",
    "extend",
    "ills",
    "lnb",
    "multi_steps",
    "only_rows",
    "plot",
    "polar",
    "scale_by_lnb",
    "scale_by_polar",
    "state_sharding",
    "tap",
    "taps",
    "trial",
    "value_and_grad",
    "whiten",
    "without_taps",
]


def __getattr__(name: str) -> Any:
    if name in ("linen", "nnx", "sklearn"):  # on first use: `sklearn` is an extra
        return importlib.import_module(f"linboost_optax.{name}")
    return _forward(name)
