"""Deep models on random batches: what they cost to compile, nothing to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.tasks._task import cross_entropy, supervised


class Deep(NamedTuple):
    """A model with the batch that its step is compiled for."""

    title: str
    model: nn.Module
    batch: dict[str, jax.Array]
    loss: Callable[[Any, Any, Any], tuple[jax.Array, Any]]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside the identity, or a 1x1 convolution."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(x: jax.Array, size: int, stride: int) -> jax.Array:
            x = nn.Conv(self.width, (size, size), (stride, stride), use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        y = conv(nn.relu(conv(x, 3, self.stride)), 3, 1)
        x = x if x.shape == y.shape else conv(x, 1, self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network for small images: no pooling before the blocks."""

    width: int = 64
    stages: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage in range(self.stages):
            for block in range(2):
                stride = 2 if stage and not block else 1
                x = ResidualBlock(self.width * 2**stage, stride)(x, train)
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


class Encoder(nn.Module):
    """A causal transformer, its layers written out one after another."""

    layers: int
    width: int = 128
    heads: int = 4
    vocabulary: int = 96

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


def resnet18(quick: bool) -> Deep:
    """ResNet-18 for images of 32 by 32, 32 a batch."""
    x = jax.random.normal(jax.random.key(0), (2 if quick else 32, 32, 32, 3))
    model = ResNet(width=4, stages=1) if quick else ResNet()
    return _classifier("ResNet-18, 21 kernels", model, x, jnp.arange(len(x)) % 10)


def transformer12(quick: bool) -> Deep:
    """Twelve layers, 128 wide, 8 sequences of 32 tokens a batch."""
    tokens = jax.random.randint(jax.random.key(0), (8, 32), 0, 96)
    model = Encoder(layers=1 if quick else 12)
    return _classifier("Transformer, 12 layers, 74 kernels", model, tokens, tokens)


def _classifier(title: str, model: nn.Module, x: jax.Array, y: jax.Array) -> Deep:
    loss, _ = supervised(model, cross_entropy)
    return Deep(title, model, {"x": x, "y": y}, loss)


DEEP: dict[str, Callable[[bool], Deep]] = {
    each.__name__: each for each in (resnet18, transformer12)
}
