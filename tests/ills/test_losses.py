"""Robust losses: weights, bounds, and the scale they are measured in."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax.ills import Tukey
from linboost_optax.ills._steps.losses import LOSSES
from linboost_optax.ills._steps.scale import Robust, residual_scale

R = np.linspace(-8, 8, 81)


KINDS = [("huber", False), ("tukey", False), ("tukey", True)]


@pytest.mark.parametrize(("loss", "settled"), KINDS)
def test_weight_is_the_loss_s_slope(loss, settled):
    """d loss / d r = 2 r weight: reweighted least squares has the right gradient."""
    loss = LOSSES[loss]()
    with jax.enable_x64(True):
        r, robust = jnp.asarray(R), Robust(jnp.asarray(1.3), jnp.asarray(settled))
        slope = jax.vmap(jax.grad(lambda v: loss.value(v, robust)))(r)
        weight = np.asarray(loss.weight(r, robust))
    np.testing.assert_allclose(slope, 2 * R * weight, atol=1e-10)


@pytest.mark.parametrize(("loss", "settled"), KINDS)
def test_weighted_squares_lie_above_the_loss(loss, settled):
    """And touch it at the residual: a step that lowers them lowers the loss."""
    loss = LOSSES[loss]()
    with jax.enable_x64(True):
        r, robust = jnp.asarray(R), Robust(jnp.asarray(1.3), jnp.asarray(settled))
        value = np.asarray(loss.value(r, robust))
        weight = np.asarray(loss.weight(r, robust))
    # One row a point of contact.
    above = value[:, None] + weight[:, None] * (R[None] ** 2 - R[:, None] ** 2)
    assert np.all(value[None] <= above + 1e-10)
    assert np.all((weight >= 0) & (weight <= 1))


@pytest.mark.parametrize("tuning", [1.5, 4.685, 20.0])
def test_tukey_takes_over_from_a_loss_nowhere_below_it(tuning):
    with jax.enable_x64(True):
        r, scale = jnp.linspace(-100, 100, 20_001), jnp.asarray(1.3)
        before, after = (
            Tukey(tuning).value(r, Robust(scale, jnp.asarray(settled)))
            for settled in (False, True)
        )
    assert np.all(np.asarray(after - before) <= 1e-12)


@pytest.mark.parametrize(("loss", "settled"), KINDS)
def test_a_smaller_scale_never_raises_the_loss(loss, settled):
    loss = LOSSES[loss]()
    values = [
        loss.value(
            jnp.asarray(R),
            Robust(jnp.float32(s).astype(jnp.float32), jnp.asarray(settled)),
        )
        for s in (jnp.inf, 3.0, 1.0, 0.1)
    ]
    for larger, smaller in itertools.pairwise(values):
        assert bool(jnp.all(smaller <= larger + 1e-5))


def test_scale_is_that_of_the_normal_distribution_and_skips_missing():
    rng = np.random.default_rng(0)
    r = jnp.asarray(2 * rng.normal(size=(20_000, 1)), jnp.float32)
    weights = jnp.ones_like(r).at[::3].set(0)
    dirty = jnp.where(weights > 0, r, 1e6)
    np.testing.assert_allclose(residual_scale(dirty, weights, None), 2.0, rtol=0.03)


@pytest.mark.parametrize("samples", [1, 2, 7, 40, 1001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_counts_a_residual_as_often_as_its_weight_says(samples, dtype):
    """The lower median of repeated residuals, whatever the weights sum to."""
    rng = np.random.default_rng(samples)
    r = rng.normal(size=(samples, 2)).astype(dtype)
    times = rng.integers(0, 5, size=(samples, 2))
    times[0, 0] = 1
    repeated = np.sort(np.repeat(np.abs(r.ravel()), times.ravel()))
    want = 1.4826 * repeated[(len(repeated) - 1) // 2]
    with jax.enable_x64(True):
        for weights in (times, times / times.sum()):
            got = residual_scale(jnp.asarray(r), jnp.asarray(weights, dtype), None)
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_scale_without_samples_is_infinite():
    assert residual_scale(jnp.ones((3, 1)), jnp.zeros((3, 1)), None) == np.inf
