"""What a process has in its environment that has several devices of a CPU."""

import os
from importlib.metadata import version


def environment(devices, bits):
    """Returns that of a process with so many devices, whose floats are so wide."""
    flags = os.environ.get("XLA_FLAGS", "")
    # XLA dies of flags that it does not know.
    if version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):
        # Devices of a CPU otherwise may wait for different messages, for ever.
        flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    return {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(bits == 64)),
        # Devices that wait for each other need threads of their own.
        "NPROC": "64",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
    }
