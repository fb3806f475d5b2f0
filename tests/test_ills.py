"""ILLS as a whole: monotone objective, recovery, failure modes, Optax behaviour."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import IllsCode
from linboost_optax._ills.chunks import Batch
from linboost_optax._ills.restart import redraw_units

# Re-evaluating the same objective may round differently: a few units in the last
# place of a float32 sum.
ROUNDING = 1e-5
# Samples, features, hidden units, outputs, and options; each pair compiles once.
TUKEY, PUBLISHED = (("loss", "tukey"),), (("method", "published"),)
CASES = [
    ((1, 3, (4,), 1), TUKEY),
    ((3, 2, (6,), 2), ()),
    ((25, 2, (4, 3), 2), ()),
    ((25, 2, (4, 3), 2), PUBLISHED),
]
KINDS = ["plain", "duplicated", "constant", "zero target"]


def problem(seed, n, d, outputs, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = np.sin(2 * x[:, :1]) + 0.5 * x[:, -1:] ** 2 + np.arange(outputs)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


@functools.cache
def stepper(d, hidden, outputs, options):
    params = lbo.init_mlp(jax.random.key(0), (d, *hidden, outputs))
    tx = lbo.ills(lbo.network(params), **dict(options))
    return tx, jax.jit(
        lambda state, params, x, y: tx.update(None, state, params, inputs=x, targets=y)
    )


def run(tx, update, params, x, y, steps):
    state, objectives = tx.init(params), []
    for _ in range(steps):
        updates, state = update(state, params, x, y)
        params = optax.apply_updates(params, updates)
        objectives.append(float(state.objective))
    return params, state, np.asarray(objectives)


def never_rises(objectives):
    objectives = objectives[np.isfinite(objectives)]
    slack = ROUNDING * np.abs(objectives[:-1])
    return np.all(np.diff(objectives) <= slack)


@pytest.mark.slow
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    case=st.sampled_from(CASES),
    kind=st.sampled_from(KINDS),
    input_scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    target_scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_objective_never_rises(case, kind, input_scale, target_scale, seed):
    (n, d, hidden, outputs), options = case
    x, y = problem(seed, n, d, outputs)
    if kind == "duplicated":
        x = x.at[:, -1].set(x[:, 0])
    if kind == "constant":
        x = x.at[:, 0].set(1.0)
    y = y * (0 if kind == "zero target" else target_scale)
    params = lbo.init_mlp(jax.random.key(seed), (d, *hidden, outputs))
    tx, update = stepper(d, hidden, outputs, options)
    params, state, objectives = run(tx, update, params, x * input_scale, y, 8)
    assert never_rises(objectives)
    assert np.all(np.isfinite(objectives))
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(params))
    assert bool(jnp.isfinite(state.damping))


@pytest.mark.parametrize(
    "options",
    [
        (("combine", "parameter"), ("hidden_ridge", 1e-3)),
        (("importance", "shared"), ("hidden_ridge", 1e-3)),
        (("combine", "unit"), ("loss", "tukey")),
    ],
    ids=str,
)
def test_objective_never_rises_with_other_options(options):
    """And the reported value is the documented objective of the weights returned."""
    x, y = problem(0, 40, 3, 1)
    tx, update = stepper(3, (5,), 1, options)
    params = lbo.init_mlp(jax.random.key(1), (3, 5, 1))
    params, before, objectives = run(tx, update, params, x, y, 30)
    assert never_rises(objectives)
    assert objectives[-1] < 0.5 * objectives[0]
    updates, state = update(before, params, x, y)
    assert state.objective <= before.objective * (1 + ROUNDING)
    if not np.isfinite(state.scale):
        params = optax.apply_updates(params, updates)
        residual = lbo.predict(lbo.network(params), params, x) - y
        want = jnp.mean(residual**2)
        want += before.output_ridge * jnp.sum(params[1][0] ** 2)
        want += dict(options).get("hidden_ridge", 0) * jnp.sum(params[0][0] ** 2)
        np.testing.assert_allclose(state.objective, want, rtol=1e-3)


@pytest.mark.parametrize("method", ["weighted", "published"])
@pytest.mark.parametrize("hidden", [(), (6, 5)], ids=str)
def test_linear_teacher_is_exact_after_one_iteration(method, hidden):
    with jax.enable_x64(True):
        x, _ = problem(0, 50, 3, 1, jnp.float64)
        y = x @ jnp.asarray([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]]) + 0.7
        params = lbo.init_mlp(jax.random.key(0), (3, *hidden, 2), jnp.float64)
        net = lbo.network(params, activation="identity")
        tx = lbo.ills(net, method=method, output_ridge=0.0)
        update = jax.jit(functools.partial(tx.update, None, inputs=x, targets=y))
        updates, state = update(tx.init(params), params)
        params = optax.apply_updates(params, updates)
        assert float(state.objective) < 1e-20
        np.testing.assert_allclose(lbo.predict(net, params, x), y, atol=1e-10)


def tanh_teacher(seed, n=1000):
    x = jax.random.normal(jax.random.key(100 + seed), (n, 5))
    teacher = lbo.init_mlp(jax.random.key(1000 + seed), (5, 10, 1))
    teacher = [(2 * w, b) for w, b in teacher]
    y = lbo.predict(lbo.network(teacher), teacher, x)
    return x, (y - jnp.mean(y)) / jnp.std(y)


@pytest.mark.slow
def test_tanh_teacher_is_recovered_in_nine_of_ten_seeds():
    tx, update = stepper(5, (20,), 1, ())
    reached = 0
    for seed in range(10):
        x, y = tanh_teacher(seed)
        params = lbo.init_mlp(jax.random.key(seed), (5, 20, 1))
        params, _, objectives = run(tx, update, params, x, y, 200)
        rmse = jnp.sqrt(
            jnp.mean((lbo.predict(lbo.network(params), params, x) - y) ** 2)
        )
        reached += bool(rmse < 1e-2)
        assert never_rises(objectives)
    assert reached >= 9


@pytest.mark.parametrize(
    "activation",
    ["softplus", "leaky_relu", "relu"],
)
def test_every_activation_trains(activation):
    x, y = problem(0, 200, 2, 1)
    params = lbo.init_mlp(jax.random.key(0), (2, 12, 1))
    result = lbo.fit_ills(
        lbo.network(params, activation), params, x, y, max_iter=60, tol=0.0
    )
    assert result.objectives[-1] < 0.25 * result.objectives[0]


def test_published_method_descends():
    x, y = problem(0, 200, 2, 1)
    params = lbo.init_mlp(jax.random.key(0), (2, 12, 1))
    net = lbo.network(params)
    result = lbo.fit_ills(net, params, x, y, method="published", max_iter=60)
    assert result.objectives[-1] < result.objectives[0] < float(jnp.var(y))


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_output_activation(name):
    """Bounded targets are fitted in their own units, not as logits."""
    x, y = problem(0, 300, 2, 1)
    y = jax.nn.sigmoid(y - 1) if name == "sigmoid" else jnp.tanh(y - 1)
    params = lbo.init_mlp(jax.random.key(0), (2, 15, 1))
    net = lbo.network(params, output_activation=name)
    result = lbo.fit_ills(net, params, x, y, max_iter=60, tol=0.0)
    assert result.objectives[-1] < 0.1 * float(jnp.var(y))
    assert never_rises(result.objectives)


def objectives_of(x, y, **data):
    """Of five iterations; 30 or 40 samples, so that two shapes serve several tests."""
    params = lbo.init_mlp(jax.random.key(0), (3, 5, 1))
    return lbo.fit_ills(
        lbo.network(params), params, x, y, max_iter=5, tol=0.0, **data
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
    params = lbo.init_mlp(jax.random.key(0), (3, 6, 2))
    net = lbo.network(params)
    results = [
        lbo.fit_ills(net, params, x, jnp.where(mask, y, other), mask=mask, max_iter=20)
        for other in (0.0, jnp.nan)
    ]
    np.testing.assert_array_equal(results[0].objectives, results[1].objectives)
    assert results[0].objectives[-1] < 0.5 * results[0].objectives[0]


def outlier_ratios(loss, seed):
    """Clean test error with 10 % outliers over that without, robust and squared."""
    x, y = tanh_teacher(seed, n=600)
    draws = [jax.random.key(seed + base) for base in (5, 60, 7)]
    noisy = y + 0.1 * jax.random.normal(draws[0], y.shape)
    hit = jax.random.uniform(draws[1], y.shape) < 0.1
    sign = jnp.where(jax.random.uniform(draws[2], y.shape) < 0.5, -1.0, 1.0)
    dirty = jnp.where(hit, noisy + 10 * sign, noisy)
    params = lbo.init_mlp(jax.random.key(seed), (5, 10, 1))
    net = lbo.network(params)

    def error(targets, loss):
        result = lbo.fit_ills(
            net, params, x[:400], targets[:400], output_ridge=1e-4, loss=loss
        )
        residual = lbo.predict(net, result.params, x[400:]) - y[400:]
        return float(jnp.sqrt(jnp.mean(residual**2)))

    clean = error(noisy, "squared")
    return error(dirty, loss) / clean, error(dirty, "squared") / clean


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "summary"), [("huber", np.median), ("tukey", np.max)])
def test_robust_losses_ignore_gross_outliers(loss, summary):
    """Within 1.5 times the run without outliers: Tukey in every one of five seeds."""
    ratios = np.asarray([outlier_ratios(loss, seed) for seed in range(5)])
    assert summary(ratios[:, 0]) < 1.5
    assert np.min(ratios[:, 1]) > 10


def test_tukey_takes_over_from_huber_once():
    """And from then on a sample beyond its reach has no say at all."""
    x, y = problem(0, 40, 3, 1)
    y = y.at[0, 0].set(50.0)
    tx, update = stepper(3, (5,), 1, (("combine", "unit"), *TUKEY))
    params = lbo.init_mlp(jax.random.key(1), (3, 5, 1))
    state, settled = tx.init(params), []
    for _ in range(30):
        updates, state = update(state, params, x, y)
        params = optax.apply_updates(params, updates)
        settled.append(bool(state.settled))
    assert settled[0] is False
    assert settled == sorted(settled)
    assert settled[-1] is True
    updates, _ = update(state, params, x, y)
    same, _ = update(state, params, x, y.at[0, 0].set(-70.0))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
        updates,
        same,
    )


@pytest.mark.parametrize(
    ("options", "hidden", "start"),
    [
        ((), (5,), 1e-2),
        ((("output_ridge", 1e-8),), (5,), 1e-4),
        ((("output_ridge", 0.05),), (5,), 0.05),
        ((("output_ridge", 0.0),), (5,), 0.0),
        ((("output_ridge", 1e-4), *PUBLISHED), (5,), 1e-4),
        ((("output_ridge", 1e-4),), (), 1e-4),
    ],
    ids=str,
)
def test_start_of_the_output_ridge(options, hidden, start):
    params = lbo.init_mlp(jax.random.key(0), (3, *hidden, 1))
    state = lbo.ills(lbo.network(params), **dict(options)).init(params)
    np.testing.assert_allclose(state.output_ridge, start, rtol=1e-6)


def test_output_ridge_falls_to_the_argument():
    x, y = problem(0, 40, 3, 1)
    tx, update = stepper(3, (5,), 1, ())
    params = lbo.init_mlp(jax.random.key(1), (3, 5, 1))
    state, ridges = tx.init(params), []
    for _ in range(80):
        updates, state = update(state, params, x, y)
        params = optax.apply_updates(params, updates)
        ridges.append(float(state.output_ridge))
    used = np.maximum(ridges, 1e-6)  # Never below the argument.
    assert used[0] < 1e-2
    assert np.all(np.diff(used) <= 0)
    assert used[-1] == 1e-6
    residual = jnp.mean((lbo.predict(lbo.network(params), params, x) - y) ** 2)
    penalty = 1e-6 * jnp.sum(params[1][0] ** 2)
    np.testing.assert_allclose(state.objective, residual + penalty, rtol=1e-3)


@pytest.mark.slow
def test_steep_target_is_fitted_with_the_defaults():
    """Friedman 3: with a tiny ridge from the start the error stays at 0.08 and more."""
    rng = np.random.default_rng(0)
    low, high = np.array([[0, 40 * np.pi, 0, 1], [100, 560 * np.pi, 1, 11]])
    x = low + (high - low) * rng.uniform(size=(1000, 4))
    y = np.arctan((x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3])) / x[:, 0])[:, None]
    x, y = (jnp.asarray((a - a.mean(0)) / a.std(0), jnp.float32) for a in (x, y))
    tx, update = stepper(4, (20,), 1, ())
    errors = []
    for seed in range(3):
        params = lbo.init_mlp(jax.random.key(seed), (4, 20, 1))
        params, _, objectives = run(tx, update, params, x, y, 150)
        assert never_rises(objectives)
        residual = lbo.predict(lbo.network(params), params, x) - y
        errors.append(float(jnp.sqrt(jnp.mean(residual**2))))
    assert np.median(errors) < 0.06


# What must not matter.


def trained(x, y):
    """Weights and state after eight iterations from one start."""
    tx, update = stepper(3, (5,), 1, ())
    params = lbo.init_mlp(jax.random.key(0), (3, 5, 1))
    params, state, _ = run(tx, update, params, x, y, 8)
    return params, state


def test_order_of_the_samples():
    x, y = problem(0, 40, 3, 1)
    order = np.random.default_rng(0).permutation(40)
    want, state = trained(x, y)
    got, other = trained(x[order], y[order])
    np.testing.assert_allclose(other.objective, state.objective, rtol=1e-3)
    net = lbo.network(want)
    np.testing.assert_allclose(
        lbo.predict(net, got, x), lbo.predict(net, want, x), atol=0.02
    )


def test_unit_of_the_targets():
    """A factor of two is exact in floating point: so is what follows from it."""
    x, y = problem(0, 40, 3, 1)
    want, state = trained(x, y)
    got, other = trained(x, 4 * y)
    np.testing.assert_allclose(other.objective, 16 * state.objective, rtol=1e-4)
    np.testing.assert_allclose(got[0][0], want[0][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got[1][0], 4 * want[1][0], rtol=1e-3, atol=1e-3)


def test_interrupted_run_goes_on_as_if_it_had_not_been():
    x, y = problem(0, 40, 3, 1)
    params = lbo.init_mlp(jax.random.key(0), (3, 5, 1))
    fit_on = functools.partial(lbo.fit_ills, lbo.network(params), tol=0.0, max_iter=5)
    first = fit_on(params, x, y)
    second = fit_on(first.params, x, y, state=first.state)
    _, _, want = run(*stepper(3, (5,), 1, ()), params, x, y, 10)
    got = np.concatenate([first.objectives, second.objectives])
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_vmap_over_an_ensemble():
    """A start and bootstrap weights a member: trained together as if alone."""
    x, y = problem(0, 40, 3, 1)
    tx, _ = stepper(3, (5,), 1, ())
    keys = jax.random.split(jax.random.key(0), 3)
    starts = jax.vmap(lambda key: lbo.init_mlp(key, (3, 5, 1)))(keys)
    counts = jnp.asarray(np.random.default_rng(0).poisson(1.0, (3, 40)), jnp.float32)

    def member(params, weights):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(
                None, state, params, inputs=x, targets=y, sample_weight=weights
            )
            return (optax.apply_updates(params, updates), state), state.objective

        return jax.lax.scan(step, (params, tx.init(params)), None, length=6)[1]

    together = jax.jit(jax.vmap(member))(starts, counts)
    one = jax.jit(member)
    alone = jnp.stack(
        [one(jax.tree.map(lambda a, i=i: a[i], starts), counts[i]) for i in range(3)]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    assert np.all(np.diff(together, axis=1) <= ROUNDING * together[:, :-1])


def test_ridge_shrinks():
    x, y = problem(0, 40, 3, 1)
    params = lbo.init_mlp(jax.random.key(0), (3, 5, 1))
    net = lbo.network(params)

    def sizes(**options):
        trained = lbo.fit_ills(net, params, x, y, max_iter=40, **options).params
        return [float(jnp.sum(kernel**2)) for kernel, _ in trained]

    free = sizes()
    assert sizes(output_ridge=1e-1)[1] < 0.1 * free[1]
    assert sizes(hidden_ridge=1e-1)[0] < 0.5 * free[0]


# Optax behaviour.


def test_state_and_updates_keep_structure_and_dtype():
    tx, update = stepper(3, (5,), 1, ())
    params = lbo.init_mlp(jax.random.key(0), (3, 5, 1))
    x, y = problem(0, 20, 3, 1)
    state = tx.init(params)
    updates, new = update(state, params, x, y)
    for a, b in ((updates, params), (new, state)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert [v.dtype for v in jax.tree.leaves(a)] == [
            v.dtype for v in jax.tree.leaves(b)
        ]


def test_scan_equals_a_loop():
    tx, update = stepper(3, (5,), 1, ())
    start = lbo.init_mlp(jax.random.key(0), (3, 5, 1))
    x, y = problem(0, 20, 3, 1)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, inputs=x, targets=y)
        return (optax.apply_updates(params, updates), state), state.objective

    _, scanned = jax.lax.scan(step, (start, tx.init(start)), None, length=6)
    np.testing.assert_allclose(scanned, run(tx, update, start, x, y, 6)[2], rtol=1e-4)


def test_chained_and_masked():
    params = {"net": lbo.init_mlp(jax.random.key(0), (3, 5, 1)), "other": jnp.ones(3)}
    x, y = problem(0, 40, 3, 1)
    described = lbo.network(params["net"])
    net = lbo.Network(
        tuple(
            lbo.Dense(
                f"net/{layer.kernel}",
                f"net/{layer.bias}",
                layer.features_in,
                layer.features_out,
                layer.activation,
            )
            for layer in described.layers
        )
    )
    tx = optax.chain(
        optax.masked(lbo.ills(net), {"net": True, "other": False}), optax.scale(0.5)
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda s, p: tx.update(zeros, s, p, inputs=x, targets=y))
    state, errors = tx.init(params), []
    for _ in range(12):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        errors.append(
            float(jnp.mean((lbo.predict(described, params["net"], x) - y) ** 2))
        )
    np.testing.assert_array_equal(params["other"], 1)
    assert errors[-1] < 0.3 * errors[0]


def test_inject_hyperparams():
    params = lbo.init_mlp(jax.random.key(0), (3, 5, 1))
    x, y = problem(0, 40, 3, 1)
    net = lbo.network(params)
    tx = optax.inject_hyperparams(
        lbo.ills, static_args=("network", "chunk_size", "axis_name")
    )(net, output_ridge=1e-2)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(functools.partial(tx.update, zeros, inputs=x, targets=y))(
        tx.init(params), params
    )
    plain = lbo.ills(net, output_ridge=1e-2)
    want, _ = jax.jit(functools.partial(plain.update, None, inputs=x, targets=y))(
        plain.init(params), params
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        updates,
        want,
    )


# Failure modes of the design.


def fit(x, y, *, sizes=(2, 4, 1), params=None, **options):
    if params is None:
        params = lbo.init_mlp(jax.random.key(0), sizes)
    output = options.pop("output_activation", "identity")
    net = lbo.network(params, output_activation=output)
    return lbo.fit_ills(net, params, x, y, **options)


X, Y = problem(0, 30, 2, 1)


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


def test_network_must_be_described():
    with pytest.raises(TypeError, match="`network` must be a `Network`, got list"):
        lbo.ills([])


def test_params_must_be_given():
    tx, _ = stepper(2, (4,), 1, ())
    params = lbo.init_mlp(jax.random.key(0), (2, 4, 1))
    with pytest.raises(ValueError, match="`params` must be given to `update`"):
        tx.update(None, tx.init(params), inputs=X, targets=Y)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_published_refuses_what_has_no_inverse(activation):
    params = lbo.init_mlp(jax.random.key(0), (2, 4, 1))
    net = lbo.network(params, activation)
    with pytest.raises(ValueError, match=r"no inverse. Use one of \['identity'"):
        lbo.ills(net, method="published")


def test_identical_units_are_refused():
    params = [(jnp.ones((2, 4)), jnp.zeros(4)), (jnp.ones((4, 1)), jnp.zeros(1))]
    with pytest.raises(ValueError, match="distinct units, got units 0 and 1 identical"):
        fit(X, Y, params=params)


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
    params = lbo.init_mlp(jax.random.key(0), (2, 4, 1))
    _, state = update(tx.init(params), params, X, Y)
    updates, after = update(state, params, X.at[0, 0].set(jnp.nan), Y)
    assert not bool(after.accepted)
    assert int(after.rejected) == int(state.rejected) + 1
    jax.tree.map(
        np.testing.assert_array_equal, updates, jax.tree.map(jnp.zeros_like, updates)
    )
    for name in ("objective", "damping", "count"):
        assert getattr(after, name) == getattr(state, name)


# Result codes.


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
    net = lbo.network(result.params)
    error = jnp.mean((lbo.predict(net, result.params, x) - y) ** 2)
    np.testing.assert_allclose(error, result.validation.min(), rtol=1e-4)
    assert len(result.validation) == result.iterations
    assert result.validation.argmin() == result.iterations - 6


def test_code_stalled_on_dead_units():
    params = lbo.init_mlp(jax.random.key(0), (2, 4, 1))
    params = [(params[0][0], params[0][1] + 100.0), params[1]]
    result = fit(X, Y, params=params, max_iter=60)
    assert result.code == IllsCode.STALLED_DEAD_UNITS
    assert "dead" in result.code.message


def test_code_stalled_published():
    result = fit(X, Y, sizes=(2, 4, 1), method="published", max_iter=200, tol=0.0)
    assert result.code == IllsCode.STALLED
    assert not result.code.converged


def test_code_not_finite():
    params = lbo.init_mlp(jax.random.key(0), (2, 4, 1))
    params = [params[0], (params[1][0] * jnp.inf, params[1][1])]
    result = fit(X, Y, params=params, max_iter=5)
    assert result.code == IllsCode.NOT_FINITE
    assert result.iterations == 1


def test_exact_fit_is_convergence_not_a_stall():
    """A linear network on a linear target has nothing left to gain."""
    params = [(jnp.ones((2, 1)), jnp.zeros(1))]
    result = fit(X, X @ jnp.asarray([[1.0], [2.0]]), params=params)
    assert result.code == IllsCode.TOLERANCE


def test_restarts_leave_a_local_minimum():
    """A student as narrow as its teacher gets stuck from this start, and out again."""
    x, y = tanh_teacher(4)
    params = lbo.init_mlp(jax.random.key(4), (5, 10, 1))
    net = lbo.network(params)
    stuck = lbo.fit_ills(net, params, x, y, max_iter=150)
    out = lbo.fit_ills(net, params, x, y, max_iter=150, restarts=3)
    assert stuck.objectives[-1] > 1e-3 > 10 * out.objectives[-1]
    assert never_rises(out.objectives)
    assert len(out.objectives) == out.iterations > stuck.iterations
    residual = lbo.predict(net, out.params, x) - y
    assert float(jnp.mean(residual**2)) <= out.objectives[-1] * (1 + 1e-3)


def test_redrawn_units_leave_the_others_alone():
    params = lbo.init_mlp(jax.random.key(0), (2, 10, 1))
    params[1] = (params[1][0].at[jnp.asarray([3, 7])].set(0.0), params[1][1])
    net = lbo.network(params)
    batch = Batch(X, Y, jnp.full((30, 1), 1 / 30))
    new = redraw_units(jax.random.key(1), net, params, batch)
    np.testing.assert_allclose(
        lbo.predict(net, new, X), lbo.predict(net, params, X), rtol=1e-5, atol=1e-6
    )
    moved = np.flatnonzero(np.any(np.asarray(new[0][0] != params[0][0]), axis=0))
    np.testing.assert_array_equal(moved, [3, 7])


def test_polish_lowers_what_converged():
    x, y = problem(0, 100, 2, 1)
    plain = fit(x, y, sizes=(2, 6, 1), max_iter=40)
    polished = fit(x, y, sizes=(2, 6, 1), max_iter=40, polish=40)
    assert polished.objectives[-1] < plain.objectives[-1]
    assert never_rises(polished.objectives)
    assert polished.iterations > plain.iterations
