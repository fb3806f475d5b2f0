r"""The path of ridges: strong at first, so that smooth functions are learnt first.

With :math:`\delta_t` for what the last layer's ridge has above its final value, hidden
layers have :math:`\rho_{h,t} = \kappa v \delta_t^{3/2}`, where :math:`v` is the
variance of the targets. Both only fall, and the objective with them: as with the
scale of a robust loss, no rise comes of it.

Where a path starts and :math:`\kappa` make it one of several. Which is best depends on
the data: a ridge on the last layer alone makes hidden layers grow, and of a path too
smooth clean data are not fitted to the end. With held-out data all are tried.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._settings import Settings

# Shares of the method's start, and kappa; the first one is of runs that try no other.
PATHS = ((1.0, 1.0), (1.0, 0.1), (1e-2, 300.0))
# Hidden layers have this power of what the ridge on the last one is above its final
# value: felt early on, gone before clean data are fitted to the end.
_HIDDEN_POWER = 1.5
# Beside a ridge on the hidden layers that stays, a strong one on the last layer ends in
# poor local minima: there the path starts at this, and is the last layer's alone.
_MAX_START_BESIDE = 1e-2


def start_ridge(settings: Settings) -> Any:
    """Returns the last layer's ridge of the first iteration."""
    final = settings.output_ridge
    if not settings.network.hidden:
        return final
    ridge = settings.method.start_ridge(final)
    beside = jnp.maximum(jnp.minimum(ridge, _MAX_START_BESIDE), final)
    return jnp.where(settings.hidden_penalty > 0, beside, ridge)


def starts(settings: Settings, state: Any) -> list[Any]:
    """Returns a fresh state for each path, or itself where there is none to choose."""
    final, first = float(settings.output_ridge), float(state.output_ridge)
    if first <= final or settings.hidden_penalty > 0:
        return [state]
    dtype = state.output_ridge.dtype
    return [
        state._replace(
            output_ridge=jnp.asarray(max(share * first, final), dtype),
            hidden_factor=jnp.asarray(factor, dtype),
        )
        for share, factor in PATHS
    ]


def at_ridges_of(settings: Settings, state: Any, batch: Batch) -> Settings:
    """Returns the settings with the ridges that the next iteration has."""
    final, dtype = settings.output_ridge, state.output_ridge.dtype
    output = jnp.maximum(state.output_ridge, final).astype(dtype)
    excess = output - final
    # The last layer's ridge has no unit, that of the hidden ones has the objective's:
    # the targets' variance or, where outliers must have no say, the squared scale.
    size = jnp.minimum(_variance(batch, settings.axis_name), state.scale**2)
    path = state.hidden_factor * size * excess**_HIDDEN_POWER
    # A number may be traced: whether the user gave a ridge is known when it runs.
    given = settings.hidden_penalty
    hidden = jnp.where(given > 0, given, path)
    return dataclasses.replace(
        settings, output_ridge=output, hidden_ridge=jnp.asarray(hidden, dtype)
    )


def _variance(batch: Batch, axis_name: Any) -> jax.Array:
    """Returns the weighted mean over outputs of the targets' variance."""

    def total(values: jax.Array) -> jax.Array:
        local = jnp.sum(values, axis=0)
        return local if axis_name is None else jax.lax.psum(local, axis_name)

    weights = jnp.broadcast_to(batch.weights, batch.targets.shape)
    share = total(weights)
    mean = total(weights * batch.targets) / jnp.where(share > 0, share, 1)
    return jnp.sum(total(weights * (batch.targets - mean[None]) ** 2))
