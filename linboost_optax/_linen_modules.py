"""Flax Linen modules -> layers: which calls are linear, and in what geometry."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta as flax_meta
from flax.linen import linear as nn_linear

from linboost_optax import _geometry, _layers
from linboost_optax._geometry import Conv, Dense, Embed, Geometry
from linboost_optax._layers import Layer
from linboost_optax._statistics import Statistic, accumulation_dtype

LEAF = "linboost_tap"

KINDS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed)
_CALLS = frozenset(inspect.unwrap(kind.__call__) for kind in KINDS)


# Part of every JAX cache key: under a new value nothing is served that was traced
# without the interceptor, be it a jitted model or `nn.jit` inside it.
trace_context = jax.make_user_context(None)


@partial(
    jax.tree_util.register_dataclass, data_fields=["statistic"], meta_fields=["layer"]
)
@dataclass(frozen=True)
class Leaf:
    """What sits beside a kernel. The static layer makes caches tell taps apart."""

    statistic: Statistic
    layer: Layer


def is_layer_call(context: nn.module.InterceptorContext) -> bool:
    """Whether this is the linear map itself, and not a subclass's own method.

    A subclass that calls ``super().__call__`` on another input, and a class made by a
    lifted transform, reach the linear map through a second, inner call.
    """
    if not isinstance(context.module, KINDS):
        return False
    method = context.orig_method  # the function bound to its module by `partial`
    return getattr(method, "func", method) in _CALLS


def layer_input(args: tuple, kwargs: Mapping[str, Any]) -> jax.Array:
    """Returns the input of a layer's call."""
    return args[0] if args else kwargs["inputs"]


def geometry(module: nn.Module, x: jax.Array) -> Geometry | str:
    """Returns how the layer's arrays become matrices, or why it is not tapped."""
    if isinstance(module, nn.Embed):
        return Embed(module.num_embeddings, module.features)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return "complex inputs"
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
    # Flax sorts the axes: the kernel's follow the input's order, not the user's.
    axis = tuple(sorted(_geometry.normalize_axes(_tuple(module.axis), x.ndim)))
    return Dense(
        batch=x.shape[: len(_tuple(module.batch_dims))],
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
        mode = "wrap" if padding == "CIRCULAR" else "reflect"
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


def describe(
    module: nn.Module,
    shape: Geometry,
    x: jax.Array,
    statistic: str,
    limit: int | None,
    rank: int,
) -> Layer:
    """Returns the static facts of the layer that ``module`` is."""
    name = "embedding" if isinstance(shape, Embed) else "kernel"
    path = "/".join(module.path)
    kernel = flax_meta.unbox(module.get_variable("params", name))
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(
            f"layer '{path}': `{name}` must be real and floating, got {kernel.dtype} "
            f"of shape {kernel.shape}. Change its `param_dtype`."
        )
    if statistic == "auto" or isinstance(shape, Embed):
        statistic = _layers.automatic(shape, rank)
    biased = module.has_variable("params", "bias")
    dtype = kernel.dtype if isinstance(shape, Embed) else x.dtype
    return Layer(
        path=module.path,
        geometry=shape,
        statistic=statistic,  # pyright: ignore[reportArgumentType]
        input_shape=tuple(x.shape),
        dtype=str(accumulation_dtype(dtype)),
        kernel=name,
        bias="bias" if biased else None,
        max_samples=limit,
        rank=rank,
    )


def under_map_variables() -> bool:
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


def descend(tree: Mapping, path: tuple[str, ...]) -> Any:
    """Returns the branch of ``tree`` at ``path``."""
    for name in path:
        tree = tree[name]
    return tree


def without_leaves(tree: Any) -> Any:
    """Returns ``tree`` without the taps' leaves."""
    if not isinstance(tree, Mapping):
        return tree
    return {k: without_leaves(v) for k, v in tree.items() if k != LEAF}
