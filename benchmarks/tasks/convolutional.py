"""Convolutional classifiers, without and with normalisation layers."""

from __future__ import annotations

import numpy as np

from benchmarks.tasks._digits import digits, shifted
from benchmarks.tasks._models import CNN
from benchmarks.tasks._task import (
    COMPARED,
    Task,
    cross_entropy,
    on_device,
    supervised,
    task,
)


@task("step_time", "defaults", *COMPARED)
def cnn() -> Task:
    """Two convolutions and a dense layer on enlarged, shifted digits."""
    return _cnn("CNN without normalisation", batch_norm=False)


@task(*COMPARED)
def cnn_batch_norm() -> Task:
    """The same network with BatchNorm after every hidden layer."""
    return _cnn("CNN with BatchNorm", batch_norm=True)


def _cnn(title: str, batch_norm: bool) -> Task:
    train, test = digits()
    model = CNN(batch_norm)
    loss, metrics = supervised(model, cross_entropy, accuracy=True)

    def data(split: tuple[np.ndarray, np.ndarray], copies: int, seed: int):
        images, labels = shifted(split, size=20, copies=copies, seed=seed)
        return on_device(x=images[..., None], y=labels)

    return Task(
        title=title,
        model=model,
        train=data(train, copies=6, seed=1),
        test=data(test, copies=4, seed=2),
        loss=loss,
        metrics=metrics,
        batch_size=250,
        steps=200,
    )
