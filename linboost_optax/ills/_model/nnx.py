"""Reads the description of an NNX model: the only ILLS file to import NNX."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from linboost_optax.ills._model.network import Network
from linboost_optax.ills._model.probe import Seen, Trace, describe


def network(model: nnx.Module, x: Any) -> Network:
    """Describes an NNX MLP for ILLS: its linear layers and what stands between them.

    ``nnx.Linear.__call__`` is wrapped while the model is probed; the model itself is
    not changed. Paths are those of ``nnx.state(model, nnx.Param)``.

    Args:
      model: a module that is a stack of ``nnx.Linear`` layers and elementwise
        activations.
      x: an input ``[sample, feature]``; only its shape and dtype matter.

    Returns:
      The ``Network`` that ``ills`` takes.

    Raises:
      ValueError: if the model is not such a stack.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from linboost_optax import nnx as lbo_nnx
      >>> rngs = nnx.Rngs(0)
      >>> mlp = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.tanh,
      ...                      nnx.Linear(8, 1, rngs=rngs))
      >>> print(lbo_nnx.network(mlp, jnp.ones((1, 3))))
      layers/0/kernel: 3 -> 8, tanh
      layers/2/kernel: 8 -> 1, identity
    """
    paths = {
        id(node): "/".join(map(str, path))
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Linear)
    }
    inside = tuple(f"{path}/" if path else "" for path in paths.values())
    others = [
        name
        for name in _names(nnx.state(model, nnx.Param))
        if not name.startswith(inside)
    ]
    if others or not inside:
        raise ValueError(
            "all weights of the model must be in `nnx.Linear` layers, but it has "
            f"{others}. Describe the part that is a stack of dense layers with "
            "`network`."
        )

    def run(probe: jax.Array, outputs: list[jax.Array] | None) -> Trace:
        trace = Trace([], [], [], probe)

        def replace(layer, given, *args, **kwargs):
            del args, kwargs
            path = paths[id(layer)]
            prefix = f"{path}/" if path else ""
            bias = f"{prefix}bias" if layer.use_bias else None
            trace.seen.append(
                Seen(f"{prefix}kernel", bias, given.shape[-1], layer.out_features)
            )
            out = (
                jnp.zeros((*given.shape[:-1], layer.out_features), given.dtype)
                if outputs is None
                else outputs[len(trace.seen) - 1]
            )
            trace.inputs.append(given)
            trace.outputs.append(out)
            return out

        with _calling(replace):
            return trace._replace(out=model(probe))

    return describe(run, x)


def _names(state: Any) -> list[str]:
    return ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]


@contextlib.contextmanager
def _calling(replace):
    original = nnx.Linear.__call__
    nnx.Linear.__call__ = replace
    try:
        yield
    finally:
        nnx.Linear.__call__ = original
