"""What a step costs beside Adam's as one size grows, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import figures, optimizers
from benchmarks.growth import curves
from benchmarks.growth.measure import compiled, measure
from benchmarks.growth.sweeps import SWEEPS
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.steps import QUICK, Clock
from benchmarks.tables import ratio, spread, table

CLOCK = Clock(fewest=3, seconds=8.0)

HEADER = (
    "optimizer",
    "{}",
    "ms a step",
    "step time / Adam",
    "compile s",
    "/ Adam",
    "state MiB",
    "/ Adam",
    "operations added",
)


def run(name: str, options: Options) -> Result:
    """Measures one size after another, from the smallest."""
    sweep = SWEEPS[name]
    sizes = sweep.quick if options.quick else sweep.sizes
    clock = QUICK if options.quick else CLOCK
    if not options.quick:  # the first compilation of a process is slower than others
        compiled(sweep.build(sizes[0]), OPTIMIZERS[BASELINE])
    points = [
        {"size": size, **measure(sweep.build(size), options.optimizers, clock)}
        for size in tqdm(sizes, desc=name, unit="size")
    ]
    return {
        "title": sweep.title,
        "axis": sweep.axis,
        "block": clock.block,
        "points": points,
    }


def describe(result: Result) -> str:
    """A row for every optimizer and size."""
    rows = [
        [entry["label"], f"{size:,}", *_cells(entry, adam, result["block"])]
        for name in _names(result)
        for size, entry, adam in _along(result, name)
    ]
    return table([each.format(result["axis"]) for each in HEADER], rows)


def across(results: Sequence[Result]) -> str:
    """The ends of every sweep: at the smallest size, and at the largest."""
    header = ("what grows", "optimizer", "step time / Adam", "compile / Adam")
    rows = []
    for result in results:
        first, last = (result["points"][end]["size"] for end in (0, -1))
        title = f"{result['axis']}, {first:,} to {last:,}"
        for name in _names(result):
            if name == BASELINE:
                continue
            pairs = [pair for _, *pair in _along(result, name)]
            ends = [_ratios(*pairs[end]) for end in (0, -1)]
            cells = (f"{a} to {b}" for a, b in zip(*ends, strict=True))
            rows.append([title, pairs[0][0]["label"], *cells])
            title = ""
    return table([*header, "state / Adam", "operations added"], rows)


def _names(result: Result) -> list[str]:
    return list(result["points"][0]["optimizers"])


def _along(result: Result, name: str) -> list[tuple[int, Any, Any]]:
    """Sizes, with what was found of an optimizer and of Adam there."""
    return [
        (each["size"], each["optimizers"][name], each["optimizers"][BASELINE])
        for each in result["points"]
    ]


def _ratios(entry: Any, adam: Any) -> list[str]:
    return [
        ratio(entry["ratio_quartiles"][1], 1.0),
        ratio(entry["compile_seconds"], adam["compile_seconds"]),
        ratio(entry["state_bytes"], adam["state_bytes"]),
        f"{entry['added_flops']:.1%}",
    ]


def _cells(entry: Any, adam: Any, block: int) -> list[str]:
    low, middle, high = entry["ratio_quartiles"]
    _, compiling, state, added = _ratios(entry, adam)
    return [
        f"{1e3 * float(np.median(entry['block_seconds'])) / block:.2f}",
        spread(middle, low, high),
        f"{entry['compile_seconds']:.2f}",
        compiling,
        f"{entry['state_bytes'] / 2**20:.2f}",
        state,
        added,
    ]


def draw(result: Result, path: Path) -> None:
    """Step time and state over the size, in multiples of Adam's."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    time, state = figure.subplots(1, 2)
    curves.step_time(time, result)
    time.set_title("step time / Adam's, median and quartiles")
    curves.state_bytes(state, result)
    state.set_title("bytes of the state / Adam's")
    time.legend(frameon=False)
    figure.suptitle(result["title"])
    figures.save(figure, path)


JOB = Job(
    name="growth",
    title="What a step costs as one size grows",
    reading=(
        "On one device, all sizes but one standing still. Optimizers take turns, a "
        "block of ten steps each, one refresh of every factor; step times are medians "
        "and quartiles of ratios to Adam's block of the same round. Compilation is "
        "tracing, lowering and XLA's own, once, caches empty, in seconds of the "
        "processor. State is what the optimizer keeps. Operations are what "
        "`taps.report()` counts, not measured: those of statistics and solver, over "
        "the layers' own, forward and backward; the orthogonal step of `polar` is not "
        "in them. Where inputs are up to 128 wide the statistic is a Gram matrix, else "
        "a sketch."
    ),
    tasks=tuple(SWEEPS),
    optimizers=(BASELINE, "whiten", "polar"),
    all_optimizers=tuple(optimizers.OPTIMIZERS),
    run=run,
    table=describe,
    across=across,
    figure=draw,
)
