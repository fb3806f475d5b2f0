"""What it takes to add a kind of layer, a statistic or a solver of one's own.

- A *kind* subclasses ``Kind``; ``linen.register`` tells the adapter which modules are
  of it.
- A *statistic* subclasses ``Statistic``; pass an instance as ``statistic=``.
- A *solver* has ``bind(layer)``, which returns what ``Solves`` or ``SolvesFrom``
  describes, and to whiten ``bind_factor(layer)``, which returns what ``Whitens``
  describes. Pass it as ``solver=``. ``cholesky_on`` teaches ``Cholesky`` a statistic.

``CONTRIBUTING.md`` has a recipe for each.
"""

from linboost_optax._kinds import Conv, Dense, Embed, Experts, Kind
from linboost_optax._kinds.base import some_rows
from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.base import (
    Solver,
    Solves,
    SolvesFrom,
    WhiteningSolver,
    Whitens,
)
from linboost_optax._solvers.cholesky import cholesky_on
from linboost_optax._solvers.elimination import center, uncenter, where_seen
from linboost_optax._statistics.base import (
    BlockMoments,
    Rule,
    SecondMoment,
    Statistic,
    batched_ones,
    mean_of,
    ones_of,
    only,
    per_block,
    struct,
    with_constant,
)

__all__ = [
    "Affine",
    "BlockMoments",
    "Conv",
    "Dense",
    "Embed",
    "Experts",
    "Kind",
    "Layer",
    "Rule",
    "SecondMoment",
    "Solver",
    "Solves",
    "SolvesFrom",
    "Statistic",
    "WhiteningSolver",
    "Whitens",
    "batched_ones",
    "center",
    "cholesky_on",
    "mean_of",
    "ones_of",
    "only",
    "per_block",
    "some_rows",
    "struct",
    "uncenter",
    "where_seen",
    "with_constant",
]
