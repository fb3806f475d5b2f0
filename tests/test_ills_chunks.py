"""Large data: memory does not grow with the samples, sums run over devices."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linboost_optax as lbo
from linboost_optax._ills.chunks import Batch, map_over_chunks, sum_over_chunks
from linboost_optax._ills.least_squares import factorize, solve, weighted_gram
from linboost_optax._ills.robust import (
    LOSSES,
    Robust,
    loss_value,
    loss_weight,
    residual_scale,
)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 10, 99, None])
def test_every_sample_counts_once(chunk_size):
    x = jnp.arange(20.0).reshape(10, 2)
    batch = Batch(x, x[:, :1], jnp.ones((10, 1)))

    def total(part):
        return jnp.sum(part.inputs * part.weights), jnp.sum(part.weights)

    assert sum_over_chunks(total, batch, chunk_size, None) == (190.0, 10.0)
    rows = map_over_chunks(lambda part: 2 * part.inputs, batch, chunk_size)
    np.testing.assert_array_equal(rows, 2 * x)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_memory_does_not_grow_with_the_samples(loss):
    """Beyond the data: nothing a sample, or targets, weights and residuals once."""
    params = lbo.init_mlp(jax.random.key(0), (20, 10, 1))
    tx = lbo.ills(lbo.network(params), chunk_size=512, loss=loss)
    state = tx.init(params)

    def temporary(n):
        x = jax.ShapeDtypeStruct((n, 20), jnp.float32)
        y = jax.ShapeDtypeStruct((n, 1), jnp.float32)

        def step(state, params, x, y):
            return tx.update(None, state, params, inputs=x, targets=y)

        compiled = jax.jit(step).lower(state, params, x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    growth = (temporary(100_000) - temporary(10_000)) / 90_000
    # Bytes a sample: the weight; a robust loss sorts residuals and keeps T and w.
    assert growth <= (8 if loss == "squared" else 40)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, functools
from jax.sharding import Mesh, PartitionSpec as P
import linboost_optax as lbo
assert jax.device_count() == 2
x = jax.random.normal(jax.random.key(0), (40, 3))
y = jnp.sin(x[:, :1]) + x[:, 1:2] ** 2
params = lbo.init_mlp(jax.random.key(1), (3, 5, 1))
net = lbo.network(params)
results = []
for axis_name in (None, "data"):
    tx = lbo.ills(net, loss="huber", chunk_size=8, axis_name=axis_name)
    state = tx.init(params)._replace(count=jnp.int32(1))
    def step(state, params, x, y):
        return tx.update(None, state, params, inputs=x, targets=y)
    if axis_name:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        step = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P(), P("data"), P("data")),
            out_specs=P(), check_vma=False)
    results.append(jax.jit(step)(state, params, x, y))
assert bool(results[0][1].accepted)
jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
    results[0], results[1])
"""


def test_two_devices_equal_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


# The least-squares kernel under hard conditions.


def test_gram_of_every_group():
    rng = np.random.default_rng(0)
    a, w = rng.normal(size=(30, 4)), rng.uniform(size=(30, 3))
    with jax.enable_x64(True):
        got = weighted_gram(jnp.asarray(a.T), jnp.asarray(w.T))
    want = np.einsum("ni,nj,nu->uij", a, a, w)
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_singular_group_does_not_disturb_the_others():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 4)).astype(np.float32)
    good = jnp.asarray(a.T @ a)
    # The second matrix is indefinite by rounding's worth, the third all 0.
    bad = jnp.ones((4, 4)).at[0, 1].add(1e-3).at[1, 0].add(1e-3)
    gram = jnp.stack([good, bad, jnp.zeros((4, 4))])
    rhs = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    got = solve(gram, rhs)
    np.testing.assert_allclose(got[:, 0], np.linalg.solve(good, rhs[:, 0]), rtol=1e-4)
    assert bool(jnp.all(jnp.isfinite(got)))
    _, factor = factorize(gram)
    alone = factorize(gram[:1])
    np.testing.assert_allclose(factor[0], alone[1][0], rtol=1e-6)


def test_no_answer_is_zero():
    gram = jnp.full((1, 3, 3), jnp.nan)
    np.testing.assert_array_equal(solve(gram, jnp.ones((3, 2))), 0)


# Robust losses.

R = np.linspace(-8, 8, 81)


KINDS = [("huber", False), ("tukey", False), ("tukey", True)]


@pytest.mark.parametrize(("loss", "settled"), KINDS)
def test_weight_is_the_loss_s_slope(loss, settled):
    """d loss / d r = 2 r weight: reweighted least squares has the right gradient."""
    tuning = LOSSES[loss].tuning
    with jax.enable_x64(True):
        r, robust = jnp.asarray(R), Robust(jnp.asarray(1.3), jnp.asarray(settled))
        slope = jax.vmap(jax.grad(lambda v: loss_value(loss, tuning, v, robust)))(r)
        weight = np.asarray(loss_weight(loss, tuning, r, robust))
    np.testing.assert_allclose(slope, 2 * R * weight, atol=1e-10)


@pytest.mark.parametrize(("loss", "settled"), KINDS)
def test_weighted_squares_lie_above_the_loss(loss, settled):
    """And touch it at the residual: a step that lowers them lowers the loss."""
    tuning = LOSSES[loss].tuning
    with jax.enable_x64(True):
        r, robust = jnp.asarray(R), Robust(jnp.asarray(1.3), jnp.asarray(settled))
        value = np.asarray(loss_value(loss, tuning, r, robust))
        weight = np.asarray(loss_weight(loss, tuning, r, robust))
    # One row a point of contact.
    above = value[:, None] + weight[:, None] * (R[None] ** 2 - R[:, None] ** 2)
    assert np.all(value[None] <= above + 1e-10)
    assert np.all((weight >= 0) & (weight <= 1))


@pytest.mark.parametrize("tuning", [1.5, 4.685, 20.0])
def test_tukey_takes_over_from_a_loss_nowhere_below_it(tuning):
    with jax.enable_x64(True):
        r, scale = jnp.linspace(-100, 100, 20_001), jnp.asarray(1.3)
        before, after = (
            loss_value("tukey", tuning, r, Robust(scale, jnp.asarray(settled)))
            for settled in (False, True)
        )
    assert np.all(np.asarray(after - before) <= 1e-12)


@pytest.mark.parametrize(("loss", "settled"), KINDS)
def test_a_smaller_scale_never_raises_the_loss(loss, settled):
    tuning = LOSSES[loss].tuning
    values = [
        loss_value(
            loss,
            tuning,
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
