"""Test RMSE that others published for this protocol, in the targets' units.

All figures are those of Table 1 of Lakshminarayanan, Pritzel and Blundell (2017),
"Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
arXiv:1612.01474, which has its own beside those that the other two papers report.
MC dropout is printed with the same figures, as "original", in an earlier README of the
repository yaringal/DropoutUncertaintyExps.
"""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """A published method: its name, where it comes from, and what it is."""

    label: str
    source: str
    what: str


METHODS = {
    "pbp": Method(
        "PBP",
        "Hernandez-Lobato and Adams (2015), arXiv:1502.05336",
        "one network, whose weights have distributions",
    ),
    "dropout": Method(
        "MC dropout",
        "Gal and Ghahramani (2016), arXiv:1506.02142",
        "the mean of many passes of one network with dropout",
    ),
    "ensembles": Method(
        "deep ensembles",
        "Lakshminarayanan et al. (2017), arXiv:1612.01474, Table 1, "
        "which has all three",
        "the mean of five networks, trained on the likelihood",
    ),
}

# Mean and what is printed after it, to the two digits that are printed.
RMSE: dict[str, dict[str, tuple[float, float]]] = {
    "bostonHousing": {
        "pbp": (3.01, 0.18),
        "dropout": (2.97, 0.85),
        "ensembles": (3.28, 1.00),
    },
    "concrete": {
        "pbp": (5.67, 0.09),
        "dropout": (5.23, 0.53),
        "ensembles": (6.03, 0.58),
    },
    "energy": {
        "pbp": (1.80, 0.05),
        "dropout": (1.66, 0.19),
        "ensembles": (2.09, 0.29),
    },
    "kin8nm": {
        "pbp": (0.10, 0.00),
        "dropout": (0.10, 0.00),
        "ensembles": (0.09, 0.00),
    },
    "naval-propulsion-plant": {
        "pbp": (0.01, 0.00),
        "dropout": (0.01, 0.00),
        "ensembles": (0.00, 0.00),
    },
    "power-plant": {
        "pbp": (4.12, 0.03),
        "dropout": (4.02, 0.18),
        "ensembles": (4.11, 0.17),
    },
    "protein-tertiary-structure": {
        "pbp": (4.73, 0.01),
        "dropout": (4.36, 0.04),
        "ensembles": (4.71, 0.06),
    },
    "wine-quality-red": {
        "pbp": (0.64, 0.01),
        "dropout": (0.62, 0.04),
        "ensembles": (0.64, 0.04),
    },
    "yacht": {
        "pbp": (1.02, 0.05),
        "dropout": (1.11, 0.38),
        "ensembles": (1.58, 0.48),
    },
}
