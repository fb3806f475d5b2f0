"""What a process has in its environment that has several devices of a CPU."""

from benchmarks.scaling import devices


def environment(count, bits):
    """Returns that of a process with so many devices, whose floats are so wide."""
    return devices.environment(count) | {"JAX_ENABLE_X64": str(int(bits == 64))}
