"""One function in several frameworks: what twins have in common, and how they map.

A *twin* is a model of one framework. Its arrays have names, shapes and values in a
common layout, which a table per model maps to the framework's own tree.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Common = dict[str, np.ndarray]

# Gates of the GRU are reset, update and new, in this order, side by side.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {
        "0.w": (5, 7),
        "0.b": (7,),
        "1.w": (7, 6),
        "1.b": (6,),
        "2.w": (6, 3),
        "2.b": (3,),
    },
    "cnn": {
        "strided.w": (3, 3, 2, 4),
        "strided.b": (4,),
        "grouped.w": (3, 3, 2, 6),  # two groups of two channels
        "grouped.b": (6,),
        "out.w": (6, 3),
        "out.b": (3,),
    },
    "gru": {
        "input.w": (4, 18),
        "input.b": (18,),
        "hidden.w": (6, 18),
        "out.w": (6, 3),
        "out.b": (3,),
    },
    "transformer": {
        "embed.w": (11, 8),
        "before.scale": (8,),
        "before.offset": (8,),
        "query.w": (8, 8),
        "query.b": (8,),
        "key.w": (8, 8),
        "key.b": (8,),
        "value.w": (8, 8),
        "value.b": (8,),
        "merge.w": (8, 8),
        "merge.b": (8,),
        "between.scale": (8,),
        "between.offset": (8,),
        "up.w": (8, 12),
        "up.b": (12,),
        "down.w": (12, 8),
        "down.b": (8,),
        "after.scale": (8,),
        "after.offset": (8,),
        "out.w": (8, 11),
        "out.b": (11,),
    },
}
MODELS = list(SHAPES)
HEADS = 2
EPSILON = 1e-5  # of every LayerNorm


class Part(NamedTuple):
    """Where an array of a framework is in the common layout.

    Attributes:
      name: of the common array.
      axes: its axes in the framework's order, before they are split or merged.
      number: which of the equal parts along its last axis this one is.
      parts: number of these.
    """

    name: str
    axes: tuple[int, ...] | None = None
    number: int = 0
    parts: int = 1


class Twin(NamedTuple):
    """A model of one framework.

    Attributes:
      forward: ``forward(params, *inputs)``.
      params: the framework's own tree, of zeros.
      to_common: maps parameters or gradients to the common layout.
      from_common: the other way round.
      module: what an adapter of the framework takes: the Linen module, or a function
        that makes the NNX model of ``params``.
    """

    forward: Callable[..., jax.Array]
    params: Any
    to_common: Callable[[Any], Common]
    from_common: Callable[[Mapping[str, np.ndarray]], Any]
    module: Any = None


def transposed(name: str) -> Part:
    """A kernel that is kept as ``(out, in)``."""
    return Part(name, (1, 0))


def make(
    model: str,
    forward: Callable[..., jax.Array],
    params: Any,
    table: Mapping[str, Part | str],
    module: Any = None,
) -> Twin:
    """Returns a twin.

    Args:
      model: name in ``SHAPES``.
      forward: the function.
      params: tree of arrays or of their shapes and dtypes.
      table: maps the path of every leaf, its keys joined by dots, to its part of the
        common layout; a name alone is the whole array, of the same axes.
      module: see ``Twin``.
    """
    shapes = SHAPES[model]
    parts = {k: Part(v) if isinstance(v, str) else v for k, v in table.items()}
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [_name(path) for path, _ in flat]
    assert sorted(paths) == sorted(parts), (sorted(paths), sorted(parts))
    assert {part.name for part in parts.values()} == set(shapes)
    assert all(leaf.dtype == jnp.float64 for _, leaf in flat)

    def from_common(common: Mapping[str, np.ndarray]) -> Any:
        leaves = []
        for path, (_, leaf) in zip(paths, flat, strict=True):
            part = parts[path]
            array = np.split(common[part.name], part.parts, axis=-1)[part.number]
            array = array.transpose(part.axes or range(array.ndim))
            leaves.append(jnp.asarray(array.reshape(leaf.shape)))
        return jax.tree.unflatten(treedef, leaves)

    def to_common(tree: Any) -> Common:
        leaves = dict(zip(paths, jax.tree.leaves(tree), strict=True))
        found: dict[str, dict[int, np.ndarray]] = {}
        for path, part in parts.items():
            *most, last = shapes[part.name]
            shape = (*most, last // part.parts)
            axes = part.axes or tuple(range(len(shape)))
            array = np.asarray(leaves[path]).reshape([shape[axis] for axis in axes])
            array = array.transpose(np.argsort(axes))
            found.setdefault(part.name, {})[part.number] = array
        return {
            name: np.concatenate([found[name][i] for i in range(len(found[name]))], -1)
            for name in shapes
        }

    zeros = from_common({name: np.zeros(shape) for name, shape in shapes.items()})
    return Twin(forward, zeros, to_common, from_common, module)


def _name(path: tuple[Any, ...]) -> str:
    """Returns the keys of a path, without the slot in which NNX has the array."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value").removesuffix(".raw_value")


def build(framework: str, name: str) -> Twin:
    """Returns a twin by the names of its framework and function; needs 64 bits."""
    module = importlib.import_module(f"tests.frameworks.{framework}_models")
    return getattr(module, name)()


def assert_same(got: Common, want: Common, tolerance: float) -> None:
    """Asserts that all arrays are finite and agree."""
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], 0, tolerance, equal_nan=False, err_msg=name
        )
