"""The tapped layers of a model, and the table that shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer, join, split
from linboost_optax._taps import selection
from linboost_optax._taps.primitive import Tap
from linboost_optax._taps.sharing import without


@dataclass(frozen=True)
class Plain:
    """A parameter array without a tap, and why it keeps its plain gradient."""

    path: str
    shape: tuple[int, ...]
    reason: str


# Static, so that it may be an argument of a jitted function or a leaf's neighbour in a
# train state: a tree without arrays.
@jax.tree_util.register_static
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

    def filter(
        self,
        keep: Callable[[Layer], bool] | None = None,
        *,
        exclude: str | Sequence[str] = (),
    ) -> Taps:
        """Returns the taps of some of the layers; the others become plain.

        Where a layer that is left out measured for others with the same input, the
        first of those measures from now on. Make optimizer and gradients with the
        same taps.

        Args:
          keep: whether to keep a layer; default None keeps all.
          exclude: names of layers to leave out, or of what they are below; ``*`` and
            ``?`` stand for any characters. Default none.

        Returns:
          The taps of the rest.

        Raises:
          TypeError: if ``keep`` is not callable, or a name is no string.
          ValueError: if a name fits no layer.

        Example:
          >>> import flax.linen as nn, jax.numpy as jnp
          >>> from linboost_optax import linen
          >>> model = nn.Sequential([nn.Dense(4), nn.Dense(2)])
          >>> taps = linen.taps(model, jnp.ones((8, 3)))
          >>> print(taps.filter(exclude="layers_1"))
          path             kind          kernel  inputs  statistic  bytes
          layers_0         Dense + bias  3x4     8x3     gram          80
          layers_1/kernel  -             4x2     -       plain          0  (left out)
          layers_1/bias    -             2       -       plain          0  (left out)
          statistics: 80 bytes
        """
        if keep is not None and not callable(keep):
            raise TypeError(
                f"`keep` must map a layer to whether it is kept, got {keep!r}. Pass "
                "names as `exclude=`."
            )
        gone = selection.named("exclude", exclude, self.layers)
        if keep is not None:
            gone |= {layer.path for layer in self.layers if not keep(layer)}
        plain = tuple(
            Plain(join(layer.where(name)), shape, "left out")
            for layer in self.layers
            if layer.path in gone
            for name, shape in layer.shapes.items()
        )
        return Taps(without(self.layers, gone), plain + self.plain)

    @staticmethod
    def join(taps: Mapping[str, Taps]) -> Taps:
        """Returns the taps of several models whose parameters are in one dictionary.

        Args:
          taps: of each model, by where its parameters (or variables) are: a name, or
            names with ``"/"`` between levels; a slash inside a name is doubled.

        Returns:
          The taps of all layers, with the names in front of their paths.

        Raises:
          TypeError: if a value is not a ``Taps``.

        Example:
          >>> import flax.linen as nn, jax.numpy as jnp
          >>> import linboost_optax as lbo
          >>> from linboost_optax import linen
          >>> taps = linen.taps(nn.Dense(2), jnp.ones((8, 3)))
          >>> print(lbo.Taps.join({"enc": taps, "dec": taps}))
          path  kind          kernel  inputs  statistic  bytes
          enc   Dense + bias  3x2     8x3     gram          80
          dec   Dense + bias  3x2     8x3     gram          80
          statistics: 160 bytes
        """
        layers, plain = [], []
        for name, each in taps.items():
            check_taps(each)
            root = split(name)
            layers += [layer.below(root) for layer in each.layers]
            for p in each.plain:
                where = join((*root, *split(p.path)))
                plain.append(replace(p, path=where))
        return Taps(tuple(layers), tuple(plain))

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
