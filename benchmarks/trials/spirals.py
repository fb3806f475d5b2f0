"""Equinox's recurrent network tells spirals from their mirror images; Adam, its rate.

https://docs.kidger.site/equinox/examples/train_rnn/
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCH, STEPS, HIDDEN = 32, 16, 16


def spirals(number, seed):
    """Points of spirals that begin anywhere, half of them mirrored."""
    t = np.linspace(0, 2 * np.pi, STEPS)
    offset = np.random.default_rng(seed).uniform(0, 2 * np.pi, (number, 1))
    x = np.stack([np.sin(t + offset), np.cos(t + offset)], axis=-1)
    x /= (1 + t)[None, :, None]
    mirrored = np.arange(number) % 2
    x[..., 0] *= (1 - 2 * mirrored)[:, None]
    return x.astype("float32"), mirrored.astype("float32")


DATA = {"train": spirals(8000, 0), "test": spirals(512, 1)}


class RNN(eqx.Module):
    """A gated cell over time, and one logit."""

    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(2, HIDDEN, key=first)
        self.out = eqx.nn.Linear(HIDDEN, 1, key=second)

    def __call__(self, points):
        def step(hidden, point):
            return self.cell(point, hidden), None

        hidden, _ = jax.lax.scan(step, jnp.zeros(HIDDEN), points)
        return self.out(hidden)[0]


def model(key):
    return RNN(key)


def loss(model, batch):
    points, mirrored = batch
    logits = jax.vmap(model)(points)
    return optax.losses.sigmoid_binary_cross_entropy(logits, mirrored).mean()


def batches(split, seed):
    points, mirrored = DATA[split]
    order = np.random.default_rng(seed).permutation(len(points))
    for rows in order.reshape(-1, BATCH):
        yield points[rows], mirrored[rows]


def optimizer(learning_rate=3e-3):
    return optax.adam(learning_rate)
