"""One iteration: propose hidden layers, refit the last one, accept what is better."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax.ills._model.matrices import (
    Matrices,
    read_matrices,
    write_matrices,
)
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.path import at_ridges_of, start_ridge
from linboost_optax.ills._steps.problem import (
    objective,
    refit_output,
    update_scale,
    working_batch,
)
from linboost_optax.ills._steps.scale import Robust

_MIN_DAMPING = 1e-6
_MAX_DAMPING = 1e12
# While an accepted step lowers the objective by this share, training is under way and
# the ridges fall slowly; after that fast, and Tukey's loss takes over from Huber's.
_GAIN = 0.05
_SLOW, _FAST = 0.93, 0.7


class IllsState(NamedTuple):
    """State of ``ills``; scalars are in the parameters' dtype unless said.

    Attributes:
      count: iterations so far, int32.
      damping: of the next iteration: a third after a step, four times after a
        rejection.
      previous: the last accepted step, like the parameters.
      objective: at the current weights; infinite before the first iteration.
      accepted: whether the last iteration took its step, bool.
      rejected: rejections in a row, int32.
      output_ridge: of the next iteration, falling to the argument.
      hidden_factor: of the hidden layers' ridge, which falls with it.
      scale: of the residuals, for a robust loss; infinite before it is known.
      settled: whether Tukey's loss has taken over from Huber's, bool.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    damping: jax.Array
    previous: Any
    objective: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    output_ridge: jax.Array
    hidden_factor: jax.Array
    scale: jax.Array
    settled: jax.Array


def start_state(settings: Settings, params: Any, dtype: Any) -> IllsState:
    """Returns the state before the first iteration."""
    return IllsState(
        count=jnp.zeros((), jnp.int32),
        damping=jnp.asarray(settings.damping, dtype),
        previous=jax.tree.map(jnp.zeros_like, params),
        objective=jnp.asarray(jnp.inf, dtype),
        accepted=jnp.zeros((), bool),
        rejected=jnp.zeros((), jnp.int32),
        output_ridge=jnp.asarray(start_ridge(settings), dtype),
        hidden_factor=jnp.ones((), dtype),
        scale=jnp.asarray(jnp.inf, dtype),
        settled=jnp.zeros((), bool),
    )


def iterate(
    settings: Settings, params: Any, matrices: Matrices, state: IllsState, batch: Batch
) -> tuple[Matrices, IllsState]:
    """Returns the change of every layer and the state after one iteration."""
    targets = settings.method.targets(settings.network, batch.targets)
    batch = batch._replace(targets=targets)
    settings = at_ridges_of(settings, state, batch)
    state = state._replace(output_ridge=settings.output_ridge)
    # Accumulating Gram matrices in reduced precision would cost the small directions.
    with jax.default_matmul_precision("highest"):
        scale = jnp.where(
            state.count == 0,
            state.scale,
            update_scale(settings, matrices, state.scale, batch),
        )
        robust = Robust(scale, state.settled)
        before = objective(settings, matrices, robust, batch)
        working = working_batch(settings, matrices, robust, batch)
        # Weights as they will be once the update is added, rounding included: what
        # the hidden layers make of the data is then computed once for both uses.
        hidden = _propose(settings, matrices, state, working)
        steps = [v - w for v, w in zip(hidden, matrices, strict=False)]
        candidate = [w + step for w, step in zip(matrices, steps, strict=False)]
        last = refit_output(
            settings, [*candidate, matrices[-1]], state.damping, working
        )
        steps.append(last - matrices[-1])
        candidate.append(matrices[-1] + steps[-1])
        after = objective(settings, candidate, robust, batch)
    accepted = after < before
    previous = write_matrices(settings.network, params, steps)
    steps = [jnp.where(accepted, step, 0) for step in steps]
    return steps, _advance(state, accepted, before, after, previous, scale)


def _propose(
    settings: Settings, matrices: Matrices, state: IllsState, working: Batch
) -> Matrices:
    """Returns new hidden layers by the chosen method; at first the ones there are.

    The first iteration only refits the last layer: directions through an arbitrary
    last layer are worth nothing.
    """
    if not settings.network.hidden:
        return []
    previous = read_matrices(settings.network, state.previous)
    new = settings.method.propose(settings, matrices, previous, state.damping, working)
    first = state.count == 0
    return [jnp.where(first, w, v) for v, w in zip(new, matrices, strict=False)]


def _advance(
    state: IllsState,
    accepted: jax.Array,
    before: jax.Array,
    after: jax.Array,
    step: Any,
    scale: jax.Array,
) -> IllsState:
    """Returns the next state; the old one where the data make the objective infinite.

    With ``rejected`` counted on, so that a run of them ends.
    """
    damping = jnp.where(accepted, state.damping / 3, state.damping * 4)
    slow = accepted & (before - after < _GAIN * before)
    shrink = jnp.where(slow, _FAST, _SLOW).astype(state.output_ridge.dtype)
    advanced = IllsState(
        count=state.count + 1,
        damping=jnp.clip(damping, _MIN_DAMPING, _MAX_DAMPING),
        previous=jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), step, state.previous
        ),
        objective=jnp.where(accepted, after, before),
        accepted=accepted,
        rejected=jnp.where(accepted, 0, state.rejected + 1),
        output_ridge=state.output_ridge * shrink,
        hidden_factor=state.hidden_factor,
        scale=scale,
        settled=state.settled | (slow & jnp.isfinite(scale)),
    )
    sound = jnp.isfinite(before)
    frozen = state._replace(accepted=jnp.zeros((), bool), rejected=state.rejected + 1)
    return jax.tree.map(lambda a, b: jnp.where(sound, a, b), advanced, frozen)
