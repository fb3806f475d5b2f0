"""Calls of the NNX adapter that go wrong, and what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx


def check_model(model: object) -> None:
    """Raises unless ``model`` is an NNX module."""
    if isinstance(model, nnx.Module):
        return
    got = f"an instance of {type(model).__name__}"
    if isinstance(model, type):
        got = f"the class {model.__name__}"
    if any(base.__module__.startswith("flax.linen") for base in type(model).__mro__):
        got = f"the flax.linen module {type(model).__name__}"
    raise TypeError(
        f"`model` must be a flax.nnx.Module, got {got}. Call `nnx.taps(model, x)` with "
        "a module and the arguments of its own call; `linen.taps` is for Linen, and "
        "`lbo.taps(function, params, x)` for all else."
    )


def method_of(
    model: nnx.Module, method: str | Callable[..., Any] | None
) -> Callable[..., Any]:
    """Returns what is called, as a function of the module."""
    if method is None:
        return lambda model, *args, **kwargs: model(*args, **kwargs)
    if isinstance(method, str):
        if not callable(getattr(model, method, None)):
            raise TypeError(
                f"`method` must be a method of {type(model).__name__}, got {method!r}."
            )
        return lambda model, *args, **kwargs: getattr(model, method)(*args, **kwargs)
    if inspect.ismethod(method):
        return method.__func__
    if not callable(method):
        raise TypeError(
            f"`method` must be a name or a function of the module, got {method!r}."
        )
    return method


def count_arrays(state: Any) -> int:
    """Returns how many arrays a state has."""
    return len(jax.tree.leaves(state))


def explain(
    model: nnx.Module,
    call: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    error: Exception,
) -> None:
    """Raises if an error of tracing the module comes from how it was called."""
    del call
    for name in ("max_samples", "rank"):
        if name in kwargs and name in str(error):
            raise TypeError(
                f"`{name}` is an option of the statistic, not of the module's call. "
                f"Pass e.g. `statistic=lbo.Auto({name}={kwargs[name]!r})`."
            ) from error
    for arg in args:
        whole = isinstance(arg, tuple | list) and bool(arg)
        if whole and all(isinstance(n, int) for n in arg):
            raise TypeError(
                f"`args` must be what the module is called with, got {arg!r}, which "
                "reads like a shape. Pass an array, or for its shape and dtype alone "
                f"`jax.ShapeDtypeStruct({tuple(arg)!r}, jnp.float32)`."
            ) from error
    if not args and not kwargs:
        raise TypeError(
            f"`nnx.taps` takes the arguments of the module's own call: {error} Call "
            f"`nnx.taps(model, x)` with a batch for {type(model).__name__}, or a "
            "jax.ShapeDtypeStruct like one."
        ) from error
