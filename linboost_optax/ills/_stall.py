"""Why a run that stalled did: rounding, dead units or singular regressions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._codes import IllsCode
from linboost_optax.ills._model.matrices import Matrices, forward, read_matrices
from linboost_optax.ills._numerics.chunks import Batch, sum_over_chunks
from linboost_optax.ills._numerics.least_squares import weighted_gram
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.iteration import IllsState
from linboost_optax.ills._steps.path import at_ridges_of

# A unit whose slope is below this on every sample is dead.
_DEAD_SLOPE = 1e-4


def explain_stall(
    settings: Settings, params: Any, state: IllsState, batch: Batch
) -> IllsCode:
    """Returns the code of a run that ended by rejections in a row."""
    settings = jax.tree.map(np.asarray, at_ridges_of(settings, state, batch))
    host = jax.tree.map(np.asarray, params)
    matrices: Matrices = read_matrices(settings.network, host)
    slopes = [np.asarray(s) for s in _largest_slopes(settings, matrices, batch)]
    if any(np.all(slope < _DEAD_SLOPE) for slope in slopes):
        return IllsCode.STALLED_DEAD_UNITS  # The gradient is 0, but for no good reason.
    if _is_at_rounding(settings, matrices, state, batch):
        return IllsCode.TOLERANCE
    if any(np.any(slope < _DEAD_SLOPE) for slope in slopes):
        return IllsCode.STALLED_DEAD_UNITS
    if settings.ridge == 0 and _has_dependent_inputs(settings, matrices, batch):
        return IllsCode.STALLED_SINGULAR
    return IllsCode.STALLED


def _is_at_rounding(
    settings: Settings, matrices: Matrices, state: IllsState, batch: Batch
) -> bool:
    """Returns whether the objective, or the gradient of it, is down to rounding."""
    epsilon = float(jnp.finfo(batch.targets.dtype).eps)
    size = float(np.sum(np.asarray(batch.weights) * np.asarray(batch.targets) ** 2))
    value = float(state.objective)
    if value <= (30 * epsilon) ** 2 * size or not settings.network.hidden:
        return True
    return settings.method.is_stationary(settings, matrices, value, batch)


@jax.jit
def _largest_slopes(
    settings: Settings, matrices: Matrices, batch: Batch
) -> list[jax.Array]:
    slopes = forward(settings.network, matrices, batch.inputs.T).slopes
    counted = jnp.any(batch.weights > 0, axis=1)[None]
    return [jnp.max(jnp.where(counted, jnp.abs(s), 0), axis=1) for s in slopes]


def _has_dependent_inputs(settings: Settings, matrices: Matrices, batch: Batch) -> bool:
    for gram in _input_grams(settings, matrices, batch):
        gram = np.asarray(gram, np.float64)
        scale = np.sqrt(np.where(np.diagonal(gram) > 0, np.diagonal(gram), 1))
        smallest = np.linalg.eigvalsh(gram / np.outer(scale, scale))[0]
        if smallest < 10 * len(gram) * np.finfo(np.float32).eps:
            return True
    return False


@jax.jit
def _input_grams(
    settings: Settings, matrices: Matrices, batch: Batch
) -> list[jax.Array]:
    def chunk(part: Batch):
        weights = jnp.mean(part.weights, axis=0, keepdims=True)
        inputs = forward(settings.network, matrices, part.inputs).inputs
        return [weighted_gram(x, weights)[0] for x in inputs[:-1]]

    return sum_over_chunks(chunk, batch, settings.chunk_size, None)
