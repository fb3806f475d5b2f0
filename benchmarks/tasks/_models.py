"""The models: plain Flax Linen, nothing in them knows about the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

STACK = "stack"  # the name of layers whose parameters have a leading axis of layers

Norm = Callable[[jax.Array, bool], jax.Array]  # inside a module: of `x` and `train`


def batch_norm(x: jax.Array, train: bool) -> jax.Array:
    """Normalise every feature over the batch; over running averages in a test."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


def layer_norm(x: jax.Array, train: bool) -> jax.Array:
    """Normalise every sample over its features."""
    del train
    return nn.LayerNorm()(x)


class MLP(nn.Module):
    """Dense layers with tanh between them, or another; the last one is linear.

    With a `norm`, what goes into every activation is normalised.
    """

    features: tuple[int, ...]
    use_bias: bool = True
    linear: bool = False
    activation: Callable[[jax.Array], jax.Array] = nn.tanh
    norm: Norm | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in self.features[:-1]:
            x = nn.Dense(width, use_bias=self.use_bias)(x)
            x = x if self.norm is None else self.norm(x, train)
            x = x if self.linear else self.activation(x)
        return nn.Dense(self.features[-1], use_bias=self.use_bias)(x)


class Link(nn.Module):
    """One tanh layer, in the form that `nn.scan` takes."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.tanh(nn.Dense(self.width)(x)), None


class Chain(nn.Module):
    """Many tanh layers of one width, then ten classes.

    All but the first and the last are one loop over stacked parameters, so that a
    hundred layers compile as fast as five.
    """

    width: int
    depth: int  # the tanh layers

    @property
    def features(self) -> tuple[int, ...]:
        """The width of every layer."""
        return (self.width,) * self.depth + (10,)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x, _ = Link(self.width)(x, None)
        links = nn.scan(
            Link, {"params": 0}, split_rngs={"params": True}, length=self.depth - 1
        )
        x, _ = links(self.width, name=STACK)(x, None)
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two 3x3 convolutions with pooling, one dense layer, ten classes."""

    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return batch_norm(x, train) if self.batch_norm else x

        for channels in (16, 32):
            x = nn.relu(norm(nn.Conv(channels, (3, 3))(x)))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(norm(nn.Dense(128)(x)))
        return nn.Dense(10)(x)


class Attention(nn.Module):
    """Causal multi-head self-attention with separate query, key and value layers."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (
            nn.Dense(width, name=name)(x).reshape(split)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return nn.Dense(width, name="out")(mixed.reshape(x.shape))


class Transformer(nn.Module):
    """Decoder-only transformer with LayerNorm before each branch."""

    vocabulary: int
    width: int
    blocks: int
    heads: int = 4

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        positions = jnp.arange(tokens.shape[-1])[None]
        x = x + nn.Embed(tokens.shape[-1], self.width, name="Position")(positions)
        for _ in range(self.blocks):
            x = x + Attention(self.heads)(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


class GRU(nn.Module):
    """Embedding, one gated recurrent layer over time, linear read-out."""

    vocabulary: int
    embedding: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = nn.Embed(self.vocabulary, self.embedding)(tokens)
        x = nn.RNN(nn.GRUCell(self.width))(x)
        return nn.Dense(self.vocabulary)(x)
