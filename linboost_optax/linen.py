"""Flax Linen adapter: finds a model's linear layers and taps them.

The tap of a layer is an extra leaf beside its kernel inside the ``params`` that
reach ``model.apply``; an interceptor reads it from the module's scope. Lifted
transforms (``nn.scan``, ``nn.vmap``, ``nn.remat``, ...) therefore treat it exactly as
they treat the kernel, and nothing else has to know about it.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze, unfreeze
from flax.core import meta as flax_meta
from flax.linen import linear as nn_linear

from linboost_optax import _checks, _layers, _taps
from linboost_optax._layers import Conv, Dense, Embed, Geometry, Layer
from linboost_optax._statistics import KINDS, Statistic, accumulation_dtype
from linboost_optax._taps import Plain, Taps

_LEAF = "linboost_tap"

# Gram up to this width, moments above: d x d numbers and d^3 / `every` operations.
_GRAM_WIDTH = 1024


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["statistic"], meta_fields=["layer"]
)
@dataclass(frozen=True)
class _Leaf:
    """What sits beside a kernel. The static layer makes caches tell taps apart."""

    statistic: Statistic
    layer: Layer


def taps(
    model: nn.Module,
    *args: Any,
    statistic: Literal["auto", "moments", "gram", "inputs"] = "auto",
    max_samples: int | None = None,
    **kwargs: Any,
) -> Taps:
    """Finds the linear layers of a model and decides what their taps emit.

    Traces ``model.init`` with abstract values: shapes only, nothing is computed.
    Print the result for a table of layers; parameters that keep their plain gradient
    are listed with the reason.

    Args:
      model: a Linen module.
      *args: arguments of the model's call, arrays or ``jax.ShapeDtypeStruct``.
      statistic: ``"moments"`` (O(d) memory a layer of width d), ``"gram"`` (O(d^2)),
        ``"inputs"`` (the inputs themselves) or ``"auto"``: Gram for layers up to
        1024 inputs wide, moments above and for embeddings. Default ``"auto"``.
      max_samples: most rows of the batch that a Gram matrix is made of, evenly
        spaced; default None, all of them.
      **kwargs: keyword arguments of the model's call; ``method`` and ``rngs`` go to
        ``model.init``.

    Returns:
      The taps, static and hashable.

    Raises:
      ValueError: if ``statistic`` is unknown, ``max_samples`` is not positive, no
        layer can be tapped, layers are stacked along another axis than the first,
        or ``"inputs"`` is asked for a layer that is used more than once.
      TypeError: if a kernel is not real and floating.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> print(linen.taps(nn.Dense(2), jnp.ones((8, 3))))
      path  kind          kernel  inputs  statistic  bytes
      .     Dense + bias  3x2     8x3     gram          52
      statistics: 52 bytes

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    if statistic not in ("auto", *KINDS):
        raise ValueError(
            f"`statistic` must be one of 'auto', {', '.join(map(repr, KINDS))}, got "
            f"{statistic!r}."
        )
    if max_samples is not None:
        _checks.at_least("max_samples", max_samples, 1)
    found = _Discovery(statistic, max_samples)
    variables = _trace_init(model, found, args, kwargs)
    params = unfreeze(variables.get("params", {}))
    layers = tuple(
        _with_stack(layer, params)
        for path, layer in sorted(found.layers.items())
        if path not in found.reasons
    )
    if not layers:
        raise ValueError(
            f"`model` {type(model).__name__} has no layer that can be tapped: "
            f"{found.reasons or 'no Dense, DenseGeneral, Conv or Embed was called'}. "
            "Use a plain optimizer."
        )
    return Taps(layers, _plain(params, layers, found.reasons))


def _trace_init(model: nn.Module, found: "_Discovery", args, kwargs) -> dict:
    rngs = kwargs.pop("rngs", None)
    flat, treedef = jax.tree.flatten((args, kwargs))
    is_array = [
        isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) or hasattr(leaf, "__array__")
        for leaf in flat
    ]
    arrays = [leaf for leaf, yes in zip(flat, is_array) if yes]

    def init(rngs, arrays):
        values = iter(arrays)
        leaves = [next(values) if yes else leaf for leaf, yes in zip(flat, is_array)]
        args, kwargs = jax.tree.unflatten(treedef, leaves)
        with nn.intercept_methods(found):
            return model.init(rngs, *args, **kwargs)

    return dict(
        jax.eval_shape(init, jax.random.key(0) if rngs is None else rngs, arrays)
    )


