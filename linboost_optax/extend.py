"""What it takes to add a kind of layer, a statistic or a solver of one's own.

- A *kind* subclasses ``Kind``; ``linen.register`` tells the adapter which modules are
  of it.
- A *statistic* subclasses ``Statistic``; pass an instance as ``statistic=``.
- A *solver* has ``bind(layer)``, which returns what ``Solves`` describes, and to whiten
  ``bind_factor(layer)``, which returns what ``Whitens`` describes. Pass it as
  ``solver=``. ``solve_with`` and ``whiten_with`` teach ``Cholesky`` a statistic.

``CONTRIBUTING.md`` has a recipe for each.
"""

from linboost_optax._kinds import Conv, Dense, Embed, Kind
from linboost_optax._kinds.base import some_rows
from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.base import Solver, Solves, WhiteningSolver, Whitens
from linboost_optax._solvers.cholesky import solve_with, whiten_with
from linboost_optax._solvers.elimination import center, uncenter, where_seen
from linboost_optax._statistics.base import (
    BlockMoments,
    Rule,
    SecondMoment,
    Statistic,
    batched_ones,
    mean_of,
    per_block,
    struct,
)

__all__ = [
    "Affine",
    "BlockMoments",
    "Conv",
    "Dense",
    "Embed",
    "Kind",
    "Layer",
    "Rule",
    "SecondMoment",
    "Solver",
    "Solves",
    "Statistic",
    "WhiteningSolver",
    "Whitens",
    "batched_ones",
    "center",
    "mean_of",
    "per_block",
    "solve_with",
    "some_rows",
    "struct",
    "uncenter",
    "where_seen",
    "whiten_with",
]
