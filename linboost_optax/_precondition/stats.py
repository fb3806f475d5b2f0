"""The statistics that an optimizer is handed, checked against its layers."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer
from linboost_optax._taps import Tap


def check(stats: Any, layers: Iterable[Layer]) -> dict[str, Any]:
    """Returns the values of the layers' statistics; raises unless all are there."""
    if stats is None:
        raise ValueError(
            "`stats` is missing: this optimizer reads the statistics of every layer's "
            "inputs. Take them from `loss, grads, stats = "
            "linen.value_and_grad(loss_fn, taps)(params, batch)` (or `lbo.nnx`'s, or "
            "`lbo.value_and_grad`) and call `tx.update(grads, state, params, "
            "stats=stats)`; NNX: `optimizer.update(model, grads, stats=stats)`. Flax's "
            "`TrainState.apply_gradients`, `optax.lookahead` and `optax.contrib.sam` "
            "do not pass them on: see docs/composition.md."
        )
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"`stats` must be a dict from layer to statistic, got {type(stats)}. Pass "
            "on what `value_and_grad` returned."
        )
    checked = {}
    for layer in layers:
        key = layer.stats_key
        if key not in stats:
            raise ValueError(
                f"`stats` lacks layer '{key}'; it has {sorted(stats)}. Make "
                "optimizer and statistics from the same taps."
            )
        value = stats[key]
        checked[key] = value.value if isinstance(value, Tap) else value
        check_value(layer, checked[key])
    return checked


def check_value(layer: Layer, value: Any) -> None:
    """Raises if ``value`` is not what ``layer``'s tap emits."""
    expected, key = layer.statistic_shapes(), layer.stats_key
    way_out = (
        "Pass the stats that `value_and_grad` returned for the very taps this "
        "optimizer was made with"
    )
    if jax.tree.structure(value) != jax.tree.structure(expected):
        raise ValueError(
            f"`stats['{key}']` must be what statistic '{layer.statistic.name}' measures"
            f", {type(expected).__name__}, got {type(value).__name__}. {way_out}."
        )
    got = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
    want = [leaf.shape for leaf in jax.tree.leaves(expected)]
    if got != want:
        raise ValueError(
            f"`stats['{key}']` must have shapes {want}, got {got}. {way_out}, summed "
            "(not stacked) over micro-batches."
        )
