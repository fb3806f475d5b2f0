"""What every layer was asked for and how well its regression could answer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax._ills.checks import make_batch
from linboost_optax._ills.chunks import Batch
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.least_squares import relative_ridge, solve, weighted_gram
from linboost_optax._ills.problem import working_batch
from linboost_optax._ills.published import ideal_values, invert_targets
from linboost_optax._ills.robust import Robust
from linboost_optax._ills.weighted import back_propagate, importances
from linboost_optax._network import Layers, Network, forward, read_layers


class LayerDiagnostics(NamedTuple):
    """One hidden layer's regressions; arrays ``[unit]`` or ``[sample, unit]``."""

    name: str
    pre_activations: np.ndarray  # z, as they are, [sample, unit]
    ideal: np.ndarray  # z, as they should be, [sample, unit]
    fitted: np.ndarray  # z, as the regression makes them, [sample, unit]
    weights: np.ndarray  # c_ij of the regression, [sample, unit]
    r2: np.ndarray  # share of the weighted ideal change that is explained, [unit]
    condition: np.ndarray  # of the weighted, unit-diagonal Gram matrix, [unit]
    clipped: np.ndarray  # share of ideal activations outside the range, [unit]


def ills_diagnostics(
    network: Network,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
    **options: Any,
) -> list[LayerDiagnostics]:
    r"""Inspect the regressions of the next ILLS iteration.

    For every hidden layer: the ideal pre-activations, the weights :math:`c_{ij}` and
    fit of their regression on the layer's inputs, its :math:`R^2`, its condition
    number, and the share of ideal activations that no pre-activation can reach. With
    ``method="weighted"`` the latter are :math:`a + \varphi'(z) t`, to first order, and
    nothing is clipped; with ``"published"`` they are what is clipped.

    Args:
        network: the dense layers.
        params: weights to inspect.
        inputs: ``[sample, feature]``.
        targets: ``[sample, output]`` or ``[sample]``.
        sample_weight: ``[sample]``, default all 1.
        mask: boolean, shaped like ``targets``; default all true.
        **options: arguments of :func:`ills`.

    Returns:
        One :class:`LayerDiagnostics` a hidden layer, first to last, as NumPy arrays.
        A unit without any importance has an R^2 and condition number of NaN.

    Raises:
        ValueError: as :func:`fit_ills` does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import linboost_optax as lbo
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> params = lbo.init_mlp(jax.random.key(1), (3, 8, 1))
        >>> layer, = lbo.ills_diagnostics(lbo.network(params), params, x, x[:, 0] ** 2)
        >>> layer.r2.shape, layer.weights.shape
        ((8,), (50, 8))
    """
    config = IllsConfig(network, **options)
    layers = read_layers(network, params)
    data = make_batch(
        network, inputs, targets, sample_weight, mask, layers[0].dtype, None
    )
    if config.method == "published":
        data = data._replace(targets=invert_targets(config, data.targets))
        working = data
        parts = _published_parts
    else:
        unscaled = Robust(jnp.asarray(jnp.inf, layers[0].dtype), jnp.asarray(True))
        working = working_batch(config, layers, unscaled, data)
        parts = _weighted_parts
    result = []
    for name, x, z, change, weights, clipped in parts(config, layers, working.T):
        coefficients, condition = _regress(config, x, change, weights)
        fitted = coefficients.T @ x
        left = jnp.sum(weights * (change - fitted) ** 2, axis=1)
        total = jnp.sum(weights * change**2, axis=1)
        result.append(
            LayerDiagnostics(
                name=name,
                pre_activations=np.asarray(z).T,
                ideal=np.asarray(z + change).T,
                fitted=np.asarray(z + fitted).T,
                weights=np.asarray(weights).T,
                r2=np.asarray(jnp.where(total > 0, 1 - left / total, jnp.nan)),
                condition=condition,
                clipped=np.asarray(jnp.mean(clipped, axis=1)),
            )
        )
    return result


