"""One iteration: propose hidden layers, refit the last one, accept what is better."""

import dataclasses
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
# Hidden layers have this power of what the ridge on the last one is above its final
# value: felt early on, gone before clean data are fitted to the end.
_HIDDEN_POWER = 1.5
# Beside a ridge on the hidden layers that stays, a strong one on the last layer ends in
# poor local minima: there the path starts at this, and is the last layer's alone.
_MAX_START_BESIDE = 1e-2


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
    scale: jax.Array
    settled: jax.Array


def start_state(settings: Settings, params: Any, dtype: Any) -> IllsState:
    """Returns the state before the first iteration."""
    ridge = settings.output_ridge
    if settings.network.hidden:
        ridge = settings.method.start_ridge(ridge)
        beside = jnp.maximum(
            jnp.minimum(ridge, _MAX_START_BESIDE), settings.output_ridge
        )
        ridge = jnp.where(settings.hidden_penalty > 0, beside, ridge)
    return IllsState(
        count=jnp.zeros((), jnp.int32),
        damping=jnp.asarray(settings.damping, dtype),
        previous=jax.tree.map(jnp.zeros_like, params),
        objective=jnp.asarray(jnp.inf, dtype),
        accepted=jnp.zeros((), bool),
        rejected=jnp.zeros((), jnp.int32),
        output_ridge=jnp.asarray(ridge, dtype),
        scale=jnp.asarray(jnp.inf, dtype),
        settled=jnp.zeros((), bool),
    )


def at_ridges_of(settings: Settings, state: IllsState, batch: Batch) -> Settings:
    """Returns the settings with the ridges that the next iteration has.

    They only fall, and the objective with them: as with the scale, no rise comes of it.
    Strong ridges let smooth functions come first, where early stopping finds them.
    """
    final, dtype = settings.output_ridge, state.output_ridge.dtype
    output = jnp.maximum(state.output_ridge, final).astype(dtype)
    excess = output - final
    # The last layer's ridge has no unit, that of the hidden ones has the objective's:
    # the targets' variance or, where outliers must have no say, the squared scale.
    size = jnp.minimum(_variance(batch, settings.axis_name), state.scale**2)
    path = size * excess**_HIDDEN_POWER
    # A number may be traced: whether the user gave a ridge is known when it runs.
    given = settings.hidden_penalty
    hidden = jnp.where(given > 0, given, path)
    return dataclasses.replace(
        settings, output_ridge=output, hidden_ridge=jnp.asarray(hidden, dtype)
    )


def _variance(batch: Batch, axis_name: Any) -> jax.Array:
    """Returns the weighted mean over outputs of the targets' variance."""

    def total(values: jax.Array) -> jax.Array:
        local = jnp.sum(values, axis=0)
        return local if axis_name is None else jax.lax.psum(local, axis_name)

    weights = jnp.broadcast_to(batch.weights, batch.targets.shape)
    share = total(weights)
    mean = total(weights * batch.targets) / jnp.where(share > 0, share, 1)
    return jnp.sum(total(weights * (batch.targets - mean[None]) ** 2))


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
        scale=scale,
        settled=state.settled | (slow & jnp.isfinite(scale)),
    )
    sound = jnp.isfinite(before)
    frozen = state._replace(accepted=jnp.zeros((), bool), rejected=state.rejected + 1)
    return jax.tree.map(lambda a, b: jnp.where(sound, a, b), advanced, frozen)
