"""Faults put into training, and what survives them; mistakes, and their errors."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.faults import injection, interrupted, training
from benchmarks.faults.mistakes import MISTAKES, try_mistake
from benchmarks.faults.tables import describe
from benchmarks.faults.training import COMPETITORS, Competitor, Run, Setting
from benchmarks.faults.verdict import CLOSE, PEAK, Cell, against, falls
from benchmarks.job import Job, Options, Result

RATES = (0.05, 0.2, 0.5)
KILLS = 4
SIZES = (32, 1, 7, 32, 2, 19)


def run(name: str, options: Options) -> Result:
    """One kind of fault: put into every competitor, or tried."""
    return TASKS[name](options)


# --- what is put into training ----------------------------------------------------


def _batches(options: Options) -> Result:
    setting, rates = _setting(options), RATES[:1] if options.quick else RATES
    clean = {
        name: [_run(each, setting, seed).final for seed in range(options.seeds)]
        for name, each in COMPETITORS.items()
    }

    def cells(poison: injection.Poison, rate: float) -> dict[str, Cell]:
        found = {}
        for name, each in COMPETITORS.items():
            runs = [
                _run(each, setting, seed, _poisoned(poison, rate, setting, seed))
                for seed in range(options.seeds)
            ]
            found[name] = against(clean[name], runs)
        return found

    poisons = {**injection.POISONS, **injection.OUTLIERS}
    rows = [
        {"label": f"{label}, {rate:.0%} of batches", "cells": cells(poison, rate)}
        for label, poison in tqdm(poisons.items(), desc="batches", unit="poison")
        for rate in rates
    ]
    return {"title": "Poisoned batches", "seeds": options.seeds, "rows": rows}


def _features(options: Options) -> Result:
    setting = _setting(options)

    def cell(each: Competitor, feature: injection.Feature) -> Cell:
        def hostile(seed: int) -> Run:
            data = training.batches(seed, setting)
            return _run(each, setting, seed, data._replace(x=feature(data.x)))

        return falls([hostile(seed) for seed in range(options.seeds)])

    rows = [
        _row(label, functools.partial(cell, feature=feature))
        for label, feature in tqdm(
            injection.FEATURES.items(), desc="features", unit="fault"
        )
    ]
    return {"title": "Hostile features", "seeds": options.seeds, "rows": rows}


def _extremes(options: Options) -> Result:
    setting = _setting(options)
    f16 = replace(setting, dtype=jnp.float16)
    deep = 3 if options.quick else 300

    def of(setting: Setting, change: Callable[..., Any] = lambda data: data) -> Any:
        def cell(each: Competitor) -> Cell:
            runs = [
                _run(each, setting, seed, change(training.batches(seed, setting)))
                for seed in range(options.seeds)
            ]
            return falls(runs)

        return cell

    faults = {
        "one sample a batch": of(replace(setting, rows=1)),
        f"batches of {', '.join(map(str, SIZES))} samples": lambda each: _changing(
            each, options.seeds
        ),
        f"{deep} layers of 4 tanh units": of(
            replace(setting, model=training.Deep(deep, scanned=True))
        ),
        "parameters in bfloat16": of(replace(setting, dtype=jnp.bfloat16)),
        "parameters in float16": of(f16),
        "float16, inputs times 1e5": of(
            f16, lambda data: data._replace(x=data.x * np.float32(1e5))
        ),
        "float16, targets times 1e4": of(
            f16, lambda data: data._replace(y=data.y * np.float32(1e4))
        ),
        "learning rate times 10": of(replace(setting, rate=10.0)),
        "learning rate times 100": of(replace(setting, rate=100.0)),
        "learning rate times 1e6": of(replace(setting, rate=1e6)),
    }
    rows = [
        _row(label, cell)
        for label, cell in tqdm(faults.items(), desc="extremes", unit="fault")
    ]
    return {"title": "Extremes", "seeds": options.seeds, "rows": rows}


def _clipped(options: Options) -> Result:
    """Outliers again, with the gradient's norm clipped before the optimizer."""
    setting = _setting(options)
    (label, poison), *_ = injection.OUTLIERS.items()

    def cell(each: Competitor) -> Cell:
        clipped = replace(each, build=_clip(each.build))
        seeds = range(options.seeds)
        clean = [_run(clipped, setting, seed).final for seed in seeds]
        runs = [
            _run(clipped, setting, seed, _poisoned(poison, RATES[0], setting, seed))
            for seed in seeds
        ]
        return against(clean, runs)

    row = _row(f"{label}, {RATES[0]:.0%} of batches", cell)
    title = "Outliers behind `optax.clip_by_global_norm(1.0)`"
    return {"title": title, "seeds": options.seeds, "rows": [row]}


def _row(label: str, cell: Callable[[Competitor], Cell]) -> dict[str, Any]:
    return {
        "label": label,
        "cells": {name: cell(each) for name, each in COMPETITORS.items()},
    }


def _clip(build: Callable[..., Any]) -> Callable[..., Any]:
    return lambda schedule, taps: optax.chain(
        optax.clip_by_global_norm(1.0), build(schedule, taps)
    )


