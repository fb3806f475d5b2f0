"""ILLS under the UCI protocol, beside Adam, scikit-learn and published figures.

Hernandez-Lobato and Adams (2015): random splits of nine parts to one, one hidden layer
of 50 units (100 for protein), test RMSE in the targets' units. Year Prediction, the
tenth set of the paper, is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean, median, stdev

from tqdm import tqdm

from benchmarks.job import Job, Options, Result
from benchmarks.tables import number, table
from benchmarks.uci import data, published
from benchmarks.uci.methods import METHODS

UNITS = dict.fromkeys(data.BUNDLED, 50) | data.UNITS


def run(name: str, options: Options) -> Result:
    """Every method on every split."""
    try:
        known = data.load(name, options.folder)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    splits = range(min(options.seeds, len(known.splits)))
    found = {key: ([], []) for key in METHODS}
    for split in tqdm(splits, desc=name, unit="split"):
        part = data.standardised(known, split)
        for key, (errors, seconds) in found.items():
            begin = time.perf_counter()
            error = METHODS[key].error(part, UNITS[name], split, options.quick)
            errors.append(error)
            seconds.append(time.perf_counter() - begin)
    return {
        "title": name,
        "seeds": options.seeds,
        "samples": len(known.x),
        "features": known.x.shape[1],
        "units": UNITS[name],
        "methods": {
            key: {"label": METHODS[key].label, "rmse": errors, "seconds": seconds}
            for key, (errors, seconds) in found.items()
        },
    }


def across(results: Sequence[Result]) -> str:
    """A row a set: what was measured, then what was published."""
    labels = [entry["label"] for entry in results[0]["methods"].values()]
    others = [f"{method.label}, published" for method in published.METHODS.values()]
    header = ["set", "samples", "splits", *labels, *others]
    header += [f"seconds a split, {label}" for label in labels]
    return table(header, [_row(result) for result in results])


def _row(result: Result) -> list[str]:
    entries = result["methods"].values()
    known = published.RMSE.get(result["title"], {})
    figures = (known.get(key) for key in published.METHODS)
    return [
        result["title"],
        f"{result['samples']:,}",
        f"{len(next(iter(entries))['rmse'])}",
        *(with_error(entry["rmse"]) for entry in entries),
        *("-" if each is None else "{:.2f} ± {:.2f}".format(*each) for each in figures),
        *(number(median(entry["seconds"]), "{:.2f}") for entry in entries),
    ]


def with_error(values: Sequence[float | None]) -> str:
    """Mean and standard error over the splits."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return f"{len(numbers)} of {len(values)} splits"
    centre = mean(numbers)
    form = "{:.2f}" if centre >= 0.2 else "{:.4f}" if centre >= 0.01 else "{:.2g}"
    if len(numbers) == 1:
        return form.format(centre)
    error = stdev(numbers) / len(numbers) ** 0.5
    return f"{form.format(centre)} ± {form.format(error)}"


_SOURCES = "; ".join(
    f"{method.label} ({method.what}) from {method.source}"
    for method in published.METHODS.values()
)

JOB = Job(
    name="ills_uci",
    title="ILLS under the UCI protocol, beside published figures",
    reading=(
        "Test RMSE in the targets' units, mean and standard error over random splits "
        "of nine parts to one, the same for all that were measured here. One hidden "
        "layer of 50 units, 100 for protein; inputs and targets are standardised by "
        "the training part. All three hold a tenth of the training part out and stop "
        "by it: `IllsRegressor` with early stopping and all else by default; "
        "mini-batch Adam at four rates, of which the held-out error chooses; "
        "scikit-learn's `MLPRegressor` as it is. Seconds are medians and the first "
        "split compiles. Published figures, as printed, are of other programs: "
        f"{_SOURCES}. PBP prints standard errors; what MC dropout and deep ensembles "
        "print after ± is larger, about a standard deviation over the splits. Where "
        "two digits are printed, 0.00 and 0.01 say little."
    ),
    tasks=data.BUNDLED,
    all_tasks=(*data.BUNDLED, *data.UNITS),
    in_folder=tuple(data.UNITS),
    seeds=data.SPLITS,
    run=run,
    table=lambda result: across([result]),
    across=across,
    single=False,
)
