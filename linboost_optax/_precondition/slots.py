"""Where the tapped layers' arrays are in a tree that is shaped like the parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from linboost_optax import _statistics
from linboost_optax._layer import Affine, Layer, Path, join


@dataclass(frozen=True)
class Slot:
    """The places of one layer's arrays among a tree's leaves.

    Attributes:
      layer: the layer, without its bias where that is masked out.
      kernel: index of the kernel's leaf.
      bias: index of the bias's leaf, or None for a layer without.
    """

    layer: Layer
    kernel: int
    bias: int | None

    def get(self, leaves: list[jax.Array]) -> Affine:
        """Returns the layer's arrays as matrices, in its statistic's precision."""
        kernel = leaves[self.kernel]
        bias = None if self.bias is None else leaves[self.bias]
        dtype = _statistics.accumulation_dtype(kernel.dtype, self.layer.dtype)
        return self.layer.to_affine(kernel, bias, dtype)

    def put(self, leaves: list[jax.Array], affine: Affine) -> None:
        """Writes matrices back over the leaves they came from."""
        kernel, bias = self.layer.from_affine(affine)
        leaves[self.kernel] = kernel.astype(leaves[self.kernel].dtype)
        if self.bias is not None and bias is not None:
            leaves[self.bias] = bias.astype(leaves[self.bias].dtype)


def find(layers: tuple[Layer, ...], tree: Any) -> list[Slot]:
    """Finds every layer in a tree shaped like the parameters.

    Layers whose kernel is masked out (``optax.MaskedNode``) are skipped; a masked
    bias leaves a layer without bias.

    Raises:
      ValueError: if a layer is missing or has another shape: taps of another model; if
        the tree is one array, in which no layer can be told from another.
    """
    entries, _ = jax.tree.flatten_with_path(tree, is_leaf=_is_masked)
    if layers and len(entries) == 1 and not entries[0][0]:
        raise ValueError(
            "parameters must be a tree in which layers have names, got one array of "
            f"shape {jnp.shape(entries[0][1])}, as `optax.flatten` makes it. Flatten "
            "what comes after: `whiten(optax.flatten(inner), taps)`, or "
            "`optax.chain(scale_by_lnb(taps), optax.flatten(...))`."
        )
    index, leaves = _index(entries)
    slots = []
    for layer in layers:
        found = {}
        for name, shape in layer.shapes.items():
            where = _find(layer, name, index)
            if not _is_masked(where):
                _check_shape(layer, name, shape, leaves[where])
                found[name] = where
        if layer.kernel not in found:
            continue
        bias = None if layer.bias is None else found.get(layer.bias)
        seen = layer if bias is not None else layer.without_bias()
        slots.append(Slot(seen, found[layer.kernel], bias))
    return slots


def is_placeholder(tree: Any) -> bool:
    """Whether a tree stands for parameters and holds none.

    ``optax.tree.map_params`` initialises with such a thing, to see where parameters
    would go.
    """
    return not jax.tree.leaves(tree, is_leaf=_is_masked)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _index(entries) -> tuple[dict[Path, Any], list[jax.Array]]:
    """Maps every path, with and without a box's own suffix, to a leaf's index."""
    index: dict[Path, Any] = {}
    leaves: list[jax.Array] = []
    for path, leaf in entries:
        names = tuple(_name(entry) for entry in path)
        where = leaf if _is_masked(leaf) else len(leaves)
        for end in range(len(names), 0, -1):
            index.setdefault(names[:end], where)
        if not _is_masked(leaf):
            leaves.append(leaf)
    return index, leaves


def _name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _find(layer: Layer, name: str, index: Mapping[Path, Any]) -> Any:
    path = (*layer.path, name)
    for root in ((), ("params",)):
        full = root + path
        if full in index:
            return index[full]
        # A mask may end above the parameter: its node stands for all below.
        for end in range(1, len(full)):
            if _is_masked(index.get(full[:end])):
                return index[full[:end]]
    raise ValueError(
        f"`taps` has layer '{layer}' with parameter '{join(path)}', which "
        "the parameters lack: these taps belong to another model. Make them from the "
        "model whose parameters are trained."
    )


def _check_shape(layer: Layer, name: str, want: tuple[int, ...], leaf) -> None:
    if tuple(leaf.shape) != want:
        raise ValueError(
            f"`taps` has layer '{layer}' with {name} of shape {want}, the "
            f"parameters have {tuple(leaf.shape)}: these taps belong to another model. "
            "Make them from the model whose parameters are trained."
        )
