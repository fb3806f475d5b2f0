"""Which rows of a layer's input are samples: masks that a user hands over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from linboost_optax._taps import marks
from linboost_optax._taps.declared import traced_anew
from linboost_optax._taps.selection import matches, named

if TYPE_CHECKING:
    from linboost_optax._layer import Layer
    from linboost_optax._taps.table import Taps

Mask = jax.Array | None
# Masks by name, or the numbers that they have in a trace.
Masks = Mapping[str, Any]

_active: ContextVar[bool] = ContextVar("only_rows", default=False)


@contextmanager
def hidden() -> Iterator[None]:
    """Inside, no mask from outside is in force."""
    token = _active.set(False)
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def only_rows(mask: Any) -> Iterator[None]:
    r"""Inside a loss: leaves rows that are no samples out of the statistics.

    Sequences that are padded to one length bring rows that no loss sees. They would
    count in every mean,

    .. math:: E[x x^T] = \frac{\sum_i m_i x_i x_i^T}{\sum_i m_i},

    and with :math:`m_i = 0` they do not. Gradients are what they were. The innermost
    context counts, for every call of a model inside.

    Args:
      mask: which rows count, True for samples: a boolean array of the axes of the
        layers' inputs but the last, or of the first of these axes, such as
        ``[batch, time]`` or ``[batch]``. For convolutions the places of the output
        stand for those of the input. Where shapes differ from layer to layer, a
        mapping from names of layers, as in ``taps.filter``, to masks: the longest name
        that fits a layer counts, and None stands for all rows, as no name does.

    Raises:
      TypeError: if a mask is not boolean.
      ValueError: inside ``value_and_grad``, if a name fits no layer, a mask does not
        fit a layer's samples, layers that share a statistic have two masks, or a
        statistic counts every row; if ``value_and_grad`` is called inside of the
        context instead of the other way round.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(1), jnp.ones((2, 5, 3))
      >>> mask = jnp.arange(5) < jnp.array([[2], [4]])  # lengths 2 and 4
      >>> def loss_fn(params, x, mask):
      ...     with lbo.only_rows(mask):
      ...         y = model.apply(params, x)
      ...     return jnp.sum(jnp.square(y[..., 0]), where=mask)
      >>> params, taps = model.init(jax.random.key(0), x), linen.taps(model, x)
      >>> _, _, stats = linen.value_and_grad(loss_fn, taps)(params, x, mask)
      >>> stats[""].count
      Array([6.], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131: the second moment of a layer's inputs.
    """
    token = _active.set(True)
    try:
        with traced_anew("rows"), marks.rows(_by_name(mask).items()):
            yield
    finally:
        _active.reset(token)


def _by_name(mask: Any) -> Mapping[str, Mask]:
    if not isinstance(mask, Mapping):
        return {"*": boolean("mask", mask)}
    known: dict[int, jax.Array] = {}  # one array a mask, however often it is named
    masks = {}
    for name, each in mask.items():
        if each is not None and id(each) not in known:
            known[id(each)] = boolean(f"mask[{name!r}]", each)
        masks[name] = None if each is None else known[id(each)]
    return masks


def boolean(name: str, mask: Any) -> jax.Array:
    """Returns a mask as an array; raises unless it is boolean."""
    dtype = getattr(mask, "dtype", None)
    if dtype != jnp.bool_:
        got = type(mask).__name__ if dtype is None else f"an array of {dtype}"
        raise TypeError(
            f"`{name}` must be a boolean array, True for rows that count, got {got}. "
            "Compare it first: `mask > 0`, or `jnp.arange(time) < lengths[:, None]`."
        )
    return jnp.asarray(mask)


def active() -> bool:
    """Whether a mask is in force."""
    return _active.get()


def slot_of(masks: Masks, layer: Layer, taps: Taps) -> int | None:
    """Returns the number of the mask that counts for a layer; None for all rows.

    Raises:
      ValueError: if a name fits no layer, or the layer shares its statistic with one
        that has another mask.
    """
    for name in masks:
        if name != "*":
            named("mask", name, taps.layers)
    slot = _own(masks, layer)
    for other in taps.layers:
        if other.stats_key == layer.stats_key and _own(masks, other) != slot:
            raise ValueError(
                f"`mask` must be the same array for layers '{layer}' and '{other}', "
                "which have the same input and share one statistic; got two. Name them "
                f"together, or leave one of them out: `taps.filter(exclude='{other}')`."
            )
    return slot


def _own(masks: Masks, layer: Layer) -> int | None:
    # Not the first: JAX sorts the names of a mapping that goes through `jit`.
    names = [name for name in masks if matches(layer, name)]
    longest = [name for name in names if len(name) == max(map(len, names))]
    if any(masks[name] != masks[longest[0]] for name in longest):
        raise ValueError(
            f"`mask` must have one longest name for layer '{layer}', got masks for "
            f"{longest}. Name the layer in full."
        )
    return masks[longest[0]] if longest else None


def check_fits(layer: Layer, rows: jax.Array, x: jax.Array) -> None:
    """Raises unless a mask fits the samples of ``x``, and the layer's statistic."""
    if not layer.statistic.reads_rows:
        raise ValueError(
            f"layer '{layer}' has `statistic` '{layer.statistic.name}', which counts "
            "every row, and a mask. Take another one, give the layer None in the "
            "mapping of masks, or teach the statistic: `reads_rows = True`, and "
            "`measure(layer, x, g, rows=None)`."
        )
    axes = layer.kind.sample_axes(x.shape)
    if rows.shape != axes[: rows.ndim]:
        raise ValueError(
            f"layer '{layer}' has samples of shape {axes} (its input has shape "
            f"{x.shape}), got a `mask` of shape {rows.shape}; it must have this shape "
            "or the first axes of it. Where layers differ, give each its own: "
            f"`only_rows({{'{layer}': None, '*': mask}})` counts all rows of this one. "
            "Under `jax.vmap` enter the context inside the mapped function; inside a "
            "module that loops over an axis of the mask (nn.scan, nn.RNN) mask the "
            "axes that are left, or take `statistic=lbo.Reached()`."
        )


def refuse_by_hand(layer: Layer, mask: Any) -> None:
    """Raises if a layer that is tapped by hand is to read a mask of the context."""
    if mask is None and active():
        raise ValueError(
            f"layer '{layer}' is tapped by hand inside `only_rows`, which hands masks "
            "to models of a framework alone. Pass it: `lbo.tap(x, t, mask=mask)`."
        )


OUTSIDE = (
    "`value_and_grad` was called inside of `only_rows`: a step that is compiled would "
    "keep this mask for all batches. Pass the mask to the loss, and enter "
    "`with lbo.only_rows(mask):` around the call of the model in there."
)
