"""The compiled loop: iterations until a criterion ends them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linboost_optax.ills._codes import IllsCode
from linboost_optax.ills._model.matrices import (
    Matrices,
    forward,
    read_matrices,
    write_matrices,
)
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.iteration import IllsState, iterate

# Rejections in a row after which a run counts as stalled.
_MAX_REJECTED = 10


class Patience(NamedTuple):
    """When a run has gained too little for too long.

    Attributes:
      share: an objective below this share of the one before is a gain.
      iterations: in a row without a gain that end the run.
    """

    share: Any
    iterations: Any


class Progress(NamedTuple):
    """Carried from iteration to iteration.

    Attributes:
      iteration: int32.
      params: current parameters.
      state: of the transformation.
      best: parameters with the least validation loss, and the state they came with.
      best_validation: this loss.
      waited: iterations without enough gain, int32.
      code: int32, ``IllsCode.MAX_ITER`` while running.
      objectives: ``[slot]``, NaN from ``iteration`` on.
      validation: the same, or empty without validation data.
    """

    iteration: jax.Array
    params: Any
    state: IllsState
    best: tuple[Any, IllsState]
    best_validation: jax.Array
    waited: jax.Array
    code: jax.Array
    objectives: jax.Array
    validation: jax.Array


@functools.partial(jax.jit, static_argnames="slots")
def run_loop(
    settings: Settings,
    patience: Patience,
    params: Any,
    state: IllsState,
    data: Batch,
    held_out: Batch | None,
    max_iter: Any,
    *,
    slots: int,
) -> Progress:
    """Runs up to ``max_iter`` iterations; numbers are arguments, to compile once.

    The curves have room for ``slots`` iterations, at least ``max_iter``.
    """

    def running(progress: Progress) -> jax.Array:
        return (progress.iteration < max_iter) & (progress.code == IllsCode.MAX_ITER)

    nothing = jnp.full((slots,), jnp.nan, data.inputs.dtype)
    start = Progress(
        iteration=jnp.int32(0),
        params=params,
        state=state,
        best=(params, state),
        best_validation=jnp.asarray(jnp.inf, data.inputs.dtype),
        waited=jnp.int32(0),
        code=jnp.int32(IllsCode.MAX_ITER),
        objectives=nothing,
        validation=nothing if held_out is not None else nothing[:0],
    )
    body = functools.partial(_advance, settings, patience, data, held_out)
    return jax.lax.while_loop(running, body, start)


def _advance(
    settings: Settings,
    patience: Patience,
    data: Batch,
    held_out: Batch | None,
    progress: Progress,
) -> Progress:
    network, now = settings.network, progress.iteration
    matrices = read_matrices(network, progress.params)
    steps, state = iterate(settings, progress.params, matrices, progress.state, data)
    updates = write_matrices(network, progress.params, steps)
    params = optax.apply_updates(progress.params, updates)
    waited = _waited(patience, progress, state)
    best, least = progress.best, progress.best_validation
    validation = progress.validation
    if held_out is not None:
        matrices = [w + step for w, step in zip(matrices, steps, strict=True)]
        value = _validation_loss(settings, matrices, held_out)
        better = value < least
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (params, state), best
        )
        least = jnp.where(better, value, least)
        waited = jnp.where(better, 0, progress.waited + 1)
        validation = validation.at[now].set(value)
    return Progress(
        iteration=now + 1,
        params=params,
        state=state,
        best=best,
        best_validation=least,
        waited=waited,
        code=_code(patience, state, waited, held_out is not None),
        objectives=progress.objectives.at[now].set(state.objective),
        validation=validation,
    )


def _waited(patience: Patience, progress: Progress, new: IllsState) -> jax.Array:
    """Returns accepted iterations in a row without gain; a rejection is not one."""
    gained = new.objective < patience.share * progress.state.objective
    waited = jnp.where(gained, 0, progress.waited + 1)
    return jnp.where(new.accepted, waited, progress.waited)


def _code(
    patience: Patience, new: IllsState, waited: jax.Array, validated: bool
) -> jax.Array:
    patient = IllsCode.EARLY_STOPPED if validated else IllsCode.TOLERANCE
    code = jnp.where(new.rejected >= _MAX_REJECTED, IllsCode.STALLED, IllsCode.MAX_ITER)
    code = jnp.where(waited >= patience.iterations, patient, code)
    # Only an objective that was never finite stays infinite.
    code = jnp.where(jnp.isfinite(new.objective), code, IllsCode.NOT_FINITE)
    return code.astype(jnp.int32)


def _validation_loss(
    settings: Settings, matrices: Matrices, held_out: Batch
) -> jax.Array:
    """Returns the weighted mean of the scale-free error, infinity if not finite."""
    held_out = held_out.T
    z = forward(settings.network, matrices, held_out.inputs).out
    residual = held_out.targets - settings.network.last.activation.fn(z)
    weights, error = held_out.weights, settings.loss.error(residual)
    # What does not count must not count either where its error is not finite.
    value = jnp.sum(jnp.where(weights > 0, weights * error, 0))
    return jnp.where(jnp.isfinite(value), value, jnp.inf)
