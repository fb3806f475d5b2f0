"""Tasks and optimizers: each is what it says it is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.optimizers import OPTIMIZERS, grid, kernel_axes
from benchmarks.tasks import TASKS, _digits, text


@pytest.mark.parametrize("name", TASKS)
def test_task_is_consistent(name):
    task = TASKS[name].build()
    assert task.steps % task.every == 0
    assert task.every % 10 == 0
    assert task.batch_size <= len(task.train["x"])
    batch = task.batch_like()
    assert len(batch["x"]) == task.batch_size

    def losses():
        variables = task.model.init(jax.random.key(0), batch["x"], train=True)
        params = variables.pop("params")
        loss, state = task.loss(params, variables, batch)
        assert jax.tree.structure(state) == jax.tree.structure(dict(variables))
        return loss, task.metrics(params, state, task.test)

    loss, metrics = jax.eval_shape(losses)
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert all(value.shape == () for value in metrics.values())
    assert task.target in {f"{split}_loss" for split in ("train", "test")}


def test_shifted_digits_look_like_mnist():
    (train, _), (test, _) = splits = _digits.digits()
    assert len(train) + len(test) == 1797
    images, labels = _digits.shifted(splits[1], size=28, copies=2, seed=0, shift=4)
    assert images.shape == (2 * len(test), 28, 28)
    assert images.min() == 0
    assert 0.9 < images.max() <= 1
    assert 0.1 < np.mean(images > 0) < 0.6
    np.testing.assert_array_equal(labels[: len(test)], splits[1][1])
    assert not np.array_equal(images[: len(test)], images[len(test) :])
    again, _ = _digits.shifted(splits[1], size=28, copies=2, seed=0, shift=4)
    np.testing.assert_array_equal(images, again)


def test_shifting_keeps_the_digit():
    """Without enlarging, a shift moves every pixel and loses none."""
    split = _digits.digits()[1]
    images, _ = _digits.shifted(split, size=10, copies=1, seed=0, shift=1)
    totals = images.sum(axis=(1, 2))
    np.testing.assert_allclose(totals, split[0].sum(axis=(1, 2)), rtol=1e-5)


def test_corpus_is_the_library_in_ascii():
    codes = text.corpus()
    assert len(codes) > 500_000
    assert codes.min() == 0
    assert codes.max() < text.VOCABULARY
    source = "".join("\n" if code == 0 else chr(code + 31) for code in codes[:20_000])
    assert "import argparse" in source or "ArgumentParser" in source
    np.testing.assert_array_equal(codes, text.corpus())


def test_windows_predict_the_next_character():
    data = text.windows(np.arange(11, dtype=np.int32), length=5)
    np.testing.assert_array_equal(data["x"], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(data["y"], [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


def test_a_library_without_source_is_an_error(monkeypatch):
    monkeypatch.setattr(text, "MODULES", ("ast", "no_such_module"))
    with pytest.raises(FileNotFoundError, match=r"\['no_such_module'\] is not in"):
        text.corpus()


@pytest.mark.parametrize("centre", [3e-3, 0.3])
def test_grid_spans_two_decades(centre):
    rates = grid(centre, 5)
    assert rates[-1] / rates[0] == pytest.approx(100)
    assert rates[2] == centre
    ratios = np.divide(rates[1:], rates[:-1])
    np.testing.assert_allclose(ratios, math.sqrt(10), rtol=0.05)


def test_muon_orthogonalises_kernels_alone():
    params = {
        "Conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)},
        "Embed": {"embedding": jnp.zeros((5, 4))},
    }
    axes = kernel_axes(params)
    assert axes["Conv"]["kernel"] == ((0, 1, 2), 3)
    assert axes["Conv"]["bias"] is None
    assert axes["Embed"]["embedding"] is None
    transformation = OPTIMIZERS["muon"].build(optax.constant_schedule(1.0), None)
    grads = jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(0), p.shape), params
    )
    state = jax.jit(transformation.init)(params)
    updates, _ = jax.jit(transformation.update)(grads, state, params)
    singular = np.linalg.svd(np.reshape(updates["Conv"]["kernel"], (18, 4)))[1]
    assert singular.max() / singular.min() < 2
