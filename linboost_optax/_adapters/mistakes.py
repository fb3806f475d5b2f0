"""Calls that go wrong in the same way in every framework, and what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from linboost_optax._kinds import Kind


def explain(
    taps: str,
    model: Any,
    call: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    error: Exception,
) -> None:
    """Raises if an error of tracing a model comes from how it was called.

    Args:
      taps: name of the function that was called.
      model: the model.
      call: what is called, as a function of the model.
      args: its other arguments.
      kwargs: likewise.
      error: what was raised.
    """
    for name in ("max_samples", "rank"):
        if name in kwargs and name in str(error):
            raise TypeError(
                f"`{name}` is an option of the statistic, not of the model's call. "
                f"Pass e.g. `statistic=lbo.Auto({name}={kwargs[name]!r})`."
            ) from error
    for arg in args:
        if is_shape(arg):
            raise shape_error(arg) from error
    signature = inspect.signature(call)
    try:
        signature.bind(model, *args, **kwargs)
    except TypeError as missing:
        raise TypeError(
            f"`{taps}` takes the arguments of the model's own call, "
            f"{type(model).__name__}{signature}: {missing}. Call `{taps}(model, x)` "
            "with a batch, or a jax.ShapeDtypeStruct like one."
        ) from error


def is_shape(arg: Any) -> bool:
    """Whether an argument reads like a shape."""
    whole = isinstance(arg, tuple | list) and bool(arg)
    return whole and all(isinstance(n, int) for n in arg)


def shape_error(arg: Any) -> TypeError:
    """Returns what is wrong with a shape in the place of inputs."""
    return TypeError(
        f"`args` must be what the model is called with, got {arg!r}, which reads like "
        "a shape. Pass an array, or for its shape and dtype alone "
        f"`jax.ShapeDtypeStruct({tuple(arg)!r}, jnp.float32)`."
    )


def check_describe(describe: Any) -> None:
    """Raises unless ``describe`` may describe a class of layers."""
    if not callable(describe):
        raise TypeError(
            f"`describe` must map (module, input) to a Kind, got {describe!r}. Pass a "
            "function."
        )


def check_described(
    kind: Any, kernel: Any, name: str, layer: str, register: str, has: str = ""
) -> None:
    """Raises unless a description fits a module's parameters.

    Args:
      kind: what ``describe`` returned.
      kernel: the kernel, None if there is none of its name.
      name: of the kernel.
      layer: what errors call the module.
      register: name of the function that took the description.
      has: what parameters it has instead, where that is known.
    """
    if not isinstance(kind, Kind | str):
        raise TypeError(
            f"`describe` of {layer} must return a Kind or the reason why this layer is "
            f"left alone, got {kind!r}."
        )
    if kernel is None:
        raise ValueError(
            f"{layer} must have a parameter `{name}`{has and f', got {has}'}. Pass its "
            f"name as `kernel` to `{register}`."
        )
    if isinstance(kind, Kind) and kernel.shape != kind.kernel_shape:
        raise ValueError(
            f"`describe` of {layer} must return a kind of its kernel's shape "
            f"{kernel.shape}, got a {kind}."
        )
