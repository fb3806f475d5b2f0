"""A network's weights as augmented matrices: read, written back and run.

Inside, a layer is one *augmented* matrix ``[input + 1, unit]`` whose last row is the
bias (``[input, unit]`` without one), acting on inputs ``[input + 1, sample]`` whose
last row is 1. Inside, samples come last: on a CPU the products of tall, narrow matrices
are then two to three times as fast.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._model.network import DenseLayer, Network

# One augmented matrix a layer, first to last.
Matrices = list[jax.Array]


class Forward(NamedTuple):
    """What one pass over a batch leaves behind; samples come last.

    Attributes:
      inputs: of each layer, augmented, ``[input + 1, sample]``.
      slopes: ``phi'(z)`` of each hidden layer, ``[unit, sample]``.
      out: pre-activation of the last layer, ``[output, sample]``.
    """

    inputs: list[jax.Array]
    slopes: list[jax.Array]
    out: jax.Array


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a key path as text; NNX's trailing ``.value`` is dropped."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def read_matrices(network: Network, params: Any) -> Matrices:
    """Returns the augmented matrices of a network, from the user's parameters.

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
    matrices = []
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
            leaf = leaves[name]
            parts.append(leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf))
        expected = (layer.features_in, layer.features_out)
        if parts[0].shape != expected:
            raise ValueError(
                f"`{layer.kernel}` must have shape {expected}, got {parts[0].shape}. "
                "Describe the network anew."
            )
        # Weights at hand stay at hand: with JAX every step is compiled by its shapes.
        xp = np if all(isinstance(part, np.ndarray) for part in parts) else jnp
        matrices.append(
            xp.concatenate([part.reshape(-1, expected[1]) for part in parts])
        )
    _check_dtype(network, matrices)
    return matrices


def _check_dtype(network: Network, matrices: Matrices) -> None:
    for layer, matrix in zip(network.layers, matrices, strict=True):
        if matrix.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"`{layer.kernel}` must be float32 or float64, got {matrix.dtype}. "
                "Least squares needs the precision: cast the parameters."
            )
        if matrix.dtype != matrices[0].dtype:
            raise ValueError(
                f"`{layer.kernel}` must be {matrices[0].dtype} like the first layer, "
                f"got {matrix.dtype}. Cast all layers to one dtype."
            )


def write_matrices(network: Network, params: Any, matrices: Matrices) -> Any:
    """Returns the matrices in the structure of ``params``; all other leaves are 0."""
    values = {}
    for layer, matrix in zip(network.layers, matrices, strict=True):
        values[layer.kernel] = matrix[: layer.features_in]
        if layer.bias is not None:
            values[layer.bias] = matrix[-1]

    def leaf(path, old):
        return values.get(path_name(path), jnp.zeros_like(old))

    return jax.tree_util.tree_map_with_path(leaf, params)


def augment(layer: DenseLayer, x: jax.Array) -> jax.Array:
    """Returns ``x`` ``[input, sample]`` with a last row of ones if there is a bias."""
    if layer.bias is None:
        return x
    return jnp.concatenate([x, jnp.ones((1, x.shape[1]), x.dtype)])


def forward(network: Network, matrices: Matrices, x: jax.Array) -> Forward:
    """Runs the network on ``x`` ``[input, sample]``, up to the last pre-activation."""
    inputs, slopes = [augment(network.layers[0], x)], []
    for layer, above, matrix in zip(
        network.hidden, network.layers[1:], matrices[:-1], strict=True
    ):
        z = matrix.T @ inputs[-1]
        slopes.append(layer.activation.slope(z))
        inputs.append(augment(above, layer.activation.fn(z)))
    return Forward(inputs, slopes, matrices[-1].T @ inputs[-1])


def kernel_mask(layer: DenseLayer, dtype: Any) -> jax.Array:
    """Returns a column ``[input + 1, 1]``: 1 on weights, 0 on the bias."""
    rows = layer.features_in + (layer.bias is not None)
    return (jnp.arange(rows) < layer.features_in).astype(dtype)[:, None]


def predict(network: Network, params: Any, inputs: jax.Array) -> jax.Array:
    """Returns the network's output, output activation included.

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
      >>> from linboost_optax.ills import network, predict
      >>> params = [jnp.ones((2, 1))]
      >>> predict(network(params), params, jnp.ones((3, 2))).shape
      (3, 1)
    """
    matrices = read_matrices(network, params)
    a = jnp.asarray(inputs, matrices[0].dtype)
    for layer, matrix in zip(network.layers, matrices, strict=True):
        a = a @ matrix[: layer.features_in]
        if layer.bias is not None:
            a = a + matrix[-1][None]
        a = layer.activation.fn(a)
    return a
