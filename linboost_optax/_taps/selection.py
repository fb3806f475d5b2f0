"""Choosing among layers by their names."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from linboost_optax._layer import Layer, Path


def named(
    argument: str, patterns: str | Sequence[str], layers: Iterable[Layer]
) -> set[Path]:
    """Returns the paths of the layers that patterns name.

    Args:
      argument: what the patterns are an argument of, for errors.
      patterns: names of layers, or of what they are below; ``*`` and ``?`` stand for
        any characters.
      layers: to choose among.

    Raises:
      TypeError: if a pattern is no string.
      ValueError: if a pattern names no layer.
    """
    layers, found = list(layers), set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"`{argument}` must be names of layers, got {pattern!r}. Pass strings "
                "from the printed table, such as 'encoder' or '*/query'."
            )
        these = {layer.path for layer in layers if matches(layer, pattern)}
        if not these:
            raise ValueError(
                f"`{argument}` must name a layer, got {pattern!r}; there are "
                f"{sorted(str(layer) for layer in layers)}. A name stands for all "
                "below it, `*` for any characters."
            )
        found |= these
    return found


def matches(layer: Layer, pattern: str) -> bool:
    """Whether a pattern names a layer, or what it is below."""
    return fnmatchcase(str(layer), pattern) or fnmatchcase(layer.key, f"{pattern}/*")
