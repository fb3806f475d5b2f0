"""The network of Flax's MNIST tutorial for NNX, on 8x8 digits; its AdamW, its rate.

https://flax.readthedocs.io/en/stable/mnist_tutorial.html
"""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

IMAGES, LABELS = (np.asarray(each) for each in load_digits(return_X_y=True))
IMAGES = (IMAGES / 16).astype("float32").reshape(-1, 8, 8, 1)
ORDER = np.random.default_rng(0).permutation(len(IMAGES))
ROWS = {"train": ORDER[:1280], "test": ORDER[1280:1792]}
BATCH = 32


class CNN(nnx.Module):
    """Two convolutions, batch normalisation, dropout, two dense layers."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(512, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.025, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        x = nnx.relu(self.conv2(x)).reshape(x.shape[0], -1)
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def model(key):
    return CNN(nnx.Rngs(params=key, dropout=key))


def loss(model, batch):
    images, labels = batch
    losses = optax.losses.softmax_cross_entropy_with_integer_labels
    return losses(model(images), labels).mean()


def batches(split, seed):
    order = np.random.default_rng(seed).permutation(ROWS[split])
    for rows in order.reshape(-1, BATCH):
        yield IMAGES[rows], LABELS[rows]


def optimizer(learning_rate=0.005):
    return optax.adamw(learning_rate, 0.9)
