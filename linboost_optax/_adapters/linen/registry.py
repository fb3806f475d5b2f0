"""Which Linen modules are linear layers, and of what kind."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from linboost_optax._adapters.mistakes import check_describe
from linboost_optax._kinds import Kind


@dataclass(frozen=True)
class Entry:
    """How the layers of one module class are described.

    Attributes:
      describe: maps the module and its input to its kind, or to the reason why this
        one keeps its plain gradient.
      function: the linear map itself. A subclass that calls it on another input, and a
        class made by a lifted transform, reach it through a second, inner call.
      argument: name of the input among its arguments.
      kernel: name of its kernel among its parameters.
      bias: name of its bias, where it has one.
    """

    describe: Callable[[Any, jax.Array], Kind | str]
    function: Callable[..., Any]
    argument: str
    kernel: str
    bias: str

    def input(self, args: tuple, kwargs: Mapping[str, Any]) -> jax.Array:
        """Returns the input of a call with these arguments."""
        return args[0] if args else kwargs[self.argument]


_ENTRIES: dict[type[nn.Module], Entry] = {}


def register(
    module: type[nn.Module],
    describe: Callable[[Any, jax.Array], Kind | str],
    *,
    kernel: str = "kernel",
    bias: str = "bias",
) -> None:
    """Teaches the adapter that a module class is a linear layer.

    Only needed where that cannot be read off what the class computes (a product by
    other means than those of ``lbo.taps``), or to leave a layer alone. The class's
    ``__call__`` must be the linear map of its first argument: its output is linear in
    the parameters ``kernel`` and ``bias``.

    Args:
      module: the class; subclasses are covered as far as they use its ``__call__``.
      describe: maps a module and its input to its ``Kind``, or to a sentence that says
        why this one is left alone.
      kernel: name of the kernel among the module's parameters; default ``"kernel"``.
      bias: name of the bias, for modules that have one; default ``"bias"``.

    Raises:
      TypeError: if ``module`` is not a class of modules whose call takes its input
        first, or ``describe`` is not callable.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> from linboost_optax import extend, linen
      >>> class Linear(nn.Module):
      ...     size: int
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         shape = (x.shape[-1], self.size)
      ...         w = self.param("w", nn.initializers.lecun_normal(), shape)
      ...         return jnp.sum(x[..., None] * w, axis=-2)
      >>> def describe(module, x):
      ...     return extend.Dense((), (x.shape[-1],), (module.size,))
      >>> linen.register(Linear, describe, kernel="w")
      >>> print(linen.taps(Linear(2), jnp.ones((8, 3)), statistic="gram"))
      path  kind   kernel  inputs  statistic  bytes
      .     Dense  3x2     8x3     gram          52
      statistics: 52 bytes
    """
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise TypeError(
            f"`module` must be a class of flax.linen modules, got {module!r}. Pass "
            "the class, not an instance."
        )
    check_describe(describe)
    function = _call_of(module)
    first = list(inspect.signature(function).parameters.values())[1:2]  # after `self`
    if not first or first[0].kind is not first[0].POSITIONAL_OR_KEYWORD:
        raise TypeError(
            f"`module` must take its input first, got {module.__name__}.__call__"
            f"{inspect.signature(function)}. Register a class whose `__call__` is the "
            "linear map of its first argument."
        )
    _ENTRIES[module] = Entry(describe, function, first[0].name, kernel, bias)


def entry_of(context: nn.module.InterceptorContext) -> Entry | None:
    """Returns the entry whose linear map this very call is, or None."""
    method = context.orig_method  # the function bound to its module by `partial`
    function = getattr(method, "func", method)
    while function is not None:
        for entry in _entries(context):
            if entry.function is function:
                return entry
        # Another interceptor may have wrapped it; see `observer.innermost`.
        function = getattr(function, "__wrapped__", None)
    return None


def _entries(context: nn.module.InterceptorContext) -> Iterator[Entry]:
    """The entries of a module's class and of its bases, the nearest first."""
    bases = type(context.module).__mro__
    return (_ENTRIES[each] for each in bases if each in _ENTRIES)


def _call_of(module: type[nn.Module]) -> Callable[..., Any]:
    """Returns a class's own or inherited ``__call__``, out of Flax's wrapper."""
    return getattr(module.__call__, "__wrapped__", module.__call__)
