"""Figures of regression problems beside Adam's, a case a problem and a kind of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks.evidence.claim import Case, Values
from benchmarks.job import BASELINE, Result

OUTLIERS = "outliers"
Trainers = dict[str, dict[str, Any]]  # what each trainer came to, by its name


def cases(
    quantity: Callable[[Trainers, str], Values | None], names: Sequence[str]
) -> Callable[[Sequence[Result]], list[Case]]:
    """A case a problem, clean and with noise: a figure of each of some trainers."""

    def found(results: Sequence[Result]) -> list[Case]:
        made = []
        for label, trainers in cells(results):
            values = {}
            for name in names:
                known = quantity(trainers, name) if name in trainers else None
                if known is not None:
                    values[trainers[name]["label"]] = known
            made.append(Case(label, values))
        return made

    return found


def cells(results: Sequence[Result]) -> Iterator[tuple[str, Trainers]]:
    """Problem and data, with what every trainer came to; outliers have other losses."""
    for result in results:
        for data, cell in result["data"].items():
            if data != OUTLIERS:
                yield f"{result['title']}, {data}", cell["trainers"]


def iterations(trainers: Trainers, name: str) -> Values:
    """Iterations to Adam's final training error over Adam's."""
    return ratios(trainers[name]["iterations"], trainers[BASELINE]["iterations"])


def seconds(trainers: Trainers, name: str) -> Values | None:
    """The same by the clock."""
    own, adam = (trainers[each]["seconds_an_iteration"] for each in (name, BASELINE))
    if not own or not adam:
        return None
    return [
        None if ratio is None else ratio * own / adam
        for ratio in iterations(trainers, name)
    ]


def error(key: str) -> Callable[[Trainers, str], Values]:
    """An error at the end over Adam's of the same seed."""
    return lambda trainers, name: ratios(trainers[name][key], trainers[BASELINE][key])


def test_error(rivals: Sequence[str]) -> Callable[[Trainers, str], Values]:
    """With early stopping, over the median of the rival whose median is lowest."""
    key = "test_early_stopping"

    def quantity(trainers: Trainers, name: str) -> Values:
        best = min(median(trainers[rival][key]) for rival in rivals)
        return [value / best for value in trainers[name][key]]

    return quantity


def worst_seed(trainers: Trainers, name: str) -> Values:
    """The training error of the worst seed over that of Adam's worst seed."""
    own, adam = (max(trainers[each]["train"]) for each in (name, BASELINE))
    return [own / adam]


def spread(trainers: Trainers, name: str) -> Values:
    """The worst seed's training error over the median's, over the same of Adam."""
    own, adam = (
        max(trainers[each]["train"]) / median(trainers[each]["train"])
        for each in (name, BASELINE)
    )
    return [own / adam]


def ratios(own: Values, other: Values) -> Values:
    """Seed by seed; None where one of them has none."""
    return [
        None if a is None or b is None else a / b
        for a, b in zip(own, other, strict=True)
    ]
