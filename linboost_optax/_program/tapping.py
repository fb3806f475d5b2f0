"""Taps at the uses of kernels, in one run of what is traced as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from linboost_optax._layer import Layer
from linboost_optax._program.trace import Program
from linboost_optax._program.uses import Scope, Use
from linboost_optax._taps import rows
from linboost_optax._taps.primitive import Tap, attach, emit, once
from linboost_optax._taps.table import Taps

# Values of statistics by key, and masks by number, as the scope at hand sees them.
Values = Mapping[str, Any]
MASK = "\0mask "  # no layer has such a name


@dataclass(frozen=True)
class Tapped:
    """Which uses of a program are tapped, and which mask counts for them.

    Attributes:
      program: a function, read.
      layers: the tapped layers, by number of their kernel.
      taps: the same.
    """

    program: Program
    layers: Mapping[int, Layer]
    taps: Taps

    def layer(self, use: Use) -> Layer | None:
        """Returns the layer of a use, if it is tapped here."""
        if use.ignored or use.hindrance is not None:
            return None
        return self.layers.get(use.parameter)

    def slot(self, use: Use) -> int | None:
        """Returns the number of the mask that counts for a use; None for all rows."""
        layer = self.layer(use)
        if layer is None or use.rows is None:
            return None
        return rows.slot_of(self.program.masks[use.rows], layer, self.taps)

    def rows_of(self, use: Use) -> Any:
        """Returns what uses with the same input and rows have in common."""
        slot = self.slot(use)
        mask = None if slot is None else self.program.mask_numbers[slot]
        return (use.number, use.at, mask)


class Tapping:
    """The taps of one run of a scope: an input of several uses is measured once.

    Args:
      tapped: the tapped uses.
      scope: what is run.
      values: of statistics, and masks as they are met.
    """

    def __init__(self, tapped: Tapped, scope: Scope, values: Values):
        self.tapped, self.values = tapped, values
        uses = [use for each in scope.uses.values() for use in each]
        self.times = Counter(self.key(use) for use in uses if tapped.layer(use))
        self.tokens: dict[Any, jax.Array] = {}

    def key(self, use: Use) -> Any:
        """Returns what uses of one statistic with the same rows have in common."""
        layer = self.tapped.layer(use)
        return (layer and layer.stats_key, self.tapped.rows_of(use))

    def apply(self, use: Use, y: jax.Array, row: Sequence[Any]) -> jax.Array:
        """Returns the result of a use, tapped."""
        layer = self.tapped.layer(use)
        if layer is None:
            return y
        seen = layer.statistic.layer_of(layer, use.kind)
        value = self.values[layer.stats_key]
        index = tuple(i for i in use.at if i is not None)
        if index:
            value = jax.tree.map(lambda leaf: leaf[index], value)
        t = Tap(value, seen)
        x = use.access.apply(row)
        layer.check_input(x)
        mask = self.mask(use, layer)
        if layer.statistic.reads_cotangent:
            return _on_part(use, y, lambda y: _as_output(use, y, t, x, mask))
        key = self.key(use)
        if self.times[key] == 1:
            return emit(t, y, x, mask)
        if key not in self.tokens:
            self.tokens[key] = once(t, x, mask)
        return attach(y, self.tokens[key])

    def mask(self, use: Use, layer: Layer) -> jax.Array | None:
        """Returns which rows of a use count; None for all."""
        slot = self.tapped.slot(use)
        if slot is None:
            return None
        mask = self.values.get(f"{MASK}{slot}")
        if mask is None:
            raise ValueError(_LOST.format(layer=layer))
        samples = layer.kind.sample_axes(use.shape)
        if use.rows_mapped and mask.ndim != len(samples):
            raise ValueError(
                _MAPPED.format(layer=layer, mask=mask.shape, samples=samples)
            )
        return mask


_MAPPED = (
    "layer '{layer}' is called inside `only_rows` inside of jax.vmap, with samples of "
    "shape {samples} and a `mask` of shape {mask}: which of the axes it is of cannot "
    "be told. Map the mask, too, and give it all axes of the samples; or enter the "
    "context outside of the mapped function."
)
_LOST = (
    "layer '{layer}' is called inside `only_rows`, whose mask JAX has dropped: it was "
    "made inside a function that is rematerialised and differentiated in the loss. "
    "Enter the context outside of `jax.checkpoint`."
)


def _as_output(
    use: Use, y: jax.Array, t: Tap, x: jax.Array, mask: jax.Array | None
) -> jax.Array:
    back = sorted(range(y.ndim), key=use.output.__getitem__)
    return emit(t, y.transpose(use.output), x, mask).transpose(back)


def _on_part(
    use: Use, y: jax.Array, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Returns ``y`` with a function applied to the part that is a kernel's."""
    if use.part is None:
        return function(y)
    axis, start, stop = use.part
    before = jax.lax.slice_in_dim(y, 0, start, axis=axis)
    own = jax.lax.slice_in_dim(y, start, stop, axis=axis)
    after = jax.lax.slice_in_dim(y, stop, y.shape[axis], axis=axis)
    return jax.numpy.concatenate([before, function(own), after], axis=axis)
