"""Carrying taps into a Flax Linen model, and reaching its layers' calls.

The tap of a layer is an extra leaf beside its kernel inside the ``params`` that reach
``model.apply``; an interceptor reads it from the module's scope. Lifted transforms
(``nn.scan``, ``nn.vmap``, ``nn.remat``, ...) therefore treat it exactly as they treat
the kernel, and nothing else has to know about it.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
from flax.core import FrozenDict, freeze, unfreeze

from linboost_optax._adapters.linen import registry
from linboost_optax._kinds import Kind
from linboost_optax._layer import Layer, Path
from linboost_optax._taps import Tap, Taps
from linboost_optax._taps.collect import Visit

LEAF = "linboost_tap"


def insert(params: Any, taps: Taps, by_layer: Mapping[str, Tap]) -> Any:
    """Returns the parameters with a tap beside every tapped kernel."""
    frozen = isinstance(params, FrozenDict)
    tree = _copy_dicts(unfreeze(params) if frozen else params)
    for layer in taps.layers:
        for root in ((), ("params",)):
            try:
                branch = descend(tree, root + layer.path)
            except (KeyError, TypeError):
                continue
            if isinstance(branch, dict) and layer.kernel in branch:
                branch[LEAF] = by_layer[layer.key]
                break
        else:
            raise ValueError(
                f"`taps` has layer '{layer}', which the parameters lack: these "
                "taps belong to another model, or `params` is neither the 'params' "
                "collection nor the variables that hold it. Make the taps from the "
                "model whose parameters are passed."
            )
    return freeze(tree) if frozen else tree


def intercept(visit: Visit) -> AbstractContextManager[Any]:
    """Calls ``visit`` at every call of a tapped layer while the context lasts."""

    def interceptor(next_fun, args, kwargs, context):
        y, t = next_fun(*args, **kwargs), _tap_of(context)
        entry = registry.entry_of(context)
        if t is None or entry is None:
            return y
        x = entry.input(args, kwargs)
        _check_call(t.layer, entry.describe(context.module, x), x)
        return visit(t, y, x)

    return nn.intercept_methods(interceptor)


def _tap_of(context: nn.module.InterceptorContext) -> Tap | None:
    """Returns the tap beside the kernel of the module that is called, if any."""
    scope = context.module.scope
    if scope is None or not scope.has_variable("params", LEAF):
        return None
    t: Tap = scope.get_variable("params", LEAF)
    reason = registry.reason_elsewhere(context)
    if reason is not None:
        raise ValueError(
            f"layer '{t.layer}' was tapped for its own call alone, and the loss calls "
            f"`{context.method_name}`: {reason}. Make the taps with the method that "
            "the loss calls, so that this layer keeps its plain gradient."
        )
    return t


def _check_call(layer: Layer, kind: Kind | str, x: jax.Array) -> None:
    """Raises if the module is not used as it was when the taps were made."""
    if kind != layer.kind:
        got = f"a {kind}" if isinstance(kind, Kind) else f"a layer with {kind}"
        raise ValueError(
            f"layer '{layer}' was tapped as a {layer.kind} and is "
            f"called as {got}: these taps belong to another model, or "
            "to inputs of another shape. Make the taps again."
        )
    layer.check_input(x)


def _copy_dicts(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy_dicts(value) for key, value in tree.items()}
    return tree


def descend(tree: Mapping, path: Path) -> Any:
    """Returns the branch of ``tree`` at ``path``."""
    for name in path:
        tree = tree[name]
    return tree


def without_leaves(tree: Any) -> Any:
    """Returns ``tree`` without the taps' leaves."""
    if not isinstance(tree, Mapping):
        return tree
    return {k: without_leaves(v) for k, v in tree.items() if k != LEAF}
