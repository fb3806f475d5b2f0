"""What ended a run, and why a run that stalled did."""

import enum

import jax.numpy as jnp
import numpy as np

from linboost_optax._ills.chunks import Batch, sum_over_chunks
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.least_squares import weighted_gram
from linboost_optax._ills.transformation import IllsState
from linboost_optax._ills.weighted import normal_equations
from linboost_optax._network import Layers, forward

# A unit whose slope is below this on every sample is dead.
_DEAD_SLOPE = 1e-4


class IllsCode(enum.IntEnum):
    """Why :func:`fit_ills` ended; ``code.message`` is a sentence."""

    MAX_ITER = 0
    TOLERANCE = 1
    EARLY_STOPPED = 2
    STALLED = 3
    STALLED_DEAD_UNITS = 4
    STALLED_SINGULAR = 5
    NOT_FINITE = 6

    @property
    def converged(self) -> bool:
        """Whether the run ended by a convergence criterion."""
        return self in (IllsCode.TOLERANCE, IllsCode.EARLY_STOPPED)

    @property
    def message(self) -> str:
        """The reason, and the way out where there is one."""
        return _MESSAGES[self]


_MESSAGES = {
    IllsCode.MAX_ITER: "Reached `max_iter` iterations. Raise it to go on.",
    IllsCode.TOLERANCE: "Converged: the objective no longer falls by `tol`.",
    IllsCode.EARLY_STOPPED: "Converged: the validation loss no longer falls.",
    IllsCode.STALLED: "Stalled: ten steps in a row were rejected. Try other start "
    "weights, a larger `ridge`, `combine='unit'` or `method='weighted'`.",
    IllsCode.STALLED_DEAD_UNITS: "Stalled: ten steps in a row were rejected and some "
    "hidden units are dead (saturated on every sample). Standardise the inputs and "
    "start from smaller weights.",
    IllsCode.STALLED_SINGULAR: "Stalled: ten steps in a row were rejected and `ridge` "
    "is 0 while a layer's inputs are linearly dependent. Use a small positive "
    "`ridge`, e.g. 1e-5.",
    IllsCode.NOT_FINITE: "The objective was not finite at the start weights; nothing "
    "was changed. Check the scale of inputs, targets and weights.",
}


def explain_stall(
    config: IllsConfig, layers: Layers, state: IllsState, batch: Batch
) -> IllsCode:
    """Tell convergence to rounding, dead units and singular regressions apart."""
    slopes = _largest_slopes(config, layers, batch)
    if any(np.all(slope < _DEAD_SLOPE) for slope in slopes):
        return IllsCode.STALLED_DEAD_UNITS  # The gradient is 0, but for no good reason.
    if at_rounding(config, layers, state, batch):
        return IllsCode.TOLERANCE
    if any(np.any(slope < _DEAD_SLOPE) for slope in slopes):
        return IllsCode.STALLED_DEAD_UNITS
    if config.ridge == 0 and _dependent_inputs(config, layers, batch):
        return IllsCode.STALLED_SINGULAR
    return IllsCode.STALLED


def at_rounding(
    config: IllsConfig, layers: Layers, state: IllsState, batch: Batch
) -> bool:
    """Whether the objective, or the gradient of it, is down to rounding."""
    epsilon = float(jnp.finfo(batch.targets.dtype).eps)
    weights = jnp.broadcast_to(batch.weights, batch.targets.shape)
    size = float(jnp.sum(weights * batch.targets**2))
    if float(state.objective) <= (30 * epsilon) ** 2 * size:
        return True
    if config.method == "published" or len(layers) == 1:
        return len(layers) == 1
    equations = normal_equations(config, layers, batch)
    # Cauchy-Schwarz on every diagonal entry: what one coordinate alone could gain.
    gain = 0.0
    for w, (gram, rhs, _) in zip(layers, equations, strict=False):
        diagonal = np.diagonal(np.asarray(gram), axis1=1, axis2=2).T
        pull = np.asarray(rhs - config.hidden_ridge * w)
        gain = max(gain, float(np.max(pull**2 / np.where(diagonal > 0, diagonal, 1))))
    return gain <= np.sqrt(epsilon) * 1e-2 * float(state.objective)


def _largest_slopes(
    config: IllsConfig, layers: Layers, batch: Batch
) -> list[np.ndarray]:
    slopes = forward(config.network, layers, batch.inputs.T).slopes
    return [np.max(np.abs(np.asarray(s)), axis=1) for s in slopes]


def _dependent_inputs(config: IllsConfig, layers: Layers, batch: Batch) -> bool:
    def chunk(part: Batch):
        weights = jnp.mean(part.weights, axis=0, keepdims=True)
        inputs = forward(config.network, layers, part.inputs).inputs
        return [weighted_gram(x, weights)[0] for x in inputs[:-1]]

    for gram in sum_over_chunks(chunk, batch, config.chunk_size, None):
        gram = np.asarray(gram, np.float64)
        scale = np.sqrt(np.where(np.diagonal(gram) > 0, np.diagonal(gram), 1))
        smallest = np.linalg.eigvalsh(gram / np.outer(scale, scale))[0]
        if smallest < 10 * len(gram) * np.finfo(np.float32).eps:
            return True
    return False
