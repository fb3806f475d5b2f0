"""The scale of the residuals, which a robust loss is measured in."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Robust(NamedTuple):
    """What a robust loss depends on besides the residual.

    Attributes:
      scale: of the residuals; infinite before it is known.
      settled: whether Tukey's loss has taken over from Huber's, bool.
    """

    scale: jax.Array
    settled: jax.Array


def residual_scale(r: jax.Array, weights: jax.Array, axis_name: Any) -> jax.Array:
    """Returns 1.4826 times the median absolute residual of positive weight.

    Args:
      r: residuals ``[sample, output]``.
      weights: broadcasts to ``r``; zero means missing.
      axis_name: mapped axis over which the samples are spread, or None.

    Returns:
      Scalar, the dtype of ``r``; infinity without samples.
    """
    present = jnp.broadcast_to(weights, r.shape) > 0
    size = jnp.where(present, jnp.abs(r), jnp.inf).ravel()
    if axis_name is not None:
        size = jax.lax.all_gather(size, axis_name, tiled=True)
    count = jnp.sum(jnp.isfinite(size))
    median = jnp.sort(size)[jnp.maximum(count - 1, 0) // 2]
    return jnp.asarray(1.4826, r.dtype) * median