class _Discovery:
    """The interceptor that records layers while ``model.init`` is traced."""

    def __init__(self, statistic: str, max_samples: int | None):
        self.statistic = statistic
        self.max_samples = max_samples
        self.layers: dict[tuple[str, ...], Layer] = {}
        self.reasons: dict[tuple[str, ...], str] = {}
        self.handled = 0

    def __call__(self, next_fun, args, kwargs, context):
        module, before = context.module, self.handled
        y = next_fun(*args, **kwargs)
        if self.handled != before and isinstance(module, _KINDS):
            return y  # a wrapper's inner call of the same layer was recorded
        if isinstance(module, nn.Embed) and context.method_name == "attend":
            self.reasons[module.path] = "Embed.attend uses its transpose"
        x = _layer_input(module, args, kwargs, context)
        if x is not None:
            self._record(module, x)
            self.handled += 1
        return y

    def _record(self, module: nn.Module, x: jax.Array) -> None:
        geometry = _geometry(module, x)
        if isinstance(geometry, str):
            self.reasons[module.path] = geometry
            return
        if _under_map_variables():
            self.reasons[module.path] = "nn.map_variables transforms its kernel"
            return
        layer = _describe(module, geometry, x, self.statistic, self.max_samples)
        known = self.layers.get(module.path)
        if known is not None and layer.statistic == "inputs":
            raise ValueError(_shared(layer))
        if known is not None and known.geometry != geometry:
            self.reasons[module.path] = "used with different geometries"
            return
        self.layers[module.path] = layer
        # Not `scope.param`: that would draw a key and shift those of other layers.
        if not module.scope.has_variable("params", _LEAF):
            shapes = _layers.statistic_shapes(layer)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            module.scope.put_variable("params", _LEAF, _Leaf(zeros, layer))


_KINDS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed)


def _layer_input(module: nn.Module, args, kwargs, context) -> jax.Array | None:
    """Returns the input if this is the call of a layer of a known kind."""
    if not isinstance(module, _KINDS) or context.method_name != "__call__":
        return None
    return args[0] if args else kwargs["inputs"]


def _geometry(module: nn.Module, x: jax.Array) -> Geometry | str:
    """Returns how the layer's arrays become matrices, or why it is not tapped."""
    if isinstance(module, nn.Embed):
        return Embed(module.num_embeddings, module.features)
    if isinstance(module, nn.Dense):
        return Dense((), (x.shape[-1],), (module.features,))
    if isinstance(module, nn.DenseGeneral):
        return _dense_general(module, x)
    assert isinstance(module, nn.Conv)
    if module.mask is not None:
        return "masked kernel"
    return _conv(module, x)


def _tuple(value) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _dense_general(module: nn.DenseGeneral, x: jax.Array) -> Dense:
    axis = _layers.normalize_axes(_tuple(module.axis), x.ndim)
    return Dense(
        batch=tuple(x.shape[a] for a in _tuple(module.batch_dims)),
        inputs=tuple(x.shape[a] for a in axis),
        outputs=_tuple(module.features),
        axis=axis,
    )


