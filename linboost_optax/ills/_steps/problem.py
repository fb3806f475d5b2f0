"""One iteration's regression problem: the objective, working targets and weights.

An output activation and a robust loss are both made linear least squares at the
current weights: every step of an iteration sees working targets ``T`` and working
weights only.
"""

from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax.ills._model.activations import TABLE
from linboost_optax.ills._model.matrices import Matrices, forward, kernel_mask
from linboost_optax.ills._numerics.chunks import (
    Batch,
    map_over_chunks,
    sum_over_chunks,
)
from linboost_optax.ills._numerics.least_squares import (
    add_diagonal,
    solve,
    weighted_gram,
)
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.scale import Robust, residual_scale

# Below this slope an output unit is saturated and its curvature is not trusted.
_SLOPE_FLOOR = 1e-3
# The robust scale stays above this share of the targets' root mean square.
_SCALE_FLOOR = 1e-4


def linearizes_output(settings: Settings) -> bool:
    """Returns whether the objective sees an output activation."""
    return settings.output != TABLE["identity"]


def objective(
    settings: Settings, matrices: Matrices, robust: Robust, batch: Batch
) -> jax.Array:
    """Returns the weighted mean loss plus the ridge penalties; a scalar."""

    def chunk(part: Batch):
        z = forward(settings.network, matrices, part.inputs).out
        value = settings.loss.value(part.targets - settings.output.fn(z), robust)
        # A missing target must not count even where its loss is not finite.
        return jnp.sum(jnp.where(part.weights > 0, part.weights * value, 0))

    data = sum_over_chunks(chunk, batch, settings.chunk_size, settings.axis_name)
    return data + _penalty(settings, matrices)


def _penalty(settings: Settings, matrices: Matrices) -> jax.Array:
    """Returns the ridge penalties of all layers; biases are free."""
    ridges = [settings.hidden_penalty] * (len(matrices) - 1) + [settings.output_ridge]
    return sum(
        (
            ridge * jnp.sum((kernel_mask(layer, w.dtype) * w) ** 2)
            for layer, ridge, w in zip(
                settings.network.layers, ridges, matrices, strict=True
            )
        ),
        jnp.zeros((), matrices[0].dtype),
    )


def update_scale(
    settings: Settings, matrices: Matrices, scale: jax.Array, batch: Batch
) -> jax.Array:
    """Returns the robust scale, which never grows: the objective never rises by it."""
    if not settings.loss.needs_scale:
        return scale

    def chunk(part: Batch):
        z = forward(settings.network, matrices, part.inputs).out
        return part.targets - settings.output.fn(z)

    def energy(part: Batch):
        w = jnp.broadcast_to(part.weights, part.targets.shape)
        return jnp.sum(w * part.targets**2)

    residual = map_over_chunks(chunk, batch, settings.chunk_size)
    new = residual_scale(residual, batch.weights, settings.axis_name)
    rms = jnp.sqrt(
        sum_over_chunks(energy, batch, settings.chunk_size, settings.axis_name)
    )
    tiny = jnp.finfo(rms.dtype).tiny ** 0.5
    new = jnp.maximum(new, jnp.maximum(_SCALE_FLOOR * rms, tiny))
    return jnp.where(jnp.isfinite(new), jnp.minimum(scale, new), scale)


def working_batch(
    settings: Settings, matrices: Matrices, robust: Robust, batch: Batch
) -> Batch:
    r"""Returns working targets and weights at the current weights.

    With output activation :math:`g`: :math:`T = z + g'(z) (y - g(z)) / s^2`, weight
    :math:`s^2`, where :math:`s = \max(|g'(z)|, 10^{-3})`; times the robust weight.
    """
    if not settings.loss.needs_scale and not linearizes_output(settings):
        return batch

    def chunk(part: Batch):
        z = forward(settings.network, matrices, part.inputs).out
        residual = part.targets - settings.output.fn(z)
        weight = part.weights * settings.loss.weight(residual, robust)
        if not linearizes_output(settings):
            return part.targets, weight
        slope = settings.output.slope(z)
        curvature = jnp.maximum(jnp.abs(slope), _SLOPE_FLOOR) ** 2
        return z + slope * residual / curvature, weight * curvature

    targets, weights = map_over_chunks(chunk, batch, settings.chunk_size)
    return Batch(batch.inputs, targets, weights)


def refit_output(
    settings: Settings, matrices: Matrices, damping: Any, working: Batch
) -> jax.Array:
    """Returns the last layer by exact weighted ridge regression (step 3).

    A linearised output activation makes the regression a Gauss-Newton step, which may
    overshoot; only then ``damping`` holds it near the current layer.
    """

    def chunk(part: Batch):
        a = forward(settings.network, matrices, part.inputs).inputs[-1]
        weighted = part.weights * part.targets
        return weighted_gram(a, part.weights), a @ weighted.T

    gram, rhs = sum_over_chunks(chunk, working, settings.chunk_size, settings.axis_name)
    mask = kernel_mask(settings.network.last, gram.dtype)[:, 0]
    gram = add_diagonal(gram, (settings.output_ridge * mask)[None])
    if linearizes_output(settings):
        mean = jnp.mean(jnp.diagonal(gram, axis1=1, axis2=2), axis=1)
        gram = add_diagonal(gram, (damping * mean)[:, None])
        rhs = rhs + damping * mean[None, :] * matrices[-1]
    return solve(gram, rhs)
