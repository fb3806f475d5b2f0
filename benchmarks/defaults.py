"""Every default of whiten(Adam), varied one at a time.

All variants train at the learning rate that serves the defaults best on the task, and
race to the best loss of tuned Adam; both come from the `whiten` job's JSON in the same
folder, and are found first where there is none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optax
from tqdm import tqdm

import linboost_optax as lbo
from benchmarks import analysis, races, report
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.options import Options
from benchmarks.tasks import Task
from benchmarks.training import Entry, compile_evaluate, compile_trainer, race

DEFAULT = OPTIMIZERS["whiten"]


def _solver(label: str, **choices: float) -> Optimizer:
    solver = lbo.Cholesky(**{"ridge": 0.03, **choices})  # pyright: ignore[reportArgumentType]
    return replace(
        DEFAULT,
        label=label,
        build=lambda schedule, taps: lbo.whiten(optax.adam(schedule), taps, solver),
    )


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
    replace(DEFAULT, label="rank 16", taps={"rank": 16}),
    replace(DEFAULT, label="rank 32", taps={"rank": 32}),
    replace(DEFAULT, label="max_samples 32", taps={"max_samples": 32}),
    replace(DEFAULT, label="max_samples 512", taps={"max_samples": 512}),
    replace(OPTIMIZERS["whiten_exact"], label="Gram matrices"),
    replace(OPTIMIZERS["whiten_ic"], label="moments"),
    replace(
        OPTIMIZERS["whiten_ic"], label="moments, published decays", build=_published
    ),
]


def main(options: Options) -> None:
    """Vary the defaults on every task."""
    for name in options.tasks:
        result = run(name, options)
        print(describe(result), flush=True)
        path = Path(options.out) / f"defaults-{name}.json"
        report.write_json(path, result)
        print(f"Wrote {path}\n", flush=True)


def run(name: str, options: Options) -> dict[str, Any]:
    """Train every variant on the first seed."""
    task = races.load(name, options.quick)
    goal, rate = reference(task, options)
    evaluate = compile_evaluate(task)
    rows = []
    for variant in tqdm(VARIANTS[:3] if options.quick else VARIANTS, desc=name):
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
        "job": "defaults",
        "task": name,
        "title": task.title,
        "target": task.target,
        "steps": task.steps,
        "goal": goal,
        "learning_rate": rate,
        "variants": rows,
    }


def reference(task: Task, options: Options) -> tuple[float, float]:
    """Adam's best loss, and the learning rate of the defaults."""
    path = Path(options.out) / f"whiten-{task.name}.json"
    if not path.is_file():
        few = replace(options, optimizers=("adam", "whiten"), seeds=1)
        report.write_json(path, races.run(task.name, few))
    tuned = json.loads(path.read_text())["optimizers"]
    losses = [entry["best"] for entry in tuned["adam"]["tuning"].values()]
    return min(loss for loss in losses if loss is not None), tuned["whiten"][
        "learning_rate"
    ]


def describe(result: dict[str, Any]) -> str:
    """The table of one task."""
    rows = [
        [
            row["label"],
            report.number(row["best"]),
            report.number(row["steps"], "{:.0f}"),
        ]
        for row in result["variants"]
    ]
    title = (
        f"\n{result['title']}: whiten(Adam) at {result['learning_rate']:g}, steps of "
        f"{result['steps']} to Adam's best {result['target'].replace('_', ' ')} "
        f"{result['goal']:.4g}\n"
    )
    return title + "\n" + report.table(["varied", "lowest loss", "steps"], rows)
