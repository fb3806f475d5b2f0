"""Where the tapped layers' arrays are in a tree that is shaped like the parameters."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from linboost_optax import _statistics
from linboost_optax._layer import Affine, Layer, Path, join
from linboost_optax._precondition import outline
from linboost_optax._sharding import along_first, first_axis, sharded_like
from linboost_optax._taps import places


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

    def apply(
        self,
        function: Callable[..., tuple[Affine, Any]],
        metric: Any,
        leaves: Sequence[jax.Array],
        out: list[jax.Array],
        *args: Any,
        kept: Any = None,
    ) -> Any:
        """Writes what a function makes of the layer's arrays into ``out``.

        They keep their shardings. Only here are they matrices: merging axes of which
        one is sharded is for the compiler to lay out.

        Args:
          function: maps the metric, the layer's matrices and ``args`` to matrices and
            a tree like ``kept``. Of a module, so that layers that are alike are traced
            once.
          metric: what is bound to the layer.
          leaves: of a tree that is shaped like the parameters.
          out: leaves of such a tree, to be written to.
          *args: trees of arrays.
          kept: a tree of arrays to be sharded like; default None, an empty one.

        Returns:
          What the function returns beside matrices, sharded as ``kept``.
        """
        places = [i for i in (self.kernel, self.bias) if i is not None]
        own = [leaves[i] for i in places]
        facts = (metric, self.layer, function, first_axis(args))
        local = functools.partial(outline.call, _apply, facts)
        new, rest = sharded_like((own, kept), local, own, *args)
        for i, leaf in zip(places, new):
            out[i] = leaf
        return rest


def _apply(
    metric: Any,
    layer: Layer,
    function: Callable[..., tuple[Affine, Any]],
    blocks: Any,
    own: list[jax.Array],
    *args: Any,
) -> tuple[list[jax.Array], Any]:
    """Returns a layer's kernel and bias as ``function`` maps them as matrices.

    Where what they are multiplied by is shared out by blocks, so are the products: the
    compiler would gather them before it lays them out like the kernel.
    """
    kernel, bias = own[0], own[1] if len(own) > 1 else None
    matrices = layer.to_affine(kernel, bias, dtype(layer, kernel))
    affine, rest = function(metric, matrices, *args)
    affine = affine._replace(w=along_first(affine.w, blocks))
    new = [leaf for leaf in layer.from_affine(affine) if leaf is not None]
    return [leaf.astype(old.dtype) for leaf, old in zip(new, own)], rest


def dtype(layer: Layer, *kernel: jax.Array) -> jnp.dtype:
    """Returns the dtype of a layer's matrices; without a kernel, of its statistic."""
    return _statistics.accumulation_dtype(layer.dtype, *(k.dtype for k in kernel))


def find(layers: tuple[Layer, ...], tree: Any) -> list[Slot]:
    """Finds every layer in a tree shaped like the parameters.

    Layers whose kernel is masked out (``optax.MaskedNode``) are skipped; a masked
    bias leaves a layer without bias.

    Raises:
      ValueError: if a layer is missing or has another shape: taps of another model; if
        the tree is one array, in which no layer can be told from another.
    """
    entries, _ = jax.tree.flatten_with_path(tree, is_leaf=_is_masked)
    named = [layer for layer in layers if layer.where(layer.kernel)]
    if named and len(entries) == 1 and not entries[0][0]:
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
    """Maps every path to a leaf's index, or to the mask in its place."""
    found: list[tuple[Any, Any]] = []
    leaves: list[jax.Array] = []
    for path, leaf in entries:
        found.append((path, leaf if _is_masked(leaf) else len(leaves)))
        if not _is_masked(leaf):
            leaves.append(leaf)
    return places.index(found), leaves


def _find(layer: Layer, name: str, index: Mapping[Path, Any]) -> Any:
    path = layer.where(name)
    # A mask may end above the parameter: its node stands for all below.
    for end in range(len(path), -1, -1):
        found = index.get(path[:end])
        if found is not None and (end == len(path) or _is_masked(found)):
            return found
    raise ValueError(
        f"`taps` has layer '{layer}' with parameter '{join(path)}', which "
        "the parameters lack: these taps belong to another model. Make them from the "
        "model whose parameters are trained."
    )


def _check_shape(layer: Layer, name: str, want: tuple[int, ...], leaf) -> None:
    if tuple(leaf.shape) == want:
        return
    if tuple(leaf.shape) == want[::-1]:
        raise ValueError(
            f"`taps` has layer '{layer}' with {name} of shape {want}, the parameters "
            f"have it transposed, {tuple(leaf.shape)}. Kernels are (in, out): hold it "
            "so and transpose it where it is used, or describe the layer by an "
            "`extend.Kind` of your own whose `to_matrix` transposes."
        )
    raise ValueError(
        f"`taps` has layer '{layer}' with {name} of shape {want}, the parameters have "
        f"{tuple(leaf.shape)}: these taps belong to another model. Make them from the "
        "model whose parameters are trained."
    )
