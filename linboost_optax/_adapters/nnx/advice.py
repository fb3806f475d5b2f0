"""What to do about parameters of NNX's own modules that are no kernels."""

from __future__ import annotations

from flax import nnx

from linboost_optax._layer import Path

_SCALES = "scales and shifts channels one by one; it has no kernel"

ADVICE: dict[type, str] = {
    nnx.BatchNorm: _SCALES,
    nnx.LayerNorm: _SCALES,
    nnx.RMSNorm: _SCALES,
    nnx.GroupNorm: _SCALES,
    nnx.InstanceNorm: _SCALES,
    nnx.PReLU: "is not linear in its input",
}


def advice(model: nnx.Module, path: Path) -> str | None:
    """Returns why a parameter keeps its plain gradient, where its module tells."""
    modules = {tuple(map(str, where)): each for where, each in nnx.iter_graph(model)}
    module = modules.get(path[:-1])
    for base in type(module).__mro__:
        if base in ADVICE:
            return f"{base.__name__} {ADVICE[base]}"
    return None
