"""Runs at many rates, then races of the best ones: interleaved, and clocked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from linboost_optax._trial import batches
from linboost_optax._trial.competitors import OWN, TUNED, Competitor, beyond
from linboost_optax._trial.plan import POINTS_OF_RUNG, Plan, Rung
from linboost_optax._trial.training import Setup, Trainer, run

Curves = dict[str, list[float]]
Tick = Callable[[str], None]  # told what is going on, whenever some of it is done


@dataclass(frozen=True)
class Entry:
    """One competitor of a race: an optimizer at a rate."""

    trainer: Trainer
    rate: float


def short(
    setup: Setup, trainer: Trainer, rate: float, steps: int, tick: Tick, seed: int = 0
) -> float:
    """The loss at the end of one run; infinite once a loss is not finite."""
    source = batches.training(setup.task, seed)
    carry, loss = trainer.init(seed), math.inf
    for _ in range(POINTS_OF_RUNG):
        for block in batches.blocks(source, steps // POINTS_OF_RUNG):
            carry, _ = run(trainer, carry, block, seed, rate, steps)
        loss = setup.evaluate(carry)[setup.target]
        tick("rates")
        if not math.isfinite(loss):
            return math.inf
    return loss


def climb(
    setup: Setup,
    trainers: Mapping[str, Trainer],
    rung: Rung,
    rates: Mapping[str, list[float]],
    plan: Plan,
    tick: Tick,
    found: dict[str, dict[float, float]],
    extra: int = 0,
) -> dict[str, list[float]]:
    """Runs all rates of a rung; returns those that are kept, the best first.

    Args:
      setup: the task.
      trainers: by optimizer.
      rung: length of the runs, and how many rates are kept.
      rates: by optimizer.
      plan: of the race that the rung leads to.
      tick: told of progress.
      found: is given the losses by optimizer and rate, as they come in.
      extra: how many rates to go beyond the grid while the best is at its edge.
    """
    steps = plan.length(rung)
    kept = {}
    for name, tried in rates.items():
        losses = found.setdefault(name, {})
        for rate in tried:
            losses[rate] = short(setup, trainers[name], rate, steps, tick)
        for _ in range(extra):
            rate = _past_the_edge(losses)
            if rate is None:
                break
            losses[rate] = short(setup, trainers[name], rate, steps, tick)
        kept[name] = _kept(losses, rung.keep)
    return kept


def entries(
    competitors: Mapping[str, Competitor],
    trainers: Mapping[str, Trainer],
    best: Mapping[str, float],
) -> dict[str, Entry]:
    """Who races at which rate; the user's optimizer at its own, and at a better one."""
    found = {}
    for name, rate in best.items():
        own = competitors[name].centre
        if name == OWN:
            found[OWN] = Entry(trainers[OWN], own)
            if rate != own:
                found[TUNED] = Entry(trainers[OWN], rate)
        else:
            found[name] = Entry(trainers[name], rate)
    return found


def race(
    setup: Setup,
    racing: Mapping[str, Entry],
    plan: Plan,
    seed: int,
    tick: Tick,
    curves: dict[str, Curves],
) -> dict[str, Any]:
    """Trains all in turn on the same batches, some steps each, and evaluates between.

    The clock runs during steps alone: neither batches nor evaluations count. Who goes
    first changes from block to block.

    Args:
      setup: the task.
      racing: who races.
      plan: steps of the race.
      seed: of weights and batches.
      tick: told of progress.
      curves: is given the curves by competitor, as they come in.

    Returns:
      What each ended with.
    """
    source = batches.training(setup.task, seed)
    carries = {name: entry.trainer.init(seed) for name, entry in racing.items()}
    for name, carry in carries.items():
        start = {"step": 0.0, "seconds": 0.0, **setup.evaluate(carry)}
        curves[name] = {key: [value] for key, value in start.items()}
    names, turn = list(racing), 0
    for done in range(plan.every, plan.steps + 1, plan.every):
        seconds = dict.fromkeys(names, 0.0)
        for block in batches.blocks(source, plan.every):
            first, turn = turn % len(names), turn + 1
            for name in names[first:] + names[:first]:
                entry = racing[name]
                carries[name], spent = run(
                    entry.trainer, carries[name], block, seed, entry.rate, plan.steps
                )
                seconds[name] += spent
                tick(f"race, seed {seed}")
        for name, carry in carries.items():
            curve = curves[name]
            total = curve["seconds"][-1] + seconds[name]
            point = {"step": float(done), "seconds": total, **setup.evaluate(carry)}
            for key, value in point.items():
                curve[key].append(value)
    return carries


def _kept(losses: Mapping[float, float], number: int) -> list[float]:
    """The best rate, the one below it, and the next best ones: so many in all."""
    best, *others = sorted(losses, key=losses.__getitem__)
    below = [rate for rate in sorted(losses) if rate < best][-1:]
    return [best, *below, *(rate for rate in others if rate not in below)][:number]


def _past_the_edge(losses: Mapping[float, float]) -> float | None:
    """The next rate past the edge where the best one lies, else None."""
    best = min(losses, key=losses.__getitem__)
    if not math.isfinite(losses[best]):
        return beyond(min(losses), -1)
    if best == min(losses):
        return beyond(best, -1)
    return beyond(best, 1) if best == max(losses) else None
