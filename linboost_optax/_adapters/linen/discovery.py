"""Finding the linear layers of a Flax Linen model, with abstract values only."""

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta as flax_meta
from flax.core import unfreeze

from linboost_optax._adapters.linen import interception, registry
from linboost_optax._adapters.linen.interception import (
    LEAF,
    descend,
    innermost,
    without_leaves,
)
from linboost_optax._adapters.linen.registry import Entry
from linboost_optax._kinds import Kind
from linboost_optax._layer import Layer, Path, join
from linboost_optax._sharding import unsharded
from linboost_optax._statistics import Rule, Statistic
from linboost_optax._statistics.base import accumulation_dtype
from linboost_optax._taps import Plain, Tap, Taps
from linboost_optax._taps.arguments import of_arrays
from linboost_optax._taps.fresh import fresh_trace
from linboost_optax._taps.plan import Plan
from linboost_optax._taps.sharing import InputRecord
from linboost_optax._taps.survey import survey


class LayerFinder:
    """The interceptor that records layers while ``model.init`` is traced."""

    def __init__(self, asked: Rule):
        self.asked = asked
        self.layers: dict[Path, Layer] = {}
        self.reasons: dict[Path, str] = {}
        self.modules: dict[Path, type[nn.Module]] = {}
        self.inputs = InputRecord()

    def __call__(self, next_fun, args, kwargs, context):
        module = context.module
        # A model called inside of this one, a frozen teacher, does not initialise.
        if module.scope is None or not module.scope.get_flag("initializing", False):
            return next_fun(*args, **kwargs)
        self.modules.setdefault(module.path, type(module))
        entry = registry.entry_of(context)
        if entry is not None:
            return innermost(next_fun, args, kwargs, context, self._called(entry))
        reason = registry.reason_elsewhere(context)
        if reason is not None:
            self.reasons[module.path] = reason
        return next_fun(*args, **kwargs)

    def _called(self, entry: Entry) -> Callable[..., Any]:
        def around(context, method, args, kwargs):
            y = method(*args, **kwargs)
            self._record(context.module, entry, entry.input(args, kwargs))
            return y

        return around

    def _record(self, module: nn.Module, entry: Entry, x: jax.Array) -> None:
        kind = entry.describe(module, x)
        if isinstance(kind, str):
            self.reasons[module.path] = kind
            return
        if _under_map_variables():
            self.reasons[module.path] = (
                "nn.map_variables (WeightNorm, SpectralNorm) transforms its kernel; "
                "use the bare layer to tap it"
            )
            return
        _check(module, entry, kind)
        layer = Layer(
            path=module.path,
            kind=kind,
            statistic=_chosen(module, kind, self.asked),
            input_shape=tuple(x.shape),
            dtype=_dtype(module, entry, x),
            kernel=entry.kernel,
            bias=entry.bias if module.has_variable("params", entry.bias) else None,
        )
        known = self.layers.setdefault(module.path, self.inputs.share(layer, x))
        if known.kind != kind:
            self.reasons[module.path] = (
                "used with different geometries; make a layer for each to tap it"
            )
        # Not `scope.param`: that would draw a key and shift those of other layers.
        scope = module.scope
        if scope is not None and not scope.has_variable("params", LEAF):
            shapes = known.statistic_shapes()
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            scope.put_variable("params", LEAF, Tap(zeros, known))


def _check(module: nn.Module, entry: Entry, kind: Any) -> None:
    """Raises unless a registered description fits the module's parameters."""
    where, name = f"layer '{join(module.path)}'", type(module).__name__
    if not isinstance(kind, Kind):
        raise TypeError(
            f"{where}: `describe` of {name} must return a Kind or the reason why this "
            f"layer is left alone, got {kind!r}."
        )
    if not module.has_variable("params", entry.kernel):
        raise ValueError(
            f"{where}: {name} must have a parameter `{entry.kernel}`, got "
            f"{sorted(module.variables.get('params', {}))}. Pass its name as `kernel` "
            "to `linen.register`."
        )
    kernel = flax_meta.unbox(module.get_variable("params", entry.kernel))
    if kernel.shape != kind.kernel_shape:
        raise ValueError(
            f"{where}: `describe` of {name} must return a kind of its kernel's shape "
            f"{kernel.shape}, got a {kind}."
        )


def _chosen(module: nn.Module, kind: Kind, asked: Rule) -> Statistic:
    statistic = kind.statistic(asked)
    if not isinstance(statistic, Statistic):
        raise TypeError(
            f"layer '{join(module.path)}': `statistic` {asked!r} must choose a "
            f"statistic for {kind}, got {statistic!r}. Return e.g. lbo.Gram()."
        )
    return statistic


