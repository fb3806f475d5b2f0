"""What is seen of a Linen model while it is traced: its modules, declared layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import flax.linen as nn
from flax.core import meta as flax_meta

from linboost_optax._adapters.linen import registry
from linboost_optax._adapters.linen.registry import Entry
from linboost_optax._kinds import Kind
from linboost_optax._layer import Path, join
from linboost_optax._taps.declared import declare


class Observer:
    """An interceptor: declares registered layers, and remembers which modules ran.

    Attributes:
      modules: classes of the modules that were called, by path.
    """

    def __init__(self):
        self.modules: dict[Path, type[nn.Module]] = {}

    def __call__(self, next_fun, args, kwargs, context):
        module = context.module
        if module.scope is None:
            return next_fun(*args, **kwargs)
        self.modules.setdefault(module.path, type(module))
        entry = registry.entry_of(context)
        if entry is None:
            return next_fun(*args, **kwargs)
        return innermost(next_fun, args, kwargs, context, partial(self._layer, entry))

    def _layer(self, entry: Entry, context, method, args, kwargs):
        module, y = context.module, method(*args, **kwargs)
        x = entry.input(args, kwargs)
        kind = entry.describe(module, x)
        _check(module, entry, kind)
        kernel, bias = (_parameter(module, name) for name in (entry.kernel, entry.bias))
        return declare(kind, y, x, kernel, bias)


def _parameter(module: nn.Module, name: str) -> Any:
    if not module.has_variable("params", name):
        return None
    return flax_meta.unbox(module.get_variable("params", name))


def _check(module: nn.Module, entry: Entry, kind: Any) -> None:
    """Raises unless a registered description fits the module's parameters."""
    where, name = f"layer '{join(module.path)}'", type(module).__name__
    if not isinstance(kind, Kind | str):
        raise TypeError(
            f"{where}: `describe` of {name} must return a Kind or the reason why this "
            f"layer is left alone, got {kind!r}."
        )
    kernel = _parameter(module, entry.kernel)
    if kernel is None:
        raise ValueError(
            f"{where}: {name} must have a parameter `{entry.kernel}`, got "
            f"{sorted(module.variables.get('params', {}))}. Pass its name as `kernel` "
            "to `linen.register`."
        )
    if isinstance(kind, Kind) and kernel.shape != kind.kernel_shape:
        raise ValueError(
            f"{where}: `describe` of {name} must return a kind of its kernel's shape "
            f"{kernel.shape}, got a {kind}."
        )


def innermost(next_fun, args, kwargs, context, around: Callable[..., Any]) -> Any:
    """Runs a call with ``around`` inside of every interceptor, next to the method.

    Interceptors entered later, by the loss or by a module itself, may change arguments
    on their way. ``around(context, method, args, kwargs)`` sees what arrives.
    """
    bound = context.orig_method
    if not isinstance(bound, partial):  # Flax's way of binding; else as seen from here
        return around(context, next_fun, args, kwargs)
    function = bound.func

    @wraps(function)
    def method(module, *args, **kwargs):
        return around(context, partial(function, module), args, kwargs)

    # `next_fun` ends in this very object, whatever comes between.
    state = (bound.args, bound.keywords, vars(bound))
    bound.__setstate__((method, *state))  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return next_fun(*args, **kwargs)
    finally:
        bound.__setstate__((function, *state))  # pyright: ignore[reportAttributeAccessIssue]
