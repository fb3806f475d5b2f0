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
    if isinstance(model, type) and issubclass(model, nnx.Module):
        raise TypeError(
            f"`model` must be a flax.nnx.Module, got the class {model.__name__}. Make "
            f"an instance first: `{model.__name__}(..., rngs=nnx.Rngs(0))`."
        )
    own = model if isinstance(model, type) else type(model)
    got = f"the class {own.__name__}" if own is model else f"a {own.__name__}"
    if any(base.__module__.startswith("flax.linen") for base in type.mro(own)):
        got = f"the flax.linen module {own.__name__}"
    raise TypeError(
        f"`model` must be a flax.nnx.Module, got {got}. Call `nnx.taps(model, x)` with "
        "a module and the arguments of its own call; `linen.taps` is for Linen, and "
        "`lbo.taps(function, params, x)` for all else."
    )


def check_wrt(model: nnx.Module, params: Any, wrt: Any) -> None:
    """Raises if no variable of a module is a parameter."""
    if jax.tree.leaves(params):
        return
    nodes = [node for _, node in nnx.iter_graph(model)]
    kinds = {type(each).__name__ for each in nodes if isinstance(each, nnx.Variable)}
    raise ValueError(
        f"`wrt` must choose variables of {type(model).__name__}, which has "
        f"{', '.join(sorted(kinds)) or 'none'}; got {getattr(wrt, '__name__', wrt)}. "
        "Pass the type of its parameters, as for `nnx.Optimizer`."
    )


def check_options(unknown: Mapping[str, Any]) -> None:
    """Raises if options are those of ``nnx.value_and_grad`` alone."""
    for name in ("argnums", "graph", "graph_updates"):
        if name in unknown:
            raise TypeError(
                f"`{name}` is no argument of this `value_and_grad`, which "
                "differentiates with respect to the first argument of `loss_fn`, and "
                "updates modules that change. Say which of its variables are "
                "parameters by `wrt`, as for `nnx.Optimizer`; split modules do as "
                "well: `loss_fn(params, ...)`."
            )


def check_pair(out: Any) -> None:
    """Raises unless a loss returns itself and auxiliary data."""
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            "`loss_fn` must return `(loss, aux)` with `has_aux=True`, got "
            f"{type(out).__name__}. Return a pair, or leave `has_aux` out."
        )


def check_split(params: Any) -> None:
    """Raises if what is differentiated is several modules."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nnx.Module))
    if any(isinstance(leaf, nnx.Module) for leaf in leaves):
        raise TypeError(
            "the first argument of `loss_fn` must be a flax.nnx.Module or a tree of "
            f"arrays, got modules in a {type(params).__name__}. Make one module that "
            "has them as attributes, e.g. an `nnx.Dict`, and taps of it."
        )


def method_of(
    model: nnx.Module, method: str | Callable[..., Any] | None
) -> Callable[..., Any]:
    """Returns what is called, as a function of the module."""
    if method is None:
        if not callable(model):
            raise TypeError(
                f"`model` must be callable, {type(model).__name__} has no `__call__`. "
                "Say what is called: `method=`, a name or a function of the module."
            )
        return type(model).__call__
    if isinstance(method, str):
        if not callable(getattr(model, method, None)):
            raise TypeError(
                f"`method` must be a method of {type(model).__name__}, got {method!r}."
            )
        if callable(getattr(type(model), method, None)):
            return getattr(type(model), method)
        return lambda model, *args, **kwargs: getattr(model, method)(*args, **kwargs)
    if inspect.ismethod(method):
        return method.__func__
    if not callable(method):
        raise TypeError(
            f"`method` must be a name or a function of the module, got {method!r}."
        )
    return method
