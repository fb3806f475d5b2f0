"""Time, memory and compilation of one training step, all against Adam in one run."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import figures, tasks
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.jobs._choices import choices
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tables import ratio, spread, table
from benchmarks.tasks import Task
from benchmarks.training import Entry, Trainer, batches, compile_trainer, run_block

BLOCK = 10  # steps timed together: one refresh of every factor
ROUNDS = (5, 18)  # at least, at most
SECONDS = 60.0  # of timing a task, once the fewest rounds are done
COMPILATIONS = 3  # of each step; the median counts


def run(name: str, options: Options) -> Result:
    """Compile all optimizers in turn, then time them in turn."""
    task = tasks.load(name, options.quick, options.text)
    trainers, compiling = compile_all(
        task, options.optimizers, 1 if options.quick else COMPILATIONS
    )
    # Far below the tuned rate: what is timed must not diverge.
    entries = {
        key: Entry(trainer, 0.01 * OPTIMIZERS[key].centre)
        for key, trainer in trainers.items()
    }
    block, rounds = (2, (1, 1)) if options.quick else (BLOCK, ROUNDS)
    seconds = _time(task, entries, block, rounds)
    baseline = np.array(seconds[BASELINE])
    return {
        "title": task.title,
        "batch_size": task.batch_size,
        "block": block,
        "rounds": len(baseline),
        "optimizers": {
            key: {
                "label": OPTIMIZERS[key].label,
                "statistic": getattr(OPTIMIZERS[key].statistic, "name", None),
                "block_seconds": seconds[key],
                "ratio_quartiles": np.quantile(
                    np.array(seconds[key]) / baseline, [0.25, 0.5, 0.75]
                ).tolist(),
                "compile_seconds": compiling[key],
                "temporary_bytes": trainers[key].temporary_bytes,
                "state_bytes": trainers[key].state_bytes,
            }
            for key in options.optimizers
        },
    }


def compile_all(
    task: Task, names: tuple[str, ...], rounds: int
) -> tuple[dict[str, Trainer], dict[str, list[float]]]:
    """Compile every step some times, and every time as if it were the first.

    JAX keeps what it has traced, pieces of one optimizer's step are pieces of
    another's, and the first compilation of a process is slower than all others. So
    one is thrown away, and caches are cleared before each that counts.
    """
    trainers: dict[str, Trainer] = {}
    seconds: dict[str, list[float]] = {key: [] for key in names}
    if rounds > 1:
        compile_trainer(task, OPTIMIZERS[BASELINE])
    for key in tqdm(names * rounds, desc="compiling", unit="step"):
        jax.clear_caches()
        trainers[key] = compile_trainer(task, OPTIMIZERS[key])
        seconds[key].append(trainers[key].compile_seconds)
    return trainers, seconds


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
    for round_ in tqdm(range(most + 1), desc="timing", unit="round"):
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


def describe(result: Result) -> str:
    """The table of one task."""
    baseline = result["optimizers"][BASELINE]
    rows = []
    for entry in result["optimizers"].values():
        low, middle, high = entry["ratio_quartiles"]
        per_step = 1e3 * float(np.median(entry["block_seconds"])) / result["block"]
        temporary = entry["temporary_bytes"]
        compiling, reference = (
            float(np.median(each["compile_seconds"])) for each in (entry, baseline)
        )
        rows.append(
            [
                entry["label"],
                entry["statistic"] or "-",
                f"{per_step:.2f}",
                spread(middle, low, high),
                f"{temporary / 2**20:.1f}",
                ratio(temporary, baseline["temporary_bytes"]),
                f"{entry['state_bytes'] / 2**20:.2f}",
                f"{compiling:.2f}",
                ratio(compiling, reference),
            ]
        )
    header = "optimizer | statistic | ms a step | step time / Adam | "
    header += "temporary MiB | / Adam | state MiB | compile s | / Adam"
    title = (
        f"Batch {result['batch_size']}, {result['rounds']} rounds of "
        f"{result['block']} steps:\n"
    )
    return title + "\n" + table(header.split(" | "), rows)


def draw(result: Result, path: Path) -> None:
    """Step time relative to Adam: median and quartiles."""
    entries = result["optimizers"]
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(entries)), layout="constrained")
    axis = figure.subplots()
    for row, (name, entry) in enumerate(entries.items()):
        low, middle, high = entry["ratio_quartiles"]
        error = [[middle - low], [high - middle]]
        colour = figures.style(name)["color"]
        axis.barh(row, middle, xerr=error, color=colour, capsize=3)
        axis.text(high, row, f"  {middle:.2f}x", va="center")
    axis.set_yticks(range(len(entries)), [entry["label"] for entry in entries.values()])
    axis.invert_yaxis()
    axis.axvline(1, color="grey", linestyle=":")
    axis.margins(x=0.12)
    axis.set_xlabel("step time / Adam's, same run, median and quartiles")
    axis.set_title(f"{result['title']}, batch {result['batch_size']}: step time")
    figures.save(figure, path)


JOB = Job(
    name="step_time",
    title="Price of a step: time, memory and compilation",
    reading=(
        "Optimizers take turns, a block of steps each; step times are medians and "
        "quartiles of ratios to Adam's block of the same round. Temporary memory is "
        "what the compiler sets aside for one step, state what the optimizer keeps. "
        f"Compilation is tracing, lowering and XLA's own, the median of {COMPILATIONS} "
        "with empty caches."
    ),
    **choices("step_time"),
    run=run,
    table=describe,
    figure=draw,
)
