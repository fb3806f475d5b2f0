"""Tune every optimizer, then race them in one run: the jobs `main` and `whiten`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import analysis, comparison, figures, tasks, tuning
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.jobs._choices import choices
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tables import number, over_seeds, ratio, spread, table
from benchmarks.training import (
    Curves,
    Entry,
    Trainer,
    compile_evaluate,
    compile_trainer,
    race,
)


def run(name: str, options: Options) -> Result:
    """Tune on the first seed, untimed; then race the tuned optimizers, clocked."""
    task = tasks.load(name, options.quick, options.text)
    points = tuning.points(options.quick)
    evaluate = compile_evaluate(task)
    runs = len(options.optimizers) * (points + options.seeds)
    with tqdm(total=runs * task.steps, desc=name, unit="step") as bar:
        trainers: dict[str, Trainer] = {}
        tried: dict[str, dict[float, Curves]] = {}
        for key in options.optimizers:
            bar.set_postfix_str(f"tuning {key}")
            optimizer = OPTIMIZERS[key]
            trainers[key] = compile_trainer(task, optimizer)
            tried[key] = tuning.tune(
                task, optimizer, trainers[key], evaluate, points, bar
            )
        goal = min(tuning.losses_of(tried[BASELINE], task).values())
        records = {key: tuning.record(tried[key], task, goal) for key in tried}
        entries = {
            key: Entry(trainers[key], record["learning_rate"])
            for key, record in records.items()
        }
        bar.set_postfix_str("racing")
        curves = [
            race(task, entries, evaluate, seed, bar.update)
            for seed in range(options.seeds)
        ]
    return {
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


def describe(result: Result) -> str:
    """The table of one race, and the grids that its learning rates come from."""
    lines = [
        f"{result['steps']} steps, batch {result['batch_size']}, to Adam's best "
        f"{figures.LOSSES[result['target']]}:\n",
        race_table(result),
        glance(result),
        "\nLearning rates tried on the first seed, with their best loss and steps to "
        "the target:\n",
    ]
    for entry in result["optimizers"].values():
        tried = ", ".join(
            f"{float(rate):g}: {number(tuned['best'])}"
            f" ({number(tuned['steps'], '{:.0f}')})"
            for rate, tuned in entry["tuning"].items()
        )
        lines.append(f"- {entry['label']}: {tried}")
    return "\n".join(lines)


def race_table(result: Result) -> str:
    """Every optimizer of a race in one row, measured against the baseline."""
    memory = result["optimizers"][BASELINE]["temporary_bytes"]
    rows = []
    for name, entry in result["optimizers"].items():
        seeds = analysis.per_seed(result, name)
        row = analysis.summarise(result, name)

        def cell(key: str, form: str = "{:.4g}", seeds: Any = seeds) -> str:
            return over_seeds([seed[key] for seed in seeds], form)

        rows.append(
            [
                entry["label"],
                number(entry["learning_rate"]) + ("*" if entry["edge"] else ""),
                number(entry["lowest"]),
                cell("train_loss"),
                cell("test_loss"),
                number(row["test_accuracy"]),
                cell("steps", "{:.0f}"),
                number(row["steps_ratio"], "{:.2f}x"),
                cell("seconds", "{:.2f}"),
                number(row["seconds_ratio"], "{:.2f}x"),
                spread(row["step_time"], row["step_time_low"], row["step_time_high"]),
                ratio(entry["temporary_bytes"], memory),
            ]
        )
    header = "optimizer | learning rate | lowest loss | train loss | test loss | "
    header += "accuracy | steps | / Adam | seconds | / Adam | "
    header += "step time / Adam | memory / Adam"
    return table(header.split(" | "), rows)


def glance(result: Result) -> str:
    """Which to take: who is first at the baseline's best loss, and who ends lowest."""
    entries = result["optimizers"]
    rows = {name: analysis.summarise(result, name) for name in entries}
    said = []
    for what, key in (("fewest steps", "steps_ratio"), ("least time", "seconds_ratio")):
        ratios = {n: value for n, row in rows.items() if (value := row[key])}
        if ratios:
            first = min(ratios, key=ratios.__getitem__)
            said.append(f"{what}: {entries[first]['label']}, {ratios[first]:.2f}x")
    last = min(entries.values(), key=lambda entry: entry["lowest"])
    said.append(f"lowest loss: {last['label']}, {number(last['lowest'])}")
    text = "; ".join(said)
    return f"\n{text[0].upper()}{text[1:]}."


def draw(result: Result, path: Path) -> None:
    """Training and test loss over steps and over time; one seed's curves."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", sharex="col")
    for row, (key, label) in enumerate(figures.LOSSES.items()):
        for column, over in enumerate(("step", "seconds")):
            axis = axes[row][column]
            _curves(axis, result, over, key)
            if column == 0:
                axis.set_ylabel(label)
            if row == 1:
                axis.set_xlabel("steps" if over == "step" else "seconds of training")
    first = result["optimizers"][BASELINE]["curves"][0]
    raced = axes[list(figures.LOSSES).index(result["target"])]
    for axis in raced:
        goal = analysis.best(first, result["target"])
        axis.axhline(goal, color="grey", linestyle=":", label="Adam's best")
    figure.suptitle(f"{result['title']}: learning rates tuned, then one run in turn")
    handles, labels = raced[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figures.save(figure, path)


def _curves(axis: Axes, result: Result, over: str, key: str) -> None:
    values: list[float] = []
    for name, entry in result["optimizers"].items():
        curves = entry["curves"][0]
        label = f"{entry['label']}, {entry['learning_rate']:g}"
        axis.semilogy(curves[over], curves[key], label=label, **figures.style(name))
        values += curves[key]
    figures.limit(axis, values, start=values[0])
    axis.grid(alpha=0.3, which="both")


READING = (
    'A race ends at Adam\'s best loss: "steps" and "seconds" are those to reach it, at '
    'the learning rate that gets there first; "lowest loss" is that of the best rate '
    "on the first seed, the other losses are those at the end of the race. Medians "
    "over the seeds, with their range in brackets where they differ; a dash means that "
    "the target was not reached. Ratios of step time are medians and quartiles over "
    "blocks. * marks a grid of learning rates with the lowest loss at its edge."
)


def _job(name: str, title: str, **others: Any) -> Job:
    return Job(
        name=name,
        title=title,
        reading=READING,
        seeds=1,
        run=run,
        table=describe,
        figure=draw,
        **choices(name),
        **others,
    )


MAIN = _job("main", "Digits: every method beside tuned Adam")
WHITEN = _job(
    "whiten",
    "Ours, Muon and SOAP against Adam, all tuned",
    across=comparison.tables,
)
