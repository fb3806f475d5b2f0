"""Tune every optimizer, race them in one run, print and write what came out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import analysis, plots, report
from benchmarks.optimizers import OPTIMIZERS, Optimizer, grid
from benchmarks.options import Options
from benchmarks.tasks import TASKS, Task
from benchmarks.training import (
    Curves,
    Entry,
    Evaluate,
    Trainer,
    compile_evaluate,
    compile_trainer,
    race,
)

POINTS = 5  # learning rates tried for each optimizer, over a 100x range ...
EXTRA = 2  # ... and at most so many beyond it, while the best is at an edge


def main(job: str, options: Options) -> None:
    """Run a race for every task and report it."""
    for name in options.tasks:
        result = {"job": job, **run(name, options)}
        print(describe(result), flush=True)
        path = Path(options.out) / f"{job}-{name}"
        report.write_json(path.with_suffix(".json"), result)
        plots.race_figure(result, path.with_suffix(".png"))
        print(f"Wrote {path}.json and {path}.png\n", flush=True)


def run(name: str, options: Options) -> dict[str, Any]:
    """Tune on the first seed, untimed; then race the tuned optimizers, clocked."""
    task = load(name, options.quick)
    points = 2 if options.quick else POINTS
    evaluate = compile_evaluate(task)
    runs = len(options.optimizers) * (points + options.seeds)
    with tqdm(total=runs * task.steps, desc=name, unit="step") as bar:
        trainers: dict[str, Trainer] = {}
        tunings: dict[str, dict[float, Curves]] = {}
        for key in options.optimizers:
            bar.set_postfix_str(f"tuning {key}")
            trainers[key] = compile_trainer(task, OPTIMIZERS[key])
            tunings[key] = tune(
                task, OPTIMIZERS[key], trainers[key], evaluate, points, bar
            )
        goal = min(losses_of(tunings[analysis.BASELINE], task).values())
        records = {
            key: tuning_record(tuning, task, goal) for key, tuning in tunings.items()
        }
        entries = {
            key: Entry(trainers[key], record["learning_rate"])
            for key, record in records.items()
        }
        bar.set_postfix_str("racing")
        curves = [
            race(task, entries, evaluate, seed, bar.update)
            for seed in range(options.seeds)
        ]
    result: dict[str, Any] = {
        "task": name,
        "title": task.title,
        "target": task.target,
        "steps": task.steps,
        "batch_size": task.batch_size,
        "points": points,
        "seeds": options.seeds,
        "optimizers": {
            key: {
                "label": OPTIMIZERS[key].label,
                **records[key],
                "temporary_bytes": trainers[key].temporary_bytes,
                "state_bytes": trainers[key].state_bytes,
                "curves": [curve[key] for curve in curves],
            }
            for key in options.optimizers
        },
    }
    result["summary"] = {
        key: analysis.summarise(result, key) for key in options.optimizers
    }
    return result


def tuning_record(
    tuning: dict[float, Curves], task: Task, goal: float
) -> dict[str, Any]:
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


def load(name: str, quick: bool) -> Task:
    """Build a task; a quick one takes a few steps and proves only that it runs."""
    task = TASKS[name]()
    small = {"steps": 4, "every": 2, "batch_size": 32, "evaluated": 32}
    return replace(task, **small) if quick else task


def describe(result: dict[str, Any]) -> str:
    """The grids and the table of one race."""
    lines = [
        f"\n{result['title']}: {result['steps']} steps, batch {result['batch_size']}, "
        f"{result['seeds']} seed(s)",
        f"Target: Adam's best {plots.LOSSES[result['target']]}",
        "Tuning, learning rate: best loss (steps to the target)",
    ]
    for entry in result["optimizers"].values():
        tried = ", ".join(
            f"{float(rate):g}: {report.number(tuned['best'])}"
            f" ({report.number(tuned['steps'], '{:.0f}')})"
            for rate, tuned in entry["tuning"].items()
        )
        lines.append(f"  {entry['label']}: {tried}")
    lines += ["", report.race_table(result)]
    if any(entry["edge"] for entry in result["optimizers"].values()):
        lines.append("* at the edge of its grid")
    return "\n".join(lines)
