"""Strict JAX settings for every test: silent promotion hides dtype bugs."""

import contextlib

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Refuses implicit promotion, except in tests marked `lenient` with a reason."""
    with contextlib.ExitStack() as stack:
        if request.node.get_closest_marker("lenient") is None:
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield
