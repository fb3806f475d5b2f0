"""Layers that a user declares: a linear map that is not read off its equations.

A primitive that is the identity of the layer's output carries the layer's input and
parameters along, for whoever reads the trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from linboost_optax._kinds import Kind

layer_p = Primitive("linboost_layer")

_tracing: ContextVar[bool] = ContextVar("tracing", default=False)
# Part of every JAX cache key: what was traced without marks is not served for them.
_cache_key = jax.make_user_context(None)


@contextmanager
def tracing() -> Iterator[None]:
    """A context in which declarations are left in what is traced."""
    token = _tracing.set(True)
    try:
        with traced_anew("tracing"):
            yield
    finally:
        _tracing.reset(token)


@contextmanager
def traced_anew(what: str) -> Iterator[None]:
    """A context in which only what was traced in such a context is served."""
    with _cache_key(frozenset((*(_cache_key.value or ()), what))):
        yield


def is_tracing() -> bool:
    """Whether anybody reads what is declared."""
    return _tracing.get()


def declare(
    kind: Kind | str,
    y: jax.Array,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """Returns ``y``, declared to be linear in a kernel and bias, with input ``x``.

    Where ``kind`` is a sentence, it says why the layer is left alone.
    """
    if not is_tracing():
        return y
    given = () if bias is None else (bias,)
    return layer_p.bind(y, x, kernel, *given, kind=kind)


layer_p.def_impl(lambda y, *_, kind: y)
layer_p.def_abstract_eval(lambda y, *_, kind: y)
mlir.register_lowering(layer_p, lambda ctx, y, *_, kind: [y])


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, kind: Kind | str) -> Any:
    return layer_p.bind(*primals, kind=kind), tangents[0]


ad.primitive_jvps[layer_p] = _jvp


def _batch(args: Sequence[Any], dims: Sequence[Any], *, kind: Kind | str) -> Any:
    y, x, *weights = args
    if any(dim is not None for dim in dims[2:]):
        raise NotImplementedError(
            f"a layer declared as {kind} is mapped over its weights (jax.vmap), which "
            "its kind does not know of. Leave it out, or map the whole model."
        )
    size = next(a.shape[dim] for a, dim in zip(args, dims) if dim is not None)

    def in_front(array: jax.Array, dim: int | None) -> jax.Array:
        if dim is None:
            return jnp.broadcast_to(array, (size, *array.shape))
        return jnp.moveaxis(array, dim, 0)

    y, x = in_front(y, dims[0]), in_front(x, dims[1])
    return layer_p.bind(y, x, *weights, kind=kind), 0


batching.primitive_batchers[layer_p] = _batch
