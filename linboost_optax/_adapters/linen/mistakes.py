"""What is said when a model cannot be traced as it was given."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from linboost_optax._adapters import mistakes
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
    own = dict(kwargs)
    method = own.pop("method", None) or "__call__"
    function = getattr(type(model), method) if isinstance(method, str) else method
    call = getattr(function, "__func__", function)
    mistakes.explain("linen.taps", model, call, args, own, error)


def check_inputs(taps: Taps, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Raises if a shape was taken for the inputs: as a vector it is one, too."""
    if any(map(is_array, jax.tree.leaves((args, dict(kwargs))))):
        return
    read = {layer.input_shape for layer in taps.layers}
    for arg in args:
        if mistakes.is_shape(arg) and (len(arg),) in read:
            raise mistakes.shape_error(arg)
