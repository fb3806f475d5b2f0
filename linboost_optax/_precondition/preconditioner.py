"""The metric of a whole network: what is bound to its layers, and their states."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._precondition import flags, outline, slots, stats
from linboost_optax._precondition.placement import Placement
from linboost_optax._precondition.slots import Slot
from linboost_optax._sharding import replicated, sharded_like
from linboost_optax._solvers.base import Metric, Solves, SolvesFrom
from linboost_optax._solvers.elimination import where_seen
from linboost_optax._taps import Taps

M = TypeVar("M", bound=Metric)
_Tree = TypeVar("_Tree")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Member(Generic[M]):
    """One tapped layer of a network.

    Attributes:
      layer: the layer.
      metric: what is bound to it.
      state_key: key of its state: one for all layers that share a statistic, and have
        a bias or have none.
    """

    layer: Layer
    metric: M
    state_key: str


@dataclass(frozen=True)
class Preconditioner(Generic[M]):
    """The tapped layers of a network, and their places in a tree of parameters.

    Attributes:
      members: the layers.
      slots: their places, in the same order; none in a tree that is a placeholder.
    """

    members: tuple[Member[M], ...]
    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, taps: Taps, bind: Callable[[Layer], M], tree: Any) -> Preconditioner:
        """Binds every layer that is found in a tree shaped like the parameters.

        Raises:
          ValueError: if a layer is missing, or refused by ``bind``.
        """
        if slots.is_placeholder(tree):
            return cls(tuple(_member(layer, layer, bind) for layer in taps.layers), ())
        found = slots.find(taps.layers, tree)
        whole = {layer.path: layer for layer in taps.layers}
        members = [_member(s.layer, whole[s.layer.path], bind) for s in found]
        return cls(tuple(members), tuple(found))

    def init(self, tree: Any) -> dict[str, Any]:
        """Returns the states, one for all layers that share a statistic.

        Args:
          tree: the parameters; states lie on a mesh as these do.
        """
        states: dict[str, Any] = {}
        for each, kernel in self.with_kernels(tree):
            if each.state_key not in states:
                state = flags.to_numbers(each.metric.init())
                place = Placement.of(each.layer, *kernel)
                state = place.along(place.feature, each.layer.features, state)
                states[each.state_key] = state
        return states

    def with_kernels(self, tree: Any) -> Iterator[tuple[Member[M], list[jax.Array]]]:
        """Returns every layer with its kernel; with none of a tree without arrays."""
        leaves = jax.tree.leaves(tree)
        kernels = [[leaves[slot.kernel]] for slot in self.slots]
        return zip(self.members, kernels or [[] for _ in self.members])

    def read(self, values: Any) -> dict[str, Any]:
        """Returns what is needed of the statistics, by state; checks them first."""
        checked = stats.check(values, (each.layer for each in self.members))
        return {
            key: replicated(_once(_read, each), checked[each.layer.stats_key])
            for key, each in self._by_state().items()
        }

    def update(
        self, states: Mapping[str, Any], views: Mapping[str, Any], step: jax.Array
    ) -> dict[str, Any]:
        """Returns the states after one batch."""
        return {
            key: sharded_like(
                states[key], _once(_updated, each), states[key], views[key], step
            )
            for key, each in self._by_state().items()
        }

    def map(
        self,
        function: Callable[[M, Any, Affine], Affine],
        states: Mapping[str, Any],
        tree: _Tree,
    ) -> _Tree:
        """Maps every layer's arrays in a tree, given its metric and state.

        Args:
          function: maps metric, state and matrices; of a module, not made for this.
          states: by their keys.
          tree: shaped like the parameters.
        """
        leaves, treedef = jax.tree.flatten(tree)
        mapped = list(leaves)
        for each, slot in zip(self.members, self.slots):
            state = states[each.state_key]
            slot.apply(_Mapped(function), each.metric, leaves, mapped, state)
        return jax.tree.unflatten(treedef, mapped)

    def _by_state(self) -> dict[str, Member[M]]:
        return {each.state_key: each for each in self.members}


def _member(seen: Layer, whole: Layer, bind: Callable[[Layer], M]) -> Member[M]:
    # Without its bias a layer's problem is another one than that of its source.
    masked = seen.biased != whole.biased
    key = f"{whole.stats_key} without bias" if masked else whole.stats_key
    return Member(seen, bind(seen.as_read()), key)


def init_starts(
    preconditioner: Preconditioner[Solves | SolvesFrom], tree: Any
) -> dict[str, Affine]:
    """Returns zero solutions for the solvers that start from the previous one."""
    starts = {}
    for each, kernel in preconditioner.with_kernels(tree):
        if isinstance(each.metric, SolvesFrom):
            layer = each.layer
            dtype = slots.dtype(layer, *kernel)
            shape = (layer.blocks, layer.features, layer.kind.outputs)
            b = jnp.zeros(shape[::2], dtype) if layer.biased else None
            start = Affine(jnp.zeros(shape, dtype), b)
            starts[layer.key] = Placement.of(layer, *kernel).matrices(start)
    return starts


def solve(
    preconditioner: Preconditioner[Solves | SolvesFrom],
    states: Mapping[str, Any],
    views: Mapping[str, Any],
    starts: Mapping[str, Affine],
    leaves: list[jax.Array],
) -> tuple[list[jax.Array], dict[str, Affine]]:
    """Returns the preconditioned leaves ``H``, and where the next solve starts."""
    solved, new = list(leaves), {}
    for each, slot in zip(preconditioner.members, preconditioner.slots):
        start = starts.get(each.layer.key)
        args = (states[each.state_key], views[each.state_key], start)
        start = slot.apply(_solved, each.metric, leaves, solved, *args, kept=start)
        if start is not None:
            new[each.layer.key] = start
    return solved, new


def _solved(
    metric: Solves | SolvesFrom, g: Affine, state: Any, view: Any, start: Any
) -> tuple[Affine, Any]:
    """Returns one layer's ``H``, and where its next solve starts."""
    state, view = _as(g, (_as_seen(metric, state), view))
    # A layer that saw no sample has no metric of its own in this step.
    seen = view.count > 0
    if isinstance(metric, SolvesFrom):
        h = metric.solve_from(start, state, view, g)
        start = where_seen(seen, h, start)
    else:
        h = metric.solve(state, view, g)
    return where_seen(seen, h, g), start


