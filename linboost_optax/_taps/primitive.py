"""The tap: an identity whose backward pass emits statistics of a layer's inputs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer
from linboost_optax._sharding import here, replicated
from linboost_optax._taps.rows import boolean, check_fits, refuse_by_hand


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["layer"])
@dataclass(frozen=True)
class Tap:
    """A statistic, zero before and measured after, with the layer that it is of.

    The static layer makes JAX's caches tell taps apart.

    Attributes:
      value: the arrays of the layer's statistic.
      layer: the layer's static facts.
    """

    value: Any
    layer: Layer


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _emit(
    layer: Layer, sees_output: bool, y: jax.Array, x: jax.Array, t: Any, rows: Any
):
    return y


def _emit_fwd(layer, sees_output, y, x, t, rows):
    # Calling the tap again keeps it alive for an outer differentiation, so a loss
    # that differentiates the network with respect to its inputs still emits.
    return _emit(layer, sees_output, y, x, t, rows), (x, rows)


def _emit_bwd(layer, sees_output, residuals, g):
    def measure(x, g, rows):
        if rows is None:
            return layer.statistic.measure(layer, x, g)
        axes = layer.kind.sample_axes(x.shape)
        rows = jnp.expand_dims(rows, range(rows.ndim, len(axes)))
        rows = jnp.broadcast_to(rows, axes)
        return layer.statistic.measure(layer, x, g, rows.reshape(-1))

    x, rows = residuals
    return g, None, replicated(measure, x, g if sees_output else None, rows), None


_emit.defvjp(_emit_fwd, _emit_bwd)


def emit(
    t: Tap, y: jax.Array, x: jax.Array, rows: jax.Array | None = None
) -> jax.Array:
    """Returns ``y``; the cotangent of ``t`` becomes the statistic of its layer.

    The tap sits on the output ``y`` rather than on the input because inputs may be
    integers (tokens), or constants whose cotangent nobody else needs; and because
    the cotangent of ``y`` is there to be measured, too.

    Args:
      t: a zero statistic.
      y: the layer's output.
      x: the layer's input.
      rows: which samples count, boolean, of the first of their axes; None for all.

    Returns:
      ``y``, unchanged.

    Raises:
      ValueError: if ``rows`` does not fit the layer's samples, or its statistic.
    """
    return _emitted(t, True, y, x, rows)


def _emitted(t: Tap, sees_output: bool, y: jax.Array, x: jax.Array, rows: Any) -> Any:
    if rows is not None:
        check_fits(t.layer, rows, x)
    return _emit(t.layer, sees_output, y, jax.lax.stop_gradient(x), _own(t, x), rows)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _once(layer: Layer, x: jax.Array, t: Any, rows: Any, zero: jax.Array):
    return zero


def _once_fwd(layer, x, t, rows, zero):
    return _once(layer, x, t, rows, zero), (x, rows)


def _once_bwd(layer, residuals, uses):
    # Zero where no call's output mattered, in a branch that did not run.
    _, _, value, _ = _emit_bwd(layer, False, residuals, None)
    value = jax.tree.map(lambda leaf: jnp.where(uses > 0, leaf, 0), value)
    return None, value, None, None


_once.defvjp(_once_fwd, _once_bwd)


@jax.custom_vjp
def attach(y: jax.Array, token: jax.Array) -> jax.Array:
    """Returns ``y``; if it has a cotangent, so has the token."""
    return y


attach.defvjp(
    lambda y, token: (attach(y, token), token),
    lambda token, g: (g, jnp.ones_like(token)),
)


def once(t: Tap, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """Returns a token: its cotangent measures ``x`` once, for all that it is part of.

    The input of several calls is measured if the output of any of them matters, which
    nobody knows when the first is made. See ``attach``.
    """
    if rows is not None:
        check_fits(t.layer, rows, x)
    zero = _vary_like(x, jnp.zeros(()))
    return _once(t.layer, jax.lax.stop_gradient(x), _own(t, x), rows, zero)


def _own(t: Tap, x: jax.Array) -> Any:
    """Returns the tap's value as an array of this place, next to the input."""
    by_hand = x.size and jax.sharding.get_abstract_mesh().manual_axes
    if by_hand and not t.layer.statistic.additive:
        raise ValueError(
            f"layer '{t.layer}' has `statistic` '{t.layer.statistic.name}', which "
            "cannot be added up over the devices of jax.shard_map. Use 'gram' or "
            "'moments', which can; or jax.jit with sharded arrays."
        )
    return _vary_like(x, here(t.value))


