"""Haiku: names with slashes in one flat dictionary, heads merged in a kernel."""

import haiku as hk
import jax
import jax.numpy as jnp

from tests.frameworks import twin
from tests.frameworks.twin import EPSILON, HEADS, Twin


def _mlp(x):
    return hk.nets.MLP((7, 6, 3), activation=jnp.tanh)(x)


def _cnn(x):
    padding = ((1, 1), (1, 1))
    x = jnp.tanh(hk.Conv2D(4, 3, stride=2, padding=padding, name="strided")(x))
    conv = hk.Conv2D(6, 3, padding=padding, feature_group_count=2, name="grouped")
    return hk.Linear(3, name="out")(jnp.tanh(conv(x)).mean((1, 2)))


class Cell(hk.Module):
    """The common GRU: ``hk.GRU`` resets the state before its product, not after."""

    def __init__(self, size):
        super().__init__(name="cell")
        self.input = hk.Linear(3 * size, name="input")
        self.hidden = hk.Linear(3 * size, with_bias=False, name="hidden")

    def __call__(self, x, h):
        of_x, of_h = (jnp.split(y, 3, axis=-1) for y in (self.input(x), self.hidden(h)))
        reset, update = (jax.nn.sigmoid(of_x[i] + of_h[i]) for i in (0, 1))
        new = jnp.tanh(of_x[2] + reset * of_h[2])
        h = (1.0 - update) * new + update * h
        return h, h


def _gru(x):
    cell = Cell(6)
    start = jnp.zeros((x.shape[0], 6), x.dtype)
    _, h = hk.dynamic_unroll(cell, x, start, time_major=False)
    return hk.Linear(3, name="out")(h)


def _transformer(tokens):
    def norm(name, x):
        return hk.LayerNorm(-1, True, True, eps=EPSILON, name=name)(x)

    zeros = jnp.zeros((11, 8), jnp.float64)  # float32 unless it is told otherwise
    x = hk.Embed(embedding_matrix=zeros, name="embed")(tokens)
    h = norm("before", x)
    init = hk.initializers.VarianceScaling()
    attention = hk.MultiHeadAttention(HEADS, 4, w_init=init, name="attention")
    mask = jnp.tril(jnp.ones((tokens.shape[1], tokens.shape[1]), bool))
    x = x + attention(h, h, h, mask[None, None])
    h = jnp.tanh(hk.Linear(12, name="up")(norm("between", x)))
    x = x + hk.Linear(8, name="down")(h)
    return hk.Linear(11, name="out")(norm("after", x))


def _make(model, function, shape, table, dtype=jnp.float64):
    init, forward = hk.without_apply_rng(hk.transform(function))
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    params = jax.eval_shape(init, jax.random.key(0), inputs)
    return twin.make(model, forward, params, table)


def _dense(path, name):
    return {f"{path}.w": f"{name}.w", f"{path}.b": f"{name}.b"}


def mlp() -> Twin:
    table = {}
    for i in range(3):
        table |= _dense(f"mlp/~/linear_{i}", str(i))
    return _make("mlp", _mlp, (1, 5), table)


def cnn() -> Twin:
    table = {}
    for name in ("strided", "grouped", "out"):
        table |= _dense(name, name)
    return _make("cnn", _cnn, (1, 6, 6, 2), table)


def gru() -> Twin:
    table = _dense("cell/~/input", "input") | _dense("out", "out")
    return _make("gru", _gru, (1, 5, 4), table | {"cell/~/hidden.w": "hidden.w"})


def transformer() -> Twin:
    table = {"embed.embeddings": "embed.w"}
    for name in ("query", "key", "value"):
        table |= _dense(f"attention/{name}", name)
    table |= _dense("attention/linear", "merge")
    for name in ("up", "down", "out"):
        table |= _dense(name, name)
    for name in ("before", "between", "after"):
        table |= {f"{name}.scale": f"{name}.scale", f"{name}.offset": f"{name}.offset"}
    return _make("transformer", _transformer, (1, 6), table, jnp.int32)
