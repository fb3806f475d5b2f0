"""Nothing silently wrong: kills, bad numbers, hostile features, and any shape there is.

Faults and the small run they are put into are those of `python -m benchmarks faults`,
which makes the tables of `docs/faults.md`; what a number has to be is said here.
"""

import itertools
from dataclasses import replace

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from benchmarks.faults import injection, interrupted, training
from benchmarks.faults.mistakes import MISTAKES, try_mistake
from benchmarks.faults.training import Competitor, Setting
from linboost_optax import linen

pytestmark = pytest.mark.lenient("optimizers of Optax promote implicitly")

SEEDS = range(3)
SETTING = Setting()
STATISTICS = {
    "auto": "auto",
    "gram": "gram",
    "sketch": lbo.Sketch(8),
    "moments": "moments",
    "inputs": "inputs",
}
SOLVERS = {
    "cholesky": lbo.Cholesky(),
    "incomplete": lbo.IncompleteCholesky(),
    "cg": lbo.ConjugateGradient(),
}


def competitor(method, solver, statistic):
    solver, statistic = SOLVERS[solver], STATISTICS[statistic]
    if method == "lnb":
        return Competitor(
            "", statistic, lambda rate, taps: lbo.lnb(rate, taps, solver), 0.3
        )
    if method == "polar":
        return Competitor(
            "", statistic, lambda rate, taps: lbo.polar(rate, taps, solver), 0.03
        )
    return Competitor(
        "",
        statistic,
        lambda rate, taps: lbo.whiten(optax.adam(rate), taps, solver),
        0.03,
    )


def possible(method, solver, statistic):
    """All that is not refused when it is built."""
    if solver == "cg":
        return method == "lnb" and statistic in ("gram", "inputs")
    return (method, solver, statistic) != ("whiten", "cholesky", "inputs")


ALL = {
    "-".join(names): competitor(*names)
    for names in itertools.product(["lnb", "whiten"], SOLVERS, STATISTICS)
    if possible(*names)
}
ALL["polar-cholesky-auto"] = competitor("polar", "cholesky", "auto")
# Whose metric has no ridge: the variance of inputs, whatever it is, becomes one.
WITHOUT_RIDGE = [name for name in ALL if "incomplete" in name or "moments" in name]


# --- bad numbers ------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_poisoned_run_reaches_the_loss_of_a_clean_one(name):
    """5 % of the batches are poisoned, the first among them; one kind a seed at least.

    The loss starts near 1.5 and ends near 0.27, of which 0.25 is noise.
    """
    each, kinds = ALL[name], list(injection.POISONS.items())
    for seed in SEEDS:
        data = training.batches(seed)
        clean = training.run(each, data, seed=seed)
        assert clean.sound
        assert clean.final < 0.2 * clean.start
        hit = injection.hit(SETTING.steps, 0.05, seed)
        for kind, poison in kinds[seed :: len(SEEDS)]:
            bad = training.run(each, poison(data, hit), seed=seed)
            assert bad.sound, kind
            assert bad.final < 1.04 * clean.final, kind


@pytest.mark.parametrize("name", ["lnb-cholesky-gram", "whiten-incomplete-moments"])
@pytest.mark.parametrize("kind", injection.POISONS)
def test_every_kind_of_poison_is_bad_enough_to_be_noticed(kind, name):
    """Else the run above would survive what never happened."""
    each, data = ALL[name], training.batches(0)
    bad = injection.POISONS[kind](data, np.array([3]))
    changed = [bool(np.any(a != b)) for a, b in zip(bad, data, strict=True)]
    assert any(changed)
    states = [training.run(each, batches).carry[1] for batches in (data, bad)]
    # `lnb` is a chain, whose first state counts.
    states = [s if isinstance(s, lbo.WhitenState) else s[0] for s in states]
    taken = [int(state.count) for state in states]
    assert taken == [SETTING.steps, SETTING.steps - 1]


# --- hostile features -------------------------------------------------------------


@pytest.mark.parametrize("feature", injection.FEATURES)
@pytest.mark.parametrize("name", ALL)
def test_hostile_features_stay_finite_and_the_loss_falls(name, feature, request):
    if feature == "all times 1e-15" and ("cg" in name or name in WITHOUT_RIDGE):
        why = "a metric without a ridge stretches all inputs of a layer to one"
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    data = training.batches(0)
    data = data._replace(x=injection.FEATURES[feature](data.x))
    found = training.run(ALL[name], data)
    assert found.sound
    if (name, feature) == ("lnb-cg-inputs", "all constant"):
        return  # their variance is a rounding error, which decides whether it learns
    assert found.end < 0.75 * found.start


