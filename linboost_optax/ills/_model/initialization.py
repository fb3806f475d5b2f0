"""Random start weights: N(0, 1 / fan-in), for kernels and biases alike."""

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Params = list[tuple[jax.Array, jax.Array]]
Values = TypeVar("Values", jax.Array, np.ndarray)


def scale_by_fan_in(normal: Values, fan_in: int) -> Values:
    """Returns N(0, 1 / fan-in) from standard normal values, whoever drew them."""
    return normal * fan_in**-0.5


def init_mlp(key: jax.Array, sizes: Sequence[int], dtype: Any = jnp.float32) -> Params:
    """Draws kernels and biases from N(0, 1 / fan-in), first layer to last.

    Args:
      key: a JAX random key.
      sizes: numbers of features, hidden units and outputs, at least two.
      dtype: default float32.

    Returns:
      A list of ``(kernel [input, unit], bias [unit])``, as ``network`` takes.

    Raises:
      ValueError: if there are fewer than two sizes or one is not positive.

    Example:
      >>> import jax
      >>> from linboost_optax.ills import init_mlp
      >>> [kernel.shape for kernel, _ in init_mlp(jax.random.key(0), (3, 20, 1))]
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
        kernel = jax.random.normal(kernel_key, (fan_in, units), dtype)
        bias = jax.random.normal(bias_key, (units,), dtype)
        params.append((scale_by_fan_in(kernel, fan_in), scale_by_fan_in(bias, fan_in)))
    return params
