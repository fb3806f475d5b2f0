"""One layer of every kind, as a Linen and as an NNX module, by the same name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests.sharding.models import DTYPE

_64 = {"dtype": DTYPE, "param_dtype": DTYPE}
LAYERS = 4  # of a stack; as many experts
TOKENS = 16


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
      linen: makes a Linen module.
      nnx: makes an NNX module, given ``rngs``.
      shape: of the batch.
      tokens: whether the batch is of tokens.
      rows: which of the kernel's axes is sharded where its rows are.
      stacked: whether the first axis of every parameter is one of layers.
      batch: mesh axes that the batch is sharded over.
    """

    linen: Callable[[], nn.Module]
    nnx: Callable[..., nnx.Module]
    shape: tuple[int, ...] = (8, 6)
    tokens: bool = False
    rows: int = -2
    stacked: bool = False
    batch: str | tuple[str, ...] = "data"

    def layout(self, name: str) -> Callable[[bool, tuple[int, ...]], P]:
        """Returns the sharding of a bias, or of a kernel, by its shape."""

        def spec(bias: bool, shape: tuple[int, ...]) -> P:
            axes: list[str | None] = [None] * len(shape)
            if name == "rows" and not bias:
                axes[self.rows] = "data"
            if name == "columns":
                axes[-1] = "model"
            if name == "stack":
                axes[0] = "model"
            return P(*axes)

        return spec

    def input(self) -> jax.Array:
        key = jax.random.key(1)
        if self.tokens:
            return jax.random.randint(key, self.shape, 0, TOKENS)
        return jax.random.normal(key, self.shape, DTYPE) + 0.5


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4, **_64)(x)), None


class _Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(_Block, length=LAYERS, **over)()(x, None)[0]


class _NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs, **_64)

    def __call__(self, x):
        return jnp.tanh(self.dense(x))


class _NNXStack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.vmap(_NNXBlock)(rngs.fork(split=LAYERS))

    def __call__(self, x):
        over = nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return over(lambda block, x: block(x))(self.blocks, x)


class _Tied(nn.Module):
    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(TOKENS, 4, **_64)
        return embed.attend(jnp.tanh(embed(x)))


class _NNXTied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(TOKENS, 4, rngs=rngs, **_64)

    def __call__(self, x):
        return self.embed.attend(jnp.tanh(self.embed(x)))


def _ragged(x, kernel):
    """Returns the outputs of experts, each of which has as many of the samples."""
    flat = x.reshape(-1, x.shape[-1])
    sizes = jnp.full(LAYERS, len(flat) // LAYERS)
    return jax.lax.ragged_dot(flat, kernel, sizes).reshape(*x.shape[:-1], -1)


class _Experts(nn.Module):
    @nn.compact
    def __call__(self, x):
        shape = (LAYERS, x.shape[-1], 4)
        return _ragged(x, self.param("w", nn.initializers.lecun_normal(), shape, DTYPE))


class _NNXExperts(nnx.Module):
    def __init__(self, rngs):
        make = nn.initializers.lecun_normal()
        self.w = nnx.Param(make(rngs.params(), (LAYERS, 6, 4), DTYPE))

    def __call__(self, x):
        return _ragged(x, self.w[...])


def _attend(query, key, value, **_):
    """Returns what heads attend to; JAX's own function does it in float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


# A bias of the keys has no gradient but rounding errors, which Adam makes steps of.
_heads = {"use_bias": False, "attention_fn": _attend, **_64}


class _Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, qkv_features=4, **_heads)(x)


def _nnx_attention(rngs):
    return nnx.MultiHeadAttention(2, 6, 4, decode=False, rngs=rngs, **_heads)


_strided = {"strides": 2, "padding": "CIRCULAR", **_64}
# By XLA's own mistake a plain gradient of a grouped kernel is wrong where the batch is
# sharded over one axis of two; over both it is right.
_grouped = {"shape": (8, 4, 4, 4), "batch": ("data", "model")}

KINDS = {
    "dense": Kind(
        lambda: nn.Dense(4, **_64),
        lambda rngs: nnx.Linear(6, 4, rngs=rngs, **_64),
    ),
    "no bias": Kind(
        lambda: nn.Dense(4, use_bias=False, **_64),
        lambda rngs: nnx.Linear(6, 4, use_bias=False, rngs=rngs, **_64),
        (8, 4, 6),
    ),
    "general": Kind(
        lambda: nn.DenseGeneral((2, 2), axis=(-2, -1), **_64),
        lambda rngs: nnx.LinearGeneral((4, 6), (2, 2), axis=(-2, -1), rngs=rngs, **_64),
        (8, 4, 6),
        rows=0,
    ),
    "einsum": Kind(
        lambda: nn.Einsum((6, 2, 4), "btd,dhk->bthk", **_64),
        lambda rngs: nnx.Einsum("btd,dhk->bthk", (6, 2, 4), (2, 4), rngs=rngs, **_64),
        (8, 4, 6),
        rows=0,
    ),
    "attention": Kind(_Attention, _nnx_attention, (8, 4, 6), rows=0),
    "conv": Kind(
        lambda: nn.Conv(4, (3, 3), **_strided),
        lambda rngs: nnx.Conv(4, 4, (3, 3), rngs=rngs, **_strided),
        (8, 4, 6, 4),
    ),
    "grouped": Kind(
        lambda: nn.Conv(4, (3, 3), feature_group_count=2, **_64),
        lambda rngs: nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=rngs, **_64),
        **_grouped,
    ),
    "depthwise": Kind(
        lambda: nn.Conv(4, (2, 3), feature_group_count=4, **_64),
        lambda rngs: nnx.Conv(4, 4, (2, 3), feature_group_count=4, rngs=rngs, **_64),
        rows=0,  # of one channel each: the window is what there is
        **_grouped,
    ),
    "transposed": Kind(
        lambda: nn.ConvTranspose(4, (3,), 2, **_64),
        lambda rngs: nnx.ConvTranspose(4, 4, (3,), 2, rngs=rngs, **_64),
        (8, 6, 4),
    ),
    "embed": Kind(
        lambda: nn.Embed(TOKENS, 4, **_64),
        lambda rngs: nnx.Embed(TOKENS, 4, rngs=rngs, **_64),
        tokens=True,
    ),
    "tied": Kind(_Tied, _NNXTied, tokens=True),
    "blocks": Kind(
        lambda: nn.Einsum((LAYERS, 6, 4), "bei,eio->beo", **_64),
        lambda rngs: nnx.Einsum(
            "bei,eio->beo", (LAYERS, 6, 4), (LAYERS, 4), rngs=rngs, **_64
        ),
        (8, LAYERS, 6),
        stacked=True,
    ),
    "experts": Kind(_Experts, _NNXExperts, (8, 4, 6), stacked=True),
    "stack": Kind(_Stack, _NNXStack, (8, 4), stacked=True),
    "recurrent": Kind(
        lambda: nn.RNN(nn.OptimizedLSTMCell(4, **_64)),
        lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(6, 4, rngs=rngs, **_64), rngs=rngs),
        (8, 3, 6),
    ),
}
