"""A CPU as several devices: the environment that a process of them needs."""

from __future__ import annotations

import os
from importlib.metadata import version

# XLA dies of flags that it does not know; these have the one below.
_KNOWN = ("0.8.", "0.9.", "0.10.")
THREADS = 64


def environment(devices: int) -> dict[str, str]:
    """This process's, with what one with so many devices of a CPU needs.

    JAX reads it when it is imported, so it is for a process that is yet to start.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib").startswith(_KNOWN):
        # Devices of a CPU otherwise may wait for different messages, for ever.
        flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    return {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        # A device that waits for the others holds a thread.
        "NPROC": str(THREADS),
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
    }
