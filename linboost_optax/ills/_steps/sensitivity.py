r"""How the output depends on the hidden pre-activations.

With :math:`J_{ikj} = \partial \mathrm{out}_{ik} / \partial z_{ij}` for sample ``i``,
output ``k`` and unit ``j`` of a hidden layer.
"""

import jax
import jax.numpy as jnp

from linboost_optax.ills._model.matrices import Forward, Matrices
from linboost_optax.ills._model.network import Network


def jacobians(network: Network, matrices: Matrices, f: Forward) -> list[jax.Array]:
    """Returns ``J`` of every hidden layer, ``[output, unit, sample]`` each."""
    result = []
    above = None
    for level in reversed(range(len(f.slopes))):
        kernel = matrices[level + 1][: network.layers[level].features_out]
        above = kernel.T[:, :, None] if above is None else kernel[None] @ above
        above = above * f.slopes[level][None]
        result.append(above)
    return result[::-1]


def importances(
    network: Network, matrices: Matrices, f: Forward, weights: jax.Array
) -> list[jax.Array]:
    r"""Returns :math:`c_{ij}` of every hidden layer, ``[unit, sample]`` each.

    .. math:: c_{ij} = \sum_k \omega_{ik} |J_{ikj}| \sum_{j'} |J_{ikj'}|

    Args:
      network: the description.
      matrices: the weights.
      f: the pass at these weights.
      weights: :math:`\omega`, ``[output, sample]``.
    """
    kernel = jnp.abs(matrices[-1][: network.last.features_in])
    slope = jnp.abs(f.slopes[-1])
    # Below the output layer J is a product, and its sums are matrix products.
    top = slope * (kernel @ (weights * (kernel.T @ slope)))
    if len(f.slopes) == 1:
        return [top]
    result = []
    for j in jacobians(network, matrices, f)[:-1]:
        size = jnp.abs(j)
        total = weights * jnp.sum(size, axis=1)
        result.append(jnp.sum(size * total[:, None, :], axis=0))
    return [*result, top]


def back_propagate(
    network: Network, matrices: Matrices, f: Forward, output: jax.Array
) -> list[jax.Array]:
    """Returns ``J^T output`` of every hidden layer, ``[unit, sample]`` each."""
    result = []
    for level in reversed(range(len(f.slopes))):
        kernel = matrices[level + 1][: network.layers[level].features_out]
        output = (kernel @ output) * f.slopes[level]
        result.append(output)
    return result[::-1]


def propagate(
    network: Network, matrices: Matrices, f: Forward, level: int, change: jax.Array
) -> jax.Array:
    """Returns ``J change``, ``[output, sample]``, for one layer's pre-activations."""
    for layer in range(level, len(f.slopes)):
        kernel = matrices[layer + 1][: network.layers[layer].features_out]
        change = kernel.T @ (change * f.slopes[layer])
    return change
