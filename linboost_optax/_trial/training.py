"""One compiled training step for each optimizer, and one compiled evaluation."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linboost_optax._adapters.functions import taps as find_taps
from linboost_optax._adapters.functions import value_and_grad
from linboost_optax._taps import Taps
from linboost_optax._trial import batches
from linboost_optax._trial.competitors import Competitor
from linboost_optax._trial.models import Framework, recognise, scalar
from linboost_optax._trial.stages import stage
from linboost_optax._trial.task import TRAIN, Task

_WARM_UP = 0.05  # of the steps


class Carry(NamedTuple):
    """What one step hands to the next."""

    params: Any
    state: Any
    opt_state: Any
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


class Trainer(NamedTuple):
    """An optimizer on the task, compiled.

    Attributes:
      init: starts from a seed.
      step: ``step(carry, batch, seed, rate, steps)``.
      compile_seconds: to trace, lower and compile the step.
      state_bytes: of the optimizer's state.
      step_bytes: of all that a step holds at once, arguments included.
    """

    init: Callable[[int], Carry]
    step: Callable[..., Carry]
    compile_seconds: float
    state_bytes: int
    step_bytes: int


@dataclass(frozen=True)
class Setup:
    """What all optimizers of a trial have in common.

    Attributes:
      task: the user's.
      framework: of its model.
      taps: of the layers that its loss runs through.
      splits: the batches that are evaluated.
      evaluate: returns the losses of a carry: ``train_loss``, ``test_loss``.
      start: returns parameters and state of a seed.
    """

    task: Task
    framework: Framework
    taps: Taps
    splits: Mapping[str, Sequence[Any]]
    evaluate: Callable[[Carry], dict[str, float]]
    start: Callable[[int], tuple[Any, Any]]

    @property
    def batch(self) -> Any:
        """A training batch."""
        return self.splits[TRAIN][0]

    @property
    def target(self) -> str:
        """The loss that is raced for: that of the test split, where there is one."""
        return f"{list(self.splits)[-1]}_loss"

    def loss(self, params: Any, state: Any, batch: Any, key: Any) -> Any:
        """Returns the training loss, and the state after it."""
        return functional(self.task, self.framework, params, state, batch, key)


def functional(
    task: Task, framework: Framework, params: Any, state: Any, batch: Any, key: Any
) -> tuple[jax.Array, Any]:
    """The user's loss as a pure function; without a key it is evaluated."""
    args = (batch, key) if task.takes_key else (batch,)
    train = key is not None
    value, state = framework.call(task.loss, params, state, args, train)
    return scalar(value), state


def schedule(step: Any, steps: Any) -> jax.Array:
    """Linear warm-up over 5 % of the steps, then a cosine to zero."""
    done = (step + 1) / steps
    falling = (1 + jnp.cos(math.pi * jnp.clip(done, 0, 1))) / 2
    return jnp.minimum(done / _WARM_UP, 1) * falling


def set_up(task: Task) -> Setup:
    """Runs every part of the task once, and finds its layers.

    Raises:
      TrialError: with the part that failed, and the line of the user's.
    """
    with stage("`model(key)`"):
        made = task.model(jax.random.key(0))
        framework = recognise(made)
        params, state = framework.split(made)
    splits = batches.evaluated(task)
    batch, loss = splits[TRAIN][0], functools.partial(functional, task, framework)
    with stage("`loss` on the first training batch"):
        value = jax.jit(loss)(params, state, batch, jax.random.key(0))[0]
        _check_finite(float(value))
    with stage("evaluating `loss`, without a key,"):
        evaluate = _evaluation(task, framework, splits)
        evaluate(Carry(params, state, (), jnp.zeros((), jnp.int32)))
    with stage("finding the layers of `loss`"):
        taps = find_taps(loss, params, state, batch, jax.random.key(0))

    # All runs of a seed begin with one model, which is made once.
    @functools.lru_cache(maxsize=1)
    def start(seed: int) -> tuple[Any, Any]:
        return framework.split(task.model(jax.random.key(seed)))

    return Setup(task, framework, taps, splits, evaluate, start)


