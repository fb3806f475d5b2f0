"""Small networks and a training step that several tests share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from linboost_optax import linen


class MLP(nn.Module):
    """Tanh network; `dtype` is that of parameters and computation."""

    widths: tuple[int, ...] = (8, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, param_dtype=self.dtype)(x)
            x = jnp.tanh(x) if i + 1 < len(self.widths) else x
        return x


def data(rows=32, inputs=5, outputs=3, dtype=jnp.float32, seed=0):
    """Correlated inputs with a mean, and targets that a network can fit."""
    keys = jax.random.split(jax.random.key(seed), 3)
    mix = jax.random.normal(keys[0], (inputs, inputs), dtype)
    x = jax.random.normal(keys[1], (rows, inputs), dtype) @ mix + 1.0
    y = jnp.sin(x @ jax.random.normal(keys[2], (inputs, outputs), dtype))
    return x, y


def squared_error(model):
    """Returns the loss of `model`, a function of params and a batch."""

    def loss_fn(params, batch):
        x, y = batch
        return jnp.mean(jnp.square(model.apply({"params": params}, x) - y))

    return loss_fn


def train_step(loss_fn, taps, tx):
    """Returns one step of training, not jitted."""

    def step(params, state, batch):
        loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state, loss

    return step
