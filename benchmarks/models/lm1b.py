"""A language model on packed sentences: boxed parameters, caches, tied embeddings."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example, tokens
from benchmarks.models._positions import shifted, sinusoids


@dataclass(frozen=True)
class Config:
    """Sizes, and the uses of one set of parameters: training, evaluation, decoding."""

    vocabulary: int = 30_000
    width: int = 512
    heads: int = 8
    layers: int = 6
    hidden: int = 2048
    max_length: int = 2048
    dropout: float = 0.1
    dtype: Any = jnp.float32
    logits_via_embedding: bool = False
    deterministic: bool = False
    decode: bool = False


def boxed(init: Any, *axes: str) -> Any:
    """An initializer that says along which logical axes its array is sharded."""
    return nn.with_logical_partitioning(init, axes)


KERNEL = nn.initializers.xavier_uniform()
BIAS = nn.initializers.normal(1e-6)


def dense(config: Config, size: int, axes: tuple[str, str], **kwargs: Any) -> nn.Dense:
    """A dense layer with boxed parameters."""
    return nn.Dense(
        size,
        dtype=config.dtype,
        kernel_init=boxed(KERNEL, *axes),
        bias_init=boxed(BIAS, axes[1]),
        **kwargs,
    )


def norm(config: Config, **kwargs: Any) -> nn.LayerNorm:
    """A LayerNorm with boxed parameters."""
    return nn.LayerNorm(
        dtype=config.dtype,
        scale_init=boxed(nn.initializers.ones, "embed"),
        bias_init=boxed(nn.initializers.zeros, "embed"),
        **kwargs,
    )


class Positions(nn.Module):
    """Adds sinusoids: of given positions where sentences are packed."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        table = jnp.asarray(sinusoids(self.config.max_length, x.shape[-1]))
        if self.config.decode:
            started = self.has_variable("cache", "index")
            index = self.variable("cache", "index", lambda: jnp.zeros((), jnp.int32))
            if started:
                positions = jnp.broadcast_to(index.value, x.shape[:2])
                index.value = index.value + 1
        if positions is None:
            return x + table[: x.shape[1]]
        return x + table[positions]


class DecoderBlock(nn.Module):
    """Causal attention, then a hidden layer, each behind LayerNorm."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=config.deterministic)
        attention = nn.MultiHeadDotProductAttention(
            config.heads,
            dtype=config.dtype,
            qkv_features=config.width,
            kernel_init=boxed(KERNEL, "embed", "kv"),
            use_bias=False,
            broadcast_dropout=False,
            dropout_rate=config.dropout,
            deterministic=config.deterministic,
            decode=config.decode,
        )
        x = x + drop(attention(norm(config)(x), mask=mask))
        up = dense(config, config.hidden, ("embed", "mlp"))
        down = dense(config, config.width, ("mlp", "embed"))
        return x + drop(down(drop(nn.relu(up(norm(config)(x))))))


class LanguageModel(nn.Module):
    """Logits of the next word; of the one word that it is given where it decodes."""

    config: Config

    @nn.compact
    def __call__(
        self,
        words: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        embed = nn.Embed(
            config.vocabulary,
            config.width,
            embedding_init=boxed(nn.initializers.normal(1.0), "vocab", "embed"),
        )
        x = embed(words if config.decode else shifted(words, segments))
        x = Positions(config)(x, positions)
        x = nn.Dropout(config.dropout, deterministic=config.deterministic)(x)
        x, mask = x.astype(config.dtype), visible(config, words, segments)
        for i in range(config.layers):
            x = DecoderBlock(config, name=f"block_{i}")(x, mask)
        x = norm(config)(x)
        if config.logits_via_embedding:
            return embed.attend(x.astype(jnp.float32)) / jnp.sqrt(float(x.shape[-1]))
        axes = ("embed", "vocab")
        return dense(config, config.vocabulary, axes, name="logits")(x)


def visible(
    config: Config, words: jax.Array, segments: jax.Array | None
) -> jax.Array | None:
    """Which words see which: those before, of the same sentence, none of padding."""
    if config.decode:
        return None  # the cache holds nothing that comes later
    make = functools.partial(nn.make_attention_mask, dtype=config.dtype)
    masks = [
        make(words > 0, words > 0),
        nn.make_causal_mask(words, dtype=config.dtype),
    ]
    if segments is not None:
        masks.append(make(segments, segments, jnp.equal))
    return nn.combine_masks(*masks, dtype=config.dtype)


TINY = Config(vocabulary=11, width=8, heads=2, layers=1, hidden=6, max_length=7)


def packed(key: jax.Array, shape: tuple[int, int], vocabulary: int) -> Any:
    """Words, positions and numbers of sentences: two in every row."""
    half = shape[1] // 2
    time = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    later = time >= half
    segments = jnp.where(later, 2, 1)
    return tokens(key, shape, vocabulary), jnp.where(later, time - half, time), segments


def lm1b(tiny: bool = False) -> Example:
    """The example's defaults: bfloat16, a read-out of its own."""
    return _lm1b("lm1b, language model", tiny, logits_via_embedding=False)


def lm1b_tied(tiny: bool = False) -> Example:
    """With the transpose of the embedding as the read-out."""
    return _lm1b("lm1b, logits via embedding", tiny, logits_via_embedding=True)


def _lm1b(title: str, tiny: bool, logits_via_embedding: bool) -> Example:
    config, shape = Config(dtype=jnp.bfloat16), (32, 128)
    if tiny:
        config, shape = TINY, (2, 6)
    config = replace(config, logits_via_embedding=logits_via_embedding)
    return Example(
        title=title,
        model=LanguageModel(config),
        sample=lambda key: packed(key, shape, config.vocabulary),
        rngs=("dropout",),
    )
