"""The errors that trainers follow."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax import ills


def rmse(network: ills.Network, params: Any, data: Any) -> jax.Array:
    x, y = data
    return jnp.sqrt(jnp.mean((ills.predict(network, params, x) - y) ** 2))


def errors(network: ills.Network, params: Any, split: Any, full: bool) -> jax.Array:
    """Training error, and with `full` validation and test errors too."""
    sets = split if full else split[:1]
    return jnp.stack([rmse(network, params, data) for data in sets])
