"""How much of a 100x range of learning rates is good enough?

The range is centred on each optimizer's own tuned learning rate, so that the
share tells how wide its good rates are, not where a grid was put. Rates that the
`whiten` job tuned are read from its JSON in the same folder; others are tuned here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import analysis, plots, races, report
from benchmarks.optimizers import OPTIMIZERS, grid
from benchmarks.options import Options
from benchmarks.races import load
from benchmarks.tasks import Task
from benchmarks.training import (
    Entry,
    Evaluate,
    Trainer,
    compile_evaluate,
    compile_trainer,
    race,
)

POINTS = 9


def main(options: Options) -> None:
    """Sweep the learning rate of every optimizer on every task."""
    for name in options.tasks:
        result = run(name, options)
        print(describe(result), flush=True)
        path = Path(options.out) / f"sensitivity-{name}"
        report.write_json(path.with_suffix(".json"), result)
        plots.sensitivity_figure(result, path.with_suffix(".png"))
        print(f"Wrote {path}.json and {path}.png\n", flush=True)


def run(name: str, options: Options) -> dict[str, Any]:
    """Train at every learning rate; losses are medians over the seeds."""
    task = load(name, options.quick)
    tuned, points = (2, 3) if options.quick else (races.POINTS, POINTS)
    evaluate = compile_evaluate(task)
    entries: dict[str, dict[str, Any]] = {}
    total = len(options.optimizers) * (tuned + points * options.seeds) * task.steps
    with tqdm(total=total, desc=name, unit="step") as bar:
        for key in options.optimizers:
            bar.set_postfix_str(key)
            optimizer = OPTIMIZERS[key]
            trainer = compile_trainer(task, optimizer)
            centre = recorded_centre(options, task, key)
            if centre is not None:
                bar.total -= tuned * task.steps
            else:
                tuning = races.tune(task, optimizer, trainer, evaluate, tuned, bar)
                centre = analysis.lowest(races.losses_of(tuning, task))
            rates = grid(centre, points)
            entries[key] = {
                "label": optimizer.label,
                "rates": rates,
                "relative_rates": [rate / centre for rate in rates],
                **sweep(task, trainer, evaluate, rates, options.seeds, bar),
            }
    baseline = min(entries[analysis.BASELINE]["losses"])
    overall = min(loss for entry in entries.values() for loss in entry["losses"])
    for entry in entries.values():
        runs = [loss for values in entry["losses_by_seed"] for loss in values]
        entry["share_of_own_best"] = analysis.share_within(runs, min(entry["losses"]))
        entry["share_of_overall_best"] = analysis.share_within(runs, overall)
        entry["share_of_baseline_best"] = analysis.share_within(runs, baseline)
    return {
        "job": "sensitivity",
        "task": name,
        "title": task.title,
        "target": task.target,
        "steps": task.steps,
        "points": points,
        "seeds": options.seeds,
        "optimizers": entries,
    }


def recorded_centre(options: Options, task: Task, key: str) -> float | None:
    """The learning rate of the lowest loss in the `whiten` job's JSON, if there."""
    path = Path(options.out) / f"whiten-{task.name}.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    tuned = record.get("optimizers", {}).get(key)
    if tuned is None or record["steps"] != task.steps:
        return None
    return analysis.lowest(
        {
            float(rate): entry["best"]
            for rate, entry in tuned["tuning"].items()
            if entry["best"] is not None
        }
    )


def sweep(
    task: Task,
    trainer: Trainer,
    evaluate: Evaluate,
    rates: list[float],
    seeds: int,
    bar: Any,
) -> dict[str, Any]:
    """The best loss at every learning rate, for every seed and their median."""

    def loss_at(rate: float, seed: int) -> float:
        entry = {"": Entry(trainer, rate)}
        curves = race(task, entry, evaluate, seed, bar.update)[""]
        return analysis.best(curves, task.target)

    losses = [[loss_at(rate, seed) for seed in range(seeds)] for rate in rates]
    return {
        "losses": [float(np.median(values)) for values in losses],
        "losses_by_seed": losses,
    }


def describe(result: dict[str, Any]) -> str:
    """The shares and the losses of one task."""
    entries = result["optimizers"].values()
    rows = [
        [
            entry["label"],
            f"{entry['rates'][0]:g} to {entry['rates'][-1]:g}",
            report.number(min(entry["losses"])),
            f"{entry['share_of_own_best']:.0%}",
            f"{entry['share_of_overall_best']:.0%}",
            f"{entry['share_of_baseline_best']:.0%}",
        ]
        for entry in entries
    ]
    header = "optimizer | learning rates | best loss | within 10 % of its own best | "
    header += "of the best of all | of Adam's best"
    title = (
        f"\n{result['title']}: {result['points']} learning rates over a 100x range, "
        f"{result['seeds']} seed(s), best {plots.LOSSES[result['target']]}\n"
    )
    return title + "\n" + report.table(header.split(" | "), rows)
