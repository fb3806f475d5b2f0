"""Runs to convergence: result codes, restarts, polishing, going on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linboost_optax import ills
from linboost_optax.ills import IllsCode
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._steps.restart import redraw_units
from tests.ills.problems import (
    X,
    Y,
    fit,
    never_rises,
    problem,
    run,
    stepper,
    tanh_teacher,
)


def test_interrupted_run_goes_on_as_if_it_had_not_been():
    x, y = problem(0, 40, 3, 1)
    params = ills.init_mlp(jax.random.key(0), (3, 5, 1))
    fit_on = functools.partial(ills.fit_ills, ills.network(params), tol=0.0, max_iter=5)
    first = fit_on(params, x, y)
    second = fit_on(first.params, x, y, state=first.state)
    _, _, want = run(*stepper(3, (5,), 1, ()), params, x, y, 10)
    got = np.concatenate([first.objectives, second.objectives])
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_identical_units_are_refused():
    params = [(jnp.ones((2, 4)), jnp.zeros(4)), (jnp.ones((4, 1)), jnp.zeros(1))]
    with pytest.raises(ValueError, match="distinct units, got units 0 and 1 identical"):
        fit(X, Y, params=params)


def test_code_max_iter():
    result = fit(X, Y, max_iter=3)
    assert result.code == IllsCode.MAX_ITER
    assert result.iterations == len(result.objectives) == 3
    assert "Raise it" in result.code.message


def test_code_tolerance():
    result = fit(X, Y, tol=0.2, patience=2)
    assert result.code == IllsCode.TOLERANCE
    assert result.code.converged
    gains = -np.diff(result.objectives) / result.objectives[:-1]
    accepted = gains[gains > 0]
    assert np.all(accepted[-2:] < 0.2)


def test_code_early_stopped_returns_the_best_on_validation_data():
    x, y = problem(1, 40, 2, 1)
    noisy = Y + 0.5 * jax.random.normal(jax.random.key(9), Y.shape)
    result = fit(X, noisy, sizes=(2, 30, 1), validation=(x, y), patience=5)
    assert result.code == IllsCode.EARLY_STOPPED
    net = ills.network(result.params)
    error = jnp.mean((ills.predict(net, result.params, x) - y) ** 2)
    np.testing.assert_allclose(error, result.validation.min(), rtol=1e-4)
    assert len(result.validation) == result.iterations
    assert result.validation.argmin() == result.iterations - 6


WIDE = ills.init_mlp(jax.random.key(0), (2, 30, 1))
HELD_OUT = problem(1, 40, 2, 1)


def run_on_path(start, factor, options):
    """Of one path: a run that is given its state tries no other."""
    state = ills.ills(ills.network(WIDE), **options).init(WIDE)
    state = state._replace(
        output_ridge=jnp.asarray(start), hidden_factor=jnp.asarray(factor)
    )
    return fit(X, Y, params=WIDE, validation=HELD_OUT, state=state, **options)


def test_early_stopping_keeps_the_best_of_the_paths():
    result = fit(X, Y, params=WIDE, validation=HELD_OUT)
    paths = [(0.1, 1.0), (0.1, 0.1), (1e-3, 300.0)]
    runs = [run_on_path(*path, {}) for path in paths]
    least = [run.validation.min() for run in runs]
    best = int(np.argmin(least))
    assert len(set(least)) == 3
    assert best > 0  # So that trying the first one alone would not do.
    np.testing.assert_array_equal(result.validation, runs[best].validation)
    assert result.state.hidden_factor == np.float32(paths[best][1])
    jax.tree.map(np.testing.assert_array_equal, result.params, runs[best].params)


@pytest.mark.parametrize(
    ("options", "start"),
    [({"hidden_ridge": 1e-3}, 1e-2), ({"output_ridge": 0.0}, 0.0)],
    ids=str,
)
def test_early_stopping_has_nothing_to_choose_without_a_path(options, start):
    result = fit(X, Y, params=WIDE, validation=HELD_OUT, **options)
    alone = run_on_path(start, 1.0, options)
    np.testing.assert_array_equal(result.validation, alone.validation)


def test_code_stalled_on_dead_units():
    params = ills.init_mlp(jax.random.key(0), (2, 4, 1))
    params = [(params[0][0], params[0][1] + 100.0), params[1]]
    result = fit(X, Y, params=params)
    assert result.code == IllsCode.STALLED_DEAD_UNITS
    assert "dead" in result.code.message


def test_code_stalled_published():
    result = fit(X, Y, sizes=(2, 4, 1), method="published", max_iter=200, tol=0.0)
    assert result.code == IllsCode.STALLED
    assert not result.code.converged


def test_code_not_finite():
    params = ills.init_mlp(jax.random.key(0), (2, 4, 1))
    params = [params[0], (params[1][0] * jnp.inf, params[1][1])]
    result = fit(X, Y, params=params, max_iter=3)
    assert result.code == IllsCode.NOT_FINITE
    assert result.iterations == 1


def test_exact_fit_is_convergence_not_a_stall():
    """A linear network on a linear target has nothing left to gain."""
    params = [(jnp.ones((2, 1)), jnp.zeros(1))]
    result = fit(X, X @ jnp.asarray([[1.0], [2.0]]), params=params)
    assert result.code == IllsCode.TOLERANCE


def test_restarts_leave_a_local_minimum():
    """A student as narrow as its teacher gets stuck from this start, and out again."""
    x, y = tanh_teacher(3)
    params = ills.init_mlp(jax.random.key(3), (5, 10, 1))
    net = ills.network(params)
    stuck = ills.fit_ills(net, params, x, y, max_iter=150)
    out = ills.fit_ills(net, params, x, y, max_iter=150, restarts=3)
    assert stuck.objectives[-1] > 1e-3 > 10 * out.objectives[-1]
    assert never_rises(out.objectives)
    assert len(out.objectives) == out.iterations > stuck.iterations
    residual = ills.predict(net, out.params, x) - y
    assert float(jnp.mean(residual**2)) <= out.objectives[-1] * (1 + 1e-3)


def test_redrawn_units_leave_the_others_alone():
    params = ills.init_mlp(jax.random.key(0), (2, 10, 1))
    params[1] = (params[1][0].at[jnp.asarray([3, 7])].set(0.0), params[1][1])
    net = ills.network(params)
    batch = Batch(X, Y, jnp.full((30, 1), 1 / 30))
    new = redraw_units(jax.random.key(1), net, params, batch)
    np.testing.assert_allclose(
        ills.predict(net, new, X), ills.predict(net, params, X), rtol=1e-5, atol=1e-6
    )
    moved = np.flatnonzero(np.any(np.asarray(new[0][0] != params[0][0]), axis=0))
    np.testing.assert_array_equal(moved, [3, 7])


def test_redrawn_units_are_the_least_useful_as_samples_count():
    """As if each sample stood there as many times as its weight says.

    Units listen less and less to the first feature, which alone varies where samples
    count, and more and more to the second.
    """
    level = jnp.arange(1.0, 11.0) / 10
    kernel = jnp.stack([level[::-1], level])
    params = [(kernel, jnp.zeros(10)), (jnp.ones((10, 1)), jnp.zeros(1))]
    times = np.where(np.arange(30) < 15, np.random.default_rng(0).integers(1, 9, 30), 0)
    x = np.where(times[:, None] > 0, np.asarray(X) * [[1, 0]], np.asarray(X) * [[0, 5]])
    weights = jnp.asarray(times[:, None] / times.sum(), jnp.float32)
    batch = Batch(jnp.asarray(x, jnp.float32), Y, weights)
    new = redraw_units(jax.random.key(1), ills.network(params), params, batch)
    moved = np.flatnonzero(np.any(np.asarray(new[0][0] != kernel), axis=0))

    def least(rows):
        return sorted(np.argsort(np.tanh(rows @ np.asarray(kernel)).std(axis=0))[:2])

    np.testing.assert_array_equal(moved, least(np.repeat(x, times, axis=0)))
    np.testing.assert_array_equal(moved, [8, 9])
    assert least(x) == [0, 1]


def test_a_unit_is_dead_whatever_it_does_where_nothing_counts():
    x = jnp.concatenate([jnp.clip(X[:, :1], -2, 2), jnp.full((1, 1), -5.0)])
    y, weights = jnp.concatenate([Y, Y[:1]]), jnp.ones(31).at[30].set(0.0)
    kernel = jnp.asarray([[10.0, 10.5, 9.5, 11.0]])
    params = [(kernel, jnp.full(4, 50.0)), (jnp.ones((4, 1)), jnp.zeros(1))]
    result = fit(x, y, params=params, sample_weight=weights)
    assert result.code == IllsCode.STALLED_DEAD_UNITS


@pytest.mark.parametrize("other", [(2, 5, 1), (2, 4, 4, 1)])
def test_state_of_another_network_is_refused(other):
    state = fit(X, Y, sizes=other, max_iter=1).state
    with pytest.raises(ValueError, match="`state` must be of a run of this network"):
        fit(X, Y, state=state)


def test_state_of_another_dtype_is_refused():
    state = fit(X, Y, max_iter=1).state
    with jax.enable_x64(True):
        params = ills.init_mlp(jax.random.key(0), (2, 4, 1), jnp.float64)
        with pytest.raises(
            ValueError, match=r"float64\(2, 4\).*, got .*float32\(2, 4\)"
        ):
            fit(X, Y, params=params, state=state)


def test_polish_keeps_what_is_best_on_validation_data():
    x, y = problem(1, 40, 2, 1)
    noisy = Y + 0.5 * jax.random.normal(jax.random.key(15), Y.shape)
    result = fit(
        X,
        noisy,
        sizes=(2, 30, 1),
        validation=(x, y),
        patience=50,
        max_iter=30,
        polish=9,
    )
    assert result.validation[:30].min() < result.validation[30:].min()
    net = ills.network(result.params)
    error = jnp.mean((ills.predict(net, result.params, x) - y) ** 2)
    np.testing.assert_allclose(error, result.validation.min(), rtol=1e-4)


@pytest.mark.parametrize("restarts", [0, 1])
def test_state_belongs_to_the_weights(restarts):
    """With validation data both are of the best iteration, so that a run can go on."""
    options = {"sizes": (2, 30, 1), "output_ridge": 0.0, "restarts": restarts}
    early = fit(X, Y, validation=HELD_OUT, max_iter=20, **options)
    best = int(early.validation.argmin()) + 1
    assert best < 20
    if not restarts:
        assert int(early.state.count) == best
        want = fit(X, Y, max_iter=best, **options)
        jax.tree.map(close, early.state, want.state)
        jax.tree.map(close, early.params, want.params)
    # Without a path or a scale the objective is that of these weights alone.
    net = ills.network(early.params)
    error = jnp.mean((ills.predict(net, early.params, X) - Y) ** 2)
    np.testing.assert_allclose(early.state.objective, error, rtol=1e-3)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("masked", [(False, False), (False, True), (True, True)])
def test_refit_goes_on_with_all_rows(weighted, masked):
    """Against steps of the transformation on both parts, joined by hand."""
    rng = np.random.default_rng(0)
    parts = [problem(seed, rows, 2, 2) for seed, rows in ((0, 40), (1, 24))]
    weights = [
        rng.integers(1, 4, len(x)).astype("float32") if given else None
        for (x, _), given in zip(parts, weighted, strict=True)
    ]
    known = [
        rng.uniform(size=y.shape) < 0.8 if given else None
        for (_, y), given in zip(parts, masked, strict=True)
    ]
    options = {"sample_weight": weights[0], "mask": known[0]}
    options["validation"] = (*parts[1], weights[1], known[1])
    options["sizes"] = (2, 5, 2)
    early = fit(*parts[0], max_iter=6, **options)
    refitted = fit(*parts[0], max_iter=6, refit=2, **options)
    np.testing.assert_array_equal(refitted.validation, early.validation)
    np.testing.assert_array_equal(refitted.objectives, early.objectives)
    ones, true = np.ones(40 + 24), np.full((40 + 24, 2), True)
    for part, w, k in zip((slice(0, 40), slice(40, 64)), weights, known, strict=True):
        ones[part] = 1 if w is None else w
        true[part] = True if k is None else k
    both = {"inputs": np.concatenate([x for x, _ in parts])}
    both["targets"] = np.concatenate([y for _, y in parts])
    params, state = early.params, early.state
    tx = ills.ills(ills.network(params))
    for _ in range(2):
        updates, state = tx.update(
            None, state, params, sample_weight=ones, mask=true, **both
        )
        params = optax.apply_updates(params, updates)
    assert not np.allclose(params[0][0], early.params[0][0])
    jax.tree.map(close, refitted.params, params)
    assert int(refitted.state.count) == int(early.state.count) + 2


def test_refit_without_validation_is_refused():
    with pytest.raises(ValueError, match="`refit` must be 0 without `validation`"):
        fit(X, Y, refit=2)


def test_polish_lowers_what_converged():
    x, y = problem(0, 100, 2, 1)
    plain = fit(x, y, sizes=(2, 6, 1), max_iter=40)
    polished = fit(x, y, sizes=(2, 6, 1), max_iter=40, polish=40)
    assert polished.objectives[-1] < plain.objectives[-1]
    assert never_rises(polished.objectives)
    assert polished.iterations > plain.iterations
