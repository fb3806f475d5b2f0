"""Condition numbers, against ones that are made with NumPy from the inputs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax._trial import conditions, training
from linboost_optax._trial.competitors import competitors
from linboost_optax._trial.task import Task

MIX = np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.1], [0.0, 0.0, 3.0]])
DATA = np.random.default_rng(0).normal(size=(64, 3)) @ MIX + [1.0, 0.0, -2.0]
DATA = DATA.astype("float32")


def model(key):
    return {"w": jax.random.normal(key, (3, 2)), "b": jnp.zeros(2)}


def loss(params, batch):
    return jnp.mean((batch @ params["w"] + params["b"][None]) ** 2)


def batches(split, seed):
    return DATA.reshape(4, 16, 3) if split == "train" else None


@pytest.fixture(scope="module")
def found():
    task = Task("t", model, loss, batches)
    setup = training.set_up(task)
    trainer = training.compile_trainer(setup, competitors(task)["polar"])
    source = list(itertools.islice(itertools.cycle(batches("train", 0)), 60))
    source = [jnp.asarray(batch) for batch in source]
    carry, _ = training.run(trainer, trainer.init(0), source, 0, 0.0, 60)
    ((name, pair),) = conditions.before_and_after(setup, carry).items()
    assert name == "."
    return pair


def test_before_is_that_of_the_second_moment_with_the_constant(found):
    augmented = np.concatenate([DATA, np.ones((64, 1))], axis=1).astype(float)
    values = np.linalg.eigvalsh(augmented.T @ augmented / 64)
    assert found[0] == pytest.approx(values[-1] / values[0], rel=1e-3)


def test_after_is_that_in_the_coordinates_of_the_damped_factor(found):
    # By hand: centred inputs, a factor of the damped covariance of the moving average,
    # which after 60 steps of four batches is near that of all of them.
    x = DATA.astype(float)
    covariance = np.cov(x.T, bias=True)
    damped = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance)) + 0.03 * np.eye(3)
    factor = np.linalg.cholesky(damped)
    white = np.linalg.solve(factor, (x - x.mean(0)).T).T
    values = np.linalg.eigvalsh(white.T @ white / 64)
    expected = max(values[-1], 1) / min(values[0], 1)
    assert found[1] == pytest.approx(expected, rel=0.15)
    assert found[1] < found[0] / 5
