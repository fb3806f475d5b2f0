"""What a claim is: where it was tried, what counts, and what came of it.

A figure is always one where less is better, so that a case holds where the median over
its seeds is at most the limit; a seed that has none, because it never got there, counts
as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks import results
from benchmarks.job import Result

Values = Sequence[float | None]  # one for each seed, or one where there is no chance
Found = Mapping[str, Mapping[str, Result]]  # results by job and task

HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"


class Case(NamedTuple):
    """One task, data set or size: the figures of each competitor, by its label."""

    label: str
    values: Mapping[str, Values]


class Quartiles(NamedTuple):
    """Of a competitor's figures over the seeds; infinite where it never got there."""

    low: float
    middle: float
    high: float


class Verdict(NamedTuple):
    """How often a claim held for one competitor."""

    held: int
    cases: int

    @property
    def words(self) -> str:
        """All cases, at least half of them, or fewer."""
        if self.held == self.cases:
            return HOLDS
        return IN_PART if 2 * self.held >= self.cases else FAILS


@dataclass(frozen=True)
class Claim:
    """A claim that is measured.

    `cases(results)` is what came of it, from the JSON of the `tasks` of a `job`;
    `quantity` says what the figures are, and a figure up to `limit` holds.
    """

    name: str
    says: str  # the claim, in our words
    where: str  # the paper that makes it, and where; or who else asks
    job: str
    tasks: tuple[str, ...]
    quantity: str
    cases: Callable[[Sequence[Result]], list[Case]]
    limit: float = 1.0
    strict: bool = False  # whether a figure at the limit is too much
    reading: str = ""
    log: bool = True  # the axis of the picture
    form: str = "{:.2f}"

    def measured(self, found: Found) -> list[Case]:
        """The cases, from the results of all its tasks.

        Raises:
            ValueError: when the job was not run on one of them.
        """
        whose = f"The claim '{self.name}'"
        return self.cases(results.of_tasks(found, self.job, self.tasks, whose))

    def holds(self, values: Values) -> bool:
        """Whether one case holds."""
        middle = quartiles(values).middle
        return middle < self.limit if self.strict else middle <= self.limit

    def verdicts(self, cases: Sequence[Case]) -> dict[str, Verdict]:
        """For every competitor, over the cases that it took part in."""
        labels = dict.fromkeys(label for case in cases for label in case.values)
        return {
            label: Verdict(
                sum(
                    self.holds(case.values[label])
                    for case in cases
                    if label in case.values
                ),
                sum(label in case.values for case in cases),
            )
            for label in labels
        }


@dataclass(frozen=True)
class Proof:
    """A claim that needs no figure: tests compare with an independent computation."""

    name: str
    says: str
    where: str
    tests: tuple[str, ...]  # `file.py::function` under tests/
    reading: str


def quartiles(values: Values) -> Quartiles:
    """Median and quartiles over the seeds; those of a few are among the values."""
    numbers = sorted(math.inf if v is None or math.isnan(v) else v for v in values)

    def at(share: float) -> float:
        # Interpolation beside an infinite value is no number.
        method: Any = "linear" if math.isfinite(numbers[-1]) else "higher"
        return float(np.quantile(numbers, share, method=method))

    return Quartiles(at(0.25), at(0.5), at(0.75))
