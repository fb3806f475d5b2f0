"""NNX modules among the arguments of a function, split into arrays and put back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

_TAG = "linboost_optax"


def updating() -> Any:
    """The context in which modules are split, called and restored."""
    return nnx.update_context(_TAG)


@dataclass(frozen=True)
class Split:
    """The arguments of a function whose first is a module, without its nodes.

    Attributes:
      params: the state to differentiate, of the module alone.
      rest: the state of all nodes but that.
      graphdef: what makes nodes of both.
      args: the other arguments, nodes replaced by where they are among all nodes.
      kwargs: likewise.
    """

    params: Any
    rest: Any
    graphdef: Any
    args: tuple
    kwargs: Mapping[str, Any]

    @property
    def states(self) -> int:
        """How many arrays there are in ``rest``."""
        return len(jax.tree.leaves(self.rest))

    def call(
        self,
        function: Callable[..., Any],
        params: Any,
        rest: Any,
        args: tuple,
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """Returns what a function returns, and all nodes after it, split."""
        with nnx.merge_context(_TAG, inner=True) as inner:
            nodes = inner.merge(self.graphdef, nnx.State({0: params}), rest)
        args, kwargs = _put((args, kwargs), nodes)
        made: list[Any] = []
        out = _take(function(nodes[0], *args, **kwargs), made)
        with nnx.split_context(_TAG) as inner:
            return out, inner.split((nodes, tuple(made)))


# A leaf that is no array, so that it is static where arguments are traced.
@dataclass(frozen=True)
class _Node:
    index: int


def split(model: Any, args: tuple, kwargs: Mapping[str, Any], wrt: Any) -> Split:
    """Splits a module, and what other nodes there are among arguments."""
    nodes = [model]
    args, kwargs = _take((args, dict(kwargs)), nodes)
    mine = nnx.All(wrt, lambda path, _: path[0] == 0)
    with nnx.split_context(_TAG) as outer:
        graphdef, params, rest = outer.split(tuple(nodes), mine, ...)
    own = params[0] if params else nnx.State({})
    return Split(own, rest, graphdef, args, kwargs)


def restore(out: Any, after: Any) -> Any:
    """Has the nodes become what they are after a call; returns its result."""
    with nnx.merge_context(_TAG, inner=False) as outer:
        _, made = outer.merge(*after)
    return _put(out, made)


def functional(
    loss_fn: Callable[..., Any], args: tuple
) -> tuple[Callable[..., Any], tuple]:
    """Returns a loss and its arguments, those in front of the parameters bound."""
    if not isinstance(args[0], nnx.GraphDef):
        return loss_fn, args
    if len(args) < 2:
        raise TypeError(
            "`loss_fn` must be called with parameters after the GraphDef, got it alone."
            " Pass both: `graphdef, params, rest = nnx.split(model, nnx.Param, ...)`."
        )
    return functools.partial(loss_fn, args[0]), args[1:]


def is_node(leaf: Any) -> bool:
    """Whether something has a state of its own."""
    return nnx.graph.is_graph_node(leaf) or isinstance(leaf, nnx.Variable)


def _take(tree: Any, nodes: list[Any]) -> Any:
    """Returns a tree with markers for its nodes, which are appended to a list."""

    def take(leaf: Any) -> Any:
        if not is_node(leaf):
            return leaf
        nodes.append(leaf)
        return _Node(len(nodes) - 1)

    return jax.tree.map(take, tree, is_leaf=is_node)


def _put(tree: Any, nodes: tuple[Any, ...]) -> Any:
    """Returns a tree with nodes in the place of their markers."""
    return jax.tree.map(
        lambda leaf: nodes[leaf.index] if isinstance(leaf, _Node) else leaf, tree
    )
