"""Layers that are given the very same input share one statistic."""

from collections.abc import Iterable
from dataclasses import replace

from linboost_optax._layer import Layer, Path


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
