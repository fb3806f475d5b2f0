"""NNX modules among the arguments of a function, split into arrays and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx


@dataclass(frozen=True)
class Split:
    """The arguments of a function whose first is a module, without its nodes.

    Attributes:
      nodes: the module, and what other nodes there are.
      params: the state to differentiate, of the module alone.
      rest: the state of all nodes but that.
      graphdef: what makes nodes of both.
      args: the other arguments, nodes replaced by where they are among ``nodes``.
      kwargs: likewise.
    """

    nodes: tuple[Any, ...]
    params: Any
    rest: Any
    graphdef: Any
    args: tuple
    kwargs: Mapping[str, Any]

    def call(
        self,
        function: Callable[..., Any],
        params: Any,
        rest: Any,
        args: tuple,
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """Returns what a function returns, and the state of all nodes after it."""
        nodes = nnx.merge(self.graphdef, {0: params}, rest)

        def put(leaf: Any) -> Any:
            return nodes[leaf.index] if isinstance(leaf, _Node) else leaf

        args, kwargs = jax.tree.map(put, (args, kwargs), is_leaf=_is_marker)
        out = function(nodes[0], *args, **kwargs)
        return out, nnx.state(nodes)

    def update(self, state: Any) -> None:
        """Has the nodes take the state that they have after a call."""
        nnx.update(self.nodes, state)


# A leaf that is no array, so that it is static where arguments are traced.
@dataclass(frozen=True)
class _Node:
    index: int


def _is_marker(leaf: Any) -> bool:
    return isinstance(leaf, _Node)


def split(model: Any, args: tuple, kwargs: Mapping[str, Any], wrt: Any) -> Split:
    """Splits a module, and what other nodes there are among arguments."""
    nodes: list[Any] = [model]

    def take(leaf: Any) -> Any:
        if not is_node(leaf):
            return leaf
        nodes.append(leaf)
        return _Node(len(nodes) - 1)

    args, kwargs = jax.tree.map(take, (args, dict(kwargs)), is_leaf=is_node)
    mine = nnx.All(wrt, lambda path, _: path[0] == 0)
    graphdef, params, rest = nnx.split(tuple(nodes), mine, ...)
    own = params[0] if params else nnx.State({})
    return Split(tuple(nodes), own, rest, graphdef, args, kwargs)


def is_node(leaf: Any) -> bool:
    """Whether something has a state of its own."""
    return nnx.graph.is_graph_node(leaf) or isinstance(leaf, nnx.Variable)