def compile_trainer(setup: Setup, competitor: Competitor) -> Trainer:
    """Compiles the training step of the task under an optimizer.

    The rate and the number of steps are arguments: one program serves all of them.
    """
    shape = setup.task.schedule or schedule
    gradients = _gradients(setup, competitor)

    def transformation(rate: Any, steps: Any) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            optax.with_extra_args_support(competitor.build(rate, setup.taps)),
            optax.scale_by_schedule(lambda count: shape(count, steps)),
        )

    @jax.jit
    def first(params: Any, state: Any) -> Carry:
        tx = transformation(jnp.float32(0), jnp.float32(1))
        return Carry(params, state, tx.init(params), jnp.zeros((), jnp.int32))

    def init(seed: int) -> Carry:
        # Its own arrays: a step writes its results over its arguments.
        return first(*jax.tree.map(jnp.copy, setup.start(seed)))

    def step(carry: Carry, batch: Any, seed: Any, rate: Any, steps: Any) -> Carry:
        key = jax.random.fold_in(jax.random.key(seed), carry.count)
        tx = transformation(rate, steps)
        args = (carry.params, carry.state, batch, key)
        (value, state), grads, extra = gradients(*args)
        extra |= {"value": value, "grad": grads}
        extra["value_fn"] = lambda params: setup.loss(params, *args[1:])[0]
        updates, opt_state = tx.update(grads, carry.opt_state, carry.params, **extra)
        params = optax.apply_updates(carry.params, updates)
        return Carry(params, state, opt_state, carry.count + 1)

    carry = init(0)
    numbers = (jnp.uint32(0), jnp.float32(0), jnp.float32(1))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(carry, setup.batch, *numbers)
    compiled = compiled.compile()
    seconds = time.perf_counter() - start
    return Trainer(
        init=init,
        step=compiled,
        compile_seconds=seconds,
        state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(carry.opt_state)),
        step_bytes=_bytes(compiled.memory_analysis()),
    )


def run(
    trainer: Trainer,
    carry: Carry,
    block: Sequence[Any],
    seed: int,
    rate: float,
    steps: int,
) -> tuple[Carry, float]:
    """Takes a step for each batch; returns the new carry, and the seconds they took."""
    numbers = (jnp.uint32(seed), jnp.float32(rate), jnp.float32(steps))
    jax.block_until_ready((carry, block, numbers))
    start = time.perf_counter()
    for batch in block:
        carry = trainer.step(carry, batch, *numbers)
    jax.block_until_ready(carry)
    return carry, time.perf_counter() - start


def _gradients(setup: Setup, competitor: Competitor) -> Callable[..., Any]:
    """Returns ``(loss, state), grads, extra arguments of the update``."""
    if not competitor.tapped:
        plain = jax.value_and_grad(setup.loss, has_aux=True)
        return lambda *args: (*plain(*args), {})
    tapped = value_and_grad(setup.loss, setup.taps, has_aux=True)

    def gradients(*args: Any) -> Any:
        value, grads, stats = tapped(*args)
        return value, grads, {"stats": stats}

    return gradients


def _evaluation(
    task: Task, framework: Framework, splits: Mapping[str, Sequence[Any]]
) -> Callable[[Carry], dict[str, float]]:
    @jax.jit
    def loss(params: Any, state: Any, batch: Any) -> jax.Array:
        return functional(task, framework, params, state, batch, None)[0]

    def evaluate(carry: Carry) -> dict[str, float]:
        losses = {
            f"{split}_loss": [loss(carry.params, carry.state, batch) for batch in some]
            for split, some in splits.items()
        }
        return {key: float(np.mean(jax.device_get(of))) for key, of in losses.items()}

    return evaluate


def _bytes(memory: Any) -> int:
    """What a compiled step holds at once; donated arguments count once."""
    if memory is None:  # a backend that does not tell
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(held + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"it must be finite at the start, got {value}. Look at the inputs, and at "
            "how the model is initialised."
        )
