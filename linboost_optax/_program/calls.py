"""Equations made again: as they are, or as calls of other functions."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def bind(eqn: Any, row: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation as it is."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Before jax 0.10 functions among the parameters come apart from the rest.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *row, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


@contextlib.contextmanager
def context(eqn: Any):
    """What an equation was traced in: its mesh and precision, and its name."""
    name = str(eqn.source_info.name_stack)
    named = jax.named_scope(name) if name and "(" not in name else None
    with eqn.ctx.manager, named or contextlib.nullcontext():
        yield


def callee(eqn: Any) -> ClosedJaxpr:
    """Returns the function that an equation calls."""
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr):
            return value
        if isinstance(value, Jaxpr):
            return ClosedJaxpr(value, ())
    raise AssertionError(eqn.primitive.name)


@dataclass(frozen=True)
class Call:
    """A call of a compiled function, with taps: what JAX keeps it by.

    Attributes:
      closed: the function, which JAX has kept since it was first traced.
      signature: what is tapped in it.
      called: runs it.
    """

    closed: ClosedJaxpr
    signature: Hashable
    called: Callable[..., list] = field(compare=False)


# Few: a loss that makes its functions anew is not to be kept for ever.
@functools.lru_cache(maxsize=32)
def kept(call: Call) -> Callable[..., list]:
    """Returns a call, compiled: the same one for equal calls."""
    return jax.jit(call.called)


def manual_axes(params: dict[str, Any]) -> Any:
    """Returns the axes that ``shard_map`` has by hand, whatever JAX calls them."""
    return params.get("manual_axes", params.get("newly_manual_axes", ()))


def as_sharded(eqn: Any, called: Callable[..., list]) -> Callable[..., list]:
    """Returns a call that shards what ``jax.jit`` was told to shard."""
    ins = eqn.params.get("in_shardings", ())
    outs = eqn.params.get("out_shardings", ())

    def constrain(values: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
        return [
            jax.lax.with_sharding_constraint(value, sharding)
            if isinstance(sharding, jax.sharding.Sharding)
            else value
            for value, sharding in zip(values, shardings or [None] * len(values))
        ]

    @functools.wraps(called)
    def constrained(args: list, own: dict) -> list:
        return constrain(called(constrain(args, ins), own), outs)

    return constrained
