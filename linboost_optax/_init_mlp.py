"""Random start weights for a plain list of layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

Params = list[tuple[jax.Array, jax.Array]]


def init_mlp(
    key: chex.PRNGKey, sizes: Sequence[int], dtype: Any = jnp.float32
) -> Params:
    """Kernels and biases drawn from N(0, 1 / fan-in), first layer to last.

    Args:
        key: a JAX random key.
        sizes: numbers of features, hidden units and outputs, at least two.
        dtype: default float32.

    Returns:
        A list of ``(kernel [input, unit], bias [unit])``, as :func:`network` takes.

    Raises:
        ValueError: if there are fewer than two sizes or one is not positive.

    Example:
        >>> import jax
        >>> import linboost_optax as lbo
        >>> [kernel.shape for kernel, _ in lbo.init_mlp(jax.random.key(0), (3, 20, 1))]
        [(3, 20), (20, 1)]
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"`sizes` must be at least two positive numbers, got {tuple(sizes)}. Give "
            "features, hidden units and outputs, e.g. (3, 20, 1)."
        )
    params = []
    for fan_in, units in itertools.pairwise(sizes):
        key, kernel_key, bias_key = jax.random.split(key, 3)
        scale = fan_in**-0.5
        kernel = scale * jax.random.normal(kernel_key, (fan_in, units), dtype)
        params.append((kernel, scale * jax.random.normal(bias_key, (units,), dtype)))
    return params
