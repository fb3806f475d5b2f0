"""Finding the linear layers of a Flax Linen model, with abstract values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import unfreeze

from linboost_optax._adapters.advice import advice_of
from linboost_optax._adapters.linen.observer import Observer
from linboost_optax._layer import Path
from linboost_optax._program.trace import Program, is_array, trace
from linboost_optax._sharding import unsharded
from linboost_optax._taps.arguments import of_arrays


def trace_model(
    model: nn.Module, seen: Observer, rngs: Any, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Any, Program]:
    """Returns the shapes of a model's parameters, and its call, read.

    Args:
      model: a Linen module.
      seen: takes note of what is called.
      rngs: a key, or keys by stream.
      args: of the model's call, or what has their shapes.
      kwargs: likewise; ``method`` among them.
    """
    init, arrays = _abstract(model.init, args, kwargs)
    variables = dict(unfreeze(jax.eval_shape(init, rngs, arrays)))
    params, rest = variables.pop("params", {}), variables
    streams = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}

    def call(params: Any, rest: Any, arrays: list[Any]) -> Any:
        def apply(streams: Any, *args: Any, **kwargs: Any) -> Any:
            variables = {"params": params, **rest}
            return model.apply(variables, *args, rngs=streams, mutable=True, **kwargs)

        called, _ = of_arrays(apply, args, kwargs, is_array)
        with nn.intercept_methods(seen):
            return called(streams, arrays)[0]

    def traced(rest: Any) -> Program:
        states = len(jax.tree.leaves(rest))
        return trace(call, params, (rest, arrays), {}, states=states)

    try:
        return params, traced(rest)
    except Exception:
        # A model that decodes may be initialised with what it cannot be called with.
        if not rest:
            raise
        return params, traced({})


def _abstract(
    function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """Splits arguments: returns a function of arrays alone, and those arrays."""
    called, arrays = of_arrays(function, args, kwargs, is_array)
    return called, [unsharded(array) for array in arrays]


def advice(seen: Observer, path: Path) -> str | None:
    """Returns why a parameter keeps its plain gradient, where its module tells."""
    # A module may keep parameters below names that are no modules.
    for end in range(len(path) - 1, -1, -1):
        module = seen.modules.get(path[:end])
        if module is not None:
            return advice_of(module, nn)
    return None
