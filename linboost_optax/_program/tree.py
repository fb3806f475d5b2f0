"""Names of the parameters in a tree, as people know them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax

from linboost_optax._layer import Path
from linboost_optax._taps.places import name_of


def names(tree: Any) -> list[Path]:
    """Returns the path of every leaf, without boxes and Flax's level ``params``."""
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
    below = Counter(path[:-1] for path in paths)
    result = []
    for path in paths:
        # A box around one array: an NNX variable, a partitioned parameter.
        if len(path) > 1 and _is_box(path[-1]) and below[path[:-1]] == 1:
            path = path[:-1]
        named = tuple(name_of(entry) for entry in path)
        collections = len(named) > 1 and named[0] == "params"
        result.append(named[1:] if collections else named)
    return result


def _is_box(entry: Any) -> bool:
    return isinstance(entry, jax.tree_util.GetAttrKey) and entry.name == "value"
