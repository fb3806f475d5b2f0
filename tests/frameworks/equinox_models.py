"""Equinox: one sample at a time, kernels ``(out, in)``, images channels first."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.frameworks import twin
from tests.frameworks.twin import EPSILON, HEADS, Part, Twin, transposed

KEY = jax.random.key(0)  # of parameters that are replaced


class MLP(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __init__(self):
        sizes = ((5, 7), (7, 6), (6, 3))
        self.layers = [eqx.nn.Linear(*size, key=KEY) for size in sizes]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


class CNN(eqx.Module):
    strided: eqx.nn.Conv2d
    grouped: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __init__(self):
        self.strided = eqx.nn.Conv2d(2, 4, 3, stride=2, padding=1, key=KEY)
        self.grouped = eqx.nn.Conv2d(4, 6, 3, padding=1, groups=2, key=KEY)
        self.out = eqx.nn.Linear(6, 3, key=KEY)

    def __call__(self, x):
        x = jnp.tanh(self.strided(jnp.moveaxis(x, -1, 0)))
        return self.out(jnp.tanh(self.grouped(x)).mean((1, 2)))


class GRU(eqx.Module):
    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self):
        cell = eqx.nn.GRUCell(4, 6, key=KEY)
        # The bias inside the reset gate, which others lack, stays zero: see `gru`.
        zero = jnp.zeros(6, jnp.float64)
        self.cell = eqx.tree_at(lambda cell: cell.bias_n, cell, zero)
        self.out = eqx.nn.Linear(6, 3, key=KEY)

    def __call__(self, x):
        start = jnp.zeros(6, x.dtype)
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, x)
        return self.out(h)


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    before: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    between: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    after: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __init__(self):
        self.embed = eqx.nn.Embedding(11, 8, key=KEY)
        names = ("query", "key", "value", "output")
        biased = {f"use_{name}_bias": True for name in names}
        self.attention = eqx.nn.MultiheadAttention(HEADS, 8, key=KEY, **biased)
        self.before, self.between, self.after = (
            eqx.nn.LayerNorm(8, eps=EPSILON) for _ in range(3)
        )
        self.up, self.down, self.out = (
            eqx.nn.Linear(*size, key=KEY) for size in ((8, 12), (12, 8), (8, 11))
        )

    def __call__(self, tokens):
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        x = jax.vmap(self.embed)(tokens)
        h = jax.vmap(self.before)(x)
        x = x + self.attention(h, h, h, mask)

        def mix(x):
            return self.down(jnp.tanh(self.up(self.between(x))))

        x = x + jax.vmap(mix)(x)
        return jax.vmap(lambda x: self.out(self.after(x)))(x)


def _make(model, module, table, trained=eqx.is_inexact_array):
    """Only what ``trained`` says is a parameter; the rest is part of the function."""
    params, static = eqx.partition(module, trained)

    def forward(params, *inputs):
        return jax.vmap(eqx.combine(params, static))(*inputs)

    return twin.make(model, forward, params, table)


def _dense(path, name):
    return {f"{path}.weight": transposed(f"{name}.w"), f"{path}.bias": f"{name}.b"}


def mlp() -> Twin:
    table = {}
    for i in range(3):
        table |= _dense(f"layers.{i}", str(i))
    return _make("mlp", MLP(), table)


def cnn() -> Twin:
    table = _dense("out", "out")
    for name in ("strided", "grouped"):
        table[f"{name}.weight"] = Part(f"{name}.w", (3, 2, 0, 1))
        table[f"{name}.bias"] = f"{name}.b"
    return _make("cnn", CNN(), table)


def gru() -> Twin:
    table = _dense("out", "out") | {
        "cell.weight_ih": transposed("input.w"),
        "cell.bias": "input.b",
        "cell.weight_hh": transposed("hidden.w"),
    }
    module = GRU()
    trained = jax.tree.map(eqx.is_inexact_array, module)
    trained = eqx.tree_at(lambda module: module.cell.bias_n, trained, False)
    return _make("gru", module, table, trained)


def transformer() -> Twin:
    table: dict[str, Part | str] = {"embed.weight": "embed.w"}
    for name in ("query", "key", "value"):
        table |= _dense(f"attention.{name}_proj", name)
    table |= _dense("attention.output_proj", "merge")
    for name in ("up", "down", "out"):
        table |= _dense(name, name)
    for name in ("before", "between", "after"):
        table |= {f"{name}.weight": f"{name}.scale", f"{name}.bias": f"{name}.offset"}
    return _make("transformer", Transformer(), table)
