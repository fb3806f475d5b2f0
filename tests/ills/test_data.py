"""Data of ILLS: weights and masks, what must not matter, what is refused."""

import functools

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


def test_weight_zero_is_absence_however_far_out():
    """Also where the activation is unbounded, so that an input overflows."""
    with jax.enable_x64(True):
        x, y = problem(0, 40, 3, 1, jnp.float64)
        absent = jnp.arange(40)[:, None] >= 30
        weights = jnp.where(absent[:, 0], 0.0, 1.0)
        far = jnp.where(absent, 1e200, x), jnp.where(absent, 1e200, y)
        params = ills.init_mlp(jax.random.key(0), (3, 5, 1), jnp.float64)
        net = ills.network(params, activation="relu")
        for loss in ("squared", "huber"):
            options = {"max_iter": 8, "tol": 0.0, "loss": loss}
            got, want = (
                ills.fit_ills(net, params, *data, sample_weight=w, **options)
                for data, w in ((far, weights), ((x[:30], y[:30]), None))
            )
            np.testing.assert_allclose(got.objectives, want.objectives, rtol=1e-8)


@pytest.mark.parametrize("loss", ["huber", "tukey"])
def test_weights_repeat_samples_of_a_robust_loss(loss):
    """A few heavy samples with large residuals: they raise the robust scale."""
    with jax.enable_x64(True):
        x, y = problem(0, 30, 3, 1, jnp.float64)
        heavy = jnp.arange(30) < 10
        y = jnp.where(heavy[:, None], y + 3 * jnp.cos(9 * x[:, :1]), y)
        params = ills.init_mlp(jax.random.key(0), (3, 5, 1), jnp.float64)
        net, times = ills.network(params), jnp.where(heavy, 5, 1)
        options = {"max_iter": 10, "tol": 0.0, "loss": loss}
        weighted = ills.fit_ills(net, params, x, y, sample_weight=times, **options)
        again = [np.repeat(a, times, axis=0) for a in (x, y)]
        repeated = ills.fit_ills(net, params, *again, **options)
    np.testing.assert_allclose(weighted.state.scale, repeated.state.scale, rtol=1e-8)
    np.testing.assert_allclose(weighted.objectives, repeated.objectives, rtol=1e-8)


def test_scale_of_the_inputs_is_judged_where_they_count():
    x, y = problem(0, 30, 2, 1)
    x = x.at[3, 0].set(3000.0)
    assert fit(x, y, sample_weight=jnp.ones(30).at[3].set(1e-8), max_iter=1).iterations
    # It is half of all there is: 100 would be its share if all counted the same.
    with pytest.raises(ValueError, match=r"feature 0 with mean 1.5e\+03"):
        fit(x, y, sample_weight=jnp.ones(30).at[3].set(29.0), max_iter=1)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_validation_counts_as_weighted(loss):
    """Weights and mask of held-out data, against NumPy on the rows that count."""
    x, y = problem(0, 40, 3, 2)
    other_x, other_y = problem(1, 30, 3, 2)
    rng = np.random.default_rng(0)
    weights = np.where(np.arange(30) < 20, rng.uniform(0.5, 2, size=30), 0)
    mask = rng.uniform(size=(30, 2)) < 0.8
    dirty_x = jnp.where(weights[:, None] > 0, other_x, 1e25)
    dirty_y = jnp.where(weights[:, None] > 0, other_y, 1e30)
    dirty_y = jnp.where(mask, dirty_y, jnp.nan)
    params = ills.init_mlp(jax.random.key(0), (3, 6, 2))
    net = ills.network(params)
    held_out = (dirty_x, dirty_y, weights, mask)
    result = ills.fit_ills(
        net, params, x, y, validation=held_out, loss=loss, max_iter=30
    )
    residual = (np.asarray(ills.predict(net, result.params, other_x)) - other_y)[mask]
    error = residual**2 if loss == "squared" else np.abs(residual)
    counts = np.broadcast_to(weights[:, None], (30, 2))[mask]
    want = np.average(error, weights=counts)
    np.testing.assert_allclose(result.validation.min(), want, rtol=1e-4)


def test_weights_of_validation_choose_the_iterate():
    """Without weight the outliers neither stop the run nor pick its weights."""
    x, y = problem(0, 40, 2, 1)
    noisy = y + 0.5 * jax.random.normal(jax.random.key(9), y.shape)
    other_x, other_y = problem(1, 30, 2, 1)
    absent = jnp.arange(30) >= 20
    dirty = jnp.where(absent[:, None], -50 * other_y, other_y)
    options = {"sizes": (2, 30, 1), "patience": 5}
    got = fit(x, noisy, validation=(other_x, dirty, ~absent), **options)
    want = fit(x, noisy, validation=(other_x[:20], other_y[:20]), **options)
    assert (got.code, got.iterations) == (want.code, want.iterations)
    np.testing.assert_allclose(got.validation, want.validation, rtol=1e-3)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
        got.params,
        want.params,
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
        (
            X,
            Y,
            {"mask": jnp.arange(30) < 9, "sample_weight": 1.0 * (jnp.arange(30) > 9)},
            "`sample_weight` must be positive for a sample with a known target",
        ),
        (
            X,
            Y.at[:3, 0].set(jnp.asarray([9.0, 0.5, 2.0])),
            {
                "output_activation": "sigmoid",
                "sample_weight": jnp.zeros(30).at[1:3].set(1.0),
            },
            "`targets` must lie in .*, got 0.5 to 2.0",
        ),
        (X, Y, {"validation": X}, "`validation` must be a pair .*, got ArrayImpl"),
        (X, Y, {"validation": (X,)}, "`validation` must be a pair .*, got tuple of 1"),
        (X, Y, {"validation": (X, Y, None, None, 0)}, "got tuple of 5"),
        (X, Y, {"axis_name": "data"}, "`axis_name` must be None .*, got 'data'"),
        (X, Y, {"max_iter": 0}, "`max_iter` must be an integer >= 1"),
        (X, Y, {"patience": 1.5}, "`patience` must be an integer >= 1"),
        (X, Y, {"refit": -1}, "`refit` must be an integer >= 0"),
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
