"""What is said when a model cannot be traced as it was given."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from linboost_optax._program.trace import is_array
from linboost_optax._taps import Taps


def check_model(model: object) -> None:
    """Raises unless ``model`` is an instance of a Linen module."""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise TypeError(
            f"`model` must be a flax.linen.Module, got the class {model.__name__}. "
            f"Make an instance first: `{model.__name__}(...)`."
        )
    own = model if isinstance(model, type) else type(model)
    got = f"the class {own.__name__}" if own is model else own.__name__
    if any(base.__module__.startswith("flax.nnx") for base in type.mro(own)):
        got = f"the flax.nnx module {own.__name__}"
    raise TypeError(
        f"`model` must be a flax.linen.Module, got {got}. Call `linen.taps(model, x)` "
        "with a Linen model and the arguments of its own call; `nnx.taps(model, x)` is "
        "for NNX, and `lbo.taps(function, params, x)` for all else."
    )


def explain(
    model: nn.Module, args: tuple, kwargs: Mapping[str, Any], error: Exception
) -> None:
    """Raises if an error of tracing the model comes from how it was called."""
    for name in ("max_samples", "rank"):
        if name in kwargs and name in str(error):
            raise TypeError(
                f"`{name}` is an option of the statistic, not of the model's call. "
                f"Pass e.g. `statistic=lbo.Auto({name}={kwargs[name]!r})`."
            ) from error
    for arg in args:
        if _is_shape(arg):
            raise TypeError(_SHAPE.format(arg=arg, shape=tuple(arg))) from error
    method = kwargs.get("method") or "__call__"
    function = getattr(type(model), method) if isinstance(method, str) else method
    own = {name: value for name, value in kwargs.items() if name != "method"}
    signature = inspect.signature(getattr(function, "__func__", function))
    try:
        signature.bind(model, *args, **own)
    except TypeError as missing:
        raise TypeError(
            f"`linen.taps` takes the arguments of the model's own call, "
            f"{type(model).__name__}{signature}: {missing}. Call "
            "`linen.taps(model, x)` with a batch, or a jax.ShapeDtypeStruct like one."
        ) from error


def check_inputs(taps: Taps, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Raises if a shape was taken for the inputs: as a vector it is one, too."""
    if any(map(is_array, jax.tree.leaves((args, dict(kwargs))))):
        return
    read = {layer.input_shape for layer in taps.layers}
    for arg in args:
        if _is_shape(arg) and (len(arg),) in read:
            raise TypeError(_SHAPE.format(arg=arg, shape=tuple(arg)))


_SHAPE = (
    "`args` must be what the model is called with, got {arg!r}, which reads like a "
    "shape. Pass an array, or for its shape and dtype alone "
    "`jax.ShapeDtypeStruct({shape!r}, jnp.float32)`."
)


def _is_shape(arg: Any) -> bool:
    whole = isinstance(arg, tuple | list) and bool(arg)
    return whole and all(isinstance(n, int) for n in arg)
