"""Differentiating a traced loss and collecting its statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from linboost_optax._program import refusals
from linboost_optax._program.runner import Runner
from linboost_optax._program.tapping import Tapped
from linboost_optax._program.trace import trace
from linboost_optax._sharding import here
from linboost_optax._taps import places, rows
from linboost_optax._taps.table import Taps


def differentiate(
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool,
    allow_unconnected: bool,
    params: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    states: int = 0,
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns ``(value, grads, stats)`` of ``loss_fn(params, *args, **kwargs)``.

    The first ``states`` arrays among the arguments are no data; see ``trace``.
    """
    if rows.active():
        raise ValueError(rows.OUTSIDE)
    found = places.find(taps, params)
    layers = {own[layer.kernel]: layer for layer, own in found}
    followed = frozenset(where for _, own in found for where in own.values())
    program = trace(loss_fn, params, args, kwargs, known=followed, states=states)
    refusals.check(program, layers, taps, allow_unconnected)
    runner = Runner(Tapped(program, layers, taps), eager=not traces())
    leaves, treedef = jax.tree.flatten(params)
    arrays, consts = program.arrays, program.closed.consts

    def loss(leaves: list[Any], zeros: dict[str, Any]) -> tuple[Any, Any]:
        args = [*leaves, *arrays]
        out = program.rebuild(runner.run(program.scope, consts, args, zeros))
        return out if has_aux else (out, None)

    zeros = {key: tap.value for key, tap in taps.zeros().items()}
    function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, aux), (grads, stats) = function([jnp.asarray(x) for x in leaves], zeros)
    stats = {key: here(stat) for key, stat in stats.items()}
    grads = jax.tree.unflatten(treedef, grads)
    return ((value, aux) if has_aux else value), grads, stats


def traces() -> bool:
    """Whether operations are traced rather than run."""
    return isinstance(jnp.zeros(()), Tracer)
