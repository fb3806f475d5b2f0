"""A small task in three frameworks: the same functions, the same numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linboost_optax._trial.task import Task

ROWS, SIZE, FEATURES = 48, 16, 3
_RNG = np.random.default_rng(0)
X = (_RNG.normal(size=(ROWS + SIZE, FEATURES)) * [1.0, 5.0, 0.2]).astype("float32")
Y = np.sin(X[:, :1]).astype("float32")


def batches(split, seed):
    """Three training batches, in another order every epoch, and one to test."""
    if split == "test":
        yield X[ROWS:], Y[ROWS:]
        return
    order = np.random.default_rng(seed).permutation(ROWS)
    for i in range(0, ROWS, SIZE):
        yield X[order[i : i + SIZE]], Y[order[i : i + SIZE]]


def tree(key):
    first, second = jax.random.split(key)
    return {
        "a": {"kernel": jax.random.normal(first, (FEATURES, 4)), "bias": jnp.zeros(4)},
        "b": {"kernel": jax.random.normal(second, (4, 1)), "bias": jnp.zeros(1)},
    }


def forward(params, x):
    x = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return x @ params["b"]["kernel"] + params["b"]["bias"][None]


def loss(params, batch):
    x, y = batch
    return jnp.mean((forward(params, x) - y) ** 2)


class Linen(nn.Module):
    """The same, its parameters in a collection."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="b")(jnp.tanh(nn.Dense(4, name="a")(x)))


def variables(key):
    return {"params": tree(key)}


def linen_loss(variables, batch):
    x, y = batch
    return jnp.mean((Linen().apply(variables, x) - y) ** 2)


class Module(nnx.Module):
    """The same, as an object."""

    def __init__(self, key):
        self.a = nnx.Linear(FEATURES, 4, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
        for name, values in tree(key).items():
            getattr(self, name).kernel[...] = values["kernel"]
            getattr(self, name).bias[...] = values["bias"]

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


def module_loss(module, batch):
    x, y = batch
    return jnp.mean((module(x) - y) ** 2)


TASKS = {
    "tree": Task("tree", tree, loss, batches),
    "linen": Task("linen", variables, linen_loss, batches),
    "nnx": Task("nnx", Module, module_loss, batches),
}
