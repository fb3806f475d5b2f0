"""What a step says between devices, and holds on each, as their number grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from benchmarks import optimizers
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.scaling.collectives import total
from benchmarks.scaling.layouts import LAYOUTS
from benchmarks.scaling.worker import Work, launch
from benchmarks.tables import ratio, spread, table

DEVICES, QUICK_DEVICES = (1, 2, 4, 8), (1, 2)
ROWS, QUICK_ROWS = 512, 16  # of a batch, however many devices
ROWS_A_DEVICE, QUICK_ROWS_A_DEVICE = 128, 8  # where the batch grows with them

HEADER = (
    "optimizer",
    "devices",
    "collectives",
    "said, MiB",
    "state MiB a device",
    "of one device's",
    "temporary MiB a device",
    "step time / Adam",
)


def run(name: str, options: Options) -> Result:
    """Measures every number of devices in a process of its own, one after another."""
    devices = QUICK_DEVICES if options.quick else DEVICES
    rows = {"rows": QUICK_ROWS if options.quick else ROWS}
    if LAYOUTS[name].grows:
        rows["rows_a_device"] = QUICK_ROWS_A_DEVICE if options.quick else ROWS_A_DEVICE
    result = {"title": LAYOUTS[name].title, "devices": list(devices), **rows}
    # Where both batches are of one size, one process serves both.
    sizes = dict.fromkeys(size for way in rows for size in _sizes(result, way))
    runs = []
    for count, batch in tqdm(sizes, desc=name, unit="process"):
        work = Work(name, count, batch, options.optimizers, options.quick)
        runs.append({"devices": count, "batch": batch, "optimizers": launch(work)})
    return result | {"runs": runs}


def describe(result: Result) -> str:
    """A table of one batch on all devices, and one of a batch that grows with them."""
    parts = [f"{result['rows']} rows in all:", _table(result, "rows")]
    if "rows_a_device" in result:
        title = f"{result['rows_a_device']} rows a device:"
        parts += [title, _table(result, "rows_a_device")]
    return "\n\n".join(parts)


def across(results: Sequence[Result]) -> str:
    """One batch on the most devices, under every layout."""
    header = ("layout", *HEADER[:4], "/ Adam", *HEADER[4:6])
    rows = []
    for result in results:
        found, sizes = _found(result), _sizes(result, "rows")
        few, many = found[sizes[0]], found[sizes[-1]]
        adam, title = total(many[BASELINE]["every_step"], "bytes"), result["title"]
        for name, entry in many.items():
            label, *counted = _row(entry, few[name], sizes[-1][0])[:6]
            more = ratio(total(entry["every_step"], "bytes"), adam)
            rows.append([title, label, *counted[:3], more, *counted[3:]])
            title = ""
    return table(header, rows)


def _sizes(result: Result, way: str) -> list[tuple[int, int]]:
    """Devices and rows of a batch: as many on all of them, or as many on each."""
    grows = way == "rows_a_device"
    return [
        (count, result[way] * (count if grows else 1)) for count in result["devices"]
    ]


def _found(result: Result) -> dict[tuple[int, int], dict[str, Any]]:
    """What was found of all optimizers, by devices and rows of a batch."""
    return {(run["devices"], run["batch"]): run["optimizers"] for run in result["runs"]}


def _table(result: Result, way: str) -> str:
    found, sizes = _found(result), _sizes(result, way)
    first = found[sizes[0]]
    rows = [
        _row(found[size][name], first[name], size[0])
        for name in first
        for size in sizes
    ]
    return table(HEADER, rows)


def _row(entry: dict[str, Any], first: dict[str, Any], devices: int) -> list[str]:
    """One optimizer on some devices; `first` is the same on the fewest."""
    low, middle, high = entry["ratio_quartiles"]
    return [
        entry["label"],
        str(devices),
        _with_branches(entry, "count", str),
        _with_branches(entry, "bytes", lambda size: f"{size / 2**20:.2f}"),
        f"{entry['state_bytes'] / 2**20:.2f}",
        f"{entry['state_bytes'] / first['state_bytes']:.0%}",
        f"{entry['temporary_bytes'] / 2**20:.2f}",
        spread(middle, low, high),
    ]


def _with_branches(entry: dict[str, Any], what: str, form: Callable[[int], str]) -> str:
    """A sum over all kinds of collectives, that of branches in brackets."""
    every, branches = (
        total(entry[where], what) for where in ("every_step", "in_branches")
    )
    return form(every) + (f" (+{form(branches)})" if branches else "")


JOB = Job(
    name="scaling",
    title="Several devices: what they say, and what each holds",
    reading=(
        "One step on a mesh of automatic axes, state and parameters pinned, as XLA "
        "compiles it for CPUs: collectives, those in loops as often as the loop turns, "
        "and the arrays that they carry, whole where pieces are gathered. In brackets "
        "are those in branches, such as the refresh of every tenth step, which are "
        "said in some steps only. State and temporary memory are of one device. The "
        "devices are made of one processor, which they share: times tell of overhead "
        "alone, and nothing of what devices of their own would gain. They are medians "
        "and quartiles of ratios to Adam's block of the same round, under the same "
        "layout on as many devices."
    ),
    tasks=tuple(LAYOUTS),
    optimizers=(BASELINE, "whiten", "polar"),
    all_optimizers=tuple(optimizers.OPTIMIZERS),
    run=run,
    table=describe,
    across=across,
)
