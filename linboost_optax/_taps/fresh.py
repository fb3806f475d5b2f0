"""Traces that are not served from JAX's caches what was traced for another end."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import jax

# Part of every JAX cache key: under a new value nothing is served that was traced
# without an interceptor, be it a jitted model or `nn.jit` inside it.
_context = jax.make_user_context(None)


def survey_trace() -> AbstractContextManager[Any]:
    """Returns a context in which only what was traced in such a one is served.

    A fresh one for each would have JAX trace all of its own functions anew, and keep
    them.
    """
    return _context(_SURVEY)


def masked_trace() -> AbstractContextManager[Any]:
    """Returns a context whose traces serve none without a mask, nor another mask's.

    Operations that run at once are compiled for it only once. Where nothing is served
    from outside anyway, nothing is served from another mask's context either.
    """
    if _context.value == _SURVEY:  # where masks are not looked at
        return contextlib.nullcontext()
    return _context(_MASKED if _context.value in (None, _MASKED) else object())


_MASKED, _SURVEY = "masked", "survey"


def fresh_trace() -> AbstractContextManager[Any]:
    """Returns a context in which nothing is served that was traced outside of it."""
    return _context(object())
