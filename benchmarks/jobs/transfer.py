"""Does the best learning rate stay where it is when inputs or widths change?

The digits classifier with its pixels in other units, off centre, and with layers of
other widths; every optimizer trains on all versions at the same rates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import analysis, figures, optimizers, tasks
from benchmarks.job import Job, Options, Result
from benchmarks.jobs.sensitivity import sweep
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tables import number, table
from benchmarks.tasks import Task
from benchmarks.tasks.dense import classifier
from benchmarks.training import compile_evaluate, compile_trainer

POINTS = 9  # learning rates from 1e-4 to 1
# The first version of each is what the others are compared with.
VERSIONS: dict[str, dict[str, Callable[[], Task]]] = {
    "inputs": {
        "pixels in [0, 1]": lambda: classifier((256,)),
        "[0, 0.1]": lambda: classifier((256,), unit=0.1),
        "[0, 10]": lambda: classifier((256,), unit=10.0),
        "[3, 4]": lambda: classifier((256,), offset=3.0),
    },
    "widths": {
        "64 wide": lambda: classifier((64, 64)),
        "128 wide": lambda: classifier((128, 128)),
        "256 wide": lambda: classifier((256, 256)),
        "512 wide": lambda: classifier((512, 512)),
    },
}
TITLES = {
    "inputs": "Classifier 100-256-10, inputs in other units",
    "widths": "Classifier 100-width-width-10",
}


def run(name: str, options: Options) -> Result:
    """Train every optimizer on every version of the task at every learning rate."""
    points = 3 if options.quick else POINTS
    rates = [float(f"{rate:.2g}") for rate in np.logspace(-4, 0, points)]
    versions = {
        label: tasks.shortened(build()) if options.quick else build()
        for label, build in VERSIONS[name].items()
    }
    total = sum(task.steps for task in versions.values()) * points * options.seeds
    entries: dict[str, dict[str, Any]] = {}
    with tqdm(total=total * len(options.optimizers), desc=name, unit="step") as bar:
        for key in options.optimizers:
            found = {}
            for label, task in versions.items():
                bar.set_postfix_str(f"{key}, {label}")
                trainer = compile_trainer(task, OPTIMIZERS[key])
                evaluate = compile_evaluate(task)
                losses = sweep(task, trainer, evaluate, rates, options.seeds, bar)
                found[label] = losses["losses_by_seed"]
            entries[key] = {"label": OPTIMIZERS[key].label, "losses_by_seed": found}
    return {
        "title": TITLES[name],
        "target": next(iter(versions.values())).target,
        "rates": rates,
        "seeds": options.seeds,
        "optimizers": entries,
    }


def medians(result: Result, optimizer: str) -> dict[str, dict[float, float]]:
    """The median loss over the seeds by version and learning rate."""
    found = result["optimizers"][optimizer]["losses_by_seed"]
    return {
        label: {
            rate: float(np.median([np.inf if x is None else x for x in losses]))
            for rate, losses in zip(result["rates"], by_rate, strict=True)
        }
        for label, by_rate in found.items()
    }


def describe(result: Result) -> str:
    """The best rate and its loss, and the loss at that of the first version."""
    labels: list[str] = []
    rows = []
    for name, entry in result["optimizers"].items():
        losses = medians(result, name)
        labels = list(losses)
        first = analysis.lowest(losses[labels[0]])
        cells = [entry["label"]]
        for label in labels:
            best = analysis.lowest(losses[label])
            cell = f"{number(losses[label][best])} at {best:g}"
            if best != first:
                cell += f"; {number(losses[label][first])} at {first:g}"
            cells.append(cell)
        rows.append(cells)
    return table(["lowest loss", *labels], rows)


def draw(result: Result, path: Path) -> None:
    """Loss over learning rate: a panel for each optimizer, a line for each version."""
    names = list(result["optimizers"])
    figure = Figure(figsize=(3.2 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axis in zip(names, panels, strict=True):
        for index, (label, losses) in enumerate(medians(result, name).items()):
            values = [np.nan if np.isinf(loss) else loss for loss in losses.values()]
            line = figures.style_of(index)
            axis.loglog(list(losses), values, marker="o", label=label, **line)
        axis.set_title(result["optimizers"][name]["label"])
        axis.set_xlabel("learning rate")
        axis.grid(alpha=0.3, which="both")
    panels[0].set_ylabel(f"best {figures.LOSSES[result['target']]}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(result["title"])
    figures.save(figure, path)


JOB = Job(
    name="transfer",
    title="The best rate under other units, offsets and widths",
    reading=(
        "Every optimizer at the same nine learning rates from 0.0001 to 1: the lowest "
        "loss in training and its rate, medians over the seeds; where that is not the "
        "best rate of the first column, the loss at that rate, too: what is lost by "
        "keeping it."
    ),
    tasks=tuple(VERSIONS),
    optimizers=optimizers.of("transfer"),
    all_optimizers=tuple(OPTIMIZERS),
    seeds=3,
    run=run,
    table=describe,
    figure=draw,
)
