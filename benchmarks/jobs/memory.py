"""Temporary memory of one compiled step against Adam's, by task and statistic."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from benchmarks import tasks
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.jobs._choices import choices
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tables import ratio, table
from benchmarks.training import compile_trainer

SIZES = {"temporary_bytes": "temporary MiB", "state_bytes": "state MiB"}


def run(name: str, options: Options) -> Result:
    """Bytes that the compiler sets aside for a step, and bytes of the state."""
    task = tasks.load(name, options.quick, options.text)
    sizes = {}
    for key in tqdm(options.optimizers, desc=f"{name}, compiling"):
        trainer = compile_trainer(task, OPTIMIZERS[key])
        sizes[key] = {
            "label": OPTIMIZERS[key].label,
            "temporary_bytes": trainer.temporary_bytes,
            "state_bytes": trainer.state_bytes,
        }
    return {"title": task.title, "optimizers": sizes}


def across(results: Sequence[Result]) -> str:
    """One row a task: Adam's memory, and that of the others in multiples of it."""
    labels = {
        name: entry["label"]
        for result in results
        for name, entry in result["optimizers"].items()
    }
    header = ["task"]
    for title in SIZES.values():
        header += [f"{labels[BASELINE]}, {title}", *list(labels.values())[1:]]
    rows = []
    for result in results:
        entries, row = result["optimizers"], [result["title"]]
        for size in SIZES:
            base = entries[BASELINE][size]
            row.append(f"{base / 2**20:.2f}")
            for name in list(labels)[1:]:
                row.append(ratio(entries[name][size], base) if name in entries else "-")
        rows.append(row)
    return table(header, rows)


JOB = Job(
    name="memory",
    title="Memory of a compiled step",
    reading=(
        "What the compiler sets aside for one step, and what the optimizer keeps from "
        "step to step: Adam's in MiB, the others' in multiples of it. Nothing is run."
    ),
    **choices("memory"),
    run=run,
    table=lambda result: across([result]),
    across=across,
    single=False,
)
