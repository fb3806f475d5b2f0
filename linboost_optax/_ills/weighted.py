r"""Weighted targets: one regression direction a layer (step 1 of the method).

With :math:`J_{ikj} = \partial \mathrm{out}_{ik} / \partial z_{ij}`, residual ``R`` and
weights :math:`\omega`, unit ``j`` regresses its ideal change
:math:`t_{ij} = (J^\top \omega R)_{ij} / c_{ij}` on the layer's inputs with weights
:math:`c_{ij} = \sum_k \omega_{ik} |J_{ikj}| \sum_{j'} |J_{ikj'}|`. The product
:math:`c_{ij} t_{ij}` in its normal equations is the back-propagated residual, so that
nothing is divided by :math:`c`.
"""

import jax
import jax.numpy as jnp

from linboost_optax._ills.chunks import Batch, sum_over_chunks
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.least_squares import (
    add_diagonal,
    relative_ridge,
    solve,
    weighted_gram,
)
from linboost_optax._network import Forward, Layers, Network, forward, kernel_mask


def jacobians(network: Network, layers: Layers, f: Forward) -> list[jax.Array]:
    """``d out / d z`` of every hidden layer, ``[output, unit, sample]`` each."""
    result = []
    above = None
    for level in reversed(range(len(f.slopes))):
        kernel = layers[level + 1][: network.layers[level].features_out]
        above = kernel.T[:, :, None] if above is None else kernel[None] @ above
        above = above * f.slopes[level][None]
        result.append(above)
    return result[::-1]


def importances(
    network: Network, layers: Layers, f: Forward, weights: jax.Array
) -> list[jax.Array]:
    """The weights ``c``, ``[unit, sample]`` for every hidden layer."""
    kernel = jnp.abs(layers[-1][: network.last.features_in])
    slope = jnp.abs(f.slopes[-1])
    # Below the output layer J is a product, and its sums are matrix products.
    top = slope * (kernel @ (weights * (kernel.T @ slope)))
    if len(f.slopes) == 1:
        return [top]
    result = []
    for j in jacobians(network, layers, f)[:-1]:
        size = jnp.abs(j)
        total = weights * jnp.sum(size, axis=1)
        result.append(jnp.sum(size * total[:, None, :], axis=0))
    return [*result, top]


def back_propagate(
    network: Network, layers: Layers, f: Forward, output: jax.Array
) -> list[jax.Array]:
    """``J^T output`` for every hidden layer, ``[unit, sample]`` each."""
    result = []
    for level in reversed(range(len(f.slopes))):
        kernel = layers[level + 1][: network.layers[level].features_out]
        output = (kernel @ output) * f.slopes[level]
        result.append(output)
    return result[::-1]


def normal_equations(
    config: IllsConfig, layers: Layers, working: Batch
) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """Gram matrices, right-hand sides and units' total importance, per hidden layer."""

    def chunk(part: Batch):
        f = forward(config.network, layers, part.inputs)
        weights = jnp.broadcast_to(part.weights, part.targets.shape)
        c = importances(config.network, layers, f, weights)
        delta = back_propagate(
            config.network, layers, f, weights * (part.targets - f.out)
        )
        return [
            (
                weighted_gram(x, ci if config.importance == "unit" else _mean(ci)),
                x @ di.T,
                jnp.sum(ci, axis=1),
            )
            for x, ci, di in zip(f.inputs, c, delta, strict=False)
        ]

    return sum_over_chunks(chunk, working, config.chunk_size, config.axis_name)


def _mean(c: jax.Array) -> jax.Array:
    return jnp.mean(c, axis=0, keepdims=True)


def directions(config: IllsConfig, layers: Layers, working: Batch) -> Layers:
    """Step 1: for every hidden layer the regression of the ideal changes."""
    result = []
    equations = normal_equations(config, layers, working)
    for layer, w, (gram, rhs, total) in zip(
        config.network.hidden, layers[:-1], equations, strict=True
    ):
        if config.importance == "shared":
            # c_ij is replaced by (mean over units) x (share of the unit).
            share = total / jnp.where(jnp.mean(total) > 0, jnp.mean(total), 1)
            rhs = rhs / jnp.where(share > 0, share, 1)[None, :]
        mask = kernel_mask(layer, w.dtype)
        rhs = rhs - config.hidden_ridge * mask * w
        gram = add_diagonal(
            relative_ridge(gram, config.ridge), (config.hidden_ridge * mask[:, 0])[None]
        )
        result.append(solve(gram, rhs))
    return result
