"""Where the tapped layers' parameters are in a tree of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer, Path

if TYPE_CHECKING:
    from linboost_optax._taps.table import Taps


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
            # Boxes around parameters: NNX variables, partitioned arrays.
            boxed = [getattr(entry, "name", "") == "value" for entry in path[:end]]
            open_ = tuple(n for n, box in zip(names, boxed) if not box)
            shorter.setdefault(open_, value)
            cut = tuple(part for name in bare for part in name.split("/"))
            pieces.setdefault(cut, value)
    return {**pieces, **shorter, **found}


def find(taps: Taps, params: Any) -> list[tuple[Layer, dict[str, int]]]:
    """Returns every layer, and the numbers of its parameters' leaves, by their names.

    Raises:
      ValueError: if the parameters lack a tapped layer.
    """
    leaves = jax.tree.leaves_with_path(params)
    known = index([(path, i) for i, (path, _) in enumerate(leaves)])
    found = []
    for layer in taps.layers:
        try:
            own = {name: known[layer.where(name)] for name in layer.shapes}
        except KeyError:
            raise ValueError(_LACKING.format(layer=layer)) from None
        got = jnp.shape(leaves[own[layer.kernel]][1])
        want = layer.shapes[layer.kernel]
        if got != want:
            raise ValueError(_OTHER.format(layer=layer, want=want, got=got))
        found.append((layer, own))
    return found


_LACKING = (
    "`taps` has layer '{layer}', which the parameters lack: these taps belong to "
    "another model, or `params` is not what they were made for (of Linen models, the "
    "'params' collection or the variables that hold it). Make the taps from the model "
    "whose parameters are passed; those of a model below a name in a larger dictionary "
    "are `Taps.join({{name: taps}})`."
)

_OTHER = (
    "`taps` has layer '{layer}' with a kernel of shape {want}, the parameters have "
    "{got}: these taps belong to another model. Make them from the model whose "
    "parameters are passed."
)
