"""Names that have moved to ``linboost_optax.ills``: forwarded for one release."""

import warnings
from typing import Any

from linboost_optax import ills

# Old name at the top level, new name in the subpackage.
MOVED = {
    "Activation": "Activation",
    "Dense": "DenseLayer",
    "IllsCode": "IllsCode",
    "IllsResult": "IllsResult",
    "IllsState": "IllsState",
    "LayerDiagnostics": "LayerDiagnostics",
    "Network": "Network",
    "fit_ills": "fit_ills",
    "ills_diagnostics": "ills_diagnostics",
    "init_mlp": "init_mlp",
    "network": "network",
    "plot_ills": "plot_ills",
    "predict": "predict",
}


def forward(name: str) -> Any:
    """Returns what a top-level name stood for, with a warning that names the import.

    Called by the package's ``__getattr__``.
    """
    if name not in MOVED:
        raise AttributeError(f"module 'linboost_optax' has no attribute {name!r}")
    new = MOVED[name]
    warnings.warn(
        f"`linboost_optax.{name}` has moved and will be removed in the next release. "
        f"Use `from linboost_optax.ills import {new}`.",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(ills, new)
