"""Traces that are not served from JAX's caches what was traced for another end."""

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
    return _context("survey")


def fresh_trace() -> AbstractContextManager[Any]:
    """Returns a context in which nothing is served that was traced outside of it."""
    return _context(object())
