"""Temporary memory of one compiled step against Adam's, by task and statistic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import races, report
from benchmarks.analysis import BASELINE
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import Options
from benchmarks.training import compile_trainer


def main(options: Options) -> None:
    """Compile every optimizer on every task; nothing runs."""
    result = {"job": "memory", "tasks": {n: run(n, options) for n in options.tasks}}
    print(describe(result), flush=True)
    path = Path(options.out) / "memory.json"
    report.write_json(path, result)
    print(f"Wrote {path}\n", flush=True)


def run(name: str, options: Options) -> dict[str, Any]:
    """Bytes that the compiler sets aside for a step, and bytes of the state."""
    task = races.load(name, options.quick)
    sizes = {}
    for key in tqdm(options.optimizers, desc=f"{name}, compiling"):
        trainer = compile_trainer(task, OPTIMIZERS[key])
        sizes[key] = {
            "label": OPTIMIZERS[key].label,
            "temporary_bytes": trainer.temporary_bytes,
            "state_bytes": trainer.state_bytes,
        }
    return {"title": task.title, "optimizers": sizes}


def describe(result: dict[str, Any]) -> str:
    """One row a task: Adam's memory, and that of the others in multiples of it."""
    tasks = result["tasks"]
    names = list(next(iter(tasks.values()))["optimizers"])
    labels = {name: OPTIMIZERS[name].label for name in names}
    header = ["task", "Adam, temporary MiB", "state MiB"]
    for name in names[1:]:
        header += [f"{labels[name]}, temporary", "state"]
    rows = []
    for entry in tasks.values():
        sizes = entry["optimizers"]
        base = sizes[BASELINE]
        row = [entry["title"], *(f"{base[key] / 2**20:.2f}" for key in _KEYS)]
        for name in names[1:]:
            row += [report.ratio(sizes[name][key], base[key]) for key in _KEYS]
        rows.append(row)
    return report.table(header, rows)


_KEYS = ("temporary_bytes", "state_bytes")
