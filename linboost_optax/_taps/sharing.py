"""Layers that are given the very same input share one statistic."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from linboost_optax._layer import Layer, Path
from linboost_optax._taps.identity import Identities


class InputRecord:
    """The inputs that layers were called with, by identity, while one trace runs."""

    def __init__(self):
        self._identities = Identities()
        self._sources: dict[Hashable, Path] = {}

    def share(self, layer: Layer, x: Any) -> Layer:
        """Returns the layer, served by an earlier one with this input and design."""
        if layer.statistic.reads_cotangent:
            return layer
        key = (self._identities.number(x), layer.design_key)
        source = self._sources.setdefault(key, layer.path)
        return layer if source == layer.path else replace(layer, source=source)


def keep_shared(
    layers: Iterable[Layer], inputs: Mapping[str, set[int]]
) -> tuple[Layer, ...]:
    """Gives back a statistic of their own to layers that do not share one in a call.

    A model initialises all branches of ``nn.cond`` on one input, and then runs one.

    Args:
      layers: as they share while the model is initialised.
      inputs: the numbers of each layer's inputs in a call, by the layer's name.
    """
    layers = tuple(layers)
    by_key = {layer.key: layer for layer in layers}

    def keep(layer: Layer) -> Layer:
        source, own = by_key.get(layer.stats_key), inputs.get(layer.key)
        if layer.source is None or source is None:
            return replace(layer, source=None)
        same = bool(own) and own == inputs.get(source.key)
        # One of them may be in a stack that is mapped over, and not its input.
        same &= source.design_key == layer.design_key
        return layer if same else replace(layer, source=None)

    return tuple(keep(layer) for layer in layers)


def without(layers: Iterable[Layer], gone: Iterable[Path]) -> tuple[Layer, ...]:
    """Returns the layers but those at some paths.

    Where one of those measured for others, the first of these takes its place.
    """
    gone, heirs = set(gone), {}

    def inherit(layer: Layer) -> Layer:
        if layer.source not in gone:
            return layer
        heir = heirs.setdefault((layer.source, layer.design_key), layer.path)
        return replace(layer, source=None if heir == layer.path else heir)

    return tuple(inherit(layer) for layer in layers if layer.path not in gone)
