"""Gemma 3 in NNX: einsums, grouped queries, rotary positions, caches as arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.models._example import Example, tokens

Cache = dict[str, jax.Array]
CYCLE = 6  # of so many layers the last one sees far, the others see a window


@dataclass(frozen=True)
class Config:
    """Sizes: those of the model with a billion parameters, and the data's words."""

    vocabulary: int = 35_008
    width: int = 1152
    hidden: int = 6912
    heads: int = 4
    groups: int = 1  # heads of keys and values
    head_width: int = 256
    layers: int = 26
    window: int = 512
    near: float = 1e4  # longest wavelengths of positions, in layers with a window
    far: float = 1e6  # and without


class RMSNorm(nnx.Module):
    """Divides by the root of the mean square; scales start at one, kept as zero."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.scale = nnx.Param(nnx.initializers.zeros(rngs.params(), (width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        size = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(size + 1e-6) * (1 + self.scale[...])


class ScaledEmbed(nnx.Embed):
    """Embeddings of unit variance; `attend` is inherited, and is the read-out."""

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        x = super().__call__(*args, **kwargs)
        return x * jnp.sqrt(float(x.shape[-1]))


def rotated(x: jax.Array, positions: jax.Array, longest: float) -> jax.Array:
    """Turns pairs of features of `[batch, time, head, feature]` by their positions."""
    half = x.shape[-1] // 2
    rates = longest ** -(jnp.arange(half) / half)
    angles = (positions[..., None] * rates)[:, :, None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
    """Attention whose projections are `nnx.Einsum`, keys and values from one kernel."""

    def __init__(self, config: Config, local: bool, rngs: nnx.Rngs):
        self.groups = config.groups
        self.window = config.window if local else None
        self.longest = config.near if local else config.far
        width, size = config.width, config.head_width
        self.q = nnx.Einsum("btd,ndh->btnh", (config.heads, width, size), rngs=rngs)
        kernel = (2, config.groups, width, size)
        self.kv = nnx.Einsum("btd,ckdh->cbtkh", kernel, rngs=rngs)
        self.out = nnx.Einsum("btnh,nhd->btd", (config.heads, size, width), rngs=rngs)
        self.q_norm, self.k_norm = RMSNorm(size, rngs), RMSNorm(size, rngs)

    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        key, value = self.kv(x)
        query = rotated(self.q_norm(self.q(x)), positions, self.longest)
        key = rotated(self.k_norm(key), positions, self.longest)
        seen = positions
        if cache is not None:
            start = cache["end"]
            key = jax.lax.dynamic_update_slice(cache["k"], key, (0, start, 0, 0))
            value = jax.lax.dynamic_update_slice(cache["v"], value, (0, start, 0, 0))
            cache = {"k": key, "v": value, "end": start + x.shape[1]}
            seen = jnp.broadcast_to(jnp.arange(key.shape[1]), key.shape[:2])
        distance = positions[:, :, None] - seen[:, None]
        visible = distance >= 0
        if self.window is not None:
            visible &= distance < self.window
        batch, time, heads, size = query.shape
        grouped = (batch, time, self.groups, heads // self.groups, size)
        query = query.reshape(grouped) * size**-0.5
        logits = jnp.einsum("btkgh,bskh->bkgts", query, key)
        logits = jnp.where(visible[:, None, None], logits, -1e30)
        mixed = jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(logits), value)
        return self.out(mixed.reshape(batch, time, heads, size)), cache


class FeedForward(nnx.Module):
    """A hidden layer under a gate."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        sizes = config.width, config.hidden
        self.gate = nnx.Linear(*sizes, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(*sizes, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(*reversed(sizes), use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Both parts between norms, before and behind, beside their input."""

    def __init__(self, config: Config, local: bool, rngs: nnx.Rngs):
        self.attention = Attention(config, local, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.norms = nnx.List([RMSNorm(config.width, rngs) for _ in range(4)])

    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        before, behind, inner, outer = self.norms
        y, cache = self.attention(before(x), positions, cache)
        x = x + behind(y)
        return x + outer(self.feed_forward(inner(x))), cache


class Gemma(nnx.Module):
    """Logits of the next word, and the caches where there are any."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.embed = ScaledEmbed(config.vocabulary, config.width, rngs=rngs)
        local = [(i + 1) % CYCLE != 0 for i in range(config.layers)]
        self.blocks = nnx.List([Block(config, each, rngs) for each in local])
        self.norm = RMSNorm(config.width, rngs)

    def __call__(
        self,
        words: jax.Array,
        positions: jax.Array,
        caches: list[Cache] | None = None,
    ) -> tuple[jax.Array, list[Cache] | None]:
        x, kept = self.embed(words), []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, positions, None if caches is None else caches[i])
            kept.append(cache)
        return self.embed.attend(self.norm(x)), None if caches is None else kept


def empty_caches(config: Config, batch: int, length: int) -> list[Cache]:
    """Room for keys and values of every layer."""
    zeros = jnp.zeros((batch, length, config.groups, config.head_width))
    return [
        {"k": zeros, "v": zeros, "end": jnp.zeros((), jnp.int32)}
        for _ in range(config.layers)
    ]


TINY = Config(
    vocabulary=11,
    width=8,
    hidden=6,
    heads=4,
    groups=2,
    head_width=4,
    layers=2,
    window=3,
)


def gemma(tiny: bool = False) -> Example:
    """A billion parameters but for the vocabulary: 35008 words, in rows of 128."""
    config, shape = (TINY, (2, 5)) if tiny else (Config(), (32, 128))

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        return tokens(key, shape, config.vocabulary), positions

    return Example(
        title="Gemma 3, 1B",
        model=lambda rngs: Gemma(config, rngs),
        sample=sample,
    )
