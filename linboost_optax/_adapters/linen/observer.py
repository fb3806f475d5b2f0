"""What is seen of a Linen model while it is traced: its modules, declared layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import flax.linen as nn
from flax.core import meta as flax_meta

from linboost_optax._adapters.linen import registry
from linboost_optax._adapters.linen.registry import Entry
from linboost_optax._adapters.mistakes import check_described
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
        kernel, bias = (_parameter(module, name) for name in (entry.kernel, entry.bias))
        layer = f"layer '{join(module.path)}': {type(module).__name__}"
        has = str(sorted(module.variables.get("params", {})))
        check_described(kind, kernel, entry.kernel, layer, "linen.register", has)
        return declare(kind, y, x, kernel, bias)


def _parameter(module: nn.Module, name: str) -> Any:
    if not module.has_variable("params", name):
        return None
    return flax_meta.unbox(module.get_variable("params", name))


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
