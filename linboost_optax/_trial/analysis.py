"""From the curves of a trial to figures: pure functions of its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Record = dict[str, Any]  # what a trial found: the content of its JSON file
_OVER = ("step", "seconds")
_WORKS = 0.1  # a rate works if it misses at most this share of the baseline's fall


class Spread(NamedTuple):
    """A figure over the seeds: median, lowest and highest."""

    middle: float
    low: float
    high: float


class Figures(NamedTuple):
    """What became of one competitor.

    Attributes:
      reached: on how many seeds it came to the best loss of whom it is compared to.
      steps: until then, in multiples of that one's own; None unless on all seeds.
      seconds: likewise.
      best: lowest loss of the target.
      train: training loss at the end.
      test: test loss at the end; None without a test split.
      step: time of a step, likewise: median and quartiles over blocks.
      memory: likewise, all that a step holds at once.
      works: how many of its rates work.
      rates: of how many.
    """

    reached: int
    steps: Spread | None
    seconds: Spread | None
    best: Spread
    train: Spread
    test: Spread | None
    step: Spread
    memory: float
    works: int
    rates: int


def figures(record: Record, name: str, than: str | None = None) -> Figures:
    """The figures of one competitor of a race.

    Args:
      record: of the trial.
      name: of the competitor.
      than: whom it is compared to; default None is the baseline.
    """
    target, entry = record["target"], record["entries"][name]
    base = record["entries"][than or record["baseline"]]
    pairs = list(zip(entry["curves"], base["curves"]))
    reached = [_reached(run, other, target) for run, other in pairs]
    known = [each for each in reached if each is not None]
    everywhere = len(known) == len(pairs)
    works, rates = working(record, name)
    ratios = [ratio for run, other in pairs for ratio in block_ratios(run, other)]
    tested = "test_loss" in entry["curves"][0]
    return Figures(
        reached=len(known),
        steps=spread([each[0] for each in known]) if everywhere else None,
        seconds=spread([each[1] for each in known]) if everywhere else None,
        best=spread([best(run, target) for run, _ in pairs]),
        train=spread([run["train_loss"][-1] for run, _ in pairs]),
        test=spread([run["test_loss"][-1] for run, _ in pairs]) if tested else None,
        step=Spread(*(float(np.quantile(ratios, q)) for q in (0.5, 0.25, 0.75))),
        memory=entry["step_bytes"] / max(1, base["step_bytes"]),
        works=works,
        rates=rates,
    )


def best(curves: dict[str, list[float]], target: str) -> float:
    """Lowest finite value of a curve; infinity when there is none."""
    return min((v for v in curves[target] if math.isfinite(v)), default=math.inf)


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest; what is not finite is the highest there is."""
    ranked = [value if math.isfinite(value) else math.inf for value in values]
    with np.errstate(invalid="ignore"):
        middle = float(np.median(ranked))
    middle = middle if not math.isnan(middle) else math.inf
    return Spread(middle, min(ranked), max(ranked))


def block_ratios(run: dict[str, list[float]], base: dict[str, list[float]]) -> Any:
    """Time of every block in multiples of the baseline's of the same round."""
    blocks = min(len(run["seconds"]), len(base["seconds"]))
    mine, other = (np.diff(each["seconds"][:blocks]) for each in (run, base))
    return mine / np.maximum(other, 1e-9)


def first_rung(entry: Record) -> dict[float, float]:
    """The losses of all rates that were tried at first; missing ones are infinite."""
    tried = entry["rungs"][0]["losses"] if entry["rungs"] else {}
    return {
        float(rate): math.inf if loss is None else loss for rate, loss in tried.items()
    }


def working(record: Record, name: str) -> tuple[int, int]:
    """How many rates of the first runs work, of how many: they end below the bar."""
    mine = first_rung(record["entries"][name])
    return sum(loss <= record["bar"] for loss in mine.values()), len(mine)


def bar(record: Record) -> float:
    """The loss below which a first run must end for its rate to work.

    A tenth of the baseline's best fall above where that ends: a rule that an offset of
    the loss leaves as it is, as a ratio of losses would not.
    """
    base = first_rung(record["entries"][record["baseline"]])
    lowest = min(base.values(), default=math.inf)
    fall = record["start"][record["target"]] - lowest
    return lowest + _WORKS * fall if fall > 0 else lowest


def _reached(
    run: dict[str, list[float]], base: dict[str, list[float]], target: str
) -> tuple[float, float] | None:
    """Steps and seconds to the baseline's best loss, in multiples of its own."""
    goal = best(base, target)
    reference = _first(base[target], goal)
    index = _first(run[target], goal)
    if not math.isfinite(goal) or index is None or not reference:
        return None
    steps, seconds = (run[key][index] / base[key][reference] for key in _OVER)
    return steps, seconds


def _first(losses: Sequence[float], goal: float) -> int | None:
    return next((i for i, loss in enumerate(losses) if loss <= goal), None)