def _dtype(module: nn.Module, entry: Entry, x: jax.Array) -> str:
    """Returns the dtype of a layer's statistic; checks that its kernel is a float."""
    kernel = flax_meta.unbox(module.get_variable("params", entry.kernel))
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(
            f"layer '{join(module.path)}': `{entry.kernel}` must be real and floating, "
            f"got {kernel.dtype} of shape {kernel.shape}. Change its `param_dtype`."
        )
    # Tokens have no precision of their own: what is looked up has.
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return str(accumulation_dtype(x.dtype if floating else kernel.dtype))


def _under_map_variables() -> bool:
    """Whether the caller runs inside ``nn.map_variables``.

    A layer's scope then shows a transformed copy of the parameters and nothing in
    Flax tells; the call stack does, for modules, functions and methods alike.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_qualname.startswith("map_variables."):
            return True
        frame = frame.f_back
    return False


def _abstract(
    function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """Splits arguments: returns a function of arrays alone, and those arrays."""
    called, arrays = of_arrays(function, args, kwargs, _is_array)
    return called, [unsharded(array) for array in arrays]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) or hasattr(leaf, "__array__")


def trace_init(
    model: nn.Module, found: LayerFinder, rngs: Any, args: tuple, kwargs: Mapping
) -> dict:
    """Returns the shapes of the model's variables, taps among its parameters."""
    init, arrays = _abstract(model.init, args, kwargs)
    with fresh_trace(), nn.intercept_methods(found):
        return dict(unfreeze(jax.eval_shape(init, rngs, arrays)))


def own(found: LayerFinder, params: Mapping) -> list[Layer]:
    """Returns the layers whose taps are among the model's own parameters."""
    layers = []
    for path, layer in sorted(found.layers.items()):
        with contextlib.suppress(KeyError, TypeError):
            if LEAF in descend(params, path):
                layers.append(layer)
    return layers


def trace_call(
    model: nn.Module, taps: Taps, variables: Mapping, rngs: Any, args: tuple, kwargs
) -> Plan | None:
    """Returns what the model's call itself does with the kernels, where it runs.

    A model that decodes may be initialised with inputs that it cannot be called with.
    """
    streams = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}
    apply = functools.partial(model.apply, rngs=streams, mutable=True)
    apply, arrays = _abstract(apply, args, kwargs)
    try:
        return survey(interception, taps, apply, variables, arrays)
    except Exception:
        return None


def with_stack(layer: Layer, params: Mapping) -> Layer:
    """Returns the layer with its stacked axes, read off the parameter tree."""
    branch = descend(params, layer.path)
    # Abstract: under a mesh, a box constrains the sharding of the array it holds.
    shape = jax.eval_shape(flax_meta.unbox, branch[layer.kernel]).shape
    own = layer.kind.kernel_shape
    stack = shape[: len(shape) - len(own)]
    stacked = replace(layer, stack=stack)
    got = [leaf.shape for leaf in jax.tree.leaves(branch[LEAF].value)]
    want = [leaf.shape for leaf in jax.tree.leaves(stacked.statistic_shapes())]
    if shape != stack + own or got != want:
        raise ValueError(
            f"layer '{layer}': layers must be stacked along the first axis, got "
            f"a kernel of shape {shape} for layers of shape {own}. Use "
            "`variable_axes={'params': 0}` in nn.scan and nn.vmap."
        )
    return stacked


def plain(
    params: Mapping, layers: tuple[Layer, ...], found: LayerFinder
) -> tuple[Plain, ...]:
    """Lists the parameters that no tap covers, with reasons."""
    tapped = {(*layer.path, name) for layer in layers for name in layer.shapes}
    untapped = jax.eval_shape(flax_meta.unbox, without_leaves(params))
    result = []
    for keys, leaf in jax.tree.leaves_with_path(untapped):
        path = tuple(str(getattr(key, "key", key)) for key in keys)
        if path not in tapped:
            reason = _reason(found, path[:-1])
            result.append(Plain(join(path), tuple(leaf.shape), reason))
    return tuple(result)


def _reason(found: LayerFinder, path: Path) -> str:
    """Returns why a parameter keeps its plain gradient, and what to do about it."""
    if path in found.reasons:
        return found.reasons[path]
    # A module may keep parameters below names that are no modules.
    for end in range(len(path), -1, -1):
        module = found.modules.get(path[:end])
        if module is not None:
            return registry.advice(module)
    return "of a module that was not called"
