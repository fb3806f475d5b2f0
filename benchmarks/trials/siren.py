"""A network of sines fits an image, all pixels in one batch; Adam at the paper's rate.

Sitzmann et al. (2020), arXiv:2006.09661, sections 3.2 and 4.1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_sample_image

OMEGA, WIDTH = 30.0, 128
# One of scikit-learn's photographs, 50x50 pixels of its middle, grey, in [-1, 1].
IMAGE = np.asarray(load_sample_image("china.jpg"))[100:300:4, 200:400:4].mean(-1)
PIXELS = (IMAGE / 127.5 - 1).reshape(-1, 1).astype("float32")
_AXIS = np.linspace(-1, 1, len(IMAGE))
PLACES = np.stack(np.meshgrid(_AXIS, _AXIS), -1).reshape(-1, 2).astype("float32")


def first(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


def inner(key, shape, dtype=jnp.float32):
    bound = np.sqrt(6 / shape[0]) / OMEGA
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Siren(nn.Module):
    """Four layers of sines, and a grey value."""

    @nn.compact
    def __call__(self, x):
        x = jnp.sin(OMEGA * nn.Dense(WIDTH, kernel_init=first)(x))
        for _ in range(3):
            x = jnp.sin(OMEGA * nn.Dense(WIDTH, kernel_init=inner)(x))
        return nn.Dense(1, kernel_init=inner)(x)


def model(key):
    return Siren().init(key, PLACES[:1])


def loss(variables, batch):
    places, pixels = batch
    return jnp.mean((Siren().apply(variables, places) - pixels) ** 2)


def batches(split, seed):
    if split == "train":
        yield PLACES, PIXELS


def optimizer(learning_rate=1e-4):
    return optax.adam(learning_rate)
