"""Strict JAX settings for every test: silent promotion hides dtype bugs."""

import contextlib
import os
from importlib.metadata import version
from pathlib import Path

# Nearly all the time of a test goes into compiling code that then runs once: without
# XLA's optimizations two of the files took 0.4 of the time, and without its fusion
# emitters the tests of ILLS took 0.37 of what was left. Notebooks have them back.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):  # XLA dies of unknown flags
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# What one test or process has compiled, no other compiles again, nor does the next run.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

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


@pytest.fixture
def optimized():
    """Compiles as users do, for tests that look at what was compiled."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True, scope="module")
def drop_caches():
    """Frees what a file of tests has traced and compiled: together it fills a memory.

    What the next file needs again, it reads from the cache on disk.
    """
    yield
    jax.clear_caches()
