"""A transformer that tags words: an encoder, called by keywords alone."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example, tokens
from benchmarks.models._positions import sinusoids

INIT: dict[str, Any] = {
    "kernel_init": nn.initializers.xavier_uniform(),
    "bias_init": nn.initializers.normal(1e-6),
}


class EncoderBlock(nn.Module):
    """Attention, then a hidden layer, each behind LayerNorm and beside its input."""

    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def drop(x: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        attention = nn.MultiHeadDotProductAttention(
            self.heads,
            use_bias=False,
            broadcast_dropout=False,
            dropout_rate=self.dropout,
            deterministic=not train,
            **INIT,
        )
        x = x + drop(attention(nn.LayerNorm()(x)))
        y = nn.elu(nn.Dense(self.hidden, **INIT)(nn.LayerNorm()(x)))
        return x + drop(nn.Dense(x.shape[-1], **INIT)(drop(y)))


class Tagger(nn.Module):
    """A tag for every word."""

    vocabulary: int
    tags: int
    width: int = 512
    heads: int = 8
    layers: int = 6
    hidden: int = 2048
    dropout: float = 0.3

    @nn.compact
    def __call__(self, *, inputs: jax.Array, train: bool) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width, name="embed")(inputs)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x + jnp.asarray(sinusoids(inputs.shape[1], self.width))
        for _ in range(self.layers):
            x = EncoderBlock(self.heads, self.hidden, self.dropout)(x, train)
        return nn.Dense(self.tags, **INIT)(nn.LayerNorm()(x))


def nlp_seq(tiny: bool = False) -> Example:
    """Sentences of 256 words; vocabularies come with the data, here 20000 and 50."""
    model, shape = Tagger(20_000, 50), (64, 256)
    if tiny:
        model = Tagger(9, 5, width=8, heads=2, layers=1, hidden=6)
        shape = (2, 5)
    return Example(
        title="nlp_seq, transformer that tags",
        model=model,
        sample=lambda key: {"inputs": tokens(key, shape, model.vocabulary)},
        static={"train": True},
        rngs=("dropout",),
    )
