"""Reads the description of a Linen model: the only ILLS file to import Linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from linboost_optax.ills._model.matrices import path_name
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._model.probe import Seen, Trace, describe


def network(model: nn.Module, x: Any) -> Network:
    """Describes a Linen MLP for ILLS: its dense layers and what stands between them.

    The model is run with its ``nn.Dense`` layers intercepted, nothing is rewritten.
    Paths are those of ``variables["params"]``.

    Args:
      model: a module that is a stack of ``nn.Dense`` layers and elementwise
        activations.
      x: an input ``[sample, feature]``; only its shape and dtype matter.

    Returns:
      The ``Network`` that ``ills`` takes.

    Raises:
      ValueError: if the model is not such a stack.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> mlp = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])
      >>> print(linen.network(mlp, jnp.ones((1, 3))))
      layers_0/kernel: 3 -> 8, tanh
      layers_2/kernel: 8 -> 1, identity
    """

    def run(probe: jax.Array, outputs: list[jax.Array] | None) -> Trace:
        trace = Trace([], [], [], probe)

        def replace(call, args, kwargs, context):
            layer = context.module
            if not isinstance(layer, nn.Dense) or context.method_name != "__call__":
                return call(*args, **kwargs)
            given = args[0] if args else kwargs["inputs"]
            path = "/".join(layer.path)
            bias = f"{path}/bias" if layer.use_bias else None
            trace.seen.append(
                Seen(f"{path}/kernel", bias, given.shape[-1], layer.features)
            )
            out = (
                jnp.zeros((*given.shape[:-1], layer.features), given.dtype)
                if outputs is None
                else outputs[len(trace.seen) - 1]
            )
            trace.inputs.append(given)
            trace.outputs.append(out)
            return out

        with nn.intercept_methods(replace):
            out, rest = model.init_with_output(jax.random.key(0), probe)
        if jax.tree.leaves(rest):
            names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(rest)]
            raise ValueError(
                f"all weights of the model must be in dense layers, but it has {names}."
                " Describe the part that is a stack of dense layers with `network`."
            )
        return trace._replace(out=out)

    return describe(run, x)
