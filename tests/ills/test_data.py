"""Data of ILLS: weights and masks, what must not matter, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax import ills
from tests.ills.problems import X, Y, fit, never_rises, problem, run, stepper


def objectives_of(x, y, **data):
    """Of five iterations; 30 or 40 samples, so that two shapes serve several tests."""
    params = ills.init_mlp(jax.random.key(0), (3, 5, 1))
    return ills.fit_ills(
        ills.network(params), params, x, y, max_iter=5, tol=0.0, **data
    ).objectives


def test_zero_weight_is_absence():
    x, y = problem(0, 40, 3, 1)
    dirty = jnp.where(jnp.arange(40)[:, None] < 30, y, 99.0)
    weights = jnp.where(jnp.arange(40) < 30, 0.7, 0.0)
    np.testing.assert_allclose(
        objectives_of(x, dirty, sample_weight=weights),
        objectives_of(x[:30], y[:30]),
        rtol=1e-4,
    )


def test_weight_two_is_twice_the_sample():
    x, y = problem(0, 30, 3, 1)
    weights = jnp.where(jnp.arange(30) < 10, 2.0, 1.0)
    twice = [jnp.concatenate([a, a[:10]]) for a in (x, y)]
    np.testing.assert_allclose(
        objectives_of(x, y, sample_weight=weights), objectives_of(*twice), rtol=1e-4
    )


def test_mask_equals_dropping():
    """With one output a missing target is a missing sample."""
    x, y = problem(0, 40, 3, 1)
    mask = jnp.arange(40) % 4 != 0
    np.testing.assert_allclose(
        objectives_of(x, y[:, 0], mask=mask), objectives_of(x[mask], y[mask]), rtol=1e-4
    )


def test_missing_targets_do_not_matter():
    """Whatever stands at a masked target, NaN included, nothing changes."""
    x, y = problem(0, 60, 3, 2)
    mask = jax.random.uniform(jax.random.key(3), y.shape) > 0.3
    params = ills.init_mlp(jax.random.key(0), (3, 6, 2))
    net = ills.network(params)
    results = [
        ills.fit_ills(net, params, x, jnp.where(mask, y, other), mask=mask, max_iter=20)
        for other in (0.0, jnp.nan)
    ]
    np.testing.assert_array_equal(results[0].objectives, results[1].objectives)
    assert results[0].objectives[-1] < 0.5 * results[0].objectives[0]


def trained(x, y):
    """Weights and state after eight iterations from one start."""
    tx, update = stepper(3, (5,), 1, ())
    params = ills.init_mlp(jax.random.key(0), (3, 5, 1))
    params, state, _ = run(tx, update, params, x, y, 8)
    return params, state


def test_order_of_the_samples():
    x, y = problem(0, 40, 3, 1)
    order = np.random.default_rng(0).permutation(40)
    want, state = trained(x, y)
    got, other = trained(x[order], y[order])
    np.testing.assert_allclose(other.objective, state.objective, rtol=1e-3)
    net = ills.network(want)
    np.testing.assert_allclose(
        ills.predict(net, got, x), ills.predict(net, want, x), atol=0.02
    )


def test_unit_of_the_targets():
    """A factor of two is exact in floating point: so is what follows from it."""
    x, y = problem(0, 40, 3, 1)
    want, state = trained(x, y)
    got, other = trained(x, 4 * y)
    np.testing.assert_allclose(other.objective, 16 * state.objective, rtol=1e-4)
    np.testing.assert_allclose(got[0][0], want[0][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got[1][0], 4 * want[1][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X.at[3, 0].set(jnp.nan), Y, {}, "`inputs` must be finite, got 1 NaN"),
        (X, Y.at[0, 0].set(jnp.inf), {}, "`targets` must be finite, got 1"),
        (X[:0], Y[:0], {}, "`inputs` must have shape .* at least one sample"),
        (X[:, 0], Y, {}, "`inputs` must have shape"),
        (X[:, :1], Y, {}, "as `0/0` takes 2 features"),
        (X, Y[:-1], {}, "`targets` must have shape \\(30, 1\\), one row a sample"),
        (X, jnp.stack([Y, Y]), {}, "`targets` must have shape"),
        (1000 * X, Y, {}, "`inputs` must be about standardised"),
        (X + 100, Y, {}, "`inputs` must be about standardised"),
        (X, 2 + Y, {"output_activation": "sigmoid"}, "`targets` must lie in \\[0.0"),
        (X, Y, {"sample_weight": jnp.ones(3)}, "`sample_weight` must have shape"),
        (X, Y, {"sample_weight": -jnp.ones(30)}, "`sample_weight` must be >= 0"),
        (X, Y, {"sample_weight": jnp.full(30, jnp.nan)}, "`sample_weight` must be fin"),
        (X, Y, {"mask": jnp.zeros((30, 1), bool)}, "`mask` must be true for at least"),
        (X, Y, {"mask": jnp.ones((30, 1))}, "`mask` must be boolean of shape"),
        (X, Y, {"validation": X}, "`validation` must be a pair"),
        (X, Y, {"max_iter": 0}, "`max_iter` must be an integer >= 1"),
        (X, Y, {"patience": 1.5}, "`patience` must be an integer >= 1"),
        (X, Y, {"tol": -1}, "`tol` must be in"),
        (X, Y, {"polish": -1}, "`polish` must be an integer >= 0"),
        (X, Y, {"restarts": 0.5}, "`restarts` must be an integer >= 0"),
        (X, Y, {"ridge": -1.0}, "`ridge` must be finite and >= 0, got -1.0"),
        (X, Y, {"output_ridge": float("inf")}, "`output_ridge` must be finite"),
        (X, Y, {"tuning": 0.0}, "`tuning` must be > 0"),
        (X, Y, {"relaxation": 0.0}, "`relaxation` must be in"),
        (X, Y, {"margin": 0.7}, "`margin` must be in"),
        (X, Y, {"chunk_size": 0}, "`chunk_size` must be a positive integer"),
        (X, Y, {"method": "nope"}, "`method` must be one of"),
        (X, Y, {"combine": "nope"}, "`combine` must be one of"),
        (X, Y, {"importance": "nope"}, "`importance` must be one of"),
        (X, Y, {"loss": "nope"}, "`loss` must be one of"),
    ],
)
def test_bad_input(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        fit(x, y, **options)


def test_constant_feature_is_harmless():
    result = fit(X.at[:, 1].set(1.0), Y, max_iter=20)
    assert np.all(np.isfinite(result.objectives))


def test_collinear_inputs_with_tiny_ridge_stay_finite():
    x = X.at[:, 1].set(X[:, 0] * (1 + 1e-7))
    result = fit(x, Y, max_iter=20, ridge=0.0, output_ridge=0.0)
    assert np.all(np.isfinite(result.objectives))
    assert never_rises(result.objectives)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(result.params))


def test_nan_at_run_time_changes_nothing():
    """Inside jit no error can be raised: weights and state stay as they were."""
    tx, update = stepper(2, (4,), 1, ())
    params = ills.init_mlp(jax.random.key(0), (2, 4, 1))
    _, state = update(tx.init(params), params, X, Y)
    updates, after = update(state, params, X.at[0, 0].set(jnp.nan), Y)
    assert not bool(after.accepted)
    assert int(after.rejected) == int(state.rejected) + 1
    jax.tree.map(
        np.testing.assert_array_equal, updates, jax.tree.map(jnp.zeros_like, updates)
    )
    for name in ("objective", "damping", "count"):
        assert getattr(after, name) == getattr(state, name)
