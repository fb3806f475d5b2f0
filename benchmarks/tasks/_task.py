"""What a task is: a model, its data, its loss, and how long to train it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

Data = dict[str, jax.Array]
Loss = Callable[[Any, Any, Data], tuple[jax.Array, Any]]
Metrics = Callable[[Any, Any, Data], dict[str, jax.Array]]
Criterion = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Task:
    """A training problem, the same for every optimizer.

    `loss(params, state, batch)` returns the loss and the new `state`: every
    variable collection but `params`, such as the running averages of BatchNorm;
    an empty dict for most models. `metrics(params, state, data)` evaluates.
    """

    title: str
    model: nn.Module
    train: Data
    test: Data
    loss: Loss
    metrics: Metrics
    batch_size: int
    steps: int
    every: int = 10  # steps between two evaluations: a whole number of refreshes
    target: str = "train_loss"  # the curve on which the optimizers race
    evaluated: int = 2000  # samples of each split that an evaluation reads, at most
    init_kwargs: dict[str, Any] = field(default_factory=lambda: {"train": True})
    criterion: Criterion | None = None  # of outputs and targets, if it is all the loss

    @property
    def whole(self) -> bool:
        """Whether every batch is the whole training set."""
        return self.batch_size == len(self.train["x"])

    def batch_like(self) -> Data:
        """The first samples: a batch of the right shapes."""
        return {key: value[: self.batch_size] for key, value in self.train.items()}


@dataclass(frozen=True)
class Listed:
    """How to build a task, and the jobs that run it unless told otherwise."""

    build: Callable[..., Task]  # of the file to read, if it reads one
    jobs: tuple[str, ...]
    reads_text: bool = False


TASKS: dict[str, Listed] = {}
COMPARED = ("whiten", "sensitivity", "memory")  # the jobs that compare all tasks


def task(
    *jobs: str, reads_text: bool = False
) -> Callable[[Callable[..., Task]], Callable[..., Task]]:
    """List a function as a task, under its own name."""

    def add(build: Callable[..., Task]) -> Callable[..., Task]:
        TASKS[build.__name__] = Listed(build, jobs, reads_text)
        return build

    return add


def of(job: str) -> tuple[str, ...]:
    """The names of a job's tasks."""
    return tuple(name for name, listed in TASKS.items() if job in listed.jobs)


def supervised(
    model: nn.Module,
    criterion: Criterion,
    accuracy: bool = False,
) -> tuple[Loss, Metrics]:
    """Loss and metrics of a model called as `model(x, train)` against targets `y`."""

    def loss(params: Any, state: Any, batch: Data) -> tuple[jax.Array, Any]:
        outputs, state = model.apply(
            {"params": params, **state}, batch["x"], train=True, mutable=list(state)
        )
        return criterion(outputs, batch["y"]), state

    def metrics(params: Any, state: Any, data: Data) -> dict[str, jax.Array]:
        outputs = model.apply({"params": params, **state}, data["x"], train=False)
        assert isinstance(outputs, jax.Array)
        result = {"loss": criterion(outputs, data["y"])}
        if accuracy:
            result["accuracy"] = jnp.mean(
                (jnp.argmax(outputs, axis=-1) == data["y"]).astype(outputs.dtype)
            )
        return result

    return loss, metrics


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy with integer labels, mean over every leading axis."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error, summed over the last axis, mean over the samples."""
    return jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))


def bernoulli(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of independent pixels, summed over them, mean over the samples."""
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    return jnp.mean(jnp.sum(losses, axis=-1))


def on_device(**arrays: np.ndarray) -> Data:
    """Move the data to the device, once."""
    return {key: jnp.asarray(value) for key, value in arrays.items()}
