"""What to do about parameters of NNX's own modules that are no kernels."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from linboost_optax._adapters.advice import advice_of
from linboost_optax._layer import Path


def advice(model: nnx.Module) -> Callable[[Path], str | None]:
    """Returns what tells why a parameter is in no layer, where its module does."""
    modules = {tuple(map(str, where)): each for where, each in nnx.iter_graph(model)}
    return lambda path: advice_of(type(modules.get(path[:-1])), nnx)
