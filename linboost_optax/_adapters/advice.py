"""Why parameters of a framework's own modules are in no layer."""

from __future__ import annotations

from types import ModuleType

_SCALES = "scales and shifts channels one by one; it has no kernel"
_WHY = {
    "BatchNorm": _SCALES,
    "GroupNorm": _SCALES,
    "InstanceNorm": _SCALES,
    "LayerNorm": _SCALES,
    "PReLU": "is not linear in its input",
    "RMSNorm": _SCALES,
}


def advice_of(module: type, framework: ModuleType) -> str | None:
    """Returns why the parameters of a module class are not tapped, if it is known.

    Args:
      module: the class, or one derived from those of the framework.
      framework: ``flax.linen`` or ``flax.nnx``, which name these classes alike.
    """
    for base in module.__mro__:
        name = base.__name__
        if name in _WHY and getattr(framework, name, None) is base:
            return f"{name} {_WHY[name]}"
    return None