def _vary_like(x: jax.Array, value: Any) -> Any:
    """Returns ``value``, summed over devices where ``x`` is sharded by hand.

    Inside ``jax.shard_map`` inputs differ from device to device and ``value`` does not.
    A select on ``x`` says so to JAX, and its transpose is the sum, as for the weights.
    """
    if x.size == 0 or not jax.sharding.get_abstract_mesh().manual_axes:
        return value
    one = replicated(lambda x: x.reshape(-1)[0], x)
    return jax.tree.map(lambda leaf: jnp.where(one == one, leaf, leaf), value)


def tap(
    x: jax.Array,
    t: Tap,
    y: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    r"""Emits the statistic of a layer as the cotangent of ``t``.

    .. math::
      \mathrm{tap}(x, t) = x, \qquad
      \frac{\partial}{\partial t} := \Big(n, \sum x, \sum x x^T\Big)

    The interface for code that is not Flax: tap the input of a linear layer, or its
    input and output, then differentiate the loss with respect to
    ``(params, taps.zeros())``.

    Args:
      x: input of a linear layer, floating, shape ``[..., feature]``; every axis but
        the last counts as samples.
      t: the layer's entry of ``taps.zeros()``.
      y: the layer's output, for statistics that measure its cotangent, too; any
        shape. Default None: such statistics see None in its place.
      mask: which samples count, boolean, of the axes of ``x`` but the last, or of the
        first of them. Default None: all do.

    Returns:
      ``y`` if it is given, else ``x``; unchanged.

    Raises:
      TypeError: if ``x`` is not floating, ``t`` is not a tap, or ``mask`` is not
        boolean.
      ValueError: if the width of ``x`` is not that of the layer, for raw inputs its
        shape is not theirs, ``mask`` does not fit, or it is called inside
        ``only_rows``, which is for models of a framework.

    Example:
      >>> import jax, jax.numpy as jnp, linboost_optax as lbo
      >>> taps = lbo.dense_taps({"hidden": (3, 2)}, statistic="moments")
      >>> def loss(params, t, x):
      ...     x = lbo.tap(x, t["hidden"])
      ...     return jnp.sum(x @ params["hidden"]["kernel"])
      >>> params = {"hidden": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
      >>> grads, stats = jax.grad(loss, argnums=(0, 1))(
      ...     params, taps.zeros(), jnp.ones((5, 3))
      ... )
      >>> stats["hidden"].value.sum
      Array([[5., 5., 5.]], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131, section 4: the moments of a layer's inputs.
    """
    if not isinstance(t, Tap):
        raise TypeError(
            f"`t` must be a tap, got {type(t).__name__}. Take it from `taps.zeros()`, "
            "by the layer's name."
        )
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise TypeError(
            f"`x` must be floating, got {jnp.result_type(x)}. Cast it, or leave the "
            "layer untapped."
        )
    if not t.layer.kind.fits(x.shape):
        raise ValueError(
            f"`x` must have width {t.layer.kind.channels} to match the tap of layer "
            f"'{t.layer}', got shape {x.shape}. Tap the input of the very layer `t` "
            "was made for."
        )
    t.layer.check_input(x)
    refuse_by_hand(t.layer, mask)
    rows = None if mask is None else boolean("mask", mask)
    if y is not None:
        return _emitted(t, True, y, x, rows)
    return _emitted(t, False, x, x, rows)
