"""A trial within its budget, against a race of every rate over every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.job import Job, Options, Result
from benchmarks.tables import table
from linboost_optax._trial import analysis, race
from linboost_optax._trial import run as trials
from linboost_optax._trial import task as tasks
from linboost_optax._trial.analysis import Record
from linboost_optax._trial.clock import Clock
from linboost_optax._trial.competitors import OURS, OWN, TUNED, competitors
from linboost_optax._trial.outcome import Trial
from linboost_optax._trial.phrases import times
from linboost_optax._trial.plan import Plan
from linboost_optax._trial.training import set_up

FOLDER = Path(__file__).parents[1] / "trials"
# Minutes of the trial, and steps of the race.
SIZES = {"cnn": (4.0, 400), "spirals": (4.0, 800), "siren": (4.0, 100)}
QUICK = (30.0, 40)
NEVER = 1e9  # minutes


def run(name: str, options: Options) -> Result:
    """A trial; then all optimizers at all rates, full length, on the same seeds."""
    minutes, steps = QUICK if options.quick else SIZES[name]
    task = tasks.load(FOLDER / f"{name}.py")
    tried = trials.trial_of(task, minutes, steps, options.seeds, shown=True)
    whole = Trial(exhaustive(task, steps, options))
    return {
        "title": f"`benchmarks/trials/{name}.py`, {steps} steps",
        "minutes": minutes,
        "took": tried.record["elapsed_seconds"] / 60,
        "trial": summary(tried),
        "exhaustive": summary(whole),
    }


def exhaustive(task: tasks.Task, steps: int, options: Options) -> Record:
    """The record of a race of every rate that a trial would try at first."""
    clock = Clock(NEVER, shown=False)
    setup = set_up(task)
    record = trials.empty(setup, NEVER)
    racers = competitors(task)
    trainers = trials.compiled(record, setup, racers, clock)
    plan = Plan(steps, options.seeds)
    rates = {name: racers[name].rates() for name in trainers}
    if options.quick:
        rates = {name: tried[2:5] for name, tried in rates.items()}
    racing = {
        f"{name} {rate}": race.Entry(trainers[name], rate)
        for name, tried in rates.items()
        for rate in tried
    }
    runs: list[dict[str, race.Curves]] = []
    for seed in range(1, options.seeds + 1):
        runs.append({})
        race.race(setup, racing, plan, seed, lambda doing: None, runs[-1])
    best = {
        name: min(tried, key=lambda rate, name=name: _lowest(setup, runs, name, rate))
        for name, tried in rates.items()
    }
    for name, entry in race.entries(racers, trainers, best).items():
        of = OWN if name == TUNED else name
        curves = [run[f"{of} {entry.rate}"] for run in runs]
        record["entries"][name] = {
            **record["entries"][of],
            "rate": entry.rate,
            "curves": curves,
        }
    record |= {"steps": steps, "seeds": list(range(1, options.seeds + 1))}
    record["start"] = {key: values[0] for key, values in _any(runs).items()}
    return record


def summary(trial: Trial) -> dict[str, Any]:
    """The verdict, and time and rate of all that raced."""
    record = trial.record
    found = {}
    for name, entry in record["entries"].items():
        it = analysis.figures(record, name)
        found[name] = {
            "label": entry["label"],
            "rate": entry["rate"],
            "steps": it.steps,
            "seconds": it.seconds,
            "best": it.best,
        }
    return {"headline": trial.verdict.headline, "winner": trial.verdict.winner} | {
        "worth": trial.verdict.worth,
        "entries": found,
    }


def describe(result: Result) -> str:
    """Both verdicts, and both times of every optimizer to the user's loss."""
    lines = [
        f"The trial took {result['took']:.1f} of {result['minutes']:g} minutes.",
        f"- *Trial*: {result['trial']['headline']}",
        f"- *Every rate*: {result['exhaustive']['headline']}",
    ]
    rows = []
    both = [result[name]["entries"] for name in ("trial", "exhaustive")]
    for name in both[0]:
        if name not in both[1]:
            continue
        cells = []
        for entries in both:
            entry = entries[name]
            cells += [f"{entry['rate']:g}", _time(entry["seconds"])]
            cells.append(f"{analysis.Spread(*entry['best']).middle:.3g}")
        rows.append([both[0][name]["label"], *cells])
    header = ["optimizer"]
    for which in ("trial", "every rate"):
        header += [f"{which}: rate", "time to your loss", "lowest loss"]
    return "\n".join([*lines, "", table(header, rows)])


def across(results: Sequence[Result]) -> str:
    """Whether verdicts and times agree, and whether budgets were kept."""
    rows = []
    for result in results:
        pair = [result[name] for name in ("trial", "exhaustive")]
        rows.append(
            [
                result["title"],
                *(_said(each) for each in pair),
                "yes" if pair[0]["worth"] == pair[1]["worth"] else "no",
                f"{result['took'] / result['minutes']:.0%}",
            ]
        )
    header = ["task", "trial", "every rate", "same verdict", "of the budget"]
    return table(header, rows)


def _said(summary: Mapping[str, Any]) -> str:
    entries = summary["entries"]
    ours = [name for name in OURS if name in entries and entries[name]["seconds"]]
    best = min(ours, key=lambda name: entries[name]["seconds"][0], default=None)
    verdict = "worth it" if summary["worth"] else "not worth it"
    if best is None:
        return f"{verdict}; ours do not come to the loss"
    return f"{verdict}; {entries[best]['label']} {_time(entries[best]['seconds'])}"


def _time(seconds: Sequence[float] | None) -> str:
    return times(analysis.Spread(*seconds)) if seconds else "-"


def _lowest(setup: Any, runs: list[dict[str, Any]], name: str, rate: float) -> float:
    key = f"{name} {rate}"
    return float(np.median([analysis.best(run[key], setup.target) for run in runs]))


def _any(runs: list[dict[str, race.Curves]]) -> dict[str, list[float]]:
    curves = next(iter(runs[0].values()))
    return {key: curves[key] for key in curves if key.endswith("_loss")}


JOB = Job(
    name="trials",
    title="A trial's verdict, against a race of every rate",
    reading=(
        "`python -m linboost_optax trial` on three tasks that follow examples of "
        "others, within a budget; then every optimizer at seven rates, all for the "
        "whole length and on all seeds, of which the best is taken. Times are "
        "multiples of the user's to the lowest loss of the user's own optimizer, "
        "medians and ranges over the seeds."
    ),
    tasks=tuple(SIZES),
    run=run,
    table=describe,
    across=across,
    seeds=3,
)
