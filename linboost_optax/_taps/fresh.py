"""Traces that are not served from JAX's caches what was traced for another end."""

from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any

import jax

try:
    from jax.extend.core import get_opaque_trace_state as _get_trace
except ImportError:  # its place before jax 0.10
    from jax.core import get_opaque_trace_state as _get_trace

# Part of every JAX cache key: under a new value nothing is served that was traced
# without an interceptor, be it a jitted model or `nn.jit` inside it.
_context = jax.make_user_context(None)


def survey_trace(taps: Hashable) -> AbstractContextManager[Any]:
    """Returns a context in which only what was traced for the same taps is served.

    A fresh one for each would have JAX trace all of its own functions anew, and keep
    them.
    """
    return _context((_SURVEY, taps))


def masked_trace() -> AbstractContextManager[Any]:
    """Returns a context whose traces serve none without a mask, nor another mask's.

    Operations that run at once are compiled for it only once. Where nothing is served
    from outside anyway, nothing is served from another mask's context either.
    """
    return _context(_MASKED if _context.value in (None, _MASKED) else object())


_MASKED, _SURVEY = "masked", "survey"


def current_trace() -> Any:
    """Returns what tells one trace from another."""
    return _get_trace(convention="flax")


def fresh_trace() -> AbstractContextManager[Any]:
    """Returns a context in which nothing is served that was traced outside of it."""
    return _context(object())
