"""The steps of all optimizers at one size: compiled one after another, then timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.growth.sweeps import Point
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.steps import Clock, Step, against_adam, bytes_of, step_of
from linboost_optax import linen
from linboost_optax._taps.work import count


def measure(point: Point, names: Sequence[str], clock: Clock) -> dict[str, Any]:
    """What the model computes, and the facts and times of each optimizer's step."""
    steps = {name: compiled(point, OPTIMIZERS[name]) for name in names}
    params = jax.eval_shape(lambda: start(point))
    gradient = jax.value_and_grad(point.loss)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        # Not XLA's own count, which has the body of a loop once.
        "flops": count(gradient, params, point.batch).always,
        "optimizers": against_adam(steps, point.batch, clock),
    }


def compiled(point: Point, optimizer: Optimizer) -> Step:
    """Compiles a step as if it were the first, caches empty.

    Seconds are the processor's: what else runs on a machine does not count.
    """
    taps = None
    if optimizer.statistic is not None:
        taps = linen.taps(point.model, point.batch[0], statistic=optimizer.statistic)
    # Far below the tuned rate: what is timed must not diverge.
    tx = optimizer.build(lambda count: 0.01 * optimizer.centre, taps)
    params = start(point)
    state = jax.jit(tx.init)(params)
    jitted = jax.jit(step_of(point.loss, tx, taps), donate_argnums=(0, 1))
    jax.clear_caches()
    begin = time.process_time()
    program = jitted.lower(params, state, point.batch).compile()
    facts = {
        "label": optimizer.label,
        "compile_seconds": time.process_time() - begin,
        "state_bytes": bytes_of(state),
        # Of the tapped layers' own operations, as `taps.report()` counts them.
        "added_flops": 0.0 if taps is None else taps.report().share,
    }
    return Step(program, params, state, facts)


def start(point: Point) -> Any:
    """Parameters to begin with."""
    few = point.batch[0][:2]
    return jax.jit(point.model.init)(jax.random.key(1), few)["params"]