@pytest.mark.parametrize(
    "name",
    [name for name in ALL if "cholesky" in name and "moments" not in name],
)
def test_one_feature_in_another_unit_takes_nothing_from_training(name):
    """The same function at the start, the same learned: at any scale of an input."""

    def final(factor):
        scales = np.r_[factor, np.ones(training.FEATURES - 1)].astype(np.float32)
        data, params = training.batches(0), training.initial()
        kernel = params["Dense_0"]["kernel"] / scales[:, None]
        params = {**params, "Dense_0": {**params["Dense_0"], "kernel": kernel}}
        found = training.run(ALL[name], data._replace(x=data.x * scales), params=params)
        assert found.sound
        return found.end

    plain = final(1.0)
    for factor in (1e3, 1e15):
        assert final(factor) < 1.03 * plain


def test_one_sample_in_a_batch():
    """Noisy steps at a small rate, and no worse than noisy."""
    setting = replace(SETTING, rows=1, rate=0.1)
    for name, each in ALL.items():
        found = training.run(each, training.batches(0, setting), setting)
        assert found.sound, name
        if not name.startswith("whiten") or name not in WITHOUT_RIDGE:
            assert found.end < 0.8 * found.start, name


@pytest.mark.xfail(
    strict=True, reason="one sample has no variance, and there is no ridge"
)
def test_whitening_without_a_ridge_on_one_sample_in_a_batch():
    setting = replace(SETTING, rows=1)
    each = ALL["whiten-incomplete-moments"]
    found = training.run(each, training.batches(0, setting), setting)
    assert found.end < found.start


@pytest.mark.parametrize(
    "name",
    [
        "lnb-cholesky-auto",
        "lnb-incomplete-moments",
        "lnb-cg-gram",
        "whiten-cholesky-sketch",
    ],
)
def test_batches_of_changing_size(name):
    tx, step = training.stepper(ALL[name], Setting(steps=60))
    data, params, traced = training.batches(0), training.initial(), []

    @jax.jit
    def counted(carry, batch):
        traced.append(batch.x.shape)
        return step(carry, batch)

    carry = params, tx.init(params)
    before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), carry)
    for i, rows in enumerate([32, 1, 7] * 20):
        batch = training.Batches(*(part[i] for part in data))
        batch = batch._replace(
            x=batch.x[:rows], y=batch.y[:rows], weight=batch.weight[:rows]
        )
        carry, _ = counted(carry, batch)
        assert training.finite(carry)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), carry) == before
    assert len(traced) == 3  # once for each size
    assert training.error(carry[0], data) < 0.5 * training.error(params, data)


