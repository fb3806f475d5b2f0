"""Plot of diagnostics: the only ILLS file that knows matplotlib."""

from typing import Any

import numpy as np

from linboost_optax.ills._diagnostics import LayerDiagnostics


def plot_ills(layers: list[LayerDiagnostics], figure: Any = None) -> Any:
    """Draws diagnostics: one row a layer, four panels.

    Per unit: R^2, condition number, share of clipped targets; and over samples the
    weights ``c_ij`` relative to their mean, samples left out that count for no unit.

    Args:
      layers: what ``ills_diagnostics`` returned.
      figure: a matplotlib figure to draw into; default None makes a new one.

    Returns:
      The matplotlib figure.

    Raises:
      ValueError: if ``layers`` is empty.
      ModuleNotFoundError: if matplotlib is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import matplotlib; matplotlib.use("Agg")
      >>> from linboost_optax import ills
      >>> x = jax.random.normal(jax.random.key(0), (50, 3))
      >>> params = ills.init_mlp(jax.random.key(1), (3, 8, 1))
      >>> network = ills.network(params)
      >>> found = ills.ills_diagnostics(network, params, x, x[:, 0] ** 2)
      >>> len(ills.plot_ills(found).axes)
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
        weights = layer.weights[np.any(layer.weights > 0, axis=1)]
        mean = weights.sum(axis=0, keepdims=True) / max(len(weights), 1)
        relative = weights / np.where(mean > 0, mean, 1)
        row[3].boxplot(relative[:, order], showfliers=False)
        row[3].set(title="weights c / mean", xticks=[])
        for axis in row[:3]:
            axis.set_xlabel("unit, by R²")
    return figure
