"""Layer-wise least-squares optimizers for JAX."""

from linboost_optax._activations import Activation
from linboost_optax._ills import IllsState, ills
from linboost_optax._network import Dense, Network, network, predict

__all__ = [
    "Activation",
    "Dense",
    "IllsState",
    "Network",
    "ills",
    "network",
    "predict",
]

__version__ = "0.1.0"
