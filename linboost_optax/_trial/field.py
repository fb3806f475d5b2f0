"""Who is compared to whom in a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from linboost_optax._trial.analysis import Record, figures
from linboost_optax._trial.competitors import OURS


class Field(NamedTuple):
    """Who is compared: names of competitors, None where there is none.

    Attributes:
      baseline: the user's own, or tuned Adam.
      ours: the best of this package.
      fastest: of those without statistics, who is first at the baseline's loss.
      lowest: of those without statistics, who ends lowest: the baseline, perhaps.
    """

    baseline: str
    ours: str | None
    fastest: str | None
    lowest: str


def of(record: Record, raced: Sequence[str]) -> Field:
    """Finds them among those that raced."""
    baseline = record["baseline"]

    def order(than: str) -> Callable[[str], tuple[float, float]]:
        """Who is first at another's loss; of those that never are, who ends lowest."""

        def key(name: str) -> tuple[float, float]:
            it = figures(record, name, than)
            return (it.seconds.middle if it.seconds else math.inf, it.best.middle)

        return key

    others = [name for name in raced if name not in OURS]
    lowest = min(others, key=lambda name: figures(record, name).best.middle)
    mine = [name for name in raced if name in OURS]
    rivals = [name for name in others if name != baseline]
    return Field(
        baseline,
        min(mine, key=order(lowest), default=None),
        min(rivals, key=order(baseline), default=None),
        lowest,
    )
