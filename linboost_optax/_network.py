"""Description of a stack of dense layers: where its weights are, what follows each.

Inside, a layer is one *augmented* matrix ``[input + 1, unit]`` whose last row is the
bias (``[input, unit]`` without one), acting on inputs ``[input + 1, sample]`` whose
last row is 1. Inside, samples come last: on a CPU the products of tall, narrow matrices
are then two to three times as fast.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax._activations import Activation, get_activation

Layers = list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Dense:
    """One dense layer and the activation that follows it.

    Args:
        kernel: path of the kernel ``[input, unit]`` in the parameters, as in
            ``"Dense_0/kernel"``.
        bias: path of the bias ``[unit]``, or ``None``.
        features_in: number of inputs.
        features_out: number of units.
        activation: what follows the layer.
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
    """A stack of dense layers, first to last; print it for a table."""

    layers: tuple[Dense, ...]

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
    def hidden(self) -> tuple[Dense, ...]:
        """All layers but the last."""
        return self.layers[:-1]

    @property
    def last(self) -> Dense:
        """The output layer."""
        return self.layers[-1]


class Forward(NamedTuple):
    """What one pass over a batch leaves behind; samples come last."""

    inputs: list[jax.Array]  # per layer, [input + 1, sample]
    slopes: list[jax.Array]  # per hidden layer, phi'(z), [unit, sample]
    out: jax.Array  # pre-activation of the last layer, [output, sample]


def network(
    params: Any,
    activation: str | Activation = "tanh",
    output_activation: str | Activation = "identity",
) -> Network:
    """Describe a network given as a plain list of weights, first layer to last.

    Args:
        params: list or tuple with one entry a layer: a kernel ``[input, unit]``, a
            pair ``(kernel, bias)`` or a mapping with keys ``kernel`` and, where there
            is one, ``bias``; biases are ``[unit]``.
        activation: of the hidden layers, a name or an :class:`Activation`.
            Default ``"tanh"``.
        output_activation: of the last layer. Default ``"identity"``.

    Returns:
        The :class:`Network` that :func:`ills` takes.

    Raises:
        TypeError: if ``params`` is not a list or an entry is none of the above.
        ValueError: if shapes do not fit or an activation is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import linboost_optax as lbo
        >>> params = [(jnp.ones((3, 8)), jnp.zeros(8)), jnp.ones((8, 1))]
        >>> print(lbo.network(params))
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
        layers.append(Dense(*names, kernel.shape[0], kernel.shape[1], follows))
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


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as text; NNX's trailing ``.value`` is dropped."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def read_layers(network: Network, params: Any) -> Layers:
    """The augmented matrices of a network, from the user's parameters.

    Args:
        network: the description.
        params: any pytree that holds the described kernels and biases.

    Returns:
        One array ``[input + 1, unit]`` a layer, all of one dtype.

    Raises:
        ValueError: if a layer is missing, has another shape or dtype than described.
    """
    leaves = {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    layers = []
    for layer in network.layers:
        parts = []
        for name in (layer.kernel, layer.bias):
            if name is None:
                continue
            if name not in leaves:
                raise ValueError(
                    f"`params` must hold `{name}`, got {sorted(leaves)}. Pass the "
                    "parameters that the network was described from."
                )
            parts.append(jnp.asarray(leaves[name]))
        expected = (layer.features_in, layer.features_out)
        if parts[0].shape != expected:
            raise ValueError(
                f"`{layer.kernel}` must have shape {expected}, got {parts[0].shape}. "
                "Describe the network anew."
            )
        layers.append(
            jnp.concatenate([part.reshape(-1, expected[1]) for part in parts])
        )
    _check_dtype(network, layers)
    return layers


def _check_dtype(network: Network, layers: Layers) -> None:
    for layer, matrix in zip(network.layers, layers, strict=True):
        if matrix.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"`{layer.kernel}` must be float32 or float64, got {matrix.dtype}. "
                "Least squares needs the precision: cast the parameters."
            )
        if matrix.dtype != layers[0].dtype:
            raise ValueError(
                f"`{layer.kernel}` must be {layers[0].dtype} like the first layer, got "
                f"{matrix.dtype}. Cast all layers to one dtype."
            )


def write_layers(network: Network, params: Any, layers: Layers) -> Any:
    """Augmented matrices in the structure of ``params``; all other leaves are 0."""
    values = {}
    for layer, matrix in zip(network.layers, layers, strict=True):
        values[layer.kernel] = matrix[: layer.features_in]
        if layer.bias is not None:
            values[layer.bias] = matrix[-1]

    def leaf(path, old):
        return values.get(path_name(path), jnp.zeros_like(old))

    return jax.tree_util.tree_map_with_path(leaf, params)


def augment(layer: Dense, x: jax.Array) -> jax.Array:
    """``x`` ``[input, sample]`` with a last row of ones where the layer has a bias."""
    if layer.bias is None:
        return x
    return jnp.concatenate([x, jnp.ones((1, x.shape[1]), x.dtype)])


def forward(network: Network, layers: Layers, x: jax.Array) -> Forward:
    """Run the network on ``x`` ``[input, sample]``, up to the last pre-activation."""
    inputs, slopes = [augment(network.layers[0], x)], []
    for layer, above, matrix in zip(
        network.hidden, network.layers[1:], layers[:-1], strict=True
    ):
        z = matrix.T @ inputs[-1]
        slopes.append(layer.activation.slope(z))
        inputs.append(augment(above, layer.activation.fn(z)))
    return Forward(inputs, slopes, layers[-1].T @ inputs[-1])


def kernel_mask(layer: Dense, dtype: Any) -> jax.Array:
    """Column ``[input + 1, 1]``: 1 on weights, 0 on the bias."""
    rows = layer.features_in + (layer.bias is not None)
    return (jnp.arange(rows) < layer.features_in).astype(dtype)[:, None]


def predict(network: Network, params: Any, inputs: jax.Array) -> jax.Array:
    """The network's output, output activation included.

    Args:
        network: the description.
        params: the parameters that hold the described weights.
        inputs: ``[sample, feature]``.

    Returns:
        Predictions ``[sample, output]`` in the parameters' dtype.

    Raises:
        ValueError: if a layer is missing or does not fit the description.

    Example:
        >>> import jax.numpy as jnp
        >>> import linboost_optax as lbo
        >>> params = [jnp.ones((2, 1))]
        >>> lbo.predict(lbo.network(params), params, jnp.ones((3, 2))).shape
        (3, 1)
    """
    layers = read_layers(network, params)
    a = jnp.asarray(inputs, layers[0].dtype)
    for layer, matrix in zip(network.layers, layers, strict=True):
        a = a @ matrix[: layer.features_in]
        if layer.bias is not None:
            a = a + matrix[-1][None]
        a = layer.activation.fn(a)
    return a
