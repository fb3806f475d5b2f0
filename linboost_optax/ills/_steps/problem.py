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
    factorize,
    substitute,
    weighted_gram,
)
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.scale import Robust, residual_scale

# Iterations that make up for the rounding of the last layer's Gram matrix. Of 200
# units two leave a little, and five do no more than three.
_CORRECTIONS = 3
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

    Activations of many units are nearly dependent. Rounding of their Gram matrix then
    costs more than an iteration gains, and every step is rejected: what is left over
    is therefore fitted by conjugate gradients, with products of the data themselves,
    which the factor of the Gram matrix preconditions.
    """

    def activations(part: Batch):
        return forward(settings.network, matrices, part.inputs).inputs[-1]

    def chunk(part: Batch):
        a = activations(part)
        weighted = part.weights * part.targets
        return weighted_gram(a, part.weights), a @ weighted.T

    gram, rhs = sum_over_chunks(chunk, working, settings.chunk_size, settings.axis_name)
    mask = kernel_mask(settings.network.last, gram.dtype)
    ridge, pull = settings.output_ridge * mask, jnp.zeros_like(rhs)
    gram = add_diagonal(gram, ridge[:, 0][None])
    if linearizes_output(settings):
        mean = jnp.mean(jnp.diagonal(gram, axis1=1, axis2=2), axis=1)
        gram = add_diagonal(gram, (damping * mean)[:, None])
        ridge = ridge + damping * mean[None, :]
        pull = damping * mean[None, :] * matrices[-1]
    factors = factorize(gram)
    fit = substitute(factors, rhs + pull)

    def summed(chunk: Any) -> jax.Array:
        return sum_over_chunks(chunk, working, settings.chunk_size, settings.axis_name)

    def left_over(part: Batch):
        a = activations(part)
        return a @ (part.weights * (part.targets - fit.T @ a)).T

    def product(v: jax.Array) -> jax.Array:
        def chunk(part: Batch):
            a = activations(part)
            return a @ (part.weights * (v.T @ a)).T

        return summed(chunk) + ridge * v

    rest = summed(left_over) + pull - ridge * fit
    correction, _ = jax.scipy.sparse.linalg.cg(
        product,
        rest,
        tol=0.0,
        maxiter=_CORRECTIONS,
        M=lambda v: substitute(factors, v),
    )
    return fit + correction
