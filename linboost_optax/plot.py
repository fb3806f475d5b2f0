"""Plots of diagnostics; matplotlib is an extra, ``plot``, imported on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from linboost_optax._diagnose import LayerDiagnosis

_LOWER, _UPPER = "lower bound", "upper bound"
# Field, title, whether its axis is logarithmic, and what it is where it is not exact.
_PANELS = (
    ("condition", "condition number", True, _LOWER),
    ("rank", "effective rank", False, _UPPER),
    ("dead", "share of dead inputs", False, ""),
    ("mean_to_std", "largest |mean| / std", True, ""),
    ("step", "change of outputs", True, ""),
)


def diagnostics(
    history: Sequence[Mapping[str, LayerDiagnosis]],
    steps: Sequence[float] | None = None,
    figure: Any = None,
) -> Any:
    """Draws what ``diagnose`` found over training: one row a layer, one panel a number.

    Columns share their axis, so that layers compare. Bounds, as sketches and moments
    give them, are dashed; what is infinite is a red cross at the upper edge.

    Args:
      history: what ``diagnose`` returned, once for every time that it was called.
      steps: the steps it was called at; default None counts the calls.
      figure: a matplotlib figure to draw into; default None makes a new one.

    Returns:
      The matplotlib figure.

    Raises:
      ValueError: if ``history`` is empty, its entries are of other layers, or ``steps``
        has another length.
      ModuleNotFoundError: if matplotlib is not installed.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import matplotlib; matplotlib.use("Agg")
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jax.random.normal(jax.random.key(0), (8, 3))
      >>> params, taps = model.init(jax.random.key(1), x), linen.taps(model, x)
      >>> loss_fn = lambda params: jnp.mean(model.apply(params, x) ** 2)
      >>> loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
      >>> figure = lbo.plot.diagnostics([lbo.diagnose(taps, stats)])
      >>> len(figure.axes)
      5
    """
    layers = _check(history, steps)
    when = np.arange(len(history)) if steps is None else np.asarray(steps)
    if figure is None:
        import matplotlib.pyplot as plt

        size = (2.6 * len(_PANELS), 0.9 + 1.2 * len(layers))
        figure = plt.figure(figsize=size, layout="constrained")
    shape = (len(layers), len(_PANELS))
    rows = figure.subplots(*shape, squeeze=False, sharex=True, sharey="col")
    for name, row in zip(layers, rows):
        exact = all(bool(each[name].exact) for each in history)
        for axis, (field, _, _, bound) in zip(row, _PANELS):
            values = [getattr(each[name], field) for each in history]
            _curve(axis, when, np.asarray(values, float), "" if exact else bound)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, (field, title, logarithmic, _) in zip(rows[0], _PANELS):
        axis.set_title(title, fontsize="medium")
        _scale(axis, logarithmic, 1.0 if field == "dead" else None)
    figure.supxlabel("call" if steps is None else "step", fontsize="medium")
    return figure


def _check(history: Any, steps: Any) -> list[str]:
    """Returns the names of the layers; raises unless the arguments fit."""
    if not history:
        raise ValueError(
            "`history` must hold what `diagnose` returned, got nothing. Append it to a "
            "list every so many steps."
        )
    layers = list(history[0])
    for each in history:
        if list(each) != layers:
            raise ValueError(
                f"`history` must be of the same layers throughout, got {layers} and "
                f"{list(each)}. Make a figure for each model."
            )
    if steps is not None and len(steps) != len(history):
        raise ValueError(
            f"`steps` must have one number for each entry of `history`, got "
            f"{len(steps)} for {len(history)}."
        )
    return layers


def _curve(axis: Any, when: np.ndarray, values: np.ndarray, bound: str) -> None:
    """Draws one number of one layer over time."""
    known, endless = np.isfinite(values), np.isposinf(values)
    axis.plot(
        when,
        np.where(known, values, np.nan),
        "--" if bound else "-",
        marker=".",  # a value between two that are not there has no line
        markersize=4,
        color="C0",
    )
    # Where the upper edge is, other layers say.
    edge = {"transform": axis.get_xaxis_transform(), "clip_on": False}
    (crosses,) = axis.plot(when[endless], np.ones(endless.sum()), "xC3", **edge)
    crosses.set_in_layout(False)
    notes = [(bound, "C0")] if bound and known.any() else []
    notes += [("infinite", "C3")] if endless.any() else []
    notes += [("none", "0.5")] if np.isnan(values).all() else []
    for text, color in notes:  # where the curve is not, as a rule
        top = text == _LOWER
        axis.annotate(
            text,
            (0, int(top)),
            (4, -14 if top else 4),
            xycoords="axes fraction",
            textcoords="offset points",
            color=color,
            fontsize="small",
        )
    axis.grid(alpha=0.3, linewidth=0.5)


def _scale(axis: Any, logarithmic: bool, high: float | None) -> None:
    """Scales a column: from zero, or to whole decades."""
    if not logarithmic:
        _, top = axis.get_ylim()
        axis.set_ylim(0, 1.05 * max(top, 1) if high is None else high)
        return
    values = np.concatenate([line.get_ydata() for line in _curves(axis)])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size:
        axis.set_yscale("log")
        decades = np.log10([values.min(), values.max()])
        low, top = np.floor(decades[0] - 0.1), np.ceil(decades[1])
        axis.set_ylim(10.0**low, 10.0 ** max(top, low + 1))
        from matplotlib.ticker import LogLocator, NullFormatter

        axis.yaxis.set_major_locator(LogLocator(numticks=4))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _curves(axis: Any) -> list[Any]:
    """Returns the curves of a column: the first line of every panel that shares it."""
    together = axis.get_shared_y_axes().get_siblings(axis)
    return [each.get_lines()[0] for each in together]