DEEP = [
    (name, *size)
    for name in ("lnb-cholesky-auto", "whiten-cholesky-auto", "lnb-incomplete-moments")
    for size in [(300, True), (6, False)]
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth", "scanned"), DEEP)
def test_a_deep_narrow_network_trains(name, depth, scanned, request):
    if depth == 300 and name in WITHOUT_RIDGE:
        why = "inputs shrink from layer to layer, and without a ridge are stretched"
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    setting = Setting(steps=40, model=training.Deep(depth, scanned))
    found = training.run(ALL[name], training.batches(0, setting), setting)
    assert found.sound
    assert found.end < 0.75 * found.start


def test_float16():
    setting = replace(SETTING, dtype=jnp.float16)
    for name in ("lnb-cholesky-auto", "lnb-cg-gram", "lnb-incomplete-moments"):
        found = training.run(ALL[name], training.batches(0, setting), setting)
        assert found.sound
        assert found.end < 0.3 * found.start


def test_float16_steps_that_overflow_are_skipped():
    setting = replace(SETTING, dtype=jnp.float16)
    data = training.batches(0, setting)
    data = data._replace(x=data.x * np.float32(1e-6))
    assert training.run(ALL["lnb-incomplete-moments"], data, setting).sound


def test_steps_of_an_inner_optimizer_that_are_not_finite_are_skipped():
    """Adam's `eps` is zero in float16, so that it divides zero by zero."""
    setting = replace(SETTING, dtype=jnp.float16)
    name = "whiten-cholesky-auto"
    assert training.run(ALL[name], training.batches(0, setting), setting).sound


# --- killed -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    code, printed = interrupted.launch(tmp_path_factory.mktemp("whole"), "flax", 24)
    assert code == 0
    return printed.split()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("way", interrupted.WAYS)
def test_killed_and_resumed_training_ends_with_the_same_bits(
    way, uninterrupted, tmp_path
):
    """SIGKILL at random steps, every other one in the middle of a save."""
    found = interrupted.interrupted(tmp_path / way, way, 24, kills=3, seed=0)
    assert found.digest == uninterrupted
    assert {death.in_save for death in found.deaths} == {True, False}
    # It went on from what was saved: not from the start, and not from where it died.
    assert found.starts[0] == 0
    assert 0 < found.starts[-1] < found.deaths[-1].step


def test_a_digest_sees_one_bit():
    params = training.initial()
    nudged = jax.tree.map(np.array, params)
    nudged["Dense_1"]["bias"][0] = np.nextafter(np.float32(0), np.float32(1))
    assert interrupted.digest(params) != interrupted.digest(nudged)


# --- mistakes ---------------------------------------------------------------------


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_raise(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = try_mistake(name)
    assert found["error"] is not None
    assert found["says"]


# --- any shape there is -----------------------------------------------------------

# Found again at once, as nothing is random; shrinking would take minutes to compile.
FEW = hypothesis.settings(
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
)
# Inputs are exact in the narrow dtypes, so that only the sums are rounded.
DTYPES = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def grid(shape, seed):
    """Numbers that every dtype here has: multiples of 1/8 up to 2."""
    return np.random.default_rng(seed).integers(-16, 17, shape) / 8


def collected(model, x, statistic, seed=0):
    """Statistics of the only layer of a model; its gradient is the untapped one."""
    params = model.init(jax.random.key(seed), x)["params"]
    taps = linen.taps(model, x, statistic=statistic)
    (layer,) = taps.layers

    def loss_fn(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, x)).astype(jnp.float32))

    want = jax.jit(jax.value_and_grad(loss_fn))(params)
    loss, grads, stats = jax.jit(linen.value_and_grad(loss_fn, taps))(params)
    for got, plain in zip(
        jax.tree.leaves((loss, grads)), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_array_equal(got, plain)
    return layer, stats[layer.key], params, grads


def check_sums(statistic, stats, designs, channels):
    """Statistics are the sums over the rows of every group's design matrix."""
    np.testing.assert_array_equal(
        stats.count, [len(designs[0] if statistic != "moments" else channels[0])]
    )
    for group, rows in enumerate(channels if statistic == "moments" else designs):
        np.testing.assert_allclose(stats.sum[group], rows.sum(0), **CLOSE)
        if statistic == "moments":
            np.testing.assert_allclose(stats.sum_sq[group], (rows**2).sum(0), **CLOSE)
        else:
            np.testing.assert_allclose(stats.outer[group], rows.T @ rows, **CLOSE)


def patches(x, window, strides, padding, input_dilation, kernel_dilation):
    """Every window of `[n, *space, c]`, by loops: `[row, place, channel]`."""
    dilated = [(s - 1) * d + 1 for s, d in zip(x.shape[1:-1], input_dilation)]
    spread = np.zeros((len(x), *dilated, x.shape[-1]))
    spread[(slice(None), *(slice(None, None, d) for d in input_dilation))] = x
    spread = np.pad(spread, [(0, 0), *padding, (0, 0)])
    reach = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilation)]
    starts = [
        range(0, size - r + 1, s)
        for size, r, s in zip(spread.shape[1:-1], reach, strides)
    ]
    rows = []
    for image in spread:
        for start in itertools.product(*starts):
            places = itertools.product(*(range(k) for k in window))
            rows.append(
                [
                    image[
                        tuple(s + o * d for s, o, d in zip(start, at, kernel_dilation))
                    ]
                    for at in places
                ]
            )
    return np.array(rows)


@FEW
@hypothesis.given(
    data=st.data(),
    dtype=DTYPES,
    spatial=st.integers(1, 2),
    groups=st.integers(1, 2),
    statistic=st.sampled_from(["gram", "moments"]),
)
def test_any_convolution(data, dtype, spatial, groups, statistic):
    def each(low, high):
        return data.draw(st.tuples(*[st.integers(low, high)] * spatial))

    window, strides = each(1, 3), each(1, 2)
    input_dilation, kernel_dilation = each(1, 2), each(1, 2)
    padding = tuple(zip(each(0, 2), each(0, 2)))
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    x = grid((batch, *each(5, 6), groups * channels), 0)
    model = nn.Conv(
        2 * groups,
        window,
        strides,
        padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=groups,
        dtype=dtype,
        param_dtype=dtype,
    )
    _, stats, *_ = collected(model, jnp.asarray(x, dtype), statistic)
    rows = patches(x, window, strides, padding, input_dilation, kernel_dilation)
    rows = rows.reshape(*rows.shape[:2], groups, channels)
    designs = [rows[:, :, g].reshape(len(rows), -1) for g in range(groups)]
    seen = x.reshape(-1, groups, channels)
    check_sums(statistic, stats, designs, [seen[:, g] for g in range(groups)])


