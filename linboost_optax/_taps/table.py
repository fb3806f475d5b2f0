"""The tapped layers of a model, and the table that shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer, join, split
from linboost_optax._taps import groups, selection
from linboost_optax._taps.groups import Plain, shape_text
from linboost_optax._taps.primitive import Tap
from linboost_optax._taps.sharing import without

if TYPE_CHECKING:
    from linboost_optax._taps.report import Report


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

    def report(self, solver: Any = None) -> Report:
        """Returns what preconditioning covers and costs, to read and to print.

        Nothing is computed but shapes. Figures of cost are floating-point operations,
        not time: see ``Report`` for what they count and assume.

        Args:
          solver: that an optimizer is to take; default None is ``Cholesky()``.

        Returns:
          A ``Report``.

        Raises:
          TypeError: if ``solver`` is not a solver.
          ValueError: if the solver cannot solve with some layer's statistic.

        Example:
          >>> import flax.linen as nn, jax.numpy as jnp
          >>> from linboost_optax import linen
          >>> model = nn.Sequential([nn.Dense(64), nn.LayerNorm(), nn.Dense(2)])
          >>> report = linen.taps(model, jnp.ones((256, 32))).report()
          >>> f"{report.covered:.1%} of {report.parameters:,} parameters"
          '94.6% of 2,370 parameters'
          >>> report.plain[0].pattern, report.plain[0].arrays
          ('layers_1/{bias,scale}', 2)
        """
        # It asks optimizers about their state, and these ask for taps.
        from linboost_optax._taps.report import report

        return report(self, solver)

    def __str__(self) -> str:
        header = ("path", "kind", "kernel", "inputs", "statistic", "bytes")
        plain = list(groups.listed(self.plain))
        rows = [_row(layer) for layer in self.layers]
        rows += [(name, "-", what, "-", "plain", "0") for name, what, _ in plain]
        lines = columns([header, *rows])
        first = 1 + len(self.layers)
        for i, (_, _, reason) in enumerate(plain):
            lines[first + i] += f"  ({reason})"
        total = sum(size_of(layer) for layer in self.layers)
        return "\n".join([*lines, f"statistics: {total:,} bytes"])

    __repr__ = __str__


def check_taps(taps: object) -> None:
    """Raises unless ``taps`` is a ``Taps``."""
    if not isinstance(taps, Taps):
        raise TypeError(
            f"`taps` must be a Taps, got {type(taps).__name__}. Make it with "
            "`linen.taps`, `nnx.taps` or `lbo.taps`."
        )


def kind_text(layer: Layer) -> str:
    """Returns a layer's kind as people read it."""
    return layer.kind.name + (" + bias" if layer.biased else "")


def size_of(layer: Layer) -> int:
    """Returns the bytes of a layer's own statistic."""
    if layer.source is not None:
        return 0
    leaves = jax.tree.leaves(layer.statistic_shapes())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _row(layer: Layer) -> tuple[str, ...]:
    own = layer.source is None
    return (
        str(layer),
        kind_text(layer),
        shape_text(layer.shapes[layer.kernel]),
        shape_text(layer.input_shape) if layer.input_shape else "any",
        layer.statistic.name if own else f"of {layer.stats_key or '.'}",
        f"{size_of(layer):,}",
    )


def columns(rows: list[tuple[str, ...]], numbers: int = 1) -> list[str]:
    """Returns rows as lines of aligned cells, the last so many to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    first = len(widths) - numbers
    return [
        "  ".join(
            cell.rjust(width) if i >= first else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
