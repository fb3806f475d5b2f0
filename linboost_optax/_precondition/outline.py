"""Layers that are alike are traced and lowered once.

A network has the same layer many times, and what an optimizer does with each differs in
nothing but names. JAX finds what it has traced before by its static arguments, so the
names are taken out of them. The compiler does not profit: it copies what is called
wherever it is called.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from linboost_optax._layer import Layer

_Out = TypeVar("_Out")
_Fact = TypeVar("_Fact")


def call(function: Callable[..., _Out], static: tuple[Any, ...], *args: Any) -> _Out:
    """Returns ``function(*static, *args)``, traced once for layers that are alike.

    Args:
      function: of the module's own, not made for this call.
      static: facts of one layer, the metric that is bound to it the first of them. It
        is called as it is unless it says that it is ``nameless``.
      *args: trees of arrays.
    """
    if not getattr(static[0], "nameless", False):
        return function(*static, *args)
    return _traced(function, tuple(nameless(each) for each in static), *args)


def nameless(fact: _Fact) -> _Fact:
    """Returns a dataclass with no names in the layers that it holds."""
    if isinstance(fact, Layer):
        bias = None if fact.bias is None else "bias"
        return dataclasses.replace(
            fact, path=(), source=None, kernel="kernel", bias=bias
        )
    if not dataclasses.is_dataclass(fact) or isinstance(fact, type):
        return fact
    held = {f.name: getattr(fact, f.name) for f in dataclasses.fields(fact) if f.init}
    new = {name: nameless(value) for name, value in held.items()}
    if all(new[name] is held[name] for name in held):
        return fact
    return dataclasses.replace(fact, **new)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _traced(function: Callable[..., _Out], static: tuple[Any, ...], *args: Any) -> _Out:
    return function(*static, *args)
