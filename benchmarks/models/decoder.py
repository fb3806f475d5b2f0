"""Decoders of the sizes that people train, as shapes: nothing of them is ever run."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder, and of a batch of tokens.

    Attributes:
      title: what it is called.
      vocabulary: number of tokens.
      width: of the residual stream.
      blocks: how many.
      heads: of each attention.
      hidden: width of each feed-forward layer.
      gated: whether that has a gate, and no layer a bias, as in LLaMA.
      batch: sequences and tokens of a step.
    """

    title: str
    vocabulary: int
    width: int
    blocks: int
    heads: int
    hidden: int
    gated: bool
    batch: tuple[int, int]

    @property
    def model(self) -> nn.Module:
        """The network, its blocks stacked along a leading axis."""
        return Network(self)

    @property
    def tokens(self) -> jax.ShapeDtypeStruct:
        """A batch."""
        return jax.ShapeDtypeStruct(self.batch, jnp.int32)


# Radford et al. (2019); Brown et al. (2020), table 2.1, "XL"; Touvron et al. (2023).
DECODERS = {
    "gpt2": Decoder("GPT-2 small", 50257, 768, 12, 12, 3072, False, (64, 1024)),
    "gpt3_xl": Decoder("GPT-3 XL", 50257, 2048, 24, 16, 8192, False, (64, 2048)),
    "llama_7b": Decoder("LLaMA 7B", 32000, 4096, 32, 32, 11008, True, (64, 2048)),
}


class Block(nn.Module):
    """Attention, then a feed-forward layer."""

    sizes: Decoder

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        def dense(width: int, name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(width, use_bias=not self.sizes.gated, name=name)(x)

        width, hidden = self.sizes.width, self.sizes.hidden
        h = nn.LayerNorm()(x)
        heads = (*h.shape[:-1], self.sizes.heads, width // self.sizes.heads)
        query, key, value = (dense(width, n, h) for n in ("query", "key", "value"))
        mask = nn.make_causal_mask(jnp.ones(h.shape[:-1]))
        mixed = nn.dot_product_attention(
            *(a.reshape(heads) for a in (query, key, value)), mask=mask
        )
        x = x + dense(width, "out", mixed.reshape(h.shape))
        h = nn.LayerNorm()(x)
        up = dense(hidden, "up", h)
        gated = self.sizes.gated
        up = nn.silu(dense(hidden, "gate", h)) * up if gated else nn.gelu(up)
        return x + dense(width, "down", up), None


class Network(nn.Module):
    """Tokens to logits."""

    sizes: Decoder

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.sizes.vocabulary, self.sizes.width, name="embed")(tokens)
        over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        blocks = nn.scan(nn.remat(Block), length=self.sizes.blocks, **over)
        x, _ = blocks(self.sizes, name="blocks")(x, None)
        head = nn.Dense(self.sizes.vocabulary, use_bias=False, name="head")
        return head(nn.LayerNorm()(x))
