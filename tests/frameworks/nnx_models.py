"""Flax NNX: parameters are a ``State``, gates of a GRU side by side in one kernel."""

import jax.numpy as jnp
from flax import linen, nnx

from tests.frameworks import twin
from tests.frameworks.twin import EPSILON, HEADS, Twin

F64 = {"param_dtype": jnp.float64}


class MLP(nnx.Module):
    def __init__(self, rngs):
        sizes = ((5, 7), (7, 6), (6, 3))
        self.layers = nnx.List([nnx.Linear(*size, rngs=rngs, **F64) for size in sizes])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


class CNN(nnx.Module):
    def __init__(self, rngs):
        options = {"padding": ((1, 1), (1, 1)), "rngs": rngs, **F64}
        self.strided = nnx.Conv(2, 4, (3, 3), strides=2, **options)
        self.grouped = nnx.Conv(4, 6, (3, 3), feature_group_count=2, **options)
        self.out = nnx.Linear(6, 3, rngs=rngs, **F64)

    def __call__(self, x):
        x = jnp.tanh(self.strided(x))
        return self.out(jnp.tanh(self.grouped(x)).mean((1, 2)))


class GRU(nnx.Module):
    def __init__(self, rngs):
        cell = nnx.GRUCell(4, 6, keep_rngs=False, rngs=rngs, **F64)
        self.rnn = nnx.RNN(cell)
        self.out = nnx.Linear(6, 3, rngs=rngs, **F64)

    def __call__(self, x):
        start = jnp.zeros((x.shape[0], 6), x.dtype)
        return self.out(self.rnn(x, initial_carry=start)[:, -1])


def attend(query, key, value, mask=None, **options):
    """Attention in float64: the softmax of the default is always in float32."""
    del options  # of dropout
    return linen.dot_product_attention(query, key, value, mask=mask)


class Transformer(nnx.Module):
    def __init__(self, rngs):
        options = {"rngs": rngs, **F64}
        self.embed = nnx.Embed(11, 8, **options)
        self.before = nnx.LayerNorm(8, epsilon=EPSILON, **options)
        self.attention = nnx.MultiHeadAttention(
            HEADS, 8, decode=False, attention_fn=attend, **options
        )
        self.between = nnx.LayerNorm(8, epsilon=EPSILON, **options)
        self.up = nnx.Linear(8, 12, **options)
        self.down = nnx.Linear(12, 8, **options)
        self.after = nnx.LayerNorm(8, epsilon=EPSILON, **options)
        self.out = nnx.Linear(8, 11, **options)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.before(x), mask=nnx.make_causal_mask(tokens))
        x = x + self.down(jnp.tanh(self.up(self.between(x))))
        return self.out(self.after(x))


def _make(model, module, table):
    graphdef, params, rest = nnx.split(module(nnx.Rngs(0)), nnx.Param, ...)

    def bind(params):
        return nnx.merge(graphdef, params, rest)

    def forward(params, *inputs):
        return bind(params)(*inputs)

    return twin.make(model, forward, params, table, bind)


def _dense(path, name):
    return {f"{path}.kernel": f"{name}.w", f"{path}.bias": f"{name}.b"}


def mlp() -> Twin:
    table = {}
    for i in range(3):
        table |= _dense(f"layers.{i}", str(i))
    return _make("mlp", MLP, table)


def cnn() -> Twin:
    table = {}
    for name in ("strided", "grouped", "out"):
        table |= _dense(name, name)
    return _make("cnn", CNN, table)


def gru() -> Twin:
    table = _dense("rnn.cell.dense_i", "input") | _dense("out", "out")
    return _make("gru", GRU, table | {"rnn.cell.dense_h.kernel": "hidden.w"})


def transformer() -> Twin:
    table = {"embed.embedding": "embed.w"}
    for name in ("query", "key", "value"):
        table |= _dense(f"attention.{name}", name)
    table |= _dense("attention.out", "merge")
    for name in ("up", "down", "out"):
        table |= _dense(name, name)
    for name in ("before", "between", "after"):
        table |= {f"{name}.scale": f"{name}.scale", f"{name}.bias": f"{name}.offset"}
    return _make("transformer", Transformer, table)