def _setting(options: Options) -> Setting:
    return Setting(steps=20 if options.quick else training.STEPS)


def _run(each: Competitor, setting: Setting, seed: int, data: Any = None) -> Run:
    data = training.batches(seed, setting) if data is None else data
    return training.run(each, data, setting, seed=seed)


def _poisoned(
    poison: injection.Poison, rate: float, setting: Setting, seed: int
) -> training.Batches:
    hit = injection.hit(setting.steps, rate, seed)
    return poison(training.batches(seed, setting), hit)


def _changing(each: Competitor, seeds: int) -> Cell:
    """One state through batches whose sizes change."""
    tx, step = training.stepper(each)
    step = jax.jit(step)

    def changing(seed: int) -> Run:
        data, params = training.batches(seed), training.initial(seed=seed)
        carry, losses, sound = (params, tx.init(params)), [], True
        for i in range(10 * len(SIZES)):
            size = SIZES[i % len(SIZES)]
            batch = training.Batches(*(part[i] for part in data))
            rows = {name: getattr(batch, name)[:size] for name in ("x", "y", "weight")}
            carry, loss = step(carry, batch._replace(**rows))
            sound &= bool(training.finite(carry))
            losses.append(float(loss))
        before, after = (training.error(at, data) for at in (params, carry[0]))
        return Run(np.asarray(losses), before, after, after, sound, carry)

    return falls([changing(seed) for seed in range(seeds)])


# --- killed, and mistaken ---------------------------------------------------------


def _interrupted(options: Options) -> Result:
    steps, kills = (6, 1) if options.quick else (24, KILLS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _, printed = interrupted.launch(Path(folder) / "whole", "flax", steps)
        whole = printed.split()[-1]
        for way in tqdm(interrupted.WAYS, desc="interrupted", unit="way"):
            for seed in range(options.seeds):
                found = interrupted.interrupted(
                    Path(folder) / f"{way}-{seed}", way, steps, kills, seed
                )
                rows.append(
                    {
                        "label": f"{LABELS[way]}, kills at random, {seed}",
                        "deaths": [list(death) for death in found.deaths],
                        "starts": found.starts,
                        "survived": found.digest == whole,
                    }
                )
    title = "Killed and started again"
    return {"title": title, "seeds": options.seeds, "steps": steps, "rows": rows}


def _mistakes(options: Options) -> Result:
    del options  # an error takes no steps
    rows = [try_mistake(name) for name in tqdm(MISTAKES, desc="mistakes")]
    return {"title": "Mistakes, and their errors", "rows": rows}


LABELS = {"flax": "`flax.serialization`", "orbax": "Orbax"}
TASKS: dict[str, Callable[[Options], Result]] = {
    "batches": _batches,
    "clipped": _clipped,
    "features": _features,
    "extremes": _extremes,
    "interrupted": _interrupted,
    "mistakes": _mistakes,
}


PREFACE = """\
A step whose gradients or statistics are not finite is skipped: zero updates, the state
as it was. The optimizer counts the steps that it skipped:

```python
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import linboost_optax as lbo
from linboost_optax import linen

model, x = nn.Dense(2), jnp.ones((8, 3))
params = model.init(jax.random.key(0), x)
taps = linen.taps(model, x)
tx = lbo.lnb(0.3, taps)
state = tx.init(params)
loss_and_grad = linen.value_and_grad(
    lambda params, x: jnp.mean(model.apply(params, x) ** 2), taps
)
for batch in (x, x.at[0, 0].set(jnp.nan), x):
    loss, grads, stats = loss_and_grad(params, batch)
    updates, state = tx.update(grads, state, params, stats=stats)
assert optax.tree.get(state, "skipped") == 1  # the second batch left no other trace
```

Numbers that are finite and absurd are not told from others: clip the gradients
(`optax.clip_by_global_norm` in front). `IncompleteCholesky` and the statistic `moments`
have no ridge, nor has what preconditions `ConjugateGradient`: they stretch inputs of
any scale to one, so standardise inputs that are all tiny; where none of a layer's
inputs varies, rounding errors decide whether it trains. A sketch of features whose
scales differ by more than a thousand knows little but their variances. float16 has no
room for squared gradients, and Adam's `eps` is zero in it; whitened, its state is
float32.
"""

JOB = Job(
    name="faults",
    title="Faults, and what survives them",
    reading=(
        "A tanh network on noisy targets, 200 steps, default options of every "
        "method and one learning rate each; figures are the worst of the seeds. "
        "Poisoned batches: loss on clean data over that of the same run without the "
        f"fault; up to {CLOSE:g}x counts as survived, with parameters and state "
        "finite after every step. Other faults: loss of the last parameters over "
        "that of the first, on all batches of the run; less than 1 counts, and a "
        f"detour above {PEAK:g}x is told. Adam has no statistics, and no guard but "
        "its own arithmetic. Killed runs train LNB and whiten(Adam), with both "
        "solvers each, and compare every bit of parameters and state with those of "
        "an uninterrupted run."
    ),
    tasks=tuple(TASKS),
    seeds=3,
    run=run,
    table=describe,
    guide="faults.md",
    preface=PREFACE,
)
