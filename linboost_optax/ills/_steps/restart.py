"""Draw the least useful hidden units anew: a way out of dead units and local minima."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax.ills._model.initialization import scale_by_fan_in
from linboost_optax.ills._model.matrices import (
    forward,
    read_matrices,
    write_matrices,
)
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._numerics.chunks import Batch

_SHARE = 0.2


@functools.partial(jax.jit, static_argnums=1)
def redraw_units(key: jax.Array, network: Network, params: Any, batch: Batch) -> Any:
    """Replaces a fifth of each hidden layer, at least one unit, by random units.

    A unit's use is the spread of its activation, over samples as they count, times the
    size of its outgoing weights. New incoming weights are N(0, 1 / fan-in), outgoing
    weights 0, so that what is left of the network works as before.

    Args:
      key: a JAX random key.
      network: the dense layers.
      params: trained parameters.
      batch: samples to judge the units on.

    Returns:
      Parameters of the same structure.
    """
    matrices = read_matrices(network, params)
    f = forward(network, matrices, batch.inputs.T)
    shares = batch.shares[:, None]
    new = list(matrices)
    for level, layer in enumerate(network.hidden):
        key, draw = jax.random.split(key)
        width = layer.features_out
        units = f.inputs[level + 1][:width]
        spread = jnp.sqrt((units - units @ shares) ** 2 @ shares)[:, 0]
        size = jnp.linalg.norm(matrices[level + 1][:width], axis=1)
        worst = jnp.argsort(spread * size)[: max(1, int(_SHARE * width))]
        fresh = jax.random.normal(draw, (matrices[level].shape[0], len(worst)))
        fresh = scale_by_fan_in(fresh.astype(matrices[level].dtype), layer.features_in)
        new[level] = new[level].at[:, worst].set(fresh)
        new[level + 1] = new[level + 1].at[worst].set(0)
    change = [a - b for a, b in zip(new, matrices, strict=True)]
    return jax.tree.map(jnp.add, params, write_matrices(network, params, change))
