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
    """Returns 1.4826 times the weighted median absolute residual.

    The lower median where there are two, as if each residual stood there as many times
    as its weight says; what is not finite does not count.

    Args:
      r: residuals ``[sample, output]``.
      weights: >= 0, broadcasts to ``r``; zero means missing.
      axis_name: mapped axis over which the samples are spread, or None.

    Returns:
      Scalar, the dtype of ``r``; infinity without samples.
    """
    weights = jnp.broadcast_to(weights, r.shape)
    present = (weights > 0) & jnp.isfinite(r)
    size = jnp.where(present, jnp.abs(r), jnp.inf).ravel()
    weights = jnp.where(present, weights, 0).ravel()
    if axis_name is not None:
        size = jax.lax.all_gather(size, axis_name, tiled=True)
        weights = jax.lax.all_gather(weights, axis_name, tiled=True)
    size, weights = jax.lax.sort((size, weights), num_keys=1)
    below = jnp.cumsum(weights)
    # A sum that is half but for rounding is half.
    half = below[-1] * (0.5 - 16 * jnp.finfo(below.dtype).eps)
    return jnp.asarray(1.4826, r.dtype) * size[jnp.argmax(below >= half)]
