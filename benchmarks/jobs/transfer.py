"""Does the best learning rate stay where it is when one thing about a task changes?

The digits classifier with its pixels in other units, off centre, with other widths,
batches and depths, with normalisation layers and without; every optimizer trains on all
versions at the same rates.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import analysis, figures, optimizers, tasks
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.jobs.sensitivity import sweep
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tables import number, table
from benchmarks.tasks.versions import STUDIES
from benchmarks.training import compile_evaluate, compile_trainer

BY_SEED = ("losses_by_seed", "test_by_seed", "accuracy_by_seed")  # [rate][seed]


def run(name: str, options: Options) -> Result:
    """Train every optimizer on every version of the task at every learning rate."""
    study = STUDIES[name]
    points = 3 if options.quick else study.points
    versions = {
        label: tasks.shortened(build()) if options.quick else build()
        for label, build in study.chosen(options.quick)
    }
    chosen = [key for key in options.optimizers if key not in study.leaves_out]
    total = sum(task.steps for task in versions.values()) * points * options.seeds
    entries: dict[str, dict[str, Any]] = {}
    with tqdm(total=total * len(chosen), desc=name, unit="step") as bar:
        for key in chosen:
            rates = study.rates(shift(key), points)
            found: dict[str, dict[str, Any]] = {}
            for label, task in versions.items():
                bar.set_postfix_str(f"{key}, {label}")
                trainer = compile_trainer(task, OPTIMIZERS[key])
                evaluate = compile_evaluate(task)
                swept = sweep(task, trainer, evaluate, rates, options.seeds, bar)
                for what in BY_SEED:
                    found.setdefault(what, {})[label] = swept[what]
            entries[key] = {"label": OPTIMIZERS[key].label, "rates": rates, **found}
    return {
        "title": study.title,
        "target": next(iter(versions.values())).target,
        "rates": study.rates(points=points),
        "seeds": options.seeds,
        "optimizers": entries,
    }


def shift(key: str) -> float:
    """How many times higher an optimizer's rates lie than Adam's: a power of ten."""
    ratio = OPTIMIZERS[key].centre / OPTIMIZERS[BASELINE].centre
    return 10.0 ** int(math.log10(ratio))


def rates_of(result: Result, optimizer: str) -> list[float]:
    """An optimizer's learning rates; older results have the same for all."""
    return result["optimizers"][optimizer].get("rates", result["rates"])


def medians(result: Result, optimizer: str) -> dict[str, dict[float, float]]:
    """The median loss over the seeds by version and learning rate."""
    found = result["optimizers"][optimizer]["losses_by_seed"]
    return {
        label: {
            rate: float(np.median([np.inf if x is None else x for x in losses]))
            for rate, losses in zip(rates_of(result, optimizer), by_rate, strict=True)
        }
        for label, by_rate in found.items()
    }


def describe(result: Result) -> str:
    """The best rate and its loss, and the loss at that of the first version.

    Then the accuracy on the test set at the best rate, which older results have not.
    """
    labels: list[str] = []
    rows, accuracies = [], []
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
        if "accuracy_by_seed" in entry:
            shares = [accuracy_at_best(result, name, label) for label in labels]
            accuracies.append([entry["label"], *shares])
    tables = [table(["lowest loss", *labels], rows)]
    if accuracies:
        tables.append(table(["test accuracy there", *labels], accuracies))
    return "\n\n".join(tables)


def accuracy_at_best(result: Result, optimizer: str, label: str) -> str:
    """The median accuracy over the seeds at the rate of the lowest median loss."""
    losses = medians(result, optimizer)[label]
    index = list(losses).index(analysis.lowest(losses))
    by_rate = result["optimizers"][optimizer]["accuracy_by_seed"][label]
    found = analysis.median(by_rate[index])
    return "-" if found is None or math.isnan(found) else f"{found:.1%}"


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


READING = """\
Every optimizer at the same learning rates, nine from 0.0001 to 1 for units and widths,
seven from 0.00032 to 0.32 for the rest; LNB's are ten times as high. The lowest loss in
training and its rate, medians over the seeds; where that is not the best rate of the
first column, the loss at that rate, too: what is lost by keeping it. Then the share of
the test set that is right at the point of that lowest loss, where it was recorded.
Batches of every size read as many samples, until that would be fewer than 160 steps:
equal steps would give small batches less data, equal samples large ones a handful of
steps. Layers of a deep network start as Flax starts them (LeCun's normal), which for
square layers has Glorot's variance. SOAP runs on units and widths alone: the time it
takes grows with the layers' sides, and stacked kernels are one matrix to it.
""".replace("\n", " ").strip()

JOB = Job(
    name="transfer",
    title="The best rate when inputs, sizes or norms change",
    reading=READING,
    tasks=tuple(STUDIES),
    optimizers=optimizers.of("transfer"),
    all_optimizers=tuple(OPTIMIZERS),
    seeds=5,
    run=run,
    table=describe,
    figure=draw,
)
