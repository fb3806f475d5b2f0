"""Iterative linear least squares: small regression networks, no learning rate.

``fit_ills`` trains a network that ``network`` describes, ``ills`` is the same as an
Optax transformation, ``ills_diagnostics`` shows its regressions. Names of options, as
in ``loss="huber"``, are short for objects, as in ``loss=Huber()``; objects of your own
are taken as well.
"""

from linboost_optax.ills._codes import IllsCode
from linboost_optax.ills._diagnostics import LayerDiagnostics, ills_diagnostics
from linboost_optax.ills._fit import fit_ills
from linboost_optax.ills._model.activations import Activation
from linboost_optax.ills._model.initialization import init_mlp
from linboost_optax.ills._model.matrices import predict
from linboost_optax.ills._model.network import DenseLayer, Network, network
from linboost_optax.ills._plot import plot_ills
from linboost_optax.ills._runs import IllsResult
from linboost_optax.ills._settings import Method
from linboost_optax.ills._steps.combine import (
    Combine,
    PerLayer,
    PerParameter,
    PerUnit,
)
from linboost_optax.ills._steps.importance import (
    Importance,
    SharedImportance,
    UnitImportance,
)
from linboost_optax.ills._steps.iteration import IllsState
from linboost_optax.ills._steps.losses import Huber, Loss, Squared, Tukey
from linboost_optax.ills._steps.published import Published
from linboost_optax.ills._steps.weighted import Weighted
from linboost_optax.ills._transformation import ills

__all__ = [
    "Activation",
    "Combine",
    "DenseLayer",
    "Huber",
    "IllsCode",
    "IllsResult",
    "IllsState",
    "Importance",
    "LayerDiagnostics",
    "Loss",
    "Method",
    "Network",
    "PerLayer",
    "PerParameter",
    "PerUnit",
    "Published",
    "SharedImportance",
    "Squared",
    "Tukey",
    "UnitImportance",
    "Weighted",
    "fit_ills",
    "ills",
    "ills_diagnostics",
    "init_mlp",
    "network",
    "plot_ills",
    "predict",
]
