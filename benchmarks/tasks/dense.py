"""Dense networks: classifiers, deep autoencoders, a linear factorisation."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from benchmarks.tasks import _curves
from benchmarks.tasks._digits import Split, digits, shifted
from benchmarks.tasks._models import MLP, Chain
from benchmarks.tasks._task import (
    COMPARED,
    Criterion,
    Task,
    bernoulli,
    cross_entropy,
    on_device,
    squared_error,
    supervised,
    task,
)


@task("main", *COMPARED)
def digits_classifier() -> Task:
    """Tanh MLP 100-256-10 on digits at random places of a 10x10 canvas.

    Without the shifts every optimizer separates the digits, and the training
    loss runs to zero: no target to race to.
    """
    return classifier((256,))


@task("main", "defaults", *COMPARED)
def digits_autoencoder() -> Task:
    """Tanh autoencoder 64-128-64-16-64-128-64 on 8x8 digits, squared error."""
    train, test = digits()
    model = MLP((128, 64, 16, 64, 128, 64))
    return _autoencoder(model, train[0], test[0], batch_size=256, steps=600)


@task("step_time", "defaults", *COMPARED)
def autoencoder_784() -> Task:
    """Tanh autoencoder 784-256-64-16-64-256-784, batch 500, same images."""
    train, test = _mnist_like()
    model = MLP((256, 64, 16, 64, 256, 784))
    return _autoencoder(model, train[0], test[0], batch_size=500, steps=320)


@task(*COMPARED)
def curves() -> Task:
    """The deepest of the classical autoencoders, 784-400-...-6-...-784, on curves.

    Hinton and Salakhutdinov (2006); as in Martens (2010) and what followed, but with
    tanh and squared error, as the autoencoders above.
    """
    hidden = (400, 200, 100, 50, 25)
    train, test = _curves.images(20_000, seed=0), _curves.images(2_000, seed=1)
    return _autoencoder(
        MLP((*hidden, 6, *hidden[::-1], 784)),
        train,
        test,
        batch_size=250,
        steps=400,
        every=20,
        evaluated=1000,
        what=" on curves",
    )


@task()
def autoencoder_pixels() -> Task:
    """ReLU autoencoder 784-256-64-16-64-256-784 with a Bernoulli for every pixel."""
    train, test = _mnist_like()
    return _autoencoder(
        MLP((256, 64, 16, 64, 256, 784), activation=nn.relu),
        train[0],
        test[0],
        batch_size=250,
        steps=320,
        what=", ReLU, Bernoulli pixels",
        criterion=bernoulli,
    )


@task()
def autoencoder_hinton() -> Task:
    """Tanh autoencoder 784-1000-500-250-30-250-500-1000-784 on the enlarged digits."""
    train, test = _mnist_like()
    hidden = (1000, 500, 250)
    model = MLP((*hidden, 30, *hidden[::-1], 784))
    return _autoencoder(model, train[0], test[0], batch_size=250, steps=400, every=20)


@task(*COMPARED)
def factorisation() -> Task:
    """Two linear layers must learn a matrix of condition number 1e5.

    The problem of Rahimi and Recht, "An Addendum to Alchemy" (2017), wider: the
    targets are `A x` with Gaussian `x`, noise-free, and every step sees all data.
    """
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(32, 32)))[0] for _ in range(2))
    matrix = left * np.logspace(0, -5, 32) @ right
    x = rng.normal(size=(1200, 32))
    x, y = x.astype(np.float32), (x @ matrix).astype(np.float32)
    model = MLP((32, 32), use_bias=False, linear=True)
    loss, metrics = supervised(model, squared_error)
    return Task(
        title="Matrix factorisation, condition number 1e5",
        model=model,
        train=on_device(x=x[:1000], y=y[:1000]),
        test=on_device(x=x[1000:], y=y[1000:]),
        loss=loss,
        metrics=metrics,
        batch_size=1000,
        steps=600,
        criterion=squared_error,
    )


@task("step_time", "memory")
def mlp_784() -> Task:
    """Tanh MLP 784-800-10, batch 1000, digits enlarged to look like MNIST."""
    train, test = _mnist_like()
    return _classifier(MLP((800, 10)), train, test, batch_size=1000, steps=200)


def classifier(hidden: tuple[int, ...], unit: float = 1.0, offset: float = 0.0) -> Task:
    """The digits classifier with other layers, or with pixels in another unit."""
    return classify(MLP((*hidden, 10)), unit, offset)


def classify(model: MLP | Chain, unit: float = 1.0, offset: float = 0.0) -> Task:
    """The task of the digits classifier with a model of one's own."""

    def moved(split: Split, seed: int) -> Split:
        images, labels = shifted(split, size=10, copies=4, seed=seed, shift=1)
        return (images + offset) * unit, labels

    train, test = digits()
    train, test = moved(train, seed=1), moved(test, seed=2)
    return _classifier(model, train, test, batch_size=256, steps=300)


def _classifier(
    model: MLP | Chain, train: Split, test: Split, batch_size: int, steps: int
) -> Task:
    loss, metrics = supervised(model, cross_entropy, accuracy=True)
    return Task(
        title=f"Classifier {_widths(train[0], model)}",
        model=model,
        train=on_device(x=_flat(train[0]), y=train[1]),
        test=on_device(x=_flat(test[0]), y=test[1]),
        loss=loss,
        metrics=metrics,
        batch_size=batch_size,
        steps=steps,
        evaluated=len(train[0]),
        criterion=cross_entropy,
    )


def _autoencoder(
    model: MLP,
    train: np.ndarray,
    test: np.ndarray,
    batch_size: int,
    steps: int,
    every: int = 10,
    evaluated: int | None = None,
    what: str = "",
    criterion: Criterion = squared_error,
) -> Task:
    loss, metrics = supervised(model, criterion)

    def data(images: np.ndarray) -> dict[str, jax.Array]:
        return on_device(x=_flat(images), y=_flat(images))

    return Task(
        title=f"Autoencoder {_widths(train, model)}{what}",
        model=model,
        train=data(train),
        test=data(test),
        loss=loss,
        metrics=metrics,
        batch_size=batch_size,
        steps=steps,
        every=every,
        evaluated=evaluated or len(train),
        criterion=criterion,
    )


def _mnist_like() -> tuple[Split, Split]:
    train, test = digits()
    return (
        shifted(train, size=28, copies=3, seed=1, shift=4),
        shifted(test, size=28, copies=3, seed=2, shift=4),
    )


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _widths(images: np.ndarray, model: MLP | Chain) -> str:
    return "-".join(map(str, (images[0].size, *model.features)))