@dataclass(frozen=True)
class _Mapped:
    """Maps matrices, given metric and state; equal to another of the same function."""

    function: Callable[[Any, Any, Affine], Affine]

    def __call__(
        self, metric: Metric, affine: Affine, state: Any
    ) -> tuple[Affine, None]:
        state = _as(affine, _as_seen(metric, state))
        return self.function(metric, state, affine), None


def _once(function: Callable[..., _Out], member: Member[Any]) -> Callable[..., _Out]:
    """Returns a function of a layer's metric and arrays as one of arrays alone."""
    return functools.partial(outline.call, function, (member.metric,))


def _read(metric: Metric, value: Any) -> Any:
    return metric.read(value)


def _updated(metric: Metric, state: Any, view: Any, step: jax.Array) -> Any:
    """Returns the state after one batch."""
    return flags.to_numbers(metric.update(_as_seen(metric, state), view, step))


def _as_seen(metric: Metric, state: Any) -> Any:
    """Returns a state as the metric made it."""
    return flags.from_numbers(state, jax.eval_shape(metric.init))


def _as(affine: Affine, tree: _Tree) -> _Tree:
    """Returns a tree with its floats in the precision of a layer's matrices.

    Statistics of narrow inputs precondition wide parameters, and the other way round.
    """
    dtype = affine.w.dtype

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)
