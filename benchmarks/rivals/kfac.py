"""K-FAC from the package `kfac-jax`, as a transformation of gradients.

Martens and Grosse (2015), arXiv:1503.05671. The package takes its own gradients and
steps; here a whole step of it is one update, within the compiled step like everyone's.
The gradients that it is given are not read, and so not computed.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import source_info_util

from benchmarks.tasks._task import Task, bernoulli, cross_entropy, squared_error

REGISTER = {
    squared_error: "register_squared_error_loss",
    cross_entropy: "register_softmax_cross_entropy_loss",
    bernoulli: "register_sigmoid_cross_entropy_loss",
}
MOMENTUM = 0.9
EVERY = 10  # steps between two inverses
ADAPTED = 5  # steps between two looks at the damping; the package's default


def kfac(
    schedule: optax.Schedule, task: Task, damping: float, adaptive: bool = False
) -> optax.GradientTransformationExtraArgs:
    """K-FAC on a task, whose loss it has to know; `update` needs `batch`.

    Args:
      schedule: the learning rate.
      task: one with a criterion.
      damping: added to the curvature; where the package adapts it, its start.
      adaptive: adapt the damping by the rule of Levenberg and Marquardt.

    Raises:
      ImportError: if `kfac-jax` is not installed.
      ValueError: if the task has no criterion.
    """
    criterion = task.criterion
    if criterion is None or criterion not in REGISTER:
        raise ValueError(
            f"K-FAC has to know the loss, and task '{task.title}' names none. Give "
            "the task a `criterion`, or leave K-FAC out."
        )
    package = _package()

    def value(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        outputs = task.model.apply({"params": params}, batch["x"])
        assert isinstance(outputs, jax.Array)
        getattr(package, REGISTER[criterion])(outputs, batch["y"])
        return criterion(outputs, batch["y"])

    def begin(params: optax.Params) -> tuple[Any, Any]:
        """The package's optimizer and its first state, without which it has no step."""
        optimizer = package.Optimizer(
            value_and_grad_func=jax.value_and_grad(value),
            l2_reg=0.0,
            num_burnin_steps=0,
            inverse_update_period=EVERY,
            use_adaptive_damping=adaptive,
            initial_damping=damping if adaptive else None,
            damping_adaptation_interval=ADAPTED,
        )
        # It traces on what it is given, and must keep no tracer of ours.
        like = (jax.tree.map(_zeros, tree) for tree in (params, task.batch_like()))
        key = jax.random.PRNGKey(0)
        return optimizer, optimizer.init(next(like), key, next(like))

    def init(params: optax.Params) -> Any:
        with _bridge():
            return begin(params)[1]

    def update(
        updates: optax.Updates,
        state: Any,
        params: Any = None,
        *,
        batch: Any,
        **others: Any,
    ) -> tuple[optax.Updates, Any]:
        del updates, others
        optimizer, _ = begin(params)
        count = state.step_counter
        key = jax.random.fold_in(jax.random.PRNGKey(0), count)
        rates = {"learning_rate": schedule(count), "momentum": jnp.float32(MOMENTUM)}
        if not adaptive:
            rates["damping"] = jnp.float32(damping)

        def step(number: int) -> Any:
            # The number says only whether the damping is adapted.
            return optimizer.step(
                params, state, key, batch=batch, global_step_int=number, **rates
            )[:2]

        if adaptive:
            due = (count + 1) % ADAPTED == 0
            new, state = jax.lax.cond(due, lambda: step(ADAPTED - 1), lambda: step(0))
        else:
            new, state = step(0)
        return jax.tree.map(jnp.subtract, new, params), state

    def bridged(*args: Any, **kwargs: Any) -> Any:
        with _bridge():
            return update(*args, **kwargs)

    return optax.GradientTransformationExtraArgs(init, bridged)


def _zeros(leaf: jax.Array) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module("kfac_jax")
        except ImportError as error:
            raise ImportError(
                "K-FAC needs the package kfac-jax. Install it with "
                "`pip install -e '.[rivals]'`."
            ) from error


@contextlib.contextmanager
def _bridge() -> Iterator[None]:
    """What kfac-jax 0.0.8 needs to be traced by JAX 0.10; see `__init__`."""
    matcher = importlib.import_module("kfac_jax._src.tag_graph_matcher")
    with warnings.catch_warnings(), mock.patch.object(matcher, "eval_jaxpr_eqn", _eval):
        warnings.filterwarnings("ignore", "jax.core", DeprecationWarning)
        yield


def _eval(equation: Any, values: list[Any]) -> list[Any]:
    """The values of a traced equation; JAX before 0.10 returns functions apart."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    with source_info_util.user_context(equation.source_info.traceback):
        result = equation.primitive.bind(*functions, *values, **bound)
    return result if equation.primitive.multiple_results else [result]