def _weighted_parts(config: IllsConfig, layers: Layers, working: Batch):
    f = forward(config.network, layers, working.inputs)
    weights = jnp.broadcast_to(working.weights, working.targets.shape)
    importance = importances(config.network, layers, f, weights)
    residual = weights * (working.targets - f.out)
    pulls = back_propagate(config.network, layers, f, residual)
    for level, (c, pull) in enumerate(zip(importance, pulls, strict=True)):
        layer = config.network.layers[level]
        z = layers[level].T @ f.inputs[level]
        change = jnp.where(c > 0, pull / jnp.where(c > 0, c, 1), 0)
        wanted = layer.activation.fn(z) + f.slopes[level] * change
        outside = (wanted < layer.activation.low) | (wanted > layer.activation.high)
        outside = outside.astype(z.dtype)
        yield layer.kernel, f.inputs[level], z, change, c, outside


def _published_parts(config: IllsConfig, layers: Layers, working: Batch):
    for level, layer in enumerate(config.network.hidden):
        damping = jnp.asarray(config.damping, layers[0].dtype)
        ideal = ideal_values(config, layers, layers, level, damping, working)
        z = layers[level].T @ ideal.inputs
        sample = jnp.mean(working.weights, axis=0, keepdims=True)
        outside = (ideal.unclipped != ideal.activations).astype(z.dtype)
        yield (
            layer.kernel,
            ideal.inputs,
            z,
            ideal.pre_activations - z,
            jnp.broadcast_to(sample, z.shape),
            outside,
        )


def _regress(
    config: IllsConfig, x: jax.Array, change: jax.Array, weights: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    gram = relative_ridge(weighted_gram(x, weights), config.ridge)
    coefficients = solve(gram, x @ (weights * change).T)
    gram64 = np.asarray(gram, np.float64)
    diagonal = np.sqrt(np.diagonal(gram64, axis1=1, axis2=2))
    alive = np.all(diagonal > 0, axis=1)
    scale = np.where(diagonal > 0, diagonal, 1)
    unit = gram64 / scale[:, :, None] / scale[:, None, :]
    return coefficients, np.where(alive, np.linalg.cond(unit), np.nan)


def plot_ills(layers: list[LayerDiagnostics], figure: Any = None) -> Any:
    """Draw :func:`ills_diagnostics`: one row a layer, four panels.

    Per unit: R^2, condition number, share of clipped targets; and over samples the
    weights ``c_ij`` relative to their mean.

    Args:
        layers: what :func:`ills_diagnostics` returned.
        figure: a matplotlib figure to draw into; default a new one.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: if ``layers`` is empty.
        ModuleNotFoundError: if matplotlib is not installed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import linboost_optax as lbo
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> params = lbo.init_mlp(jax.random.key(1), (3, 8, 1))
        >>> found = lbo.ills_diagnostics(lbo.network(params), params, x, x[:, 0] ** 2)
        >>> len(lbo.plot_ills(found).axes)
        4
    """
    if not layers:
        raise ValueError(
            "`layers` must hold at least one hidden layer, got none. A network without "
            "hidden layers is one regression."
        )
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(13, 2.6 * len(layers)), layout="constrained")
    rows = figure.subplots(len(layers), 4, squeeze=False)
    for row, layer in zip(rows, layers, strict=True):
        order = np.argsort(-np.nan_to_num(layer.r2))
        unit = np.arange(len(order))
        row[0].bar(unit, layer.r2[order])
        row[0].set(title=f"{layer.name}: R²", ylim=(0, 1))
        row[1].semilogy(unit, layer.condition[order], "o")
        row[1].set(title="condition number")
        row[2].bar(unit, layer.clipped[order])
        row[2].set(title="share of clipped targets", ylim=(0, 1))
        mean = layer.weights.mean(axis=0, keepdims=True)
        relative = layer.weights / np.where(mean > 0, mean, 1)
        row[3].boxplot(relative[:, order], showfliers=False)
        row[3].set(title="weights c / mean", xticks=[])
        for axis in row[:3]:
            axis.set_xlabel("unit, by R²")
    return figure
