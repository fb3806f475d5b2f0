"""Lowering and compiling one step of deep models, against Adam in one run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from benchmarks import optimizers
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.tables import number, ratio, table
from benchmarks.tasks._deep import DEEP, Deep
from linboost_optax import linen

ROUNDS = 1  # compilations of each step; of several the median counts


def run(name: str, options: Options) -> Result:
    """Lower and compile all steps in turn, caches empty each time."""
    deep = DEEP[name](options.quick)
    rounds = 1 if options.quick else ROUNDS
    built = {key: step_of(deep, OPTIMIZERS[key]) for key in options.optimizers}
    seconds: dict[str, list[dict[str, float]]] = {key: [] for key in built}
    if not options.quick:  # the first of a process is slower than all others
        measure(*built[BASELINE])
    for key in tqdm(list(built) * rounds, desc=f"{name}, compiling", unit="step"):
        seconds[key].append(measure(*built[key]))
    return {
        "title": deep.title,
        "optimizers": {
            key: {
                "label": OPTIMIZERS[key].label,
                **{
                    part: [each[part] for each in seconds[key]]
                    for part in ("lower_seconds", "compile_seconds")
                },
                "instructions": int(seconds[key][0]["instructions"]),
            }
            for key in built
        },
    }


def step_of(deep: Deep, optimizer: Optimizer) -> tuple[Callable[..., Any], Any]:
    """Returns a training step to be jitted, and the shapes of its arguments."""
    taps = None
    if optimizer.statistic is not None:
        statistic, x = optimizer.statistic, deep.batch["x"]
        taps = linen.taps(deep.model, x, statistic=statistic, train=True)
    tx = optimizer.build(lambda count: 1e-3 * count, taps)
    tx = optax.with_extra_args_support(tx)

    def init() -> tuple[Any, Any, Any]:
        x = deep.batch["x"][:2]
        variables = deep.model.init(jax.random.key(0), x, train=True)
        params = variables.pop("params")
        return params, variables, tx.init(params)

    def step(params: Any, state: Any, opt_state: Any, batch: Any) -> Any:
        if taps is None:
            plain = jax.value_and_grad(deep.loss, has_aux=True)
            (loss, state), grads = plain(params, state, batch)
            extra = {}
        else:
            tapped = linen.value_and_grad(deep.loss, taps, has_aux=True)
            (loss, state), grads, stats = tapped(params, state, batch)
            extra = {"stats": stats}
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), state, opt_state, loss

    return step, (*jax.eval_shape(init), deep.batch)


def measure(step: Callable[..., Any], args: Any) -> dict[str, float]:
    """Returns processor seconds to lower and to compile, and the program's size.

    Not seconds of the clock: what else runs on a machine does not count, and several
    cores are no excuse.
    """
    jax.clear_caches()
    gc.collect()
    start = time.process_time()
    lowered = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*args)
    middle = time.process_time()
    compiled = lowered.compile()
    end = time.process_time()
    return {
        "lower_seconds": middle - start,
        "compile_seconds": end - middle,
        "instructions": (compiled.as_text() or "").count(" = "),
    }


def across(results: Sequence[Result]) -> str:
    """One row a model and optimizer: seconds and size, and multiples of Adam's."""
    rows = []
    for result in results:
        baseline = result["optimizers"][BASELINE]
        for entry in result["optimizers"].values():
            rows.append([result["title"], entry["label"], *_cells(entry, baseline)])
    header = "model | optimizer | lower s | / Adam | compile s | / Adam | "
    header += "both / Adam | instructions | / Adam"
    return table(header.split(" | "), rows)


def _cells(entry: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    own, reference = (
        [np.array(each[part]) for part in ("lower_seconds", "compile_seconds")]
        for each in (entry, baseline)
    )
    cells = []
    for seconds, adam in zip(own, reference, strict=True):
        cells += [number(float(np.median(seconds)), "{:.2f}"), _median(seconds, adam)]
    size, smaller = (each["instructions"] for each in (entry, baseline))
    both = _median(own[0] + own[1], reference[0] + reference[1])
    return [*cells, both, f"{size:,}", ratio(size, smaller)]


def _median(seconds: np.ndarray, adam: np.ndarray) -> str:
    return ratio(float(np.median(seconds / adam)), 1.0)


JOB = Job(
    name="compile_time",
    title="Compilation of deep models",
    reading=(
        "Processor seconds to trace and lower one step, and of XLA to compile it, with "
        "empty caches, in one run: what else a machine does counts little. "
        "Instructions are those of the compiled program. Nothing is run."
    ),
    tasks=tuple(DEEP),
    optimizers=(BASELINE, "lnb", "whiten"),
    all_optimizers=tuple(optimizers.OPTIMIZERS),
    run=run,
    table=lambda result: across([result]),
    across=across,
    single=False,
)
