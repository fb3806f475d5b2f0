"""The language model once more, in NNX: the same layers, sizes and masks."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.models._example import Example
from benchmarks.models._positions import shifted, sinusoids
from benchmarks.models.lm1b import BIAS, KERNEL, TINY, Config, packed, visible


def linear(config: Config, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with the example's initial values."""
    return nnx.Linear(
        inputs,
        outputs,
        dtype=config.dtype,
        kernel_init=KERNEL,
        bias_init=BIAS,
        rngs=rngs,
    )


class DecoderBlock(nnx.Module):
    """Causal attention, then a hidden layer, each behind LayerNorm."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = nnx.LayerNorm(width, dtype=config.dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            config.heads,
            width,
            width,
            dtype=config.dtype,
            kernel_init=KERNEL,
            use_bias=False,
            broadcast_dropout=False,
            dropout_rate=config.dropout,
            deterministic=config.deterministic,
            decode=config.decode,
            keep_rngs=False,
            rngs=rngs,
        )
        self.norm2 = nnx.LayerNorm(width, dtype=config.dtype, rngs=rngs)
        self.up = linear(config, width, config.hidden, rngs)
        self.down = linear(config, config.hidden, width, rngs)
        self.dropout = nnx.Dropout(config.dropout, deterministic=config.deterministic)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, rngs: nnx.Rngs | None
    ) -> jax.Array:
        y = self.attention(self.norm1(x), mask=mask, rngs=rngs)
        x = x + self.dropout(y, rngs=rngs)
        y = self.dropout(nnx.relu(self.up(self.norm2(x))), rngs=rngs)
        return x + self.dropout(self.down(y), rngs=rngs)


class LanguageModel(nnx.Module):
    """Logits of the next word; random numbers are an argument of the call."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(1.0)
        self.embed = nnx.Embed(
            config.vocabulary, config.width, embedding_init=normal, rngs=rngs
        )
        self.blocks = nnx.List(
            [DecoderBlock(config, rngs) for _ in range(config.layers)]
        )
        self.norm = nnx.LayerNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, deterministic=config.deterministic)
        tied = config.logits_via_embedding
        sizes = config.width, config.vocabulary
        self.logits = None if tied else linear(config, *sizes, rngs)

    def __call__(
        self,
        words: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        config = self.config
        x = self.embed(words if config.decode else shifted(words, segments))
        table = jnp.asarray(sinusoids(config.max_length, config.width))
        if config.decode:
            positions = jnp.broadcast_to(self.index[...], words.shape)
            self.index[...] += 1
        x = x + (table[: words.shape[1]] if positions is None else table[positions])
        x = self.dropout(x, rngs=rngs).astype(config.dtype)
        mask = visible(config, words, segments)
        for block in self.blocks:
            x = block(x, mask, rngs)
        x = self.norm(x)
        if self.logits is None:
            x = x.astype(jnp.float32)
            return self.embed.attend(x) / jnp.sqrt(float(config.width))
        return self.logits(x)

    def init_cache(self, batch: int, length: int) -> None:
        """Makes room for what decoding remembers."""
        self.index = nnx.Cache(jnp.zeros((), jnp.int32))
        for block in self.blocks:
            shape = (batch, length, self.config.width)
            block.attention.init_cache(shape, dtype=self.config.dtype)


def lm1b_nnx(tiny: bool = False) -> Example:
    """The example's defaults: bfloat16, a read-out of its own."""
    return _lm1b("lm1b in NNX, language model", tiny, logits_via_embedding=False)


def lm1b_nnx_tied(tiny: bool = False) -> Example:
    """With the transpose of the embedding as the read-out."""
    return _lm1b("lm1b in NNX, logits via embedding", tiny, logits_via_embedding=True)


def _lm1b(title: str, tiny: bool, logits_via_embedding: bool) -> Example:
    config, shape = Config(dtype=jnp.bfloat16), (32, 128)
    if tiny:
        config, shape = TINY, (2, 6)
    config = replace(config, logits_via_embedding=logits_via_embedding)
    return Example(
        title=title,
        model=lambda rngs: LanguageModel(config, rngs),
        sample=lambda key: packed(key, shape, config.vocabulary),
        rngs=("dropout",),
    )
