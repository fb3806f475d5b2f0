"""One training step under a layout: compiled, read, and timed against others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import linboost_optax as lbo
from benchmarks.job import BASELINE
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.scaling import collectives
from benchmarks.scaling.layouts import Batch, Layout
from linboost_optax import linen


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
class Placed:
    """A model on the devices of a mesh.

    Attributes:
      mesh: of automatic axes.
      model: a Flax module.
      params: its parameters, where the layout has them.
      batch: inputs and targets, likewise.
    """

    mesh: Mesh
    model: Any
    params: Any
    batch: Batch


@dataclass(frozen=True)
class Step:
    """A compiled step, and what it is called with first."""

    run: Callable[..., Any]  # parameters, state, batch -> parameters, state, loss
    params: Any
    state: Any
    facts: dict[str, Any]


def place(layout: Layout, mesh: Mesh, rows: int, quick: bool) -> Placed:
    """Starts the model of a layout, with a batch of so many rows, on a mesh."""
    model, features = layout.build(quick)
    x = jax.random.normal(jax.random.key(0), (rows, features))
    params = model.init(jax.random.key(1), x[:2])["params"]
    width = jax.eval_shape(model.apply, {"params": params}, x).shape[-1]
    y = jnp.sin(x[:, :1] + jnp.linspace(0.0, 3.0, width))
    return Placed(mesh, model, *layout.placed(mesh, params, (x, y)))


def compiled(placed: Placed, optimizer: Optimizer) -> Step:
    """Compiles a step whose parameters and state end where they began.

    On automatic axes the compiler lays out what is not pinned.
    """
    taps = None
    if optimizer.statistic is not None:
        inputs = placed.batch[0]
        taps = linen.taps(placed.model, inputs, statistic=optimizer.statistic)
    # Far below the tuned rate: what is timed must not diverge.
    tx = optimizer.build(lambda count: 0.01 * optimizer.centre, taps)
    state = tx.init(placed.params)
    shardings = lbo.state_sharding(tx, placed.params)
    pinned = (jax.tree.map(lambda leaf: leaf.sharding, placed.params), shardings, None)
    jitted = jax.jit(
        _step(placed.model, tx, taps), donate_argnums=(0, 1), out_shardings=pinned
    )
    program = jitted.lower(placed.params, state, placed.batch).compile()
    said = collectives.read(program.as_text() or "")
    memory = program.memory_analysis()
    facts = {
        "label": optimizer.label,
        "every_step": collectives.summary(each for each in said if not each.branch),
        "in_branches": collectives.summary(each for each in said if each.branch),
        "state_bytes": bytes_of_one_device(state, shardings),
        "temporary_bytes": int(memory.temp_size_in_bytes) if memory else 0,
    }
    # Of its own: a step writes its results over its arguments.
    params = jax.tree.map(jnp.copy, placed.params)
    return Step(program, params, state, facts)


def bytes_of_one_device(tree: Any, shardings: Any) -> int:
    """What one device holds of arrays that lie as their shardings say."""
    leaves, where = jax.tree.leaves(tree), jax.tree.leaves(shardings)
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(leaves, where, strict=True)
    )


def measure(placed: Placed, names: Sequence[str], clock: Clock) -> dict[str, Any]:
    """Compiles the steps of all optimizers, then times them in turn.

    Returns:
      The facts of each by its name, with the seconds of its blocks and the quartiles
      of their ratios to the baseline's block of the same round.
    """
    with jax.set_mesh(placed.mesh):
        steps = {name: compiled(placed, OPTIMIZERS[name]) for name in names}
        seconds = _time(steps, placed.batch, clock)
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


def _step(model: Any, tx: Any, taps: Any) -> Callable[..., Any]:
    tx = optax.with_extra_args_support(tx)

    def loss(params: Any, batch: Batch) -> jax.Array:
        x, y = batch
        return jnp.mean((model.apply({"params": params}, x) - y) ** 2)

    def step(params: Any, state: Any, batch: Batch) -> Any:
        if taps is None:
            (value, grads), extra = jax.value_and_grad(loss)(params, batch), {}
        else:
            value, grads, stats = linen.value_and_grad(loss, taps)(params, batch)
            extra = {"stats": stats}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    return step


def _time(steps: dict[str, Step], batch: Batch, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every block after a warm-up round, A B C, B C A, C A B, ..."""
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
