"""One iteration's regression problem: working targets, weights and the objective.

An output activation and a robust loss are both made linear least squares at the
current weights: every step of an iteration sees working targets ``T`` and working
weights only.
"""

from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._activations import TABLE
from linboost_optax._ills.chunks import Batch, map_over_chunks, sum_over_chunks
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.least_squares import add_diagonal, solve, weighted_gram
from linboost_optax._ills.robust import Robust, loss_value, loss_weight, residual_scale
from linboost_optax._network import Layers, forward, kernel_mask

# Below this slope an output unit is saturated and its curvature is not trusted.
_SLOPE_FLOOR = 1e-3
# The robust scale stays above this share of the targets' root mean square.
_SCALE_FLOOR = 1e-4


def output_kind(config: IllsConfig) -> bool:
    """Whether the output activation has to be linearised."""
    if config.method == "published":
        return False  # Its targets are inverted once and for all.
    return config.network.last.activation != TABLE["identity"]


def response(config: IllsConfig, z: jax.Array) -> jax.Array:
    """What the objective compares with the targets."""
    return config.network.last.activation.fn(z) if output_kind(config) else z


def objective(
    config: IllsConfig, layers: Layers, robust: Robust, batch: Batch
) -> jax.Array:
    """Weighted mean loss plus the ridge penalties; a scalar."""

    def chunk(part: Batch):
        z = forward(config.network, layers, part.inputs).out
        value = loss_value(
            config.loss, config.cutoff, part.targets - response(config, z), robust
        )
        # A missing target must not count even where its loss is not finite.
        return jnp.sum(jnp.where(part.weights > 0, part.weights * value, 0))

    data = sum_over_chunks(chunk, batch, config.chunk_size, config.axis_name)
    return data + penalty(config, layers)


def penalty(config: IllsConfig, layers: Layers) -> jax.Array:
    """Ridge penalties of all layers; biases are free."""
    ridges = [config.hidden_ridge] * (len(layers) - 1) + [config.output_ridge]
    return sum(
        (
            ridge * jnp.sum((kernel_mask(layer, w.dtype) * w) ** 2)
            for layer, ridge, w in zip(
                config.network.layers, ridges, layers, strict=True
            )
        ),
        jnp.zeros((), layers[0].dtype),
    )


def update_scale(
    config: IllsConfig, layers: Layers, scale: jax.Array, batch: Batch
) -> jax.Array:
    """The robust scale, which never grows: the objective never rises through it."""
    if config.loss == "squared":
        return scale

    def chunk(part: Batch):
        return part.targets - response(
            config, forward(config.network, layers, part.inputs).out
        )

    def energy(part: Batch):
        w = jnp.broadcast_to(part.weights, part.targets.shape)
        return jnp.sum(w * part.targets**2)

    residual = map_over_chunks(chunk, batch, config.chunk_size)
    new = residual_scale(residual, batch.weights, config.axis_name)
    rms = jnp.sqrt(sum_over_chunks(energy, batch, config.chunk_size, config.axis_name))
    tiny = jnp.finfo(rms.dtype).tiny ** 0.5
    new = jnp.maximum(new, jnp.maximum(_SCALE_FLOOR * rms, tiny))
    return jnp.where(jnp.isfinite(new), jnp.minimum(scale, new), scale)


def working_batch(
    config: IllsConfig, layers: Layers, robust: Robust, batch: Batch
) -> Batch:
    r"""Working targets and weights at the current weights.

    With output activation :math:`g`: :math:`T = z + g'(z) (y - g(z)) / s^2`, weight
    :math:`s^2`, where :math:`s = \max(|g'(z)|, 10^{-3})`; times the robust weight.
    """
    if config.loss == "squared" and not output_kind(config):
        return batch

    def chunk(part: Batch):
        z = forward(config.network, layers, part.inputs).out
        residual = part.targets - response(config, z)
        weight = loss_weight(config.loss, config.cutoff, residual, robust)
        weight = part.weights * weight
        if not output_kind(config):
            return part.targets, weight
        slope = config.network.last.activation.slope(z)
        curvature = jnp.maximum(jnp.abs(slope), _SLOPE_FLOOR) ** 2
        return z + slope * residual / curvature, weight * curvature

    targets, weights = map_over_chunks(chunk, batch, config.chunk_size)
    return Batch(batch.inputs, targets, weights)


def refit_output(
    config: IllsConfig, layers: Layers, damping: Any, working: Batch
) -> jax.Array:
    """The last layer, by exact weighted ridge regression on its inputs.

    A linearised output activation makes the regression a Gauss-Newton step, which may
    overshoot; only then ``damping`` holds it near the current layer.
    """

    def chunk(part: Batch):
        a = forward(config.network, layers, part.inputs).inputs[-1]
        weighted = part.weights * part.targets
        return weighted_gram(a, part.weights), a @ weighted.T

    gram, rhs = sum_over_chunks(chunk, working, config.chunk_size, config.axis_name)
    mask = kernel_mask(config.network.last, gram.dtype)[:, 0]
    gram = add_diagonal(gram, (config.output_ridge * mask)[None])
    if output_kind(config):
        mean = jnp.mean(jnp.diagonal(gram, axis1=1, axis2=2), axis=1)
        gram = add_diagonal(gram, (damping * mean)[:, None])
        rhs = rhs + damping * mean[None, :] * layers[-1]
    return solve(gram, rhs)
