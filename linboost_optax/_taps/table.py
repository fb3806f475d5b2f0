"""The tapped layers of a model, and the table that shows them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer
from linboost_optax._taps.primitive import Tap


@dataclass(frozen=True)
class Plain:
    """A parameter array without a tap, and why it keeps its plain gradient."""

    path: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Taps:
    """The tapped layers of a model: static, hashable, no arrays.

    Printing it shows a table of layers, their statistics and what they cost.

    Attributes:
      layers: the tapped layers.
      plain: the parameters that keep their plain gradient.

    Raises:
      ValueError: if two layers have the same name.
    """

    layers: tuple[Layer, ...]
    plain: tuple[Plain, ...] = ()

    def __post_init__(self):
        names = Counter(layer.key for layer in self.layers)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ValueError(
                f"`layers` must have names of their own, got {twice[0]!r} twice. "
                "Rename one of the modules."
            )

    def zeros(self) -> dict[str, Tap]:
        """Returns the zero statistics that taps take, by layer name."""
        return {
            layer.key: Tap(
                jax.tree.map(
                    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                    layer.statistic_shapes(),
                ),
                layer,
            )
            for layer in self.layers
            if layer.source is None
        }

    def __str__(self) -> str:
        header = ("path", "kind", "kernel", "inputs", "statistic", "bytes")
        rows = [_row(layer) for layer in self.layers]
        rows += [(p.path, "-", _shape(p.shape), "-", "plain", "0") for p in self.plain]
        notes = [p.reason for p in self.plain]
        lines = _columns([header, *rows])
        first = 1 + len(self.layers)
        for i, note in enumerate(notes):
            lines[first + i] += f"  ({note})"
        total = sum(_bytes(layer) for layer in self.layers)
        return "\n".join([*lines, f"statistics: {total:,} bytes"])

    __repr__ = __str__


def check_taps(taps: object) -> None:
    """Raises unless ``taps`` is a ``Taps``."""
    if not isinstance(taps, Taps):
        raise TypeError(
            f"`taps` must be a Taps, got {type(taps).__name__}. Make it with "
            "`linen.taps(model, x)`."
        )


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(n) for n in shape) or "scalar"


def _bytes(layer: Layer) -> int:
    if layer.source is not None:
        return 0
    leaves = jax.tree.leaves(layer.statistic_shapes())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _row(layer: Layer) -> tuple[str, ...]:
    own = layer.source is None
    return (
        str(layer),
        layer.kind.name + (" + bias" if layer.biased else ""),
        _shape(layer.shapes[layer.kernel]),
        _shape(layer.input_shape) if layer.input_shape else "any",
        layer.statistic.name if own else f"of {layer.stats_key or '.'}",
        f"{_bytes(layer):,}",
    )


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.rjust(width) if i == last else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
