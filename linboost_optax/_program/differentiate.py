"""Differentiating a traced loss and collecting its statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from linboost_optax._layer import Layer
from linboost_optax._program import refusals
from linboost_optax._program.runner import Runner
from linboost_optax._program.trace import trace
from linboost_optax._program.uses import Use
from linboost_optax._sharding import here
from linboost_optax._taps import places, rows
from linboost_optax._taps.places import kernels
from linboost_optax._taps.table import Taps


def differentiate(
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool,
    allow_unconnected: bool,
    params: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    is_data: Callable[[int], bool] = lambda _: True,
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns ``(value, grads, stats)`` of ``loss_fn(params, *args, **kwargs)``."""
    if rows.active():
        raise ValueError(rows.OUTSIDE)
    layers = {where: layer for layer, where in kernels(taps, params)}
    program = trace(
        loss_fn, params, args, kwargs, known=_followed(taps, params), is_data=is_data
    )
    refusals.check(program, layers, taps, allow_unconnected)

    def slots(use: Use, layer: Layer) -> int | None:
        masks = None if use.rows is None else program.masks[use.rows]
        return None if masks is None else rows.slot_of(masks, layer, taps)

    runner = Runner(layers, slots, program.mask_numbers, eager=not traces())
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


def _followed(taps: Taps, params: Any) -> frozenset[int]:
    """Returns the numbers of the tapped kernels and of their biases."""
    entries = [(p, i) for i, (p, _) in enumerate(jax.tree.leaves_with_path(params))]
    index = places.index(entries)
    names = [layer.where(name) for layer in taps.layers for name in layer.shapes]
    return frozenset(index[name] for name in names)
