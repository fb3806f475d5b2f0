r"""Losses of a residual :math:`r`, and the weights that make them least squares.

With a scale :math:`s` and :math:`u = r / s`, a robust loss is
:math:`2 s^2 \rho(u)`, about :math:`r^2` where :math:`r` is small. Reweighted least
squares with weights :math:`\rho'(u) / u` lowers it. All losses here grow with
:math:`s`, so a scale that only shrinks never raises them.

Tukey's loss is not convex: from a poor start it takes for outliers what the network
has not learnt yet. It starts as the Huber loss that lies just above it everywhere, so
that taking over from it lowers the objective too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Loss(NamedTuple):
    """A robust loss: ``rho`` and ``weight`` take ``(u, tuning)``."""

    tuning: float
    rho: Callable[[jax.Array, float], jax.Array]
    weight: Callable[[jax.Array, float], jax.Array]


class Robust(NamedTuple):
    """What a robust loss depends on besides the residual."""

    scale: jax.Array  # of the residuals; infinite before it is known
    settled: jax.Array  # whether Tukey's loss has taken over from Huber's, bool


def _huber_rho(u, c):
    small = jnp.abs(u) <= c
    return jnp.where(small, 0.5 * u**2, c * jnp.abs(u) - 0.5 * c**2)


def _huber_weight(u, c):
    return c / jnp.maximum(jnp.abs(u), c)


def _tukey_rho(u, c):
    inside = jnp.clip(1 - (u / c) ** 2, 0, 1)
    return c**2 / 6 * (1 - inside**3)


def _tukey_weight(u, c):
    return jnp.clip(1 - (u / c) ** 2, 0, 1) ** 2


# Tukey's constant is the usual one, for 95 % efficiency on normal errors (Beaton &
# Tukey 1974). Huber's usual 1.345 lets 10 % of gross outliers pull too hard on a
# network; 1 costs some efficiency (about 90 %) and was measured to be better.
LOSSES = {
    "squared": None,
    "huber": Loss(1.0, _huber_rho, _huber_weight),
    "tukey": Loss(4.685, _tukey_rho, _tukey_weight),
}

# The Huber loss with this share of Tukey's constant (1.345 for 4.685, the usual pair)
# is nowhere below Tukey's loss.
_HUBER_SHARE = 1.345 / 4.685


def loss_value(loss: str, tuning: Any, r: jax.Array, robust: Robust) -> jax.Array:
    """Loss of each residual; squared while the scale is still infinite."""
    kind = LOSSES[loss]
    if kind is None:
        return r**2
    known = jnp.isfinite(robust.scale)
    s = jnp.where(known, robust.scale, 1)
    rho = kind.rho(r / s, tuning)
    if loss == "tukey":
        start = _huber_rho(r / s, _HUBER_SHARE * tuning)
        rho = jnp.where(robust.settled, rho, start)
    return jnp.where(known, 2 * s**2 * rho, r**2)


def loss_weight(loss: str, tuning: Any, r: jax.Array, robust: Robust) -> jax.Array:
    """Weight of each residual in the reweighted least squares, in [0, 1]."""
    kind = LOSSES[loss]
    if kind is None:
        return jnp.ones_like(r)
    weight = kind.weight(r / robust.scale, tuning)
    if loss != "tukey":
        return weight
    start = _huber_weight(r / robust.scale, _HUBER_SHARE * tuning)
    return jnp.where(robust.settled, weight, start)


def residual_scale(r: jax.Array, weights: jax.Array, axis_name: Any) -> jax.Array:
    """1.4826 times the median absolute residual where the weight is positive.

    Args:
        r: residuals ``[sample, output]``.
        weights: broadcasts to ``r``; zero means missing.
        axis_name: mapped axis over which the samples are spread, or ``None``.

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
