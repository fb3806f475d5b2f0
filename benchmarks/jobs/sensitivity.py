"""How much of a 100x range of learning rates is good enough?

The range is centred on each optimizer's own tuned learning rate, so that the
share tells how wide its good rates are, not where a grid was put. Rates that the
`whiten` job tuned are read from its JSON in the same folder; others are tuned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import analysis, figures, tasks, tuning
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.jobs._choices import choices
from benchmarks.optimizers import OPTIMIZERS, grid
from benchmarks.tables import number, table
from benchmarks.tasks import Task
from benchmarks.training import (
    Curves,
    Entry,
    Evaluate,
    Trainer,
    compile_evaluate,
    compile_trainer,
    race,
)

POINTS = 9


def run(name: str, options: Options) -> Result:
    """Train at every learning rate; losses are medians over the seeds."""
    task = tasks.load(name, options.quick, options.text)
    tuned = tuning.points(options.quick)
    points = 3 if options.quick else POINTS
    evaluate = compile_evaluate(task)
    record = tuning.recorded(name, task, options)
    entries: dict[str, dict[str, Any]] = {}
    total = len(options.optimizers) * (tuned + points * options.seeds) * task.steps
    with tqdm(total=total, desc=name, unit="step") as bar:
        for key in options.optimizers:
            bar.set_postfix_str(key)
            optimizer = OPTIMIZERS[key]
            trainer = compile_trainer(task, optimizer)
            if key in record:
                bar.total -= tuned * task.steps
                losses = tuning.recorded_losses(record[key])
            else:
                tried = tuning.tune(task, optimizer, trainer, evaluate, tuned, bar)
                losses = tuning.losses_of(tried, task)
            centre = analysis.lowest(losses)
            rates = grid(centre, points)
            entries[key] = {
                "label": optimizer.label,
                "rates": rates,
                "relative_rates": [rate / centre for rate in rates],
                **sweep(task, trainer, evaluate, rates, options.seeds, bar),
            }
    add_shares(entries)
    return {
        "title": task.title,
        "target": task.target,
        "steps": task.steps,
        "points": points,
        "seeds": options.seeds,
        "optimizers": entries,
    }


def sweep(
    task: Task,
    trainer: Trainer,
    evaluate: Evaluate,
    rates: list[float],
    seeds: int,
    bar: Any,
) -> dict[str, Any]:
    """The best loss at every learning rate, for every seed and their median.

    And the loss and, of classifiers, the accuracy on the test set at that point.
    """

    def train(rate: float, seed: int) -> Curves:
        entry = {"": Entry(trainer, rate)}
        return race(task, entry, evaluate, seed, bar.update)[""]

    runs = [[train(rate, seed) for seed in range(seeds)] for rate in rates]
    losses = [[analysis.best(curves, task.target) for curves in each] for each in runs]
    found: dict[str, Any] = {
        "losses": [float(np.median(values)) for values in losses],
        "losses_by_seed": losses,
    }
    for name, other in (
        ("test_by_seed", "test_loss"),
        ("accuracy_by_seed", "test_accuracy"),
    ):
        if other in runs[0][0]:
            found[name] = [
                [analysis.at_best(curves, task.target, other) for curves in each]
                for each in runs
            ]
    return found


def add_shares(entries: dict[str, dict[str, Any]]) -> None:
    """Add to every optimizer the shares of its rates that are good enough."""
    baseline = min(entries[BASELINE]["losses"])
    overall = min(loss for entry in entries.values() for loss in entry["losses"])
    for entry in entries.values():
        runs = [loss for values in entry["losses_by_seed"] for loss in values]
        entry["share_of_own_best"] = analysis.share_within(runs, min(entry["losses"]))
        entry["share_of_overall_best"] = analysis.share_within(runs, overall)
        entry["share_of_baseline_best"] = analysis.share_within(runs, baseline)


def describe(result: Result) -> str:
    """The shares and the losses of one task."""
    rows = [
        [
            entry["label"],
            f"{entry['rates'][0]:g} to {entry['rates'][-1]:g}",
            number(min(_finite(entry["losses"]), default=None)),
            f"{entry['share_of_own_best']:.0%}",
            f"{entry['share_of_overall_best']:.0%}",
            f"{entry['share_of_baseline_best']:.0%}",
        ]
        for entry in result["optimizers"].values()
    ]
    header = "optimizer | learning rates | best loss | within 10 % of its own best | "
    header += "of the best of all | of Adam's best"
    return table(header.split(" | "), rows)


def across(results: Sequence[Result]) -> str:
    """The shares of every task in one row."""
    labels = {
        name: entry["label"]
        for result in results
        for name, entry in result["optimizers"].items()
    }
    first, *others = labels.values()
    header = [f"share of {results[0]['points']} rates within 10 % of"]
    for whose in ("Adam's best", "its own best"):
        header += [f"{whose}: {first}", *others]
    rows = []
    for result in results:
        entries = result["optimizers"]
        rows.append(
            [result["title"]]
            + [
                f"{entries[name][share]:.0%}" if name in entries else "-"
                for share in ("share_of_baseline_best", "share_of_own_best")
                for name in labels
            ]
        )
    return table(header, rows)


def draw(result: Result, path: Path) -> None:
    """Best loss of every learning rate; the rate is relative to the tuned one."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    for name, entry in result["optimizers"].items():
        share = f"{entry['label']}: {entry['share_of_own_best']:.0%} within 10 %"
        line = figures.style(name)
        rates, losses = entry["relative_rates"], entry["losses"]
        axis.loglog(rates, losses, marker="o", label=share, **line)
        limit = 1.1 * min(entry["losses"])
        axis.axhline(limit, color=line["color"], linestyle=":", linewidth=1)
    axis.set_xlabel("learning rate / tuned learning rate")
    axis.set_ylabel(f"best {figures.LOSSES[result['target']]}")
    axis.grid(alpha=0.3, which="both")
    axis.set_title(f"{result['title']}: sensitivity to the learning rate")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figures.save(figure, path)


def _finite(losses: list[float | None]) -> list[float]:
    """Without the nulls that JSON has for losses that ran away."""
    return [loss for loss in losses if loss is not None]


JOB = Job(
    name="sensitivity",
    title="A 100x range of learning rates",
    reading=(
        f"{POINTS} learning rates over a range of 100, centred on each optimizer's "
        "best: the share of them whose loss is within 10 % of the lowest loss of tuned "
        "Adam, of its own or of all optimizers."
    ),
    **choices("sensitivity"),
    seeds=1,
    run=run,
    table=describe,
    across=across,
    single=False,
    figure=draw,
)
