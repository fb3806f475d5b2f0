"""The clock: what it times is the optimizer's own step, whoever else races."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from benchmarks import tasks, training
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.tasks import text


def test_batches_are_seeded_epochs():
    task = tasks.load("digits_autoencoder")
    order = training.batches(task, seed=3)
    assert order.shape == (task.steps, task.batch_size)
    np.testing.assert_array_equal(order, training.batches(task, seed=3))
    assert not np.array_equal(order, training.batches(task, seed=4))
    samples = len(task.train["x"])
    epoch = np.sort(np.asarray(order).ravel()[:samples])
    np.testing.assert_array_equal(epoch, np.arange(samples))


def test_schedule_warms_up_and_ends_at_zero():
    task = tasks.load("digits_autoencoder")
    schedule = training.schedule_for(task, jnp.float32(0.5))
    rates = np.array([schedule(count) for count in range(task.steps)])
    assert rates.argmax() == task.steps // 20 - 1
    assert rates.max() == pytest.approx(0.5)
    assert 0 < rates[0] < 0.05
    assert abs(rates[-1]) < 1e-6


@pytest.fixture(scope="module")
def descent():
    """A tiny task under gradient descent, compiled, with its evaluation."""
    with jax.numpy_dtype_promotion("standard"):
        task = tasks.load("factorisation", quick=True)
        sgd = Optimizer("SGD", lambda schedule, taps: optax.sgd(schedule), 0.01)
        yield (
            task,
            training.compile_trainer(task, sgd),
            training.compile_evaluate(task),
        )


def test_step_is_the_optimizers_own(descent):
    task, trainer, _ = descent
    carry = trainer.init(0)
    order = training.batches(task, seed=0)
    batch = {key: value[order[0]] for key, value in task.train.items()}
    grads = jax.grad(lambda p: task.loss(p, carry.state, batch)[0])(carry.params)
    rate = training.schedule_for(task, jnp.float32(0.01))(0)
    expected = jax.tree.map(lambda p, g: p - rate * g, carry.params, grads)
    entry = training.Entry(trainer, 0.01)
    carry, seconds = training.run_block(entry, carry, task, order, steps=1)
    for got, want in zip(*map(jax.tree.leaves, (carry.params, expected)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert carry.steps == 1
    assert seconds > 0


def test_interleaving_changes_no_curve(descent):
    """Racers see the same batches from the same start, and do not touch each other."""
    task, trainer, evaluate = descent
    entry, other = training.Entry(trainer, 0.01), training.Entry(trainer, 0.001)
    alone = training.race(task, {"a": entry}, evaluate)["a"]
    taken = []
    together = training.race(
        task, {"a": entry, "b": other, "c": entry}, evaluate, advance=taken.append
    )
    for name in ("a", "c"):
        assert together[name]["train_loss"] == alone["train_loss"]
    assert together["b"]["train_loss"] != alone["train_loss"]
    assert together["b"]["train_loss"][0] == alone["train_loss"][0]
    assert alone["train_loss"][-1] < alone["train_loss"][0]
    assert sum(taken) == 3 * task.steps


class Bigram(nn.Module):
    """Integers in, and running averages to carry from step to step."""

    @nn.compact
    def __call__(self, tokens, train=False):
        x = nn.Embed(text.VOCABULARY, 8)(tokens)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(text.VOCABULARY)(x)


def test_state_and_integer_inputs_pass_through():
    task = text._language_model(
        "Bigram", Bigram(), text.corpus(), batch_size=4, steps=4
    )
    trainer = training.compile_trainer(task, OPTIMIZERS["whiten"])
    start = trainer.init(0)
    before = jax.device_get((start.params, start.state))
    entry, order = training.Entry(trainer, 0.01), training.batches(task, seed=0)
    carry, _ = training.run_block(entry, start, task, order, steps=2)
    after = jax.device_get((carry.params, carry.state))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert set(after[1]) == {"batch_stats"}
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert np.all(np.isfinite(new))
        assert np.any(old != new)


@pytest.mark.parametrize(
    ("statistic", "taken"),
    [
        (lbo.Auto(), "gram"),
        (lbo.Auto(rank=4), "sketch"),
        (lbo.Moments(), "moments"),
    ],
)
def test_an_optimizer_taps_its_own_statistic(statistic, taken):
    task = tasks.load("factorisation", quick=True)
    optimizer = replace(OPTIMIZERS["whiten"], statistic=statistic)
    taps = training._taps(task, optimizer, task.batch_like())
    assert {line.split()[4] for line in str(taps).splitlines()[1:3]} == {taken}


def test_an_optimizer_without_a_statistic_taps_nothing():
    task = tasks.load("factorisation", quick=True)
    assert training._taps(task, OPTIMIZERS["adam"], task.batch_like()) is None
