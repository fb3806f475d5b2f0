"""Description of a stack of dense layers: where its weights are, what follows each."""

import dataclasses
from typing import Any

import numpy as np

from linboost_optax.ills._model.activations import Activation, get_activation


@dataclasses.dataclass(frozen=True)
class DenseLayer:
    """Describes one dense layer and the activation that follows it.

    Args:
      kernel: path of the kernel ``[input, unit]`` in the parameters, e.g.
        ``"Dense_0/kernel"``.
      bias: path of the bias ``[unit]``, or None for a layer without one.
      features_in: number of inputs.
      features_out: number of units.
      activation: what follows the layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from linboost_optax.ills import network
      >>> layer, = network([(jnp.ones((3, 2)), jnp.zeros(2))]).layers
      >>> layer.kernel, layer.bias, layer.features_in, layer.features_out
      ('0/0', '0/1', 3, 2)
    """

    kernel: str
    bias: str | None
    features_in: int
    features_out: int
    activation: Activation

    def __str__(self):
        bias = "" if self.bias else ", no bias"
        return (
            f"{self.kernel}: {self.features_in} -> {self.features_out}"
            f"{bias}, {self.activation.name}"
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """Describes a stack of dense layers, first to last; print it for a table.

    Made by ``network``, ``linen.network`` or ``nnx.network``; by hand where the stack
    is a part of a larger tree of parameters.

    Args:
      layers: at least one ``DenseLayer``, each taking the outputs of the one before.

    Raises:
      ValueError: if there is no layer, or two neighbours do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from linboost_optax.ills import network
      >>> network([jnp.ones((3, 8)), jnp.ones((8, 1))]).last.features_in
      8
    """

    layers: tuple[DenseLayer, ...]

    def __post_init__(self):
        if not self.layers:
            raise ValueError(
                "`layers` must hold at least one dense layer, got none. Describe the "
                "network's layers from first to last."
            )
        for below, above in zip(self.layers, self.layers[1:], strict=False):
            if below.features_out != above.features_in:
                raise ValueError(
                    f"`{above.kernel}` must take the {below.features_out} outputs of "
                    f"`{below.kernel}`, got {above.features_in} inputs. Give the "
                    "layers in order, first to last."
                )

    def __str__(self):
        return "\n".join(map(str, self.layers))

    @property
    def hidden(self) -> tuple[DenseLayer, ...]:
        """All layers but the last."""
        return self.layers[:-1]

    @property
    def last(self) -> DenseLayer:
        """The output layer."""
        return self.layers[-1]


def network(
    params: Any,
    activation: str | Activation = "tanh",
    output_activation: str | Activation = "identity",
) -> Network:
    """Describes a network given as a plain list of weights, first layer to last.

    Args:
      params: list or tuple with one entry a layer: a kernel ``[input, unit]``, a
        pair ``(kernel, bias)`` or a mapping with keys ``kernel`` and, where there
        is one, ``bias``; biases are ``[unit]``.
      activation: of the hidden layers, a name or an ``Activation``; default
        ``"tanh"``.
      output_activation: of the last layer; default ``"identity"``.

    Returns:
      The ``Network`` that ``ills`` takes.

    Raises:
      TypeError: if ``params`` is not a list or an entry is none of the above.
      ValueError: if shapes do not fit or an activation is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from linboost_optax.ills import network
      >>> params = [(jnp.ones((3, 8)), jnp.zeros(8)), jnp.ones((8, 1))]
      >>> print(network(params))
      0/0: 3 -> 8, tanh
      1: 8 -> 1, no bias, identity
    """
    if not isinstance(params, list | tuple):
        raise TypeError(
            f"`params` must be a list of layers, got {type(params).__name__}. Use "
            "`linen.network(model, x)` for Linen, `nnx.network(model, x)` for NNX."
        )
    hidden = get_activation(activation, "activation")
    last = get_activation(output_activation, "output_activation")
    layers = []
    for i, entry in enumerate(params):
        names, kernel, bias = _parse_entry(i, entry)
        _check_shapes(names[0], kernel, bias)
        follows = last if i == len(params) - 1 else hidden
        layers.append(DenseLayer(*names, kernel.shape[0], kernel.shape[1], follows))
    return Network(tuple(layers))


def _parse_entry(i: int, entry: Any) -> tuple[tuple[str, str | None], Any, Any]:
    if isinstance(entry, dict) and "kernel" in entry:
        bias = entry.get("bias")
        names = (f"{i}/kernel", None if bias is None else f"{i}/bias")
        return names, entry["kernel"], bias
    if isinstance(entry, tuple | list) and len(entry) == 2:
        return (f"{i}/0", f"{i}/1"), entry[0], entry[1]
    if hasattr(entry, "shape"):
        return (f"{i}", None), entry, None
    raise TypeError(
        f"`params[{i}]` must be a kernel, a pair (kernel, bias) or a mapping with "
        f"`kernel`, got {type(entry).__name__}. Give one entry a layer."
    )


def _check_shapes(name: str, kernel: Any, bias: Any) -> None:
    if np.ndim(kernel) != 2 or 0 in np.shape(kernel):
        raise ValueError(
            f"`{name}` must be a kernel [input, unit], got shape {np.shape(kernel)}. "
            "Reshape it to two non-empty axes."
        )
    if bias is not None and np.shape(bias) != (kernel.shape[1],):
        raise ValueError(
            f"the bias of `{name}` must have shape ({kernel.shape[1]},), got "
            f"{np.shape(bias)}. One bias a unit."
        )
