"""The tasks by name. A new task is one function that returns a `Task`, listed here."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.tasks import convolutional, dense, text
from benchmarks.tasks._task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "digits_classifier": dense.digits_classifier,
    "digits_autoencoder": dense.digits_autoencoder,
    "cnn": convolutional.cnn,
    "cnn_batch_norm": convolutional.cnn_batch_norm,
    "transformer": text.transformer,
    "gru": text.gru,
    "factorisation": dense.factorisation,
    "mlp_784": dense.mlp_784,
    "autoencoder_784": dense.autoencoder_784,
    "transformer_128": text.transformer_128,
}

__all__ = ["TASKS", "Task"]
