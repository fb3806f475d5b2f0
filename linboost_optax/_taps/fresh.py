"""Traces that nothing is served to from JAX's caches."""

from contextlib import AbstractContextManager
from typing import Any

import jax

# Part of every JAX cache key: under a new value nothing is served that was traced
# without an interceptor, be it a jitted model or `nn.jit` inside it.
_context = jax.make_user_context(None)


def masked_trace() -> AbstractContextManager[Any]:
    """Returns a context whose traces serve none without a mask, nor another mask's.

    Operations that run at once are compiled for it only once. Where nothing is served
    from outside anyway, nothing is served from another mask's context either.
    """
    return _context(_MASKED if _context.value in (None, _MASKED) else object())


_MASKED = "masked"


def fresh_trace() -> AbstractContextManager[Any]:
    """Returns a context in which nothing is served that was traced outside of it."""
    return _context(object())
