"""Races on several tasks side by side: one row a task, one column an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks import analysis
from benchmarks.job import BASELINE, Result
from benchmarks.tables import number, over_seeds, table

RECOMMENDED, RIVALS = "polar", ("muon", "soap")


def tables(results: Sequence[Result]) -> str:
    """Steps and time to Adam's best loss, to the rivals'; losses, price of a step."""
    parts = [to_target(results), losses(results)]
    raced = [result for result in results if RECOMMENDED in result["optimizers"]]
    if raced:
        parts[1:1] = [against_rivals(raced)]
    return "\n\n".join(parts)


def against_rivals(results: Sequence[Result]) -> str:
    """How soon the recommended recipe is at the best loss of each rival.

    In multiples of the rival's own steps and time, with the same seeds.
    """
    labels = {name: label for name, label in _labels(results).items() if name in RIVALS}
    mine = _labels(results)[RECOMMENDED]
    header = [f"{mine}: steps / time to the best loss of"]
    header += [*labels.values(), "at Adam's own rate, steps"]
    rows = []
    for result in results:
        row = [_title(result)]
        row += [_reached(result, RECOMMENDED, than=rival) for rival in labels]
        rows.append([*row, _at_baseline_rate(result)])
    return table(header, rows)


def _at_baseline_rate(result: Result) -> str:
    """Steps to the baseline's best loss at its own rate; of the grids, the nearest."""
    entries = result["optimizers"]
    wanted = entries[BASELINE]["learning_rate"]

    def steps_at(name: str) -> float | None:
        tried = {float(rate): one for rate, one in entries[name]["tuning"].items()}
        rate = min(tried, key=lambda rate: abs(math.log(rate / wanted)))
        return tried[rate]["steps"]

    steps, reference = steps_at(RECOMMENDED), steps_at(BASELINE)
    if steps is None or not reference:
        return "not reached"
    return f"{steps / reference:.2f}x"


def to_target(results: Sequence[Result]) -> str:
    """Steps and seconds to the baseline's best loss, in multiples of its own."""
    labels = _labels(results)
    header = ["steps / time to Adam's best loss", *list(labels.values())[1:]]
    rows = []
    for result in results:
        others = list(labels)[1:]
        rows.append([_title(result), *(_reached(result, name) for name in others)])
        if result["target"] == "test_loss":
            title = f"{result['title']}, training loss, same runs"
            training = {**result, "target": "train_loss"}
            rows.append([title, *(_reached(training, name) for name in others)])
    return table(header, rows)


def losses(results: Sequence[Result]) -> str:
    """Lowest loss of all learning rates, test loss of the race, time of a step."""
    labels = _labels(results)
    header = ["lowest loss / test loss of the race", *labels.values()]
    header += [f"step / Adam's: {label}" for label in list(labels.values())[1:]]
    rows = []
    for result in results:
        row = [_title(result)]
        for name in labels:
            test = _over_seeds(result, name, "test_loss")
            row.append(f"{number(_lowest(result, name))} / {test}")
        for name in list(labels)[1:]:
            row.append(_over_seeds(result, name, "step_time", "{:.2f}"))
        rows.append(row)
    return table(header, rows)


def short(results: Sequence[Result], names: Sequence[str]) -> str:
    """Medians for a few optimizers: what README.md has room for."""
    labels = {name: label for name, label in _labels(results).items() if name in names}
    first, *others = labels.values()
    header = ["steps / time to Adam's best loss", *others, f"lowest: {first}", *others]
    rows = [
        [_title(result)]
        + [_reached(result, name, _median) for name in list(labels)[1:]]
        + [number(_lowest(result, name), "{:.3g}") for name in labels]
        for result in results
    ]
    return table(header, rows)


def _reached(
    result: Result,
    name: str,
    show: Callable[..., str] = over_seeds,
    than: str = BASELINE,
) -> str:
    """Steps and time in one cell."""
    if not {name, than} <= set(result["optimizers"]):
        return "-"
    rows = analysis.per_seed(result, name, than)
    steps, seconds = (
        show([row[f"{key}_ratio"] for row in rows], "{:.2f}x")
        for key in ("steps", "seconds")
    )
    if steps == "-":
        return "not reached"
    return f"reached by {steps}" if "seeds" in steps else f"{steps} / {seconds}"


def _median(values: Sequence[float | None], form: str) -> str:
    return number(analysis.median(values), form)


def _over_seeds(result: Result, name: str, key: str, form: str = "{:.4g}") -> str:
    if name not in result["optimizers"]:
        return "-"
    return over_seeds([row[key] for row in analysis.per_seed(result, name)], form)


def _lowest(result: Result, name: str) -> float | None:
    return result["optimizers"].get(name, {}).get("lowest")


def _labels(results: Sequence[Result]) -> dict[str, str]:
    """The optimizers of any of the races, the baseline first."""
    return {
        name: entry["label"]
        for result in results
        for name, entry in result["optimizers"].items()
    }


def _title(result: Result) -> str:
    on_validation = result["target"] == "test_loss"
    return result["title"] + (", validation loss" if on_validation else "")
