"""Arguments of a function, split into arrays and what is static."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def of_arrays(
    function: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    is_array: Callable[[Any], bool],
) -> tuple[Callable[[Any, list[Any]], Any], list[Any]]:
    """Returns a function of arrays alone, and those arrays.

    Args:
      function: of something first, then ``*args`` and ``**kwargs``.
      args: its arguments but the first.
      kwargs: its keyword arguments.
      is_array: whether a leaf among them counts as an array.

    Returns:
      A function of that first thing and the list of arrays; the arrays.
    """
    flat, treedef = jax.tree.flatten((args, dict(kwargs)))
    where = [i for i, leaf in enumerate(flat) if is_array(leaf)]

    def called(first: Any, arrays: list[Any]) -> Any:
        leaves = list(flat)
        for i, array in zip(where, arrays):
            leaves[i] = array
        args, kwargs = jax.tree.unflatten(treedef, leaves)
        return function(first, *args, **kwargs)

    return called, [flat[i] for i in where]
