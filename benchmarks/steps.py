"""Training steps of several optimizers, each compiled, timed in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.job import BASELINE
from linboost_optax import linen

Batch = tuple[jax.Array, jax.Array]  # inputs and targets


@dataclass(frozen=True)
class Clock:
    """How long to time for.

    Attributes:
      block: steps timed together: one refresh of every factor.
      fewest: rounds of one block of each optimizer that are run in any case.
      most: rounds that are run at most.
      seconds: of timing, once the fewest rounds are done.
    """

    block: int = 10
    fewest: int = 5
    most: int = 18
    seconds: float = 15.0


QUICK = Clock(block=2, fewest=1, most=1)


@dataclass(frozen=True)
class Step:
    """A compiled step, and what it is called with first.

    Attributes:
      run: takes parameters, state and batch; returns new ones and the loss.
      params: the parameters of the first step, which may write over them.
      state: the optimizer's, likewise.
      facts: what is known before it has run.
    """

    run: Callable[..., Any]
    params: Any
    state: Any
    facts: dict[str, Any]


def step_of(loss: Callable[..., jax.Array], tx: Any, taps: Any) -> Callable[..., Any]:
    """A step to be jitted, of a loss of parameters and batch; taps may be None."""
    tx = optax.with_extra_args_support(tx)

    def step(params: Any, state: Any, batch: Batch) -> Any:
        if taps is None:
            (value, grads), extra = jax.value_and_grad(loss)(params, batch), {}
        else:
            value, grads, stats = linen.value_and_grad(loss, taps)(params, batch)
            extra = {"stats": stats}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    return step


def bytes_of(tree: Any) -> int:
    """What arrays take, or their shapes would."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def against_adam(
    steps: dict[str, Step], batch: Batch, clock: Clock
) -> dict[str, dict[str, Any]]:
    """Times the steps of all optimizers in turn.

    Returns:
      The facts of each by its name, with the seconds of its blocks and the quartiles
      of their ratios to the baseline's block of the same round.
    """
    seconds = time_all(steps, batch, clock)
    baseline = np.array(seconds[BASELINE])
    return {
        name: {
            **step.facts,
            "block_seconds": seconds[name],
            "ratio_quartiles": np.quantile(
                np.array(seconds[name]) / baseline, [0.25, 0.5, 0.75]
            ).tolist(),
        }
        for name, step in steps.items()
    }


def time_all(
    steps: dict[str, Step], batch: Batch, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of every block after a warm-up round, A B C, B C A, C A B, ...

    Raises:
      FloatingPointError: where a loss is not finite.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    carries = {name: (step.params, step.state) for name, step in steps.items()}
    names = list(steps)
    begin = time.perf_counter()
    for round_ in range(clock.most + 1):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            carries[name], loss, spent = _block(
                steps[name], carries[name], batch, clock.block
            )
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"The loss under `{name}` must be finite, got {loss}: a step that "
                    "is not finite takes other branches. Lower its rate."
                )
            if round_ > 0:
                seconds[name].append(spent)
        if round_ >= clock.fewest and time.perf_counter() - begin > clock.seconds:
            break
    return seconds


def _block(
    step: Step, carry: tuple[Any, Any], batch: Batch, steps: int
) -> tuple[tuple[Any, Any], float, float]:
    """Takes some steps; returns the new carry, the last loss, and the seconds."""
    params, state = jax.block_until_ready(carry)
    loss = jnp.zeros(())
    start = time.perf_counter()
    for _ in range(steps):
        # Collectives of two steps at once may wait for each other's threads.
        params, state, loss = jax.block_until_ready(step.run(params, state, batch))
    return (params, state), float(loss), time.perf_counter() - start
