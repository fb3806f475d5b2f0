"""What is refused of a loss: kernels whose statistic would not be what it should."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import jax.numpy as jnp

from linboost_optax._layer import Layer
from linboost_optax._program.notes import IN_WHILE
from linboost_optax._program.tied import fits
from linboost_optax._program.trace import Program
from linboost_optax._program.uses import Use
from linboost_optax._taps.table import Taps


def check(
    program: Program, layers: Mapping[int, Layer], taps: Taps, allow_unconnected: bool
) -> None:
    """Raises if a tapped layer's statistic would not be what its metric needs.

    Args:
      program: the loss, read.
      layers: the tapped layers, by number of their kernel.
      taps: the same.
      allow_unconnected: whether layers may be left out.
    """
    uses = [use for use in program.uses if use.parameter in layers]
    for use in uses:
        _check_use(layers[use.parameter], use)
    for number, why in sorted(program.outside.items()):
        if number in layers:
            raise ValueError(_OUTSIDE.format(layer=layers[number], why=why))
    _check_elsewhere(program, layers, uses)
    refuse_repeated(layers, uses)
    if not allow_unconnected:
        _check_connected(taps, layers, uses)


def _check_use(layer: Layer, use: Use) -> None:
    if use.hindrance is not None and use.hindrance != IN_WHILE:
        raise ValueError(_HIDDEN.format(layer=layer, why=use.hindrance))
    if jnp.issubdtype(use.dtype, jnp.complexfloating):
        why = "its inputs are complex, and only real ones have a real metric"
        raise ValueError(_OUTSIDE.format(layer=layer, why=why))
    biased = use.bias is not None
    if layer.biased and not biased:
        if use.forward:
            raise TypeError(FORWARD)
        raise ValueError(
            _OUTSIDE.format(layer=layer, why="it is multiplied, and no bias added")
        )
    if not fits(layer, use):
        how = f"as {use.kind}, and not as {layer.kind}"
        if use.kind == layer.kind:
            how = "with its axes in another order"
        raise ValueError(_OUTSIDE.format(layer=layer, why=how))


def _check_elsewhere(
    program: Program, layers: Mapping[int, Layer], uses: Iterable[Use]
) -> None:
    """Raises if data meets a kernel or bias in another way than in its layer."""
    for use in uses:
        layer, bias, own = layers[use.parameter], use.bias, use.parameter
        if own in program.elsewhere:
            why = f"data meets it element by element, by `{program.elsewhere[own]}`"
            raise ValueError(_OUTSIDE.format(layer=layer, why=why))
        if layer.biased and bias is not None and bias.parameter in program.elsewhere:
            why = f"its bias is used again, by `{program.elsewhere[bias.parameter]}`"
            raise ValueError(_OUTSIDE.format(layer=layer, why=why))


def refuse_repeated(layers: Mapping[int, Layer], uses: Iterable[Use]) -> None:
    """Raises if a layer is used more than once whose statistic does not add up."""
    times: dict[int, int] = {}
    for use in uses:
        times[use.parameter] = times.get(use.parameter, 0) + use.times
    for number, count in times.items():
        layer = layers[number]
        if not layer.statistic.additive and count > math.prod(layer.stack):
            raise ValueError(
                f"layer '{layer}' is used more than once, and `statistic` "
                f"'{layer.statistic.name}' cannot be added up (its inputs have shape "
                f"{layer.input_shape}). Use 'gram' or 'moments', which can."
            )


def _check_connected(
    taps: Taps, layers: Mapping[int, Layer], uses: Iterable[Use]
) -> None:
    used = {layers[use.parameter].stats_key for use in uses}
    missing = sorted(
        {layer.stats_key or "." for layer in taps.layers} - {k or "." for k in used}
    )
    if missing:
        raise ValueError(
            f"layer '{missing[0]}' has a tap but did not reach the loss"
            f"{f' (and so {missing[1:]})' if missing[1:] else ''}. Either the loss "
            "leaves this part of the model out, or calls the model with parameters "
            "that were cut out of or stacked from those it was given. Pass "
            "`allow_unconnected=True` if that is meant (its gradient then passes "
            "through), or make `taps` with the method that the loss calls."
        )


FORWARD = (
    "`loss_fn` differentiates the network in forward mode (jax.jvp, jax.jacfwd, "
    "jax.hessian or jax.linearize), which taps do not support: directions are no "
    "inputs. Use jax.grad, jax.vjp or jax.jacrev inside the loss, or compute that "
    "term from `lbo.without_taps(params)`, whose layers then add nothing to the "
    "statistics."
)

_HIDDEN = (
    "layer '{layer}': {why}, which taps cannot enter. Wrap less than the model in it, "
    "or take its parameters from `lbo.without_taps(params)` and leave the layer out "
    "of the taps."
)

_OUTSIDE = (
    "layer '{layer}': the loss multiplies its kernel with activations outside of the "
    "layer's own call ({why}), which the layer's statistic does not see. Leave the "
    "layer out, make optimizer and gradients with `taps.filter(exclude='{layer}')`; or "
    "take the kernel of that product from `lbo.without_taps(params)` if the metric "
    "of its own call will do."
)
