"""Layer-wise least-squares optimizers for JAX."""

from linboost_optax._activations import Activation
from linboost_optax._adapters.plain import dense_taps
from linboost_optax._ills.code import IllsCode
from linboost_optax._ills.diagnostics import (
    LayerDiagnostics,
    ills_diagnostics,
    plot_ills,
)
from linboost_optax._ills.fit import IllsResult, fit_ills
from linboost_optax._ills.transformation import IllsState, ills
from linboost_optax._init_mlp import init_mlp
from linboost_optax._network import Dense, Network, network, predict
from linboost_optax._solvers import Cholesky, ConjugateGradient, IncompleteCholesky
from linboost_optax._statistics import Auto, Counts, Gram, Inputs, Moments, Sketch
from linboost_optax._taps import Tap, Taps, tap
from linboost_optax._transforms.lnb import ScaleByLNBState, lnb, scale_by_lnb
from linboost_optax._transforms.whiten import WhitenState, whiten

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Auto",
    "Cholesky",
    "ConjugateGradient",
    "Counts",
    "Dense",
    "Gram",
    "IllsCode",
    "IllsResult",
    "IllsState",
    "IncompleteCholesky",
    "Inputs",
    "LayerDiagnostics",
    "Moments",
    "Network",
    "ScaleByLNBState",
    "Sketch",
    "Tap",
    "Taps",
    "WhitenState",
    "dense_taps",
    "fit_ills",
    "ills",
    "ills_diagnostics",
    "init_mlp",
    "lnb",
    "network",
    "plot_ills",
    "predict",
    "scale_by_lnb",
    "tap",
    "whiten",
]