@FEW
@hypothesis.given(
    data=st.data(), dtype=DTYPES, statistic=st.sampled_from(["gram", "moments"])
)
def test_any_contraction(data, dtype, statistic):
    ndim = data.draw(st.integers(2, 4))
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * ndim))
    axes = data.draw(
        st.lists(st.integers(1, ndim - 1), min_size=1, max_size=2, unique=True)
    )
    free = [a for a in range(ndim) if a not in axes]
    signed = [a - ndim if data.draw(st.booleans()) else a for a in axes]
    x = grid(shape, 1)
    model = nn.DenseGeneral((2, 3), axis=signed, dtype=dtype, param_dtype=dtype)
    _, stats, *_ = collected(model, jnp.asarray(x, dtype), statistic)
    rows = x.transpose(*free, *sorted(axes))
    rows = [rows.reshape(-1, int(np.prod([shape[a] for a in axes])))]
    check_sums(statistic, stats, rows, rows)


@FEW
@hypothesis.given(
    data=st.data(),
    method=st.sampled_from(["gram", "inputs", "sketch", "moments", "cg", "cg inputs"]),
    rows=st.integers(1, 40),
    features=st.integers(1, 8),
    biased=st.booleans(),
)
def test_any_solution_solves(data, method, rows, features, biased):
    """The residual of one step through the optimizer, by NumPy in float64."""
    ridge = data.draw(st.sampled_from([0.01, 0.1, 1.0]))
    scales = 10.0 ** np.array(
        data.draw(st.lists(st.integers(-1, 1), min_size=features, max_size=features))
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = jnp.asarray(scales * (rng.normal(size=(rows, features)) + 0.5), jnp.float32)
    if method.startswith("cg"):
        solver = lbo.ConjugateGradient(ridge, iterations=40, tolerance=0.0)
        statistic = "inputs" if "inputs" in method else "gram"
    elif method == "moments":
        solver, statistic = lbo.IncompleteCholesky(), method
    else:
        solver = lbo.Cholesky(ridge=ridge, shrinkage=0.0)
        statistic = lbo.Sketch(features) if method == "sketch" else method
    model = nn.Dense(2, use_bias=biased)
    params = model.init(jax.random.key(0), x)["params"]
    taps = linen.taps(model, x, statistic=statistic)
    tx = lbo.scale_by_lnb(taps, solver, b_g=0.0, min_norm=1e6)

    @jax.jit
    def step(params):
        def loss_fn(params):
            return jnp.mean(jnp.sin(3 * model.apply({"params": params}, x)))

        _, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
        return grads, tx.update(grads, tx.init(params), params, stats=stats)[0]

    g, h = (_matrix(tree) for tree in step(params))
    tilde = np.asarray(x, np.float64)
    if biased:
        tilde = np.c_[tilde, np.ones(rows)]
    metric = _metric(tilde, biased, ridge, solver)
    residual = metric @ (1e6 * h) - g
    unit = np.sqrt(np.diag(metric))[:, None]  # where every feature has one scale
    assert np.linalg.norm(residual / unit) < 1e-2 * np.linalg.norm(g / unit)


def _matrix(tree):
    rows = [tree["kernel"], *([tree["bias"][None]] if "bias" in tree else [])]
    return np.concatenate([np.asarray(each, np.float64) for each in rows])


def _metric(tilde, biased, ridge, solver):
    """`M + γP`, or with the covariance's diagonal and no ridge."""
    d = tilde.shape[1] - biased
    penalty = np.diag(np.r_[np.ones(d), np.zeros(int(biased))])
    if not isinstance(solver, lbo.IncompleteCholesky):
        return tilde.T @ tilde / len(tilde) + ridge * penalty
    x = tilde[:, :d]
    mean, variance = x.mean(0), x.var(0)
    metric = np.zeros((d + biased, d + biased))
    shrunk = 0.9 * variance + 0.1 * variance.mean()
    if not biased:
        return np.diag(shrunk + mean**2)
    one = np.r_[mean, 1.0]
    return np.diag(np.r_[shrunk, 0.0]) + np.outer(one, one) + metric
