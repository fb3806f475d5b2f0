"""Flax Linen: names of its own making, per-gate kernels, heads as an axis."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.frameworks import twin
from tests.frameworks.twin import EPSILON, HEADS, Part, Twin

F64 = {"param_dtype": jnp.float64}


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (7, 6):
            x = jnp.tanh(nn.Dense(width, **F64)(x))
        return nn.Dense(3, **F64)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2, padding=1, **F64)(x)
        x = nn.Conv(6, (3, 3), padding=1, feature_group_count=2, **F64)(jnp.tanh(x))
        return nn.Dense(3, **F64)(jnp.tanh(x).mean((1, 2)))


class Cell(nn.RNNCellBase):
    """``nn.GRUCell`` without the bias inside the reset gate, which others lack."""

    features: int

    @nn.compact
    def __call__(self, h, x):
        def linear(name, inputs, use_bias):
            return nn.Dense(self.features, use_bias, name=name, **F64)(inputs)

        of_x = [linear(f"i{gate}", x, True) for gate in "rzn"]
        of_h = [linear(f"h{gate}", h, False) for gate in "rzn"]
        reset, update = (nn.sigmoid(of_x[i] + of_h[i]) for i in (0, 1))
        new = jnp.tanh(of_x[2] + reset * of_h[2])
        h = (1.0 - update) * new + update * h
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        del rng
        return jnp.zeros((*input_shape[:-1], self.features), jnp.float64)

    @property
    def num_feature_axes(self):
        return 1


class GRU(nn.Module):
    cell: type = Cell

    @nn.compact
    def __call__(self, x):
        options = {} if self.cell is Cell else F64
        h = nn.RNN(self.cell(6, name="cell", **options), name="rnn")(x)
        return nn.Dense(3, name="out", **F64)(h[:, -1])


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        def norm(name):
            return nn.LayerNorm(epsilon=EPSILON, name=name, **F64)

        x = nn.Embed(11, 8, name="embed", **F64)(tokens)
        h = norm("before")(x)
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attention", **F64)
        x = x + attention(h, mask=nn.make_causal_mask(tokens))
        h = jnp.tanh(nn.Dense(12, name="up", **F64)(norm("between")(x)))
        x = x + nn.Dense(8, name="down", **F64)(h)
        return nn.Dense(11, name="out", **F64)(norm("after")(x))


def _make(model, module, shape, table, dtype=jnp.float64):
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    variables = jax.eval_shape(module.init, jax.random.key(0), inputs)
    table = {f"params.{path}": part for path, part in table.items()}
    return twin.make(model, module.apply, variables, table, module)


def _dense(path, name):
    return {f"{path}.kernel": f"{name}.w", f"{path}.bias": f"{name}.b"}


def mlp() -> Twin:
    table = {}
    for i in range(3):
        table |= _dense(f"Dense_{i}", str(i))
    return _make("mlp", MLP(), (1, 5), table)


def cnn() -> Twin:
    table = _dense("Conv_0", "strided") | _dense("Conv_1", "grouped")
    return _make("cnn", CNN(), (1, 6, 6, 2), table | _dense("Dense_0", "out"))


def _gates(cell):
    table = {}
    for i, gate in enumerate(("r", "z", "n")):
        table[f"{cell}.i{gate}.kernel"] = Part("input.w", None, i, 3)
        table[f"{cell}.i{gate}.bias"] = Part("input.b", None, i, 3)
        table[f"{cell}.h{gate}.kernel"] = Part("hidden.w", None, i, 3)
    return table


def gru() -> Twin:
    return _make("gru", GRU(), (1, 5, 4), _gates("cell") | _dense("out", "out"))


def native_gru() -> Twin:
    """``nn.GRUCell`` itself: its further bias is a constant that nobody trains."""
    module = GRU(nn.GRUCell)

    def forward(params, x):
        cell = params["params"]["cell"]
        hn = {**cell["hn"], "bias": jnp.zeros(6, jnp.float64)}
        cell = {**cell, "hn": hn}
        return module.apply({"params": {**params["params"], "cell": cell}}, x)

    return gru()._replace(forward=forward, module=None)


def transformer() -> Twin:
    table = {"embed.embedding": "embed.w"}
    for name in ("query", "key", "value"):
        table |= _dense(f"attention.{name}", name)
    table |= _dense("attention.out", "merge")
    for name in ("up", "down", "out"):
        table |= _dense(name, name)
    for name in ("before", "between", "after"):
        table |= {f"{name}.scale": f"{name}.scale", f"{name}.bias": f"{name}.offset"}
    return _make("transformer", Transformer(), (1, 6), table, jnp.int32)