def _conv(module: nn.Conv, x: jax.Array) -> Conv:
    window = _tuple(module.kernel_size)

    def per_axis(value) -> tuple[int, ...]:
        if value is None or isinstance(value, int):
            return (1 if value is None else value,) * len(window)
        return tuple(value)

    dilation = per_axis(module.kernel_dilation)
    padding = nn_linear.canonicalize_padding(module.padding, len(window))
    mode = "constant"
    extent = [(k - 1) * d + 1 for k, d in zip(window, dilation)]
    if padding in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        padding = [((k - 1) // 2, k // 2) for k in extent]
    elif padding == "CAUSAL":
        padding = [(dilation[0] * (window[0] - 1), 0)]
    if not isinstance(padding, str):
        padding = tuple((int(low), int(high)) for low, high in padding)
    return Conv(
        window=window,
        in_channels=x.shape[-1],
        out_channels=module.features,
        strides=per_axis(module.strides),
        padding=padding,
        pad_mode=mode,
        input_dilation=per_axis(module.input_dilation),
        kernel_dilation=dilation,
        feature_groups=module.feature_group_count,
    )


def _describe(
    module: nn.Module, geometry: Geometry, x: jax.Array, statistic: str, limit
) -> Layer:
    name = "embedding" if isinstance(geometry, Embed) else "kernel"
    path = "/".join(module.path)
    kernel = flax_meta.unbox(module.get_variable("params", name))
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(
            f"layer '{path}': `{name}` must be real and floating, got {kernel.dtype} "
            f"of shape {kernel.shape}. Change its `param_dtype`."
        )
    if isinstance(geometry, Embed):
        statistic = "moments"
    elif statistic == "auto":
        width = geometry.channels * geometry.repeats
        statistic = "gram" if width <= _GRAM_WIDTH else "moments"
    biased = module.scope.has_variable("params", "bias")
    dtype = kernel.dtype if isinstance(geometry, Embed) else x.dtype
    return Layer(
        path=module.path,
        geometry=geometry,
        statistic=statistic,  # pyright: ignore[reportArgumentType]
        input_shape=tuple(x.shape),
        dtype=str(accumulation_dtype(dtype)),
        kernel=name,
        bias="bias" if biased else None,
        max_samples=limit,
    )


def _under_map_variables() -> bool:
    """Whether the layer runs inside ``nn.map_variables``.

    Its scope then shows a transformed copy of the parameters and nothing in Flax
    tells; the call stack does, for modules, functions and methods alike.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_qualname.startswith("map_variables."):
            return True
        frame = frame.f_back
    return False


def _shared(layer: Layer) -> str:
    return (
        f"layer '{layer.key}' is used more than once, and `statistic` 'inputs' cannot "
        f"be added up (its inputs have shape {layer.input_shape}). Use 'gram' or "
        "'moments', which can."
    )


def _descend(tree: Mapping, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _with_stack(layer: Layer, params: Mapping) -> Layer:
    """Returns the layer with its stacked axes, read off the parameter tree."""
    branch = _descend(params, layer.path)
    shape = tuple(flax_meta.unbox(branch[layer.kernel]).shape)
    own = layer.geometry.kernel_shape
    stack = shape[: len(shape) - len(own)]
    stacked = replace(layer, stack=stack)
    got = [leaf.shape for leaf in branch[_LEAF].statistic]
    want = [leaf.shape for leaf in _layers.statistic_shapes(stacked)]
    if shape != stack + own or got != want:
        raise ValueError(
            f"layer '{layer.key}': layers must be stacked along the first axis, got a "
            f"kernel of shape {shape} for layers of shape {own}. Use "
            "`variable_axes={'params': 0}` in nn.scan and nn.vmap."
        )
    return stacked


def _plain(
    params: Mapping, layers: tuple[Layer, ...], reasons: Mapping[tuple[str, ...], str]
) -> tuple[Plain, ...]:
    """Lists the parameters that no tap covers."""
    tapped = {(*layer.path, layer.kernel) for layer in layers}
    tapped |= {(*layer.path, layer.bias) for layer in layers}
    plain = []
    for keys, leaf in jax.tree.leaves_with_path(_without_taps(flax_meta.unbox(params))):
        path = tuple(str(getattr(key, "key", key)) for key in keys)
        if path not in tapped:
            reason = reasons.get(path[:-1], "not a tapped kind of layer")
            plain.append(Plain("/".join(path), tuple(leaf.shape), reason))
    return tuple(plain)


def _without_taps(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {k: _without_taps(v) for k, v in tree.items() if k != _LEAF}


def value_and_grad(
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool = False,
    *,
    allow_unconnected: bool = False,
) -> Callable[..., Any]:
    """Differentiates a loss and collects every tapped layer's input statistics.

    Like ``jax.value_and_grad``, with the statistics as a third result. They come from
    the same backward pass; gradients are those of the untapped loss.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)`` returning a scalar, or
        ``(scalar, aux)`` with ``has_aux``. ``params`` is the ``params`` collection or
        the variables that hold it, as the loss likes.
      taps: from ``linen.taps`` of the same model.
      has_aux: whether ``loss_fn`` returns auxiliary data; default False.
      allow_unconnected: whether the loss may leave tapped layers out; their
        statistics are then zero and their gradients pass through. Default False.

    Returns:
      A function with the arguments of ``loss_fn`` that returns ``(loss, grads,
      stats)``, or ``((loss, aux), grads, stats)``; ``stats`` maps layer to statistic.

    Raises:
      TypeError: if ``taps`` is not a ``Taps``.
      ValueError: when called, if the taps belong to another model, or if a tapped
        layer did not reach the loss.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.ones((8, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> loss_fn = lambda variables, x: jnp.mean(model.apply(variables, x) ** 2)
      >>> taps = linen.taps(model, x)
      >>> loss, grads, stats = linen.value_and_grad(loss_fn, taps)(variables, x)
      >>> stats[""].count
      Array([8.], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    if not isinstance(taps, Taps):
        raise TypeError(
            f"`taps` must be a Taps, got {type(taps).__name__}. Make it with "
            "`linen.taps(model, x)`."
        )

    @functools.wraps(loss_fn)
    def wrapped(params, *args, **kwargs):
        tracker = _Connections(taps)

        def tapped(params, zeros):
            zeros = {key: tracker.probe(key, t) for key, t in zeros.items()}
            with nn.intercept_methods(tracker):
                return loss_fn(_insert(params, taps, zeros), *args, **kwargs)

        function = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=has_aux)
        value, (grads, stats) = function(params, taps.zeros())
        if not allow_unconnected:
            tracker.check()
        return value, grads, stats

    return wrapped


def _insert(params: Any, taps: Taps, zeros: Mapping[str, Statistic]) -> Any:
    """Returns the parameters with a tap beside every tapped kernel."""
    frozen = isinstance(params, FrozenDict)
    tree = _copy_dicts(unfreeze(params) if frozen else params)
    for layer in taps.layers:
        for root in ((), ("params",)):
            try:
                branch = _descend(tree, root + layer.path)
            except (KeyError, TypeError):
                continue
            if isinstance(branch, dict) and layer.kernel in branch:
                branch[_LEAF] = _Leaf(zeros[layer.key], layer)
                break
        else:
            raise ValueError(
                f"`taps` has layer '{layer.key}', which the parameters lack: these "
                "taps belong to another model, or `params` is neither the 'params' "
                "collection nor the variables that hold it. Make the taps from the "
                "model whose parameters are passed."
            )
    return freeze(tree) if frozen else tree


def _copy_dicts(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy_dicts(value) for key, value in tree.items()}
    return tree


class _Connections:
    """The interceptor that applies taps, and the record of those that were."""

    def __init__(self, taps: Taps):
        self.unseen = {layer.key: layer for layer in taps.layers}
        self.without_gradient: set[str] = set()
        self.emitted = 0

    def __call__(self, next_fun, args, kwargs, context):
        module, before = context.module, self.emitted
        y = next_fun(*args, **kwargs)
        if not isinstance(module, _KINDS) or self.emitted != before:
            return y
        x = _layer_input(module, args, kwargs, context)
        if x is None or not module.scope.has_variable("params", _LEAF):
            return y
        leaf = module.scope.get_variable("params", _LEAF)
        _check_call(leaf.layer, module, x)
        self.unseen.pop(leaf.layer.key, None)
        self.emitted += 1
        return _taps.emit(leaf.layer, y, x, leaf.statistic)

    def probe(self, key: str, t: Statistic) -> Statistic:
        """Returns ``t``; notes whether anything at all reaches its cotangent."""

        @jax.custom_vjp
        def identity(t):
            return t

        def forward(t):
            return jax.tree.map(lambda leaf: leaf.value, t, is_leaf=_has_value), None

        def backward(_, cotangent):
            leaves = jax.tree.leaves(cotangent, is_leaf=_is_symbolic)
            if all(_is_symbolic(leaf) for leaf in leaves):
                self.without_gradient.add(key)
            return (jax.tree.map(_instantiate, cotangent, is_leaf=_is_symbolic),)

        identity.defvjp(forward, backward, symbolic_zeros=True)
        return identity(t)

    def check(self) -> None:
        """Raises if a tapped layer never reached the loss."""
        # A layer inside a function that JAX had traced before is not intercepted
        # again, but its cotangent is there: both signs must be missing.
        missing = sorted(set(self.unseen) & self.without_gradient)
        if missing:
            raise ValueError(
                f"layer '{missing[0]}' has a tap but did not reach the loss"
                f"{f' (and so {missing[1:]})' if missing[1:] else ''}. Either the loss "
                "leaves this part of the model out, or its parameters were rebuilt "
                "without the tap, or a transformation hid it. Pass "
                "`allow_unconnected=True` if that is meant (its gradient then passes "
                "through), or make `taps` with the method that the loss calls."
            )


def _has_value(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _instantiate(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if _is_symbolic(leaf) else leaf


def _check_call(layer: Layer, module: nn.Module, x: jax.Array) -> None:
    """Raises if the module is not used as it was when the taps were made."""
    geometry = _geometry(module, x)
    if geometry != layer.geometry:
        raise ValueError(
            f"layer '{layer.key}' was tapped as {layer.geometry} and is called as "
            f"{geometry}. Make the taps again from this model and inputs of this shape."
        )
    if layer.statistic == "inputs" and x.shape != layer.input_shape:
        raise ValueError(
            f"layer '{layer.key}' has `statistic` 'inputs' for inputs of shape "
            f"{layer.input_shape}, got {x.shape}. Make the taps again for this shape, "
            "or use 'gram' or 'moments', which take any number of samples."
        )
