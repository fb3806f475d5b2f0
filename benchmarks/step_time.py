"""Time and memory of one training step, every optimizer against Adam in one run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import plots, report
from benchmarks.analysis import BASELINE
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import Options
from benchmarks.races import load
from benchmarks.tasks import Task
from benchmarks.training import Entry, batches, compile_trainer, run_block

BLOCK = 10  # steps timed together: one refresh of every factor
ROUNDS = (5, 18)  # at least, at most
SECONDS = 60.0  # of timing a task, once the fewest rounds are done


def main(options: Options) -> None:
    """Measure every task and print its table."""
    for name in options.tasks:
        result = run(name, options)
        print(describe(result), flush=True)
        path = Path(options.out) / f"step_time-{name}"
        report.write_json(path.with_suffix(".json"), result)
        plots.step_time_figure(result, path.with_suffix(".png"))
        print(f"Wrote {path}.json and {path}.png\n", flush=True)


def run(name: str, options: Options) -> dict[str, Any]:
    """Compile all optimizers, then time them in turn."""
    task = load(name, options.quick)
    trainers = {}
    with tqdm(options.optimizers, desc=f"{name}, compiling") as bar:
        for key in bar:
            trainers[key] = compile_trainer(task, OPTIMIZERS[key])
    # Far below the tuned rate: what is timed must not diverge.
    entries = {
        key: Entry(trainer, 0.01 * OPTIMIZERS[key].centre)
        for key, trainer in trainers.items()
    }
    block, rounds = (2, (1, 1)) if options.quick else (BLOCK, ROUNDS)
    seconds = _time(task, entries, block, rounds)
    baseline = np.array(seconds[BASELINE])
    return {
        "job": "step_time",
        "task": name,
        "title": task.title,
        "batch_size": task.batch_size,
        "block": block,
        "rounds": len(baseline),
        "optimizers": {
            key: {
                "label": OPTIMIZERS[key].label,
                "statistic": OPTIMIZERS[key].statistic,
                "block_seconds": seconds[key],
                "ratio_quartiles": np.quantile(
                    np.array(seconds[key]) / baseline, [0.25, 0.5, 0.75]
                ).tolist(),
                "temporary_bytes": trainers[key].temporary_bytes,
                "state_bytes": trainers[key].state_bytes,
            }
            for key in options.optimizers
        },
    }


def _time(
    task: Task, entries: dict[str, Entry], block: int, rounds: tuple[int, int]
) -> dict[str, list[float]]:
    """Seconds of every block after a warm-up round, A B C, B C A, C A B, ..."""
    fewest, most = rounds
    order = batches(task, seed=0)
    seconds: dict[str, list[float]] = {key: [] for key in entries}
    carries = {key: entry.trainer.init(0) for key, entry in entries.items()}
    names = list(entries)
    begin = time.perf_counter()
    for round_ in tqdm(range(most + 1), desc=f"{task.name}, timing", unit="round"):
        first = round_ % len(names)
        for key in names[first:] + names[:first]:
            carries[key], spent = run_block(
                entries[key], carries[key], task, order, block
            )
            if round_ > 0:
                seconds[key].append(spent)
        if round_ >= fewest and time.perf_counter() - begin > SECONDS:
            break
    return seconds


def describe(result: dict[str, Any]) -> str:
    """The table of one task."""
    baseline = result["optimizers"][BASELINE]
    rows = []
    for entry in result["optimizers"].values():
        low, middle, high = entry["ratio_quartiles"]
        per_step = 1e3 * float(np.median(entry["block_seconds"])) / result["block"]
        temporary = entry["temporary_bytes"]
        rows.append(
            [
                entry["label"],
                entry["statistic"] or "-",
                f"{per_step:.2f}",
                report.spread(middle, low, high),
                f"{temporary / 2**20:.1f}",
                report.ratio(temporary, baseline["temporary_bytes"]),
                f"{entry['state_bytes'] / 2**20:.2f}",
            ]
        )
    header = "optimizer | statistic | ms a step | step time / Adam | "
    header += "temporary MiB | / Adam | state MiB"
    title = (
        f"\n{result['title']}, batch {result['batch_size']}: {result['rounds']} rounds "
        f"of {result['block']} steps, medians and quartiles\n"
    )
    return title + "\n" + report.table(header.split(" | "), rows)
