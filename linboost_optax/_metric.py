"""The metric of a whole network: one solver a tapped layer, the identity elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from linboost_optax import _layers, _solvers, _statistics
from linboost_optax._cholesky import Cholesky
from linboost_optax._elimination import where_seen
from linboost_optax._incomplete_cholesky import IncompleteCholesky
from linboost_optax._layers import Affine, Layer
from linboost_optax._nystrom import Nystrom
from linboost_optax._solvers import LayerSolver, Solver
from linboost_optax._statistics import Statistic
from linboost_optax._taps import Taps

# Defaults by measurement (`python -m benchmarks defaults`), where the published ones
# fall behind: mean and mean square of one age cannot contradict each other while
# features move, and a smaller ridge still whitens inputs of small variance (pixels).
_MEASURED_MOMENTS = IncompleteCholesky(b_mu=0.95, b_nu=0.95)
_MEASURED_GRAM = Cholesky(ridge=0.03)


@dataclass(frozen=True)
class Bound:
    """A tapped layer, its solver, and where its arrays are among a tree's leaves.

    Attributes:
      layer: the layer.
      solver: the solver of this layer.
      kernel: index of the kernel's leaf; -1 in a tree without leaves.
      bias: index of the bias's leaf, or None for a layer without.
    """

    layer: Layer
    solver: LayerSolver
    kernel: int
    bias: int | None

    @property
    def state_key(self) -> str:
        """The key of the solver's state: one for all layers with the same input."""
        masked_bias = self.bias is None and self.layer.bias is not None
        return self.layer.key if masked_bias else self.layer.source_key

    def affine(self, leaves: list[jax.Array]) -> Affine:
        """Returns the layer's arrays as matrices, in the statistic's precision."""
        kernel = leaves[self.kernel]
        bias = None if self.bias is None else leaves[self.bias]
        dtype = _statistics.accumulation_dtype(kernel.dtype, self.layer.dtype)
        return _layers.to_affine(self.layer, kernel, bias, dtype)

    def put(self, leaves: list[jax.Array], affine: Affine) -> None:
        """Writes matrices back over the leaves they came from."""
        kernel, bias = _layers.from_affine(self.layer, affine)
        leaves[self.kernel] = kernel.astype(leaves[self.kernel].dtype)
        if self.bias is not None and bias is not None:
            leaves[self.bias] = bias.astype(leaves[self.bias].dtype)


def resolve(taps: Taps, solver: Solver | None) -> Solver:
    """Returns the solver to use: exact by default where a layer's statistic allows it.

    Raises:
      TypeError: if ``taps`` or ``solver`` is of another type.
    """
    if not isinstance(taps, Taps):
        raise TypeError(
            f"`taps` must be a Taps, got {type(taps).__name__}. Make it with "
            "`linen.taps(model, x)`."
        )
    if solver is None:
        moments = all(layer.statistic == "moments" for layer in taps.layers)
        return _MEASURED_MOMENTS if moments else _MEASURED_GRAM
    _solvers.check(solver)
    return solver


def bind(taps: Taps, solver: Solver, tree: Any) -> list[Bound]:
    """Finds every tapped layer in a tree shaped like the parameters.

    Layers whose kernel is masked out (``optax.MaskedNode``) are skipped; a masked
    bias leaves a layer without bias.

    Raises:
      ValueError: if a layer is missing or has another shape: taps of another model.
    """
    entries, _ = jax.tree.flatten_with_path(tree, is_leaf=_masked)
    if not entries:  # `optax.tree.map_params` initialises with an empty placeholder
        return [
            Bound(
                layer, _solvers.for_layer(solver, layer), -1, -1 if layer.bias else None
            )
            for layer in taps.layers
        ]
    index, leaves = _index(entries)
    bound = []
    for layer in taps.layers:
        kernel = _find(layer, layer.kernel, index)
        shape = layer.stack + layer.geometry.kernel_shape
        if isinstance(kernel, optax.MaskedNode):
            continue
        _check_shape(layer, layer.kernel, shape, leaves[kernel])
        bias = None
        if layer.bias is not None:
            bias = _find(layer, layer.bias, index)
            bias = None if isinstance(bias, optax.MaskedNode) else bias
        if bias is not None:
            shape = layer.stack + layer.geometry.bias_shape
            _check_shape(layer, str(layer.bias), shape, leaves[bias])
        bound.append(Bound(layer, _solvers.for_layer(solver, layer), kernel, bias))
    return bound


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _index(entries) -> tuple[dict[tuple[str, ...], Any], list[jax.Array]]:
    """Maps every path, with and without a box's own suffix, to a leaf's index."""
    index: dict[tuple[str, ...], Any] = {}
    leaves: list[jax.Array] = []
    for path, leaf in entries:
        names = tuple(_name(entry) for entry in path)
        where = leaf if _masked(leaf) else len(leaves)
        for end in range(len(names), 0, -1):
            index.setdefault(names[:end], where)
        if not _masked(leaf):
            leaves.append(leaf)
    return index, leaves


