"""How the time is spent: short runs at many rates, longer ones at few, then a race.

Successive halving over learning rates: all are tried in runs of an eighth of the
steps, three of them in runs of a half, and the best one races over several seeds.
Every run has a whole schedule of its own length: the beginning of a long run says
little of its end. Short runs still prefer higher rates than long ones, so that the rate
below the best one is always among those that are kept, and where time is left the two
are tried over the whole length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from linboost_optax._trial.competitors import OWN, POINTS

FEWEST = 40  # steps of a race that can be told from noise
POINTS_OF_CURVE = 40  # evaluations of a race
POINTS_OF_RUNG = 4
_FILL = 0.93  # of the time that is left, so that noise keeps the budget
EXTRA = 2  # rates beyond the grid, at most, for each optimizer
_ENDLESS = 2**24  # blocks: where steps cost nothing


class BudgetError(ValueError):
    """There is not enough time for the smallest trial."""


@dataclass(frozen=True)
class Rung:
    """Runs at several learning rates.

    Attributes:
      share: length of a run, as a share of the race's.
      keep: how many rates each optimizer keeps afterwards.
    """

    share: float
    keep: int


RUNGS = (Rung(1 / 8, 3), Rung(1 / 2, 2))
FULL = Rung(1, 1)  # where there is time for it


@dataclass(frozen=True)
class Costs:
    """What things take, in seconds.

    Attributes:
      steps: a step of each optimizer.
      batch: making a batch.
      evaluation: evaluating once.
      start: starting a run.
    """

    steps: Mapping[str, float]
    batch: float
    evaluation: float
    start: float

    def scaled(self, factor: float) -> Costs:
        """Returns the costs where everything takes so many times longer."""
        steps = {name: factor * value for name, value in self.steps.items()}
        others = (factor * each for each in (self.batch, self.evaluation, self.start))
        return Costs(steps, *others)

    def of_rung(self, index: int, steps: int) -> float:
        """All runs of a rung, the last one `FULL`, before a race of so many steps."""
        rates = POINTS + EXTRA / 2 if index == 0 else RUNGS[index - 1].keep
        done = Plan(steps, 1).length((*RUNGS, FULL)[index])
        return sum(
            rates
            * (
                done * (each + self.batch)
                + POINTS_OF_RUNG * self.evaluation
                + self.start
            )
            for each in self.steps.values()
        )

    def of_race(self, steps: int) -> float:
        """One seed of a race: the user's optimizer runs at two rates."""
        own = [self.steps[OWN]] if OWN in self.steps else []
        racing = [*self.steps.values(), *own]
        each = (POINTS_OF_CURVE + 1) * self.evaluation + self.start
        return steps * (sum(racing) + self.batch) + len(racing) * each


@dataclass(frozen=True)
class Plan:
    """How long the race is, and over how many seeds.

    Attributes:
      steps: of the race.
      seeds: of the race.
    """

    steps: int
    seeds: int

    @property
    def every(self) -> int:
        """Steps between two evaluations of the race."""
        return max(1, self.steps // POINTS_OF_CURVE)

    def length(self, rung: Rung) -> int:
        """Steps of a run of a rung, a whole number of its blocks."""
        return POINTS_OF_RUNG * max(1, round(rung.share * self.steps / POINTS_OF_RUNG))


def plan(
    costs: Costs, left: float, steps: int | None, seeds: int, done: int = 0
) -> Plan:
    """Plans what fits into the time that is left.

    Where steps are free, all seeds run, of as many steps as fit, and fewer seeds only
    where those would be too few; where they are the user's, as many seeds as fit.

    Args:
      costs: as measured.
      left: seconds.
      steps: of the race, as the user wants them; None for as many as fit.
      seeds: of the race, as the user wants them.
      done: how many rungs are.

    Raises:
      BudgetError: if not even one seed fits, and no rung is done.
    """

    def needed(steps: int, seeds: int) -> float:
        rungs = range(done, len(RUNGS))
        before = sum(costs.of_rung(index, steps) for index in rungs)
        return before + seeds * costs.of_race(steps)

    usable = _FILL * left
    for count in range(seeds, 0, -1):
        fitting = steps or _most(lambda n, count=count: needed(n, count), usable)
        if fitting >= FEWEST and needed(fitting, count) <= usable:
            return Plan(fitting, count)
    least = steps or FEWEST
    if done:  # too late to refuse: what was measured does not hold any more
        return Plan(least, 1)
    raise BudgetError(
        f"`minutes` must be enough for one race of {least} steps, which takes "
        f"{needed(least, 1) / _FILL / 60:.2g} minutes after compilation, got "
        f"{max(0.0, left) / 60:.2g} that are left. Give it more minutes, fewer "
        "`steps`, or smaller batches."
    )


def leaves_time(costs: Costs, left: float, planned: Plan) -> bool:
    """Whether the rates that are kept can run in full before the race as planned."""
    full = costs.of_rung(len(RUNGS), planned.steps)
    return full + planned.seeds * costs.of_race(planned.steps) <= _FILL * left


def _most(cost: Callable[[int], float], usable: float) -> int:
    """The most steps, in whole blocks of the curve, that cost no more."""
    low, high = 0, 1
    while cost(high * POINTS_OF_CURVE) <= usable and high < _ENDLESS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if cost(middle * POINTS_OF_CURVE) <= usable:
            low = middle
        else:
            high = middle
    return low * POINTS_OF_CURVE
