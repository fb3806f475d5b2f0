r"""The published sweep: ideal activations, inverted, regressed, layer by layer.

From the last layer down: the minimum-norm change of the activations that removes the
residual, :math:`A^* = A + R (W^\top W + \delta I)^{-1} W^\top`, is clipped into the
range of :math:`\varphi`, inverted, and the layer below is regressed on
:math:`Z^* = \varphi^{-1}(A^*)`. What that layer leaves unexplained is the residual of
the next one down.

References:
    Khadilkar 2023, arXiv:2307.05189.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._ills.chunks import Batch, sum_over_chunks
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.least_squares import relative_ridge, solve, weighted_gram
from linboost_optax._network import Layers, forward


class Ideal(NamedTuple):
    """Ideal values of one hidden layer, ``[unit, sample]`` but for the inputs."""

    inputs: jax.Array  # of the layer, augmented
    unclipped: jax.Array  # ideal activations before clipping
    activations: jax.Array  # and after
    pre_activations: jax.Array


def sweep(
    config: IllsConfig, layers: Layers, damping: jax.Array, working: Batch
) -> Layers:
    """New hidden layers, fitted from the last one down; the output layer is kept."""
    new = list(layers)
    for level in reversed(range(len(layers) - 1)):
        fitted = _fit(config, layers, new, level, damping, working)
        new[level] = layers[level] + config.relaxation * (fitted - layers[level])
    return new[:-1]


def ideal_values(
    config: IllsConfig,
    layers: Layers,
    new: Layers,
    level: int,
    damping: jax.Array,
    part: Batch,
) -> Ideal:
    """Ideal activations and pre-activations of hidden layer ``level``.

    Args:
        config: the optimizer.
        layers: weights at the start of the sweep.
        new: the same, with the layers above ``level`` already fitted.
        level: hidden layer, counted from 0.
        damping: of the minimum-norm change, relative to the mean diagonal.
        part: chunk of samples with working targets.

    Returns:
        The :class:`Ideal` values.
    """
    f = forward(config.network, layers, part.inputs)
    residual = part.targets - f.out
    ideal = None
    for at in reversed(range(level, len(layers) - 1)):
        layer = config.network.layers[at]
        kernel = new[at + 1][: layer.features_out]
        gram = relative_ridge((kernel.T @ kernel)[None], damping)
        unclipped = f.inputs[at + 1][: layer.features_out] + kernel @ solve(
            gram, residual
        )
        activations = layer.activation.clip(unclipped, config.margin)
        inverse = layer.activation.inverse
        assert inverse is not None  # IllsConfig refuses the others.
        ideal = Ideal(f.inputs[at], unclipped, activations, inverse(activations))
        residual = ideal.pre_activations - new[at].T @ f.inputs[at]
    assert ideal is not None  # `level` is a hidden layer.
    return ideal


def _fit(
    config: IllsConfig,
    layers: Layers,
    new: Layers,
    level: int,
    damping: jax.Array,
    working: Batch,
) -> jax.Array:
    def chunk(part: Batch):
        ideal = ideal_values(config, layers, new, level, damping, part)
        # A hidden unit serves all outputs: a sample counts with its mean weight.
        weights = jnp.mean(part.weights, axis=0, keepdims=True)
        x = ideal.inputs
        return weighted_gram(x, weights), x @ (weights * ideal.pre_activations).T

    gram, rhs = sum_over_chunks(chunk, working, config.chunk_size, config.axis_name)
    return solve(relative_ridge(gram, config.ridge), rhs)


def invert_targets(config: IllsConfig, targets: jax.Array) -> jax.Array:
    """Ideal pre-activations of the output layer, once and for all."""
    last = config.network.last.activation
    assert last.inverse is not None
    return last.inverse(last.clip(targets, config.margin))
