"""Levenberg-Marquardt and variable projection, where the minimum is known."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.jobs import ills as job
from benchmarks.regression import jacobians
from benchmarks.regression.problems import Split
from benchmarks.regression.trainers import TRAINERS
from linboost_optax import ills

pytestmark = pytest.mark.slow

BOTH = ("marquardt", "projection")


def students(noise):
    """Data of a 3-4-2 teacher, and a student that starts near it."""
    keys = jax.random.split(jax.random.key(0), 4)
    teacher = ills.init_mlp(keys[0], (3, 4, 2))
    teacher = [(2 * kernel, bias) for kernel, bias in teacher]
    x = jax.random.normal(keys[1], (80, 3))
    y = ills.predict(ills.network(teacher), teacher, x)
    y = y + noise * jax.random.normal(keys[2], y.shape)
    start = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(keys[3], leaf.shape), teacher
    )
    return Split((x, y), (x, y), (x[:40], y[:40])), start


def train(name, split, start):
    network = ills.network(start)
    return TRAINERS[name].train(network, start, split, None, steps=60, full=True)


def mean_square(params, x, y):
    return jnp.mean((ills.predict(ills.network(params), params, x) - y) ** 2)


@pytest.mark.parametrize("name", BOTH)
def test_a_student_near_its_teacher_finds_it(name):
    split, start = students(noise=0.0)
    params, curve = train(name, split, start)
    assert curve.shape == (60, 3)
    np.testing.assert_array_equal(curve[:, 0], curve[:, 1])
    assert curve[0, 0] < jnp.sqrt(mean_square(start, *split.train))
    assert curve[-1, 0] < 1e-5
    last = jnp.sqrt(mean_square(params, *split.test))
    np.testing.assert_allclose(curve[-1, 2], last, atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_with_noise_both_end_at_a_minimum(name):
    split, start = students(noise=0.3)
    params, _ = train(name, split, start)
    x, y = split.train
    before, after = (
        jax.tree.leaves(jax.grad(mean_square)(weights, x, y))
        for weights in (start, params)
    )
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in before) > 1e-2
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in after) < 1e-4
    x, y, params = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), (x, y, params)
    )
    (kernel, bias), (last, last_bias) = params
    features = np.tanh(x @ kernel + bias)
    design = np.column_stack([features, np.ones(len(x))])
    solved, *_ = np.linalg.lstsq(design, y)
    np.testing.assert_allclose(np.vstack([last, last_bias]), solved, atol=2e-3)


def test_the_gradient_of_the_projected_residual_is_exact():
    """The best last layer is at a minimum: its own change adds nothing."""
    split, start = students(noise=0.3)
    hidden, last = start[:-1], jacobians.with_last(start[:-1], *split.train)[-1]

    def projected(hidden):
        return jnp.sum(jacobians.projected_residual(hidden, *split.train) ** 2)

    def fixed(hidden):
        return mean_square([*hidden, last], *split.train)

    np.testing.assert_allclose(projected(hidden), fixed(hidden), rtol=1e-5)
    got, expected = jax.grad(projected)(hidden), jax.grad(fixed)(hidden)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_they_compete_where_the_jacobian_is_small():
    small, _, params = job._start("friedman1", "clean", 0)
    large, _, wide = job._start("digits", "clean", 0)
    for name in BOTH:
        trainer = TRAINERS[name]
        assert trainer.competes("clean", small, params)
        assert trainer.competes("noise", small, params)
        assert not trainer.competes("outliers", small, params)
        assert not trainer.competes("clean", large, wide)
    assert TRAINERS["lbfgs"].competes("clean", large, wide)
    assert not TRAINERS["ills_huber"].competes("clean", small, params)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optimistix", None)
    with pytest.raises(ImportError, match=r"package optimistix.*\[bench\]"):
        jacobians._packages()
