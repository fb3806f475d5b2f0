"""The rule by which every optimizer gets its learning rate, and what it came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import analysis, results
from benchmarks.job import Options, Result
from benchmarks.optimizers import Optimizer, grid
from benchmarks.tasks import Task
from benchmarks.training import Curves, Entry, Evaluate, Trainer, race

POINTS = 5  # learning rates tried for each optimizer, over a 100x range ...
EXTRA = 2  # ... and at most so many beyond it, while the best is at an edge


def points(quick: bool) -> int:
    """Learning rates on a grid."""
    return 2 if quick else POINTS


def tune(
    task: Task,
    optimizer: Optimizer,
    trainer: Trainer,
    evaluate: Evaluate,
    points: int,
    bar: Any,
) -> dict[float, Curves]:
    """Curves on the first seed by learning rate, in ascending order of the rates.

    The same rule for every optimizer: the grid, and a step beyond while the best
    rate is at its edge, so that none is held back by where its grid was put.
    """

    def train(rate: float) -> Curves:
        entries = {"": Entry(trainer, rate)}
        return race(task, entries, evaluate, advance=bar.update)[""]

    tuning = {rate: train(rate) for rate in grid(optimizer.centre, points)}
    for _ in range(EXTRA if points > 2 else 0):
        rate = analysis.beyond(losses_of(tuning, task))
        if rate is None:
            break
        bar.total += task.steps
        tuning[rate] = train(rate)
    return dict(sorted(tuning.items()))


def losses_of(tuning: dict[float, Curves], task: Task) -> dict[float, float]:
    """The best loss at every learning rate."""
    return {rate: analysis.best(curves, task.target) for rate, curves in tuning.items()}


def record(tuning: dict[float, Curves], task: Task, goal: float) -> dict[str, Any]:
    """The rate that races, and what every rate that was tried came to.

    A race is about time to the baseline's best loss, so that is what rates are
    chosen for; the lowest loss of all rates is recorded beside it.
    """
    losses = losses_of(tuning, task)
    steps = {
        rate: analysis.steps_to(curves, task.target, goal)
        for rate, curves in tuning.items()
    }
    return {
        "learning_rate": analysis.fastest(losses, steps),
        "lowest": min(losses.values()),
        "edge": analysis.beyond(losses) is not None,
        "tuning": {
            str(rate): {"best": losses[rate], "steps": steps[rate]} for rate in tuning
        },
    }


def recorded(name: str, task: Task, options: Options) -> dict[str, Any]:
    """What the `whiten` job tuned, by optimizer: its JSON in the same folder, if any.

    A smoke run's record is none for a real run, and the other way round; nor is one
    of the same task on another text.
    """
    path = Path(options.out) / f"whiten-{name}.json"
    found: Result = results.read(path) if path.is_file() else {}
    same = (found.get("steps"), found.get("title")) == (task.steps, task.title)
    return found["optimizers"] if same else {}


def recorded_losses(entry: dict[str, Any]) -> dict[float, float]:
    """The finite best losses of a recorded tuning by learning rate."""
    return {
        float(rate): tuned["best"]
        for rate, tuned in entry["tuning"].items()
        if tuned["best"] is not None
    }
