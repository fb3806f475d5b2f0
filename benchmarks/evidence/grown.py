"""Figures of regression as sizes, corruption and faults change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from benchmarks.evidence import fitted
from benchmarks.evidence.claim import Case, Values
from benchmarks.job import BASELINE, Result
from benchmarks.uci import published

FEWEST = 0.05  # a published error of two digits below this says little


def sizes(
    quantity: Callable[[fitted.Trainers, str], Values | None],
) -> Callable[[Sequence[Result]], list[Case]]:
    """A case a size: a figure beside Adam's of every other trainer."""

    def found(results: Sequence[Result]) -> list[Case]:
        cases = []
        for result in results:
            for point in result["points"]:
                trainers = point["trainers"]
                values = {}
                for name in trainers:
                    known = quantity(trainers, name) if name != BASELINE else None
                    if known is not None:
                        values[trainers[name]["label"]] = known
                label = f"{result['axis']}: {point['size']}"
                cases.append(Case(label, values))
        return cases

    return found


def corrupted(
    rivals: Mapping[str, str],
) -> Callable[[Sequence[Result]], list[Case]]:
    """A case a level: test errors over those of a rival, by the label of ours.

    Levels at which a rival has nothing to train on are left out.
    """

    def found(results: Sequence[Result]) -> list[Case]:
        cases = []
        for result in results:
            for number, level in enumerate(result["levels"]):
                values = {}
                for label, rival in rivals.items():
                    errors = [
                        result["test"][each][number]
                        for each in (label, rival)
                        if each in result["test"]
                    ]
                    if len(errors) == 2 and None not in errors[1]:
                        values[label] = fitted.ratios(*errors)
                if values:
                    cases.append(Case(f"{result['axis']}: {level:g}", values))
        return cases

    return found


def missed(results: Sequence[Result]) -> list[Case]:
    """The share of seeds in which a planted fault is not found."""
    return [
        Case(row["label"], {"diagnostics": [1 - mean(map(float, row["found"]))]})
        for result in results
        for row in result["rows"]
    ]


def false_alarms(results: Sequence[Result]) -> list[Case]:
    """The share of seeds in which a rule finds a fault that is not there."""
    return [
        Case(row["label"], {"diagnostics": [mean(map(float, row["alarm"]))]})
        for result in results
        for row in result["rows"]
    ]


def over_published(results: Sequence[Result]) -> list[Case]:
    """The mean test error over the lowest of those that others published."""
    cases = []
    for result in results:
        known = [error for error, _ in published.RMSE.get(result["task"], {}).values()]
        if known and min(known) >= FEWEST:
            values = {
                entry["label"]: [mean(entry["rmse"]) / min(known)]
                for entry in result["methods"].values()
            }
            cases.append(Case(result["task"], values))
    return cases


def over_adam(results: Sequence[Result]) -> list[Case]:
    """Test errors over Adam's on the same splits."""
    return [
        Case(
            f"{result['task']}, {result['samples']:,} rows",
            {
                entry["label"]: fitted.ratios(
                    entry["rmse"], result["methods"][BASELINE]["rmse"]
                )
                for name, entry in result["methods"].items()
                if name != BASELINE
            },
        )
        for result in results
    ]


def recovered(results: Sequence[Result]) -> list[Case]:
    """The error that is left of a teacher's function, a case a student."""
    return [
        Case(row["label"], {"ILLS": row["values"]})
        for result in results
        for row in result["rows"]
    ]
