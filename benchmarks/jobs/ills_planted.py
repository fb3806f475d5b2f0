"""Whether the diagnostics of ILLS show a fault that was planted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from benchmarks.job import Job, Options, Result
from benchmarks.regression.planted import (
    DEEP,
    FIRST_SEED,
    PLANTS,
    ROWS,
    RULES,
    SHALLOW,
    STEPS,
    search,
)
from benchmarks.tables import table

HEADER = "fault | found | flagged without it | value with it | without | limit"


def run(name: str, options: Options) -> Result:
    """Every way to plant one fault, on every seed."""
    rule, plants = RULES[name], PLANTS[name]
    builds = list(plants.items())[:1] if options.quick else list(plants.items())
    rows = []
    for label, build in builds:
        seeds = tqdm(range(options.seeds), desc=label, unit="seed")
        found = [search(rule, build, FIRST_SEED + s, options.quick) for s in seeds]
        rows.append(
            {"label": label} | {key: [each[key] for each in found] for key in found[0]}
        )
    return {
        "title": f"{name.replace('_', ' ').capitalize()}: {rule.text}",
        "seeds": options.seeds,
        "limit": rule.limit,
        "rows": rows,
    }


def describe(result: Result) -> str:
    """A row a way to plant the fault."""
    rows = [
        [
            row["label"],
            *(f"{sum(row[key])} of {len(row[key])}" for key in ("found", "alarm")),
            *(_range(row[key]) for key in ("planted", "control")),
            f"{result['limit']:g}",
        ]
        for row in result["rows"]
    ]
    return table(HEADER.split(" | "), rows)


def _range(values: Sequence[float | None]) -> str:
    """Median and range; JSON has null for infinity."""
    known = [np.inf if value is None else value for value in values]
    low, middle, high = (f"{f(known):.3g}" for f in (np.min, np.median, np.max))
    return middle if low == high else f"{middle} ({low} to {high})"


JOB = Job(
    name="ills_planted",
    title="Faults planted, and what the diagnostics of ILLS show",
    reading=(
        f"A teacher's {ROWS} noisy rows and a tanh network of {DEEP} hidden units "
        f"({SHALLOW[0]} where there is one layer, and of rectifiers), {STEPS} "
        "iterations of ILLS, then `ills_diagnostics`. Every rule is fixed; its limit "
        "was chosen on other seeds. A fault counts as found where its own unit, layer "
        "or row is above the limit, and none is further; the same rule on the same "
        "network without the fault tells how often it is wrong. Values are, in the "
        "order of the tables: a layer's median of mean weights (`weights`) over the "
        "unit's; the mean of `saturated`; a row's sum of `weights` times `|ideal - "
        "pre_activations|` over the median row's; the least `condition` of the first "
        "layer's units. Medians with their range."
    ),
    tasks=tuple(PLANTS),
    seeds=10,
    run=run,
    table=describe,
)
