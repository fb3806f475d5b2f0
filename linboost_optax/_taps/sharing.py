"""Layers that are given the very same input share one statistic."""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

from linboost_optax._layer import Layer, Path


class InputRecord:
    """The inputs that layers were called with, by identity, while one trace runs.

    They are kept alive, so that no identity is used twice.
    """

    def __init__(self):
        self._sources: dict[Hashable, tuple[Any, Path]] = {}
        self._inputs: dict[Path, list[Any]] = {}

    def add(self, path: Path, x: Any) -> None:
        """Records a call of the layer at ``path``."""
        self._inputs.setdefault(path, []).append(x)

    def share(self, layer: Layer, x: Any) -> Layer:
        """Returns the layer, served by an earlier one with this input and design."""
        if layer.statistic.reads_cotangent:
            return layer
        key = (id(x), layer.design_key)
        _, source = self._sources.setdefault(key, (x, layer.path))
        return layer if source == layer.path else replace(layer, source=source)

    def same(self, one: Path, other: Path) -> bool:
        """Whether two layers were called, and with the same inputs alone."""
        ids = [{id(x) for x in self._inputs.get(path, ())} for path in (one, other)]
        return bool(ids[0]) and ids[0] == ids[1]


def keep_shared(layers: Iterable[Layer], calls: InputRecord) -> tuple[Layer, ...]:
    """Gives back a statistic of their own to layers that do not share in ``calls``.

    A model initialises all branches of ``nn.cond`` on one input, and then runs one.
    """
    layers = tuple(layers)
    paths = {layer.path for layer in layers}

    def keep(layer: Layer) -> Layer:
        source = layer.source
        if source is None or (source in paths and calls.same(layer.path, source)):
            return layer
        return replace(layer, source=None)

    return tuple(keep(layer) for layer in layers)
