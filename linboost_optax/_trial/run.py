"""A trial from start to end: set up, compile, measure, plan, rates, race, look."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax

from linboost_optax._trial import analysis, batches, conditions, race
from linboost_optax._trial.analysis import Record
from linboost_optax._trial.clock import Clock
from linboost_optax._trial.competitors import OWN, TUNED, Competitor, competitors
from linboost_optax._trial.outcome import Trial
from linboost_optax._trial.plan import (
    EXTRA,
    FULL,
    RUNGS,
    Costs,
    Plan,
    leaves_time,
    plan,
)
from linboost_optax._trial.stages import TrialError, stage
from linboost_optax._trial.task import Task
from linboost_optax._trial.training import (
    Setup,
    Trainer,
    compile_trainer,
    run,
    set_up,
)

_PACKAGES = ("linboost_optax", "jax", "jaxlib", "optax", "flax", "numpy")
_WARM_UP = 2  # steps before the clock runs
_MEASURED = 10  # steps that are clocked: one refresh of every factor


def trial_of(
    task: Task, minutes: float, steps: int | None, seeds: int, shown: bool
) -> Trial:
    """Runs a trial; an interrupt from the keyboard ends it with what is there."""
    clock = Clock(minutes, shown)
    record: Record = {}
    try:
        clock.tick("setting up")
        setup = set_up(task)
        record |= empty(setup, minutes)
        _fill(record, setup, clock, steps, seeds)
    except KeyboardInterrupt:
        if not record:
            raise
        record["interrupted"] = True
    finally:
        clock.close()
    record["elapsed_seconds"] = clock.elapsed
    record["seeds"] = _complete(record)
    return Trial(record)


def empty(setup: Setup, minutes: float) -> Record:
    """The record of a trial that found nothing yet."""
    task = setup.task
    return {
        "task": task.name,
        "target": setup.target,
        "baseline": OWN if task.optimizer is not None else "adam",
        "minutes": minutes,
        "elapsed_seconds": 0.0,
        "interrupted": False,
        "steps": 0,
        "rung_steps": [],
        "seeds": [],
        "start": {},
        "bar": math.inf,
        "entries": {},
        "left_out": {},
        "conditions": {},
        "layers": str(setup.taps),
        "change": setup.framework.change,
        "versions": {name: version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def _fill(
    record: Record, setup: Setup, clock: Clock, steps: int | None, seeds: int
) -> None:
    racers = competitors(setup.task)
    trainers = compiled(record, setup, racers, clock)
    costs = _measured(record, setup, trainers, clock)
    planned = plan(costs, clock.left, steps, seeds)
    record["steps"] = planned.steps
    rates = {name: racers[name].rates() for name in trainers}
    for index, rung in enumerate((*RUNGS, FULL)):
        if rung is FULL and not leaves_time(costs, clock.left, planned):
            break
        length = planned.length(rung)
        losses = _open_rung(record, length)
        began, extra = clock.elapsed, 0 if index else EXTRA
        rates = race.climb(
            setup, trainers, rung, rates, planned, clock.tick, losses, extra
        )
        _note_rates(record, rates)
        predicted = costs.of_rung(index, planned.steps)
        costs = costs.scaled((clock.elapsed - began) / predicted)
        planned = plan(costs, clock.left, steps, seeds, done=index + 1)
        record["steps"] = planned.steps
    best = {name: kept[0] for name, kept in rates.items()}
    _race(record, setup, race.entries(racers, trainers, best), planned, clock)


def _open_rung(record: Record, steps: int) -> dict[str, dict[float, float]]:
    """Adds a rung to every entry; returns where its losses go, by optimizer."""
    record["rung_steps"].append(steps)
    for entry in record["entries"].values():
        entry["rungs"].append({"steps": steps, "losses": {}})
    entries = record["entries"].items()
    return {name: entry["rungs"][-1]["losses"] for name, entry in entries}


def compiled(
    record: Record, setup: Setup, racers: Mapping[str, Competitor], clock: Clock
) -> dict[str, Trainer]:
    """Compiles all; who cannot be compiled is left out, with the reason.

    Raises:
      TrialError: if that is the baseline.
    """
    found = {}
    for name, competitor in racers.items():
        clock.tick(f"compiling {competitor.label}")
        try:
            with stage(f"compiling a step of {competitor.label}"):
                trainer = compile_trainer(setup, competitor)
        except TrialError as error:
            if name == record["baseline"]:
                raise
            record["left_out"][competitor.label] = str(error).splitlines()[0]
            continue
        found[name] = trainer
        record["entries"][name] = {
            "label": competitor.label,
            "code": competitor.code,
            "tapped": competitor.tapped,
            "centre": competitor.centre,
            "rate": competitor.centre,
            "edge": False,
            "compile_seconds": trainer.compile_seconds,
            "state_bytes": trainer.state_bytes,
            "step_bytes": trainer.step_bytes,
            "rungs": [],
            "curves": [],
        }
    return found


def _measured(
    record: Record, setup: Setup, trainers: Mapping[str, Trainer], clock: Clock
) -> Costs:
    """What steps, batches, evaluations and starts take, and the loss at the start."""
    source = batches.training(setup.task, seed=0)
    next(source)  # what a first batch takes, such as reading a file, is paid once
    start = time.perf_counter()
    block = [next(source) for _ in range(_MEASURED)]
    batch = (time.perf_counter() - start) / _MEASURED
    steps, evaluation, starting = {}, 0.0, 0.0
    for name, trainer in trainers.items():
        clock.tick("measuring")
        trainer.init(0)
        start = time.perf_counter()
        carry = jax.block_until_ready(trainer.init(0))
        starting = max(starting, time.perf_counter() - start)
        if not record["start"]:
            setup.evaluate(carry)
            start = time.perf_counter()
            record["start"] = setup.evaluate(carry)
            evaluation = time.perf_counter() - start
        carry, _ = run(trainer, carry, block[:_WARM_UP], 0, 0.0, _MEASURED)
        _, seconds = run(trainer, carry, block, 0, 0.0, _MEASURED)
        steps[name] = seconds / _MEASURED
    return Costs(steps, batch, evaluation, starting)


def _note_rates(record: Record, rates: Mapping[str, list[float]]) -> None:
    """Notes the best rate of every optimizer, and the bar for those that work."""
    for name, kept in rates.items():
        entry = record["entries"][name]
        tried = analysis.first_rung(entry)
        entry["rate"] = kept[0]
        entry["edge"] = kept[0] in (min(tried), max(tried))
    record["bar"] = analysis.bar(record)


def _race(
    record: Record,
    setup: Setup,
    racing: Mapping[str, race.Entry],
    planned: Plan,
    clock: Clock,
) -> None:
    """Races on one seed after another, none of which chose a rate."""
    entries = record["entries"]
    if TUNED in racing:
        label = f"{entries[OWN]['label']}, other rate"
        entries[TUNED] = {**entries[OWN], "label": label, "curves": []}
    for name, entry in racing.items():
        entries[name]["rate"] = entry.rate
    if OWN in entries:
        entries[OWN]["edge"] = False
    longest = 0.0
    for seed in range(1, planned.seeds + 1):
        if seed > 1 and longest > clock.left:
            break
        began, curves = clock.elapsed, {}
        try:
            carries = race.race(setup, racing, planned, seed, clock.tick, curves)
        finally:
            # Curves that were interrupted count on the first seed only: of the others
            # there are whole ones.
            whole = all(len(each["step"]) > 1 for each in curves.values())
            ended = whole and _ended(curves, planned)
            if ended or (seed == 1 and whole and curves):
                for name, curve in curves.items():
                    entries[name]["curves"].append(curve)
        longest = max(longest, clock.elapsed - began)
        if seed == 1 and "polar" in carries:
            clock.tick("looking at layers")
            record["conditions"] = conditions.before_and_after(setup, carries["polar"])


def _ended(curves: Mapping[str, Any], planned: Plan) -> bool:
    last = planned.every * (planned.steps // planned.every)
    return all(curve["step"][-1] == last for curve in curves.values())


def _complete(record: Record) -> list[int]:
    """The seeds of which there are curves."""
    counts = [len(entry["curves"]) for entry in record["entries"].values()]
    return list(range(1, max(counts, default=0) + 1))
