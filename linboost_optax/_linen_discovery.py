"""Finding the linear layers of a Flax Linen model, with abstract values only."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta as flax_meta
from flax.core import unfreeze

from linboost_optax import _layers, _linen_modules
from linboost_optax._layers import Layer
from linboost_optax._linen_modules import LEAF, Leaf, descend
from linboost_optax._taps import Plain


class Discovery:
    """The interceptor that records layers while ``model.init`` is traced."""

    def __init__(self, statistic: str, max_samples: int | None, rank: int):
        self.statistic = statistic
        self.max_samples = max_samples
        self.rank = rank
        self.layers: dict[tuple[str, ...], Layer] = {}
        self.reasons: dict[tuple[str, ...], str] = {}
        # Every input by identity, kept alive so that no identity is used twice.
        self.inputs: dict[tuple[Any, ...], tuple[jax.Array, tuple[str, ...]]] = {}

    def __call__(self, next_fun, args, kwargs, context):
        module, y = context.module, next_fun(*args, **kwargs)
        if _linen_modules.is_layer_call(context):
            self._record(module, _linen_modules.layer_input(args, kwargs))
        elif isinstance(module, nn.Embed) and context.method_name == "attend":
            self.reasons[module.path] = "Embed.attend uses its transpose"
        return y

    def _record(self, module: nn.Module, x: jax.Array) -> None:
        geometry = _linen_modules.geometry(module, x)
        if isinstance(geometry, str):
            self.reasons[module.path] = geometry
            return
        if _linen_modules.under_map_variables():
            self.reasons[module.path] = "nn.map_variables transforms its kernel"
            return
        layer = _linen_modules.describe(
            module, geometry, x, self.statistic, self.max_samples, self.rank
        )
        known = self.layers.setdefault(module.path, self._shared(layer, x))
        if known.geometry != geometry:
            self.reasons[module.path] = "used with different geometries"
        # Not `scope.param`: that would draw a key and shift those of other layers.
        assert module.scope is not None
        if not module.scope.has_variable("params", LEAF):
            shapes = _layers.statistic_shapes(known)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            module.scope.put_variable("params", LEAF, Leaf(zeros, known))

    def _shared(self, layer: Layer, x: jax.Array) -> Layer:
        """Returns the layer, served by an earlier one that has the same input."""
        key = (id(x), _layers.design_of(layer), layer.bias is None)
        _, source = self.inputs.setdefault(key, (x, layer.path))
        return layer if source == layer.path else replace(layer, source=source)


def abstract(
    function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """Splits arguments: returns a function of arrays alone, and those arrays."""
    flat, treedef = jax.tree.flatten((args, dict(kwargs)))
    is_array = [
        isinstance(leaf, jax.ShapeDtypeStruct) or hasattr(leaf, "__array__")
        for leaf in flat
    ]
    arrays = [leaf for leaf, yes in zip(flat, is_array) if yes]

    def of_arrays(first: Any, arrays: list[Any]) -> Any:
        values = iter(arrays)
        leaves = [next(values) if yes else leaf for leaf, yes in zip(flat, is_array)]
        args, kwargs = jax.tree.unflatten(treedef, leaves)
        return function(first, *args, **kwargs)

    return of_arrays, arrays


def trace_init(model: nn.Module, found: Discovery, rngs: Any, args, kwargs) -> dict:
    """Returns the shapes of the model's variables, taps among its parameters."""
    init, arrays = abstract(model.init, args, kwargs)
    with _linen_modules.trace_context(object()), nn.intercept_methods(found):
        return dict(unfreeze(jax.eval_shape(init, rngs, arrays)))


def keep_shared(
    layers: tuple[Layer, ...], apply: Callable[..., Any], *args: Any
) -> tuple[Layer, ...]:
    """Gives back a statistic of their own to layers that share one only in ``init``.

    A model initialises all branches of ``nn.cond`` on one input, and then runs one.
    """
    if all(layer.source is None for layer in layers):
        return layers
    inputs: dict[tuple[str, ...], list[jax.Array]] = {}

    def record(next_fun, args, kwargs, context):
        if _linen_modules.is_layer_call(context):
            x = _linen_modules.layer_input(args, kwargs)
            inputs.setdefault(context.module.path, []).append(x)
        return next_fun(*args, **kwargs)

    with _linen_modules.trace_context(object()), nn.intercept_methods(record):
        jax.eval_shape(apply, *args)
    paths = {layer.path for layer in layers}

    def same(layer: Layer) -> bool:
        ids = [
            {id(x) for x in inputs.get(path, [])}
            for path in (layer.path, layer.source)
            if path is not None and path in paths
        ]
        return len(ids) == 2 and ids[0] == ids[1]

    return tuple(
        layer if layer.source is None or same(layer) else replace(layer, source=None)
        for layer in layers
    )


def with_stack(layer: Layer, params: Mapping) -> Layer:
    """Returns the layer with its stacked axes, read off the parameter tree."""
    branch = descend(params, layer.path)
    shape = tuple(flax_meta.unbox(branch[layer.kernel]).shape)
    own = layer.geometry.kernel_shape
    stack = shape[: len(shape) - len(own)]
    stacked = replace(layer, stack=stack)
    got = [leaf.shape for leaf in branch[LEAF].statistic]
    want = [leaf.shape for leaf in _layers.statistic_shapes(stacked)]
    if shape != stack + own or got != want:
        raise ValueError(
            f"layer '{layer.label}': layers must be stacked along the first axis, got "
            f"a kernel of shape {shape} for layers of shape {own}. Use "
            "`variable_axes={'params': 0}` in nn.scan and nn.vmap."
        )
    return stacked


def plain(
    params: Mapping, layers: tuple[Layer, ...], reasons: Mapping[tuple[str, ...], str]
) -> tuple[Plain, ...]:
    """Lists the parameters that no tap covers."""
    tapped = {(*layer.path, layer.kernel) for layer in layers}
    tapped |= {(*layer.path, layer.bias) for layer in layers}
    untapped = _linen_modules.without_leaves(flax_meta.unbox(params))
    result = []
    for keys, leaf in jax.tree.leaves_with_path(untapped):
        path = tuple(str(getattr(key, "key", key)) for key in keys)
        if path not in tapped:
            reason = reasons.get(path[:-1], "not a tapped kind of layer")
            result.append(Plain("/".join(path), tuple(leaf.shape), reason))
    return tuple(result)
