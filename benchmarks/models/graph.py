"""Graph convolutions on a social network, from layers and from bare parameters."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example


def gathered(x: jax.Array, sources: jax.Array, targets: jax.Array) -> jax.Array:
    """Each node's neighbours, summed, beside the node itself."""
    sums = jax.ops.segment_sum(x[sources], targets, num_segments=x.shape[0])
    return jnp.concatenate([sums, x], axis=1)


class GraphConv(nn.Module):
    """A dense layer on what is gathered."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *edges: jax.Array) -> jax.Array:
        return nn.Dense(self.width)(gathered(x, *edges))


class GraphConvByHand(nn.Module):
    """The same map of parameters of its own: no layer that anybody could know."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *edges: jax.Array) -> jax.Array:
        x = gathered(x, *edges)
        shape = (x.shape[-1], self.width)
        kernel = self.param("weights", nn.initializers.lecun_normal(), shape)
        return x @ kernel + self.param("offset", nn.initializers.zeros, (self.width,))


class GNN(nn.Module):
    """Two rounds of messages, then a class for every node."""

    convolution: type[GraphConv] | type[GraphConvByHand] = GraphConv
    hidden: int = 32
    classes: int = 2

    @nn.compact
    def __call__(
        self, x: jax.Array, sources: jax.Array, targets: jax.Array
    ) -> jax.Array:
        x = nn.relu(self.convolution(self.hidden)(x, sources, targets))
        return nn.log_softmax(self.convolution(self.classes)(x, sources, targets))


def graph(tiny: bool = False) -> Example:
    """34 nodes with features of their own, and 156 directed edges."""
    return _graph("Graph convolutions", GraphConv, tiny)


def graph_by_hand(tiny: bool = False) -> Example:
    """The same network without layers."""
    return _graph("Graph convolutions, bare parameters", GraphConvByHand, tiny)


def _graph(
    title: str, convolution: type[GraphConv] | type[GraphConvByHand], tiny: bool
) -> Example:
    nodes, edges = (5, 8) if tiny else (34, 156)

    def sample(key: jax.Array) -> tuple[jax.Array, ...]:
        ends = jax.random.randint(key, (2, edges), 0, nodes)
        return jnp.eye(nodes), ends[0], ends[1]

    return Example(title=title, model=GNN(convolution), sample=sample)
