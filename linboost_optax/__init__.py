"""Layer-wise least-squares optimizers for JAX."""

from linboost_optax._activations import Activation
from linboost_optax._ills import IllsState, ills
from linboost_optax._ills_code import IllsCode
from linboost_optax._ills_diagnostics import (
    LayerDiagnostics,
    ills_diagnostics,
    plot_ills,
)
from linboost_optax._ills_fit import IllsResult, fit_ills
from linboost_optax._init_mlp import init_mlp
from linboost_optax._network import Dense, Network, network, predict

__all__ = [
    "Activation",
    "Dense",
    "IllsCode",
    "IllsResult",
    "IllsState",
    "LayerDiagnostics",
    "Network",
    "fit_ills",
    "ills",
    "ills_diagnostics",
    "init_mlp",
    "network",
    "plot_ills",
    "predict",
]

__version__ = "0.1.0"
