"""NNX modules that a user says are linear layers, and of what kind."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from linboost_optax._adapters.mistakes import check_describe, check_described
from linboost_optax._kinds import Kind
from linboost_optax._taps.declared import declare, is_tracing


def register(
    module: type[nnx.Module],
    describe: Callable[[Any, jax.Array], Kind | str],
    *,
    kernel: str = "kernel",
    bias: str = "bias",
) -> None:
    """Teaches the adapter that a module class is a linear layer.

    Only needed where that cannot be read off what the class computes (a product by
    other means than those of ``lbo.taps``), or to leave a layer alone. The
    class's ``__call__`` is wrapped; it computes what it did.

    Args:
      module: the class, whose ``__call__`` is linear in the parameters ``kernel`` and
        ``bias`` and takes the input first.
      describe: maps a module and its input to its ``Kind``, or to a sentence that says
        why this one is left alone.
      kernel: name of the kernel among the module's variables; default ``"kernel"``.
      bias: name of the bias, for modules that have one; default ``"bias"``.

    Raises:
      TypeError: if ``module`` is not a class of modules, or ``describe`` is not
        callable.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import linboost_optax as lbo
      >>> class Linear(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 2)))
      ...     def __call__(self, x):
      ...         return jnp.sum(x[..., None] * self.w[...], axis=-2)
      >>> def describe(module, x):
      ...     return lbo.extend.Dense((), (3,), (2,))
      >>> lbo.nnx.register(Linear, describe, kernel="w")
      >>> model = Linear(nnx.Rngs(0))
      >>> print(lbo.nnx.taps(model, jnp.ones((8, 3)), statistic="gram"))
      path  kind   kernel  inputs  statistic  bytes
      .     Dense  3x2     8x3     gram          52
      statistics: 52 bytes
    """
    if not (isinstance(module, type) and issubclass(module, nnx.Module)):
        got = f"a {type(module).__name__}"
        if isinstance(module, type):
            got = f"the class {module.__name__}"
        raise TypeError(
            f"`module` must be a class of flax.nnx modules, got {got}. Pass the class, "
            "not an instance."
        )
    check_describe(describe)
    call = module.__call__  # of the metaclass, where the class has none
    first = list(inspect.signature(call).parameters)[1:2]
    own = any("__call__" in vars(base) for base in module.__mro__)
    if not (own and first):
        raise TypeError(
            f"`module` must have a `__call__` that takes its input first, got "
            f"{module.__name__}. Register a class whose call is the linear map."
        )
    # Registered again, a class has the last description.
    call = getattr(call, _PLAIN, call)

    @functools.wraps(call)
    def declaring(self, *args, **kwargs):
        y = call(self, *args, **kwargs)
        if not is_tracing():
            return y
        x = args[0] if args else kwargs[first[0]]
        kind = describe(self, x)
        weights = _array(self, kernel), _array(self, bias)
        name = type(self).__name__
        check_described(kind, weights[0], kernel, name, "nnx.register")
        return declare(kind, y, x, *weights)

    setattr(declaring, _PLAIN, call)
    module.__call__ = declaring


# Where a wrapped call has the call that it wraps.
_PLAIN = "_linboost_plain"


def _array(module: nnx.Module, name: str) -> Any:
    variable = getattr(module, name, None)
    return variable[...] if isinstance(variable, nnx.Variable) else variable
