"""Where the tapped layers' parameters are in a tree of parameters."""

from typing import Any

from linboost_optax._layer import Path


def name_of(entry: Any) -> str:
    """Returns the name of one step on the way through a tree."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def index(entries: list[tuple[Any, Any]]) -> dict[Path, Any]:
    """Maps every path, with and without a box's own suffix, to what is there.

    Args:
      entries: pairs of a key path and what is there.

    Returns:
      By path; by the path without the levels ``params`` of Flax's variables, which
      come in as they are or inside a dictionary of several models; and by the path with
      names cut at slashes (Haiku's ``mlp/~/linear_0``). An exact path comes first.
    """
    found: dict[Path, Any] = {}
    shorter: dict[Path, Any] = {}
    pieces: dict[Path, Any] = {}
    for path, value in entries:
        names = tuple(name_of(entry) for entry in path)
        for end in range(len(names), -1, -1):
            found.setdefault(names[:end], value)
            bare = tuple(name for name in names[:end] if name != "params")
            shorter.setdefault(bare, value)
            cut = tuple(part for name in bare for part in name.split("/"))
            pieces.setdefault(cut, value)
    return {**pieces, **shorter, **found}
