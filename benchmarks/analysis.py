"""From curves to figures: pure functions, no clock and no files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.job import BASELINE, Result

Row = dict[str, float | None]  # the figures of one optimizer


def best(curves: dict[str, list[float]], target: str) -> float:
    """Lowest finite value of a curve; infinity when there is none."""
    return min((v for v in curves[target] if math.isfinite(v)), default=math.inf)


def at_best(curves: dict[str, list[float]], target: str, other: str) -> float:
    """Another curve where this one is lowest; NaN where it has no finite value."""
    pairs = zip(curves[target], curves[other], strict=True)
    finite = (pair for pair in pairs if math.isfinite(pair[0]))
    return min(finite, key=lambda pair: pair[0], default=(0.0, math.nan))[1]


def first_reached(losses: list[float], target: float) -> int | None:
    """Index of the first loss at or below the target, or None if never."""
    return next((i for i, loss in enumerate(losses) if loss <= target), None)


def steps_to(curves: dict[str, list[float]], target: str, goal: float) -> float | None:
    """Steps until a curve is at or below the goal, or None if never."""
    index = first_reached(curves[target], goal)
    return None if index is None else curves["step"][index]


def lowest(losses: dict[float, float]) -> float:
    """The learning rate of the lowest loss."""
    return min(losses, key=losses.__getitem__)


def fastest(losses: dict[float, float], steps: dict[float, float | None]) -> float:
    """The learning rate that reaches the target first; of equals, the lower loss.

    The rate of the lowest loss where none reaches it.
    """
    return min(losses, key=lambda rate: (steps[rate] or math.inf, losses[rate]))


def beyond(losses: dict[float, float]) -> float | None:
    """The next learning rate past the edge where the best one lies, else None.

    The loss by learning rate, evenly spaced on a logarithmic scale.
    """
    rates = sorted(losses)
    best_rate = lowest(losses)
    factor = rates[1] / rates[0]
    if best_rate == rates[0]:
        return float(f"{best_rate / factor:.2g}")
    if best_rate == rates[-1]:
        return float(f"{best_rate * factor:.2g}")
    return None


def per_seed(result: Result, name: str, than: str = BASELINE) -> list[Row]:
    """The figures of one optimizer for every seed, None where undefined.

    The target is the best loss of another, by default the baseline, with the same seed.
    """
    runs = result["optimizers"][name]["curves"]
    baseline = result["optimizers"][than]["curves"]
    return [
        _of_seed(run, base, result["target"])
        for run, base in zip(runs, baseline, strict=True)
    ]


def summarise(result: Result, name: str) -> Row:
    """Medians over the seeds.

    Times to the target are None as soon as one seed never reaches it.
    """
    rows = per_seed(result, name)
    return {key: median([row[key] for row in rows]) for key in rows[0]}


def _of_seed(
    run: dict[str, list[float]], base: dict[str, list[float]], target: str
) -> Row:
    goal = best(base, target)
    reached = first_reached(run[target], goal) if math.isfinite(goal) else None
    reference = first_reached(base[target], goal)
    ratios = block_ratios(run, base)
    row: Row = {
        "train_loss": run["train_loss"][-1],
        "test_loss": run["test_loss"][-1],
        "test_accuracy": run.get("test_accuracy", [None])[-1],
        "best": best(run, target),
        "steps": None,
        "seconds": None,
        "steps_ratio": None,
        "seconds_ratio": None,
        "step_time": float(np.median(ratios)),
        "step_time_low": float(np.quantile(ratios, 0.25)),
        "step_time_high": float(np.quantile(ratios, 0.75)),
    }
    if reached is not None and reference is not None:
        row["steps"] = run["step"][reached]
        row["seconds"] = run["seconds"][reached]
        if reference > 0:
            row["steps_ratio"] = row["steps"] / base["step"][reference]
            row["seconds_ratio"] = row["seconds"] / base["seconds"][reference]
    return row


def block_ratios(run: dict[str, list[float]], base: dict[str, list[float]]):
    """Time of every block relative to the baseline's block of the same round."""
    return np.diff(run["seconds"]) / np.diff(base["seconds"])


def share_within(losses: list[float], reference: float, margin: float = 0.1) -> float:
    """Share of the losses within `margin` of a reference; a NaN is outside."""
    return float(np.mean([loss <= (1 + margin) * reference for loss in losses]))


def median(values: Sequence[float | None]) -> float | None:
    """The median, or None where any value is missing."""
    numbers = [value for value in values if value is not None]
    return float(np.median(numbers)) if len(numbers) == len(values) else None
