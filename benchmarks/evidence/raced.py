"""Figures of races and of compiled steps beside Adam's, a case a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import analysis
from benchmarks.evidence.claim import Case, Values
from benchmarks.job import BASELINE, Result
from benchmarks.scaling.collectives import total

OURS = ("lnb", "whiten", "polar")


def cases(quantity: Callable[[Result, str], Values]) -> Callable[..., list[Case]]:
    """A case a race: a figure of every optimizer of ours for each seed."""

    def found(results: Sequence[Result]) -> list[Case]:
        return [
            Case(
                result["title"],
                {
                    result["optimizers"][name]["label"]: quantity(result, name)
                    for name in OURS
                    if name in result["optimizers"]
                },
            )
            for result in results
        ]

    return found


def of_seeds(key: str) -> Callable[[Result, str], Values]:
    """A figure beside Adam's that `analysis` has for each seed."""
    return lambda result, name: [row[key] for row in analysis.per_seed(result, name)]


def lowest(target: str | None) -> Callable[[Result, str], Values]:
    """The lowest loss of each seed over Adam's; None: of what was trained for."""

    def quantity(result: Result, name: str) -> Values:
        of = target or result["target"]
        runs, adams = (
            result["optimizers"][each]["curves"] for each in (name, BASELINE)
        )
        return [
            analysis.best(run, of) / analysis.best(adam, of)
            for run, adam in zip(runs, adams, strict=True)
        ]

    return quantity


def memory(result: Result, name: str) -> Values:
    """Temporary memory of a step and state, over Adam's."""
    sizes = [
        sum(
            result["optimizers"][each][f"{kind}_bytes"]
            for kind in ("temporary", "state")
        )
        for each in (name, BASELINE)
    ]
    return [sizes[0] / sizes[1]]


def covered(results: Sequence[Result]) -> list[Case]:
    """The share of a model's numbers in kernels that no tap covers."""
    return [
        Case(
            f"{result['title']} ({result['framework']})",
            {"taps": [1 - result["kernels_covered"] / result["kernels"]]},
        )
        for result in results
    ]


def said(results: Sequence[Result]) -> list[Case]:
    """Collectives of a step over Adam's, the batch sharded, parameters everywhere."""
    (result,) = results
    found = []
    for run in result["runs"]:
        if run["devices"] == 1 or run["batch"] != result["rows"]:
            continue
        counts = {
            name: total(entry["every_step"], "count")
            for name, entry in run["optimizers"].items()
        }
        found.append(
            Case(
                f"{run['devices']} devices",
                {
                    run["optimizers"][name]["label"]: [counts[name] / counts[BASELINE]]
                    for name in OURS
                    if name in counts
                },
            )
        )
    return found
