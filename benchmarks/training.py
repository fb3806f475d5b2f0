"""One compiled training step and one compiled evaluation, timed in blocks.

The step is compiled once for each task and optimizer: the learning rate is an
argument of it. Blocks of steps are dispatched from Python: XLA runs convolutions
inside a loop ten times slower on a CPU, and a dispatch costs microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import needs
from benchmarks.optimizers import Optimizer
from benchmarks.steps import bytes_of
from benchmarks.tasks import Task
from linboost_optax import linen


class Carry(NamedTuple):
    """What one step hands to the next."""

    params: Any
    state: Any
    opt_state: Any
    steps: jax.Array


class Trainer(NamedTuple):
    """A task under an optimizer, compiled."""

    init: Callable[[int], Carry]
    step: Callable[..., Carry]
    temporary_bytes: int
    state_bytes: int
    compile_seconds: float  # to trace, lower and compile the step


class Entry(NamedTuple):
    """One competitor of a race."""

    trainer: Trainer
    learning_rate: float


Curves = dict[str, list[float]]
Evaluate = Callable[[Carry], dict[str, float]]


def schedule_for(task: Task, peak: jax.Array) -> optax.Schedule:
    """Linear warm-up over 5 % of the steps, then a cosine to zero."""
    warm_up = max(1, task.steps // 20)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, task.steps)
    return lambda count: peak * shape(count + 1)


def compile_trainer(task: Task, optimizer: Optimizer) -> Trainer:
    """Compile the training step of `task` under `optimizer`."""
    batch = task.batch_like()
    taps = _taps(task, optimizer, batch)
    value_and_grad = _value_and_grad(task, optimizer, taps)
    context = task if "task" in optimizer.needs else taps

    def init(seed: int) -> Carry:
        x = batch["x"][:2]
        variables = task.model.init(jax.random.key(seed), x, **task.init_kwargs)
        params = variables.pop("params")
        transformation = optimizer.build(lambda count: jnp.zeros(()), context)
        return Carry(
            params, variables, transformation.init(params), jnp.zeros((), jnp.int32)
        )

    def step(carry: Carry, data: Any, order: jax.Array, peak: jax.Array) -> Carry:
        batch = jax.tree.map(lambda value: value[order[carry.steps]], data)
        (loss, state), grads, extra = value_and_grad(carry.params, carry.state, batch)
        extra |= needs.given(optimizer.needs, task, carry.state, batch, loss, grads)
        transformation = optimizer.build(schedule_for(task, peak), context)
        transformation = optax.with_extra_args_support(transformation)
        updates, opt_state = transformation.update(
            grads, carry.opt_state, carry.params, **extra
        )
        params = optax.apply_updates(carry.params, updates)
        return Carry(params, state, opt_state, carry.steps + 1)

    init = jax.jit(init)
    shapes = jax.eval_shape(init, 0)
    order = jax.ShapeDtypeStruct((task.steps, task.batch_size), jnp.int32)
    peak = jax.ShapeDtypeStruct((), jnp.float32)
    jitted = jax.jit(step, donate_argnums=0)
    start = time.perf_counter()
    compiled = jitted.lower(shapes, task.train, order, peak).compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return Trainer(
        init=init,
        step=compiled,
        temporary_bytes=int(memory.temp_size_in_bytes) if memory else 0,
        state_bytes=bytes_of(shapes.opt_state),
        compile_seconds=compile_seconds,
    )


def compile_evaluate(task: Task) -> Evaluate:
    """Evaluate on the same samples of the training and the test set every time."""
    splits = {
        split: {key: value[: task.evaluated] for key, value in data.items()}
        for split, data in (("train", task.train), ("test", task.test))
    }
    metrics = jax.jit(
        lambda params, state, splits: {
            f"{split}_{key}": value
            for split, data in splits.items()
            for key, value in task.metrics(params, state, data).items()
        }
    )

    def evaluate(carry: Carry) -> dict[str, float]:
        result = jax.device_get(metrics(carry.params, carry.state, splits))
        return {key: float(value) for key, value in result.items()}

    return evaluate


def batches(task: Task, seed: int) -> jax.Array:
    """Sample indices [step, sample]: shuffled epochs, the same for every optimizer."""
    samples = len(jax.tree.leaves(task.train)[0])
    rng = np.random.default_rng(seed)
    needed = task.steps * task.batch_size
    epochs = [rng.permutation(samples) for _ in range(-(-needed // samples))]
    order = np.concatenate(epochs)[:needed].reshape(task.steps, task.batch_size)
    return jnp.asarray(order, jnp.int32)


def run_block(
    entry: Entry, carry: Carry, task: Task, order: jax.Array, steps: int
) -> tuple[Carry, float]:
    """Take some steps; return the new carry and the seconds they took."""
    peak = jnp.float32(entry.learning_rate)
    jax.block_until_ready((carry, peak))
    start = time.perf_counter()
    for _ in range(steps):
        carry = entry.trainer.step(carry, task.train, order, peak)
    jax.block_until_ready(carry)
    return carry, time.perf_counter() - start


def race(
    task: Task,
    entries: dict[str, Entry],
    evaluate: Evaluate,
    seed: int = 0,
    advance: Callable[[int], Any] = lambda steps: None,
) -> dict[str, Curves]:
    """Train all entries in turn, a block of steps each, and evaluate in between.

    The clock runs during the blocks alone: neither compilation nor evaluation
    counts. The entry that goes first changes from block to block.
    """
    order = batches(task, seed)
    carries = {name: entry.trainer.init(seed) for name, entry in entries.items()}
    curves: dict[str, Curves] = {}
    for name, carry in carries.items():
        start = {"step": 0.0, "seconds": 0.0, **evaluate(carry)}
        curves[name] = {key: [value] for key, value in start.items()}
    names = list(entries)
    for block, done in enumerate(range(task.every, task.steps + 1, task.every)):
        first = block % len(names)
        for name in names[first:] + names[:first]:
            carries[name], seconds = run_block(
                entries[name], carries[name], task, order, task.every
            )
            point = {
                "step": float(done),
                "seconds": curves[name]["seconds"][-1] + seconds,
                **evaluate(carries[name]),
            }
            for key, value in point.items():
                curves[name][key].append(value)
            advance(task.every)
    return curves


def _taps(task: Task, optimizer: Optimizer, batch: Any) -> Any:
    if optimizer.statistic is None:
        return None
    return linen.taps(
        task.model, batch["x"], statistic=optimizer.statistic, **task.init_kwargs
    )


def _value_and_grad(task: Task, optimizer: Optimizer, taps: Any) -> Callable[..., Any]:
    """Return `(loss, state), grads, extra arguments of the update`."""
    if optimizer.statistic is None:
        plain = jax.value_and_grad(task.loss, has_aux=True)
        return lambda *args: (*plain(*args), {})

    tapped = linen.value_and_grad(task.loss, taps, has_aux=True)

    def value_and_grad(*args: Any) -> Any:
        value, grads, stats = tapped(*args)
        return value, grads, {"stats": stats}

    return value_and_grad
