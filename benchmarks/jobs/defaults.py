"""Every default of whiten(Adam), varied one at a time.

All variants train at the learning rate that serves the defaults best on the task, and
race to the best loss of tuned Adam; both come from the `whiten` job's JSON in the same
folder, and are found first where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optax
from tqdm import tqdm

import linboost_optax as lbo
from benchmarks import analysis, tasks, tuning
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.jobs import races
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.tables import number, table
from benchmarks.tasks import Task
from benchmarks.training import Entry, compile_evaluate, compile_trainer, race

DEFAULT = OPTIMIZERS["whiten"]


def _solver(label: str, **choices: float) -> Optimizer:
    solver = replace(lbo.Cholesky(), **choices)
    return replace(
        DEFAULT,
        label=label,
        build=lambda schedule, taps: lbo.whiten(optax.adam(schedule), taps, solver),
    )


def _auto(**options: int) -> Optimizer:
    ((name, value),) = options.items()
    statistic = replace(lbo.Auto(), **options)
    return replace(DEFAULT, label=f"{name} {value}", statistic=statistic)


def _published(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    return lbo.whiten(optax.adam(schedule), taps, lbo.IncompleteCholesky())


VARIANTS: list[Optimizer] = [
    replace(DEFAULT, label="the defaults"),
    _solver("ridge 0.1", ridge=0.1),
    _solver("ridge 0.01", ridge=0.01),
    _solver("decay 0.9", decay=0.9),
    _solver("decay 0.98", decay=0.98),
    _solver("every 5 steps", every=5),
    _solver("every 20 steps", every=20),
    _auto(rank=16),
    _auto(rank=32),
    _auto(max_samples=32),
    _auto(max_samples=512),
    replace(OPTIMIZERS["whiten_exact"], label="Gram matrices"),
    replace(OPTIMIZERS["whiten_ic"], label="moments"),
    replace(
        OPTIMIZERS["whiten_ic"], label="moments, published decays", build=_published
    ),
]


def run(name: str, options: Options) -> Result:
    """Train every variant on the first seed."""
    task = tasks.load(name, options.quick, options.text)
    goal, rate = reference(name, task, options)
    evaluate = compile_evaluate(task)
    rows = []
    for variant in tqdm(VARIANTS[:2] if options.quick else VARIANTS, desc=name):
        trainer = compile_trainer(task, variant)
        curves = race(task, {"": Entry(trainer, rate)}, evaluate)[""]
        rows.append(
            {
                "label": variant.label,
                "best": analysis.best(curves, task.target),
                "steps": analysis.steps_to(curves, task.target, goal),
            }
        )
    return {
        "title": task.title,
        "target": task.target,
        "steps": task.steps,
        "goal": goal,
        "learning_rate": rate,
        "variants": rows,
    }


def reference(name: str, task: Task, options: Options) -> tuple[float, float]:
    """Adam's best loss, and the learning rate of the defaults."""
    few = (BASELINE, "whiten")
    record = tuning.recorded(name, task, options)
    if not set(few) <= set(record):
        alone = replace(options, optimizers=few, seeds=1)
        record = races.run(name, alone)["optimizers"]
    goal = min(tuning.recorded_losses(record[BASELINE]).values())
    return goal, record["whiten"]["learning_rate"]


def across(results: Sequence[Result]) -> str:
    """One row a variant, one column a task: lowest loss, and steps to Adam's best."""
    variants: list[dict[str, dict[str, Any]]] = [
        {row["label"]: row for row in result["variants"]} for result in results
    ]
    header = ["whiten(Adam), lowest loss (steps to Adam's best)"]
    header += [f"{result['title']}, {result['learning_rate']:g}" for result in results]
    rows = []
    for label in dict.fromkeys(label for rows in variants for label in rows):
        cells = [_cell(of_task.get(label)) for of_task in variants]
        rows.append([label, *cells])
    return table(header, rows)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{number(row['best'])} ({number(row['steps'], '{:.0f}')})"


JOB = Job(
    name="defaults",
    title="Every default of whiten(Adam), changed on its own",
    reading=(
        "All variants of a task train on one seed at the learning rate that serves the "
        "defaults best, which is in the head of the column. Losses are looked at every "
        "10 or 20 steps, so differences of that size are noise; a dash means that "
        "Adam's best loss was not reached."
    ),
    tasks=tasks.of("defaults"),
    all_tasks=tuple(tasks.TASKS),
    reads_text=True,
    run=run,
    table=lambda result: across([result]),
    across=across,
    single=False,
)