def _name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _find(layer: Layer, name: str, index: Mapping[tuple[str, ...], Any]) -> Any:
    path = (*layer.path, name)
    for root in ((), ("params",)):
        full = root + path
        if full in index:
            return index[full]
        # A mask may end above the parameter: its node stands for all below.
        for end in range(1, len(full)):
            if _masked(index.get(full[:end])):
                return index[full[:end]]
    raise ValueError(
        f"`taps` has layer '{layer.label}' with parameter '{'/'.join(path)}', which "
        "the parameters lack: these taps belong to another model. Make them from the "
        "model whose parameters are trained."
    )


def _check_shape(layer: Layer, name: str, want: tuple[int, ...], leaf) -> None:
    if tuple(leaf.shape) != want:
        raise ValueError(
            f"`taps` has layer '{layer.label}' with {name} of shape {want}, the "
            f"parameters have {tuple(leaf.shape)}: these taps belong to another model. "
            "Make them from the model whose parameters are trained."
        )


def check_stats(stats: Any, bound: list[Bound]) -> None:
    """Raises unless ``stats`` holds the statistic of every bound layer."""
    if stats is None:
        raise ValueError(
            "`stats` is missing: this optimizer reads the statistics of every layer's "
            "inputs. Take them from `loss, grads, stats = "
            "linen.value_and_grad(loss_fn, taps)(params, batch)` and call "
            "`tx.update(grads, state, params, stats=stats)`; Flax's "
            "`TrainState.apply_gradients` does not pass them on."
        )
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"`stats` must be a dict from layer to statistic, got {type(stats)}. Pass "
            "on what `value_and_grad` returned."
        )
    for item in bound:
        key = item.layer.source_key
        if key not in stats:
            raise ValueError(
                f"`stats` lacks layer '{key}'; it has {sorted(stats)}. Make "
                "optimizer and statistics from the same taps."
            )
        _layers.check_statistic(item.layer, stats[key])


def init(bound: list[Bound]) -> dict[str, Any]:
    """Returns the solvers' states, one for all layers that share an input."""
    unique = {item.state_key: item for item in bound}
    return {key: item.solver.init(item.layer) for key, item in unique.items()}


def advance(
    bound: list[Bound],
    stats: Mapping[str, Statistic],
    states: Mapping[str, Any],
    step: jax.Array,
    *,
    factored: bool,
) -> dict[str, Any]:
    """Returns the solvers' states after one batch."""
    unique = {item.state_key: item for item in bound}
    return {
        key: item.solver.update(
            item.layer,
            stats[item.layer.source_key],
            states[key],
            step,
            biased=item.bias is not None,
            factored=factored,
        )
        for key, item in unique.items()
    }


def init_starts(bound: list[Bound], leaves: list[jax.Array]) -> dict[str, Affine]:
    """Returns zero solutions for the solvers that start from the previous one."""
    starts = {}
    for item in bound:
        if item.solver.warm_start:
            layer = item.layer
            dtypes = [leaves[item.kernel].dtype] if leaves else []
            dtype = _statistics.accumulation_dtype(layer.dtype, *dtypes)
            outputs = math.prod(layer.geometry.bias_shape) // layer.geometry.groups
            w = jnp.zeros((layer.blocks, layer.features, outputs), dtype)
            b = None if item.bias is None else jnp.zeros(w.shape[::2], dtype)
            starts[layer.key] = Affine(w, b)
    return starts


def solve(
    bound: list[Bound],
    stats: Mapping[str, Statistic],
    states: Mapping[str, Any],
    starts: Mapping[str, Affine],
    leaves: list[jax.Array],
) -> tuple[list[jax.Array], dict[str, Affine]]:
    """Returns the preconditioned leaves ``H``, and where the next solve starts."""
    solved, new = list(leaves), {}
    for item in bound:
        key, statistic = item.layer.key, stats[item.layer.source_key]
        g, start = item.affine(leaves), starts.get(key)
        h = item.solver.solve(item.layer, statistic, states[item.state_key], g, start)
        # A layer that saw no sample has no metric of its own in this step.
        seen = _layers.block_moments(item.layer, statistic).count > 0
        item.put(solved, where_seen(seen, h, g))
        if start is not None:
            new[key] = where_seen(seen, h, start)
    return solved, new


def transform(
    bound: list[Bound],
    states: Mapping[str, Any],
    name: Literal["whiten", "unwhiten", "coordinates"],
    leaves: list[jax.Array],
) -> list[jax.Array]:
    """Maps gradients, updates or weights to or from whitened coordinates."""
    mapped = list(leaves)
    for item in bound:
        solver = item.solver
        assert isinstance(solver, IncompleteCholesky | Cholesky | Nystrom)
        affine = item.affine(leaves)
        item.put(mapped, getattr(solver, name)(states[item.state_key], affine))
    return mapped


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number in a tree is finite."""
    # A sum is finite only if its terms are (or overflow together, as bad a sign),
    # and reads each array once.
    finite = [jnp.isfinite(jnp.sum(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def keep_if(
    good: jax.Array, updates: optax.Updates, new: Any, old: Any
) -> tuple[optax.Updates, Any]:
    """Returns the step, or zero updates and the old state: bad numbers pass by."""
    updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros_like(u)), updates)
    return updates, jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
