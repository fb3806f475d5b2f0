"""Where a layer's state lies on a mesh: as its kernel does, on the axes they share.

A kernel of stacked layers that is sharded over the stack has its metrics beside it, one
whose rows are sharded has theirs; so the memory of a state falls as that of the
parameters does. What comes out of a step lies where it lay: placed once, in ``init``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from linboost_optax._layer import Layer
from linboost_optax._sharding import known_sharding, put

_Tree = TypeVar("_Tree")


@dataclass(frozen=True)
class Placement:
    """The mesh axes that the axes of a layer's matrices are sharded over.

    Attributes:
      sharding: of the kernel; None where nothing is known of it.
      blocks: how many there are.
      block: mesh axes of the blocks, None for none.
      feature: likewise, of the features.
      output: likewise, of the outputs.
    """

    sharding: NamedSharding | None
    blocks: int
    block: Any = None
    feature: Any = None
    output: Any = None

    @classmethod
    def of(cls, layer: Layer, *kernel: jax.Array) -> Placement:
        """Returns where a layer's matrices are: unknown without a kernel."""
        sharding = next(map(known_sharding, kernel), None)
        if sharding is None:
            return cls(None, layer.blocks)
        (array,) = kernel
        names = [*sharding.spec, *[None] * (array.ndim - len(sharding.spec))]
        sizes: Sequence[int] = array.shape
        if layer.arrangement is not None:
            names = layer.arrangement.follow(names)
            sizes = layer.arrangement.sizes
        widths = [math.prod(layer.stack)]
        if layer.kind.is_in_order:
            widths = [layer.blocks, layer.features, layer.kind.outputs]
        return cls(sharding, layer.blocks, *_first(sizes, names, widths))

    def along(self, name: Any, width: int, tree: _Tree) -> _Tree:
        """Returns a tree of arrays, placed along blocks and a side of the kernel.

        Args:
          name: mesh axes to shard that side over: ``feature`` or ``output``.
          width: of that side. An array ``[block, width, ...]`` is sharded along it; a
            square one is not: it is factorised as a whole. Its blocks then are shared
            out over these axes, where they are not sharded over others.
          tree: arrays ``[block, ...]``.
        """

        def spec(leaf: jax.Array) -> list[Any]:
            wide = leaf.shape[1:2] == (width,)
            if wide and leaf.shape[2:3] == (width,):
                return [name if self.block is None else self.block]
            return [self.block, name] if wide else [self.block]

        return self._placed(spec, tree)

    def matrices(self, tree: _Tree) -> _Tree:
        """Returns matrices and biases of the layer, placed as kernel and bias are."""

        def spec(leaf: jax.Array) -> list[Any]:
            matrix = [self.block, self.feature, self.output]
            return matrix if leaf.ndim == 3 else [self.block, self.output]

        return self._placed(spec, tree)

    def _placed(self, spec: Callable[[jax.Array], list[Any]], tree: _Tree) -> _Tree:
        """Returns a tree of arrays, sharded along axes that the devices divide."""
        if self.sharding is None:
            return tree
        mesh = self.sharding.mesh

        def devices(name: Any) -> int:
            names = name if isinstance(name, tuple) else (name,)
            return math.prod(mesh.shape[each] for each in names if each is not None)

        def placed(leaf: jax.Array) -> jax.Array:
            names = spec(leaf) if leaf.shape[:1] == (self.blocks,) else []
            divided = [
                name if size % devices(name) == 0 else None
                for size, name in zip(leaf.shape, names)
            ]
            return put(leaf, NamedSharding(mesh, PartitionSpec(*divided)))

        return jax.tree.map(placed, tree)


def _first(
    sizes: Sequence[int], names: Sequence[Any], widths: Sequence[int]
) -> list[Any]:
    """Returns the mesh axes of the first of the axes that make up each width.

    Where several axes are one, the first is in whole pieces, the others are not. Of a
    width that axes do not make up nothing is known, nor of those behind it.
    """
    left = [(size, name) for size, name in zip(sizes, names) if size != 1]
    found = []
    for width in widths:
        reached = [1, *itertools.accumulate((size for size, _ in left), int.__mul__)]
        if width not in reached:
            break
        count = reached.index(width)
        found.append(left[0][1] if count else None)
        left = left[count:]
    return found
