"""Statistics: what a tap emits about a layer's inputs, one file each."""

from linboost_optax._statistics.auto import Auto
from linboost_optax._statistics.base import Rule, Statistic, accumulation_dtype
from linboost_optax._statistics.counts import Counts
from linboost_optax._statistics.gram import Gram
from linboost_optax._statistics.inputs import Inputs
from linboost_optax._statistics.moments import Moments
from linboost_optax._statistics.reached import Reached
from linboost_optax._statistics.sketch import Sketch
from linboost_optax._statistics.uses import Uses

__all__ = [
    "Auto",
    "Counts",
    "Gram",
    "Inputs",
    "Moments",
    "Reached",
    "Rule",
    "Sketch",
    "Statistic",
    "Uses",
    "accumulation_dtype",
    "resolve",
]

# The names that stand for a statistic with its defaults. Resolved here and nowhere
# else; a new statistic is a file and, if it deserves a name, a line.
_NAMED: dict[str, Rule] = {
    each.name: each for each in (Auto(), Moments(), Gram(), Sketch(), Inputs())
}


def resolve(statistic: Rule | str) -> Rule:
    """Returns the statistic that a user asked for, by name or as an object.

    Raises:
      TypeError: if ``statistic`` is neither.
      ValueError: if no statistic has this name.
    """
    if isinstance(statistic, str):
        if statistic not in _NAMED:
            raise ValueError(
                f"`statistic` must be one of {', '.join(map(repr, _NAMED))}, or an "
                f"object such as lbo.Gram(max_samples=None), got {statistic!r}."
            )
        return _NAMED[statistic]
    if isinstance(statistic, type) or not isinstance(statistic, Rule):
        raise TypeError(
            "`statistic` must be a statistic or the name of one, got "
            f"{statistic!r}. Pass e.g. 'gram' or lbo.Gram(max_samples=None)."
        )
    return statistic
