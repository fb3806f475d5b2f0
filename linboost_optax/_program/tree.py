"""Names of the parameters in a tree, as people know them."""

from __future__ import annotations

from typing import Any

import jax

from linboost_optax._layer import Path
from linboost_optax._taps.places import name_of


def names(tree: Any) -> list[Path]:
    """Returns the path of every leaf, without boxes and Flax's level ``params``."""
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
    boxes = {
        path
        for path, node in jax.tree.leaves_with_path(tree, is_leaf=_is_box)
        if _is_box(node)
    }
    result = []
    for path in paths:
        named = tuple(
            name_of(entry)
            for i, entry in enumerate(path)
            if not (path[:i] in boxes and getattr(entry, "name", "") == "value")
        )
        collections = len(named) > 1 and named[0] == "params"
        result.append(named[1:] if collections else named)
    return result


def _is_box(node: Any) -> bool:
    """Whether a node is around a parameter: an NNX variable, a partitioned array.

    Users derive variables of their own, and attention has a part of that name.
    """
    if not any(base.__module__.startswith("flax.") for base in type(node).__mro__):
        return False
    # To ask an NNX variable for its `value` is deprecated.
    parts = jax.tree.leaves_with_path(node, is_leaf=lambda part: part is not node)
    return [path for path, _ in parts] == [(jax.tree_util.GetAttrKey("value"),)]
