"""Runs of ILLS, and what may follow them: restarts, polishing, all rows."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._codes import IllsCode
from linboost_optax.ills._loop import Patience, Progress, run_loop
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._numerics.padding import padded_size
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._stall import explain_stall
from linboost_optax.ills._steps.iteration import IllsState
from linboost_optax.ills._steps.restart import redraw_units


class IllsResult(NamedTuple):
    """Result of ``fit_ills``.

    Attributes:
      params: the trained parameters; with validation data the best on them, after the
        iterations of ``refit``.
      code: what ended the run; ``code.message`` says it in words.
      iterations: how many there were.
      objectives: the best so far, ``[iteration]``; never rises.
      validation: validation losses, ``[iteration]``; empty without such data.
      state: of the transformation, that of ``params``.
    """

    params: Any
    code: IllsCode
    iterations: int
    objectives: np.ndarray
    validation: np.ndarray
    state: IllsState


class Task(NamedTuple):
    """What the runs of one fit have in common.

    Attributes:
      patience: when to stop.
      data: to train on.
      held_out: to stop early by, or None.
      max_iter: most iterations of a run.
    """

    patience: Patience
    data: Batch
    held_out: Batch | None
    max_iter: int


def run(settings: Settings, task: Task, params: Any, state: IllsState) -> IllsResult:
    """Returns what a run from these weights and this state comes to."""
    settings = jax.tree.map(float, settings)
    progress = _advanced(settings, task, params, state, task.max_iter)
    ran = int(progress.iteration)
    code = IllsCode(int(progress.code))
    if code == IllsCode.STALLED:
        code = explain_stall(settings, progress.params, progress.state, task.data)
    validated = task.held_out is not None
    end = progress.best if validated else (progress.params, progress.state)
    return IllsResult(
        params=end[0],
        code=code,
        iterations=ran,
        objectives=np.asarray(progress.objectives)[:ran],
        validation=np.asarray(progress.validation)[: ran if validated else 0],
        state=end[1],
    )


def _advanced(
    settings: Settings, task: Task, params: Any, state: IllsState, iterations: int
) -> Progress:
    return run_loop(
        settings,
        task.patience,
        params,
        state,
        task.data,
        task.held_out,
        np.int32(iterations),
        slots=padded_size(task.max_iter),
    )


def restarted(
    settings: Settings,
    task: Task,
    fresh: IllsState,
    result: IllsResult,
    restarts: int,
    seed: int,
) -> IllsResult:
    """Returns the best of all runs, each with some units of the best one drawn anew."""
    for draw in range(restarts):
        if result.code == IllsCode.NOT_FINITE or _is_exact(result, task.data):
            break
        key = jax.random.fold_in(jax.random.key(seed), draw)
        start = redraw_units(key, settings.network, result.params, task.data)
        # A robust objective is comparable at one scale of one loss only.
        # And what was learnt must not be smoothed away again.
        again = fresh._replace(
            scale=result.state.scale,
            settled=result.state.settled,
            output_ridge=result.state.output_ridge,
            hidden_factor=result.state.hidden_factor,
        )
        result = _better(result, run(settings, task, start, again))
    return result


def refitted(
    settings: Settings, task: Task, result: IllsResult, iterations: int
) -> IllsResult:
    """Returns the weights some iterations later, and the history as it is."""
    progress = _advanced(settings, task, result.params, result.state, iterations)
    return result._replace(params=progress.params, state=progress.state)


def polished(
    settings: Settings, task: Task, result: IllsResult, max_iter: int
) -> IllsResult:
    """Returns the result of the method that ends a converged run, from where it ended.

    With validation data it may have been better before.
    """
    settings = dataclasses.replace(settings, method=settings.method.polishing())
    damping = jnp.asarray(settings.damping, result.state.damping.dtype)
    state = result.state._replace(damping=damping, rejected=jnp.int32(0))
    longer = task._replace(max_iter=max_iter)
    after = run(settings, longer, result.params, state)
    best = after if task.held_out is None else _better(result, after)
    return _joined(result, after)._replace(params=best.params, state=best.state)


def lowered(result: IllsResult) -> np.ndarray:
    """Returns the curve that runs are compared by."""
    return result.validation if len(result.validation) else result.objectives


def _better(first: IllsResult, second: IllsResult) -> IllsResult:
    """Returns the run that ended lower, with the history of both."""
    lower = np.nanmin(lowered(second)) < np.nanmin(lowered(first))
    winner = second if lower else first
    both = _joined(first, second)
    return winner._replace(
        iterations=both.iterations,
        objectives=np.minimum.accumulate(both.objectives),
        validation=both.validation,
    )


def _is_exact(result: IllsResult, data: Batch) -> bool:
    """Returns whether the error is below a thousandth of the targets' size."""
    size = float(np.sum(np.asarray(data.weights) * np.asarray(data.targets) ** 2))
    return bool(result.objectives[-1] <= 1e-6 * size)


def _joined(first: IllsResult, second: IllsResult) -> IllsResult:
    return second._replace(
        iterations=first.iterations + second.iterations,
        objectives=np.concatenate([first.objectives, second.objectives]),
        validation=np.concatenate([first.validation, second.validation]),
    )
