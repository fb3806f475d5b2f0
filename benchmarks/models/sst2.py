"""Sentiment of sentences: two LSTMs, one backwards, under attention without queries."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example, tokens

UNKNOWN = 1  # the word that stands for words that are left out


class Embedder(nn.Module):
    """A table of its own in place of `nn.Embed`; words and features drop out."""

    vocabulary: int
    width: int
    dropout: float
    word_dropout: float

    @nn.compact
    def __call__(self, words: jax.Array, train: bool) -> jax.Array:
        table = self.param(
            "embedding", nn.initializers.normal(0.1), (self.vocabulary, self.width)
        )
        if train:
            shape = words.shape
            key = self.make_rng("dropout")
            words = jnp.where(
                jax.random.bernoulli(key, self.word_dropout, shape), UNKNOWN, words
            )
        return nn.Dropout(self.dropout, deterministic=not train)(table[words])


class LSTM(nn.Module):
    """A scan over time that is part of the module's own call."""

    width: int

    @functools.partial(
        nn.scan,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )
    @nn.compact
    def __call__(self, carry: Any, x: jax.Array) -> Any:
        return nn.OptimizedLSTMCell(self.width)(carry, x)

    def start(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Zeros."""
        zeros = jnp.zeros((x.shape[0], self.width), x.dtype)
        return zeros, zeros


def reversed_in_time(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """Sentences backwards, padding where it was."""
    time = jnp.arange(x.shape[1])[None]
    last = lengths[:, None] - 1
    order = jnp.where(time <= last, last - time, time)
    return jnp.take_along_axis(x, order[..., None], axis=1)


class Bidirectional(nn.Module):
    """Both directions, side by side."""

    width: int

    def setup(self):
        self.forwards, self.backwards = LSTM(self.width), LSTM(self.width)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        _, there = self.forwards(self.forwards.start(x), x)
        flipped = reversed_in_time(x, lengths)
        _, back = self.backwards(self.backwards.start(x), flipped)
        return jnp.concatenate([there, reversed_in_time(back, lengths)], axis=-1)


class Attention(nn.Module):
    """One weight for each word, from the word alone."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        hidden = nn.tanh(nn.Dense(self.width, use_bias=False, name="keys")(x))
        score = nn.Dense(1, use_bias=False, name="energy")(hidden)[..., 0]
        is_word = jnp.arange(x.shape[1])[None] < lengths[:, None]
        weights = nn.softmax(jnp.where(is_word, score, -jnp.inf), axis=-1)
        self.sow("intermediates", "attention", weights)
        return jnp.einsum("bt,btd->bd", weights, x)


class Classifier(nn.Module):
    """Words, their reading in both directions, a summary, a logit."""

    vocabulary: int
    embedding: int = 300
    width: int = 256
    outputs: int = 1
    dropout: float = 0.5
    word_dropout: float = 0.1

    @nn.compact
    def __call__(self, words: jax.Array, lengths: jax.Array, train: bool) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        embedder = Embedder(
            self.vocabulary, self.embedding, self.dropout, self.word_dropout
        )
        x = drop(Bidirectional(self.width)(embedder(words, train), lengths))
        x = drop(Attention(self.width)(x, lengths))
        x = drop(nn.tanh(nn.Dense(self.width, name="hidden")(x)))
        return nn.Dense(self.outputs, use_bias=False, name="out")(x)


def sst2(tiny: bool = False) -> Example:
    """Sentences of up to 60 words; the vocabulary comes with the data, here 16000."""
    vocabulary, batch, length = (7, 3, 5) if tiny else (16_000, 64, 60)
    model = Classifier(vocabulary)
    if tiny:
        model = Classifier(vocabulary, embedding=4, width=3)

    def sample(key: jax.Array) -> tuple[jax.Array, ...]:
        lengths = jax.random.randint(key, (batch,), 1, length + 1)
        return tokens(key, (batch, length), vocabulary), lengths

    return Example(
        title="SST-2, two LSTMs with attention",
        model=model,
        sample=sample,
        static={"train": True},
        rngs=("dropout",),
    )
