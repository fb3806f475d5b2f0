"""Figures of sweeps over learning rates beside Adam's, a case a version of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.evidence.claim import Case, Values
from benchmarks.evidence.raced import OURS
from benchmarks.job import BASELINE, Result

Losses = np.ndarray  # [rate, seed]; infinite where a run left the numbers
PLAIN = "plain"  # the version of a network without normalisation layers


def cases(quantity: Callable[[Losses, Losses], Values]) -> Callable[..., list[Case]]:
    """A case a version of a task: `quantity` of our losses and Adam's."""

    def found(results: Sequence[Result]) -> list[Case]:
        return [
            Case(
                f"{result['task']}: {version}",
                {
                    label: quantity(losses(entry, version), losses(adam, version))
                    for label, entry in ours(result)
                },
            )
            for result in results
            for adam in [result["optimizers"][BASELINE]]
            for version in adam["losses_by_seed"]
        ]

    return found


def best_loss(mine: Losses, adam: Losses) -> Values:
    """The lowest loss over all rates, over Adam's of the same seed."""
    return (mine.min(0) / adam.min(0)).tolist()


def rates_that_do(mine: Losses, adam: Losses) -> Values:
    """Adam's rates within 10 % of its best loss, over ours that are as good."""
    goal = 1.1 * adam.min(0)
    good, theirs = ((each <= goal).sum(0) for each in (mine, adam))
    return [a / b if b else None for a, b in zip(theirs, good, strict=True)]


def rates_of_own(mine: Losses, adam: Losses) -> Values:
    """Adam's rates within 10 % of its best loss, over ours within 10 % of our best."""
    good, theirs = ((each <= 1.1 * each.min(0)).sum(0) for each in (mine, adam))
    return (theirs / good).tolist()


def kept_rate(results: Sequence[Result]) -> list[Case]:
    """What is lost where the first version's best rate is kept, over Adam's loss."""

    def lost(entry: dict[str, Any], first: str, version: str) -> np.ndarray:
        rate = np.median(losses(entry, first), axis=1).argmin()
        there = losses(entry, version)
        return there[rate] / there.min(0)

    found = []
    for result in results:
        adam = result["optimizers"][BASELINE]
        first, *others = adam["losses_by_seed"]
        for version in others:
            of_adam = lost(adam, first, version)
            values = {
                label: (lost(entry, first, version) / of_adam).tolist()
                for label, entry in ours(result)
            }
            found.append(Case(f"{result['task']}: {first} to {version}", values))
    return found


def normalised(results: Sequence[Result]) -> list[Case]:
    """The lowest loss over Adam's, of the versions that have a normalisation."""
    return [
        case
        for case in cases(best_loss)(results)
        if not case.label.endswith(f": {PLAIN}")
    ]


def instead(results: Sequence[Result]) -> list[Case]:
    """The plain network's lowest loss over Adam's on every other version."""
    found = []
    for result in results:
        adam = result["optimizers"][BASELINE]
        for version in adam["losses_by_seed"]:
            if version == PLAIN:
                continue
            goal = losses(adam, version).min(0)
            values = {
                label: (losses(entry, PLAIN).min(0) / goal).tolist()
                for label, entry in ours(result)
            }
            found.append(Case(f"against {version}", values))
    return found


def test_errors(results: Sequence[Result]) -> list[Case]:
    """Shares of the test set that are wrong, over Adam's, where training went lowest.

    Of each optimizer at the rate whose training loss is lowest, median over the seeds.
    """

    def wrong(entry: dict[str, Any], version: str) -> np.ndarray:
        rate = np.median(losses(entry, version), axis=1).argmin()
        return 1 - np.array(entry["accuracy_by_seed"][version][rate])

    return [
        Case(
            f"{result['task']}: {version}",
            {
                label: (wrong(entry, version) / wrong(adam, version)).tolist()
                for label, entry in ours(result)
            },
        )
        for result in results
        for adam in [result["optimizers"][BASELINE]]
        for version in adam["losses_by_seed"]
    ]


def ours(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and entry of those of our optimizers that took part."""
    for name in OURS:
        if name in result["optimizers"]:
            yield result["optimizers"][name]["label"], result["optimizers"][name]


def losses(entry: dict[str, Any], version: str) -> Losses:
    """The losses of one optimizer on one version."""
    rows = entry["losses_by_seed"][version]
    return np.array([[np.inf if x is None else x for x in row] for row in rows])
