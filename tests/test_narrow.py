"""Narrow floats: sums neither overflow nor forget, and skipped steps are counted."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._transforms import wide
from linboost_optax._transforms.guard import all_finite
from tests.networks import data

# Mixed precision, and the optimizers of Optax, promote implicitly.
pytestmark = pytest.mark.lenient("mixed precision is promotion")

CLOSE = 1e-5  # float32
NARROW = [jnp.float16, jnp.bfloat16]
SOLVERS = [lbo.IncompleteCholesky(), lbo.ConjugateGradient(), lbo.Cholesky()]


def setup(statistic="gram"):
    """A dense layer, the statistics of its inputs and the inputs themselves."""
    x, _ = data(rows=64, inputs=8, outputs=2)
    model = nn.Dense(128)
    params = model.init(jax.random.key(0), x)["params"]
    taps = linen.taps(model, x, statistic=statistic)

    def loss_fn(params, x):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, x)
    return params, taps, grads, stats, np.asarray(x, np.float64)


def assert_close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = np.abs(np.asarray(b, np.float64)).max()
        np.testing.assert_allclose(
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            rtol=tolerance,
            atol=tolerance * scale,
        )


# --- finiteness -------------------------------------------------------------------


@pytest.mark.usefixtures("optimized")  # the compiler may reorder a sum
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_finite_numbers_are_finite_whatever_their_sum(dtype):
    largest = jnp.full((4, 300), jnp.finfo(dtype).max, dtype)
    tree = {"a": largest, "b": -largest, "c": jnp.zeros((0,), dtype)}
    assert bool(jax.jit(all_finite)(tree))
    assert bool(jax.jit(jax.vmap(lambda row: all_finite([row])))(largest).all())
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        for name in ("a", "b"):
            spoilt = {**tree, name: tree[name].at[-1, -1].set(bad)}
            assert not bool(jax.jit(all_finite)(spoilt))
    # What is infinite may not be made up for by what is infinite with the other sign.
    assert not bool(all_finite(jnp.asarray([jnp.inf, -jnp.inf], dtype)))
    assert bool(all_finite(()))
    assert bool(all_finite(jnp.arange(3)))


def test_norm_neither_overflows_nor_hides_bad_numbers():
    rng = np.random.default_rng(0)
    h, g = (rng.normal(size=(2, 7)) ** 2 for _ in range(2))
    want = np.sqrt(np.sum(h * g))
    for a, b in [(1, 1), (1e25, 1e25), (3e37, 1e-30), (1e-5, 3e37), (3e37, 3e37)]:
        leaves = [[jnp.asarray(a * row) for row in h], [jnp.asarray(b * r) for r in g]]
        leaves = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), leaves)
        expected = want * np.sqrt(a) * np.sqrt(b)
        np.testing.assert_allclose(jax.jit(wide.norm)(*leaves), expected, rtol=CLOSE)
    one = jnp.ones(3)
    assert float(wide.norm([one], [-one])) == 0
    assert float(wide.norm([1e25 * one], [-1e25 * one])) == 0
    assert float(wide.norm([], [])) == 0
    assert float(wide.norm([one[:0]], [one[:0]])) == 0
    assert float(wide.norm([3j * one[:1]], [3j * one[:1]])) == 3
    for bad, other in itertools.product([jnp.nan, jnp.inf], [0.0, 1.0, -1.0, 1e25]):
        assert not jnp.isfinite(wide.norm([one * bad], [one * other]))
        assert not jnp.isfinite(wide.norm([one * other, one], [one, one * bad]))


def test_norm_of_leaves_of_different_precision():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        leaves = [jnp.ones(2, jnp.float32), jnp.full(2, 2.0, jnp.float64)]
        got = wide.norm(leaves, leaves)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, np.sqrt(10.0), rtol=1e-12)
        # 1e160 overflows when squared; beside it a narrow leaf is small, not zero.
        large = [leaves[0], jnp.full(2, 1e160, jnp.float64)]
        got = wide.norm(large, large)
        np.testing.assert_allclose(got, np.sqrt(2.0) * 1e160, rtol=1e-12)
        product = [jnp.full(2, 3e37, jnp.float32), jnp.ones(2, jnp.float64)]
        got = wide.norm(product, product)
        np.testing.assert_allclose(got, np.sqrt(2.0) * 3e37, rtol=1e-6)


@pytest.mark.parametrize(
    "solver", [lbo.IncompleteCholesky(), lbo.Cholesky(shrinkage=0.0)], ids=str
)
@pytest.mark.parametrize("dtype", NARROW)
def test_whiten_steps_on_gradients_whose_sum_overflows(dtype, solver):
    """Against whitening in NumPy: `C^-T C^-1 g` in float64."""
    params, taps, grads, stats, x = setup()
    grads = jax.tree.map(lambda g: jnp.full(g.shape, 100.0, dtype), grads)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    assert not jnp.isfinite(jnp.sum(grads["kernel"])) or dtype == jnp.bfloat16
    tx = lbo.whiten(optax.sgd(1.0), taps, solver)
    updates, state = tx.update(grads, tx.init(params), params, stats=stats)
    assert int(optax.tree.get(state, "skipped")) == 0
    assert int(state.count) == 1
    tilde = np.c_[x, np.ones(len(x))]
    second = tilde.T @ tilde / len(x)
    if isinstance(solver, lbo.Cholesky):
        second[:-1, :-1] += solver.ridge * np.eye(x.shape[1])
        metric = second
    else:
        mean, variance = x.mean(0), x.var(0)
        s = 0.9 * variance + 0.1 * variance.mean()
        metric = np.block(
            [[np.diag(s) + np.outer(mean, mean), mean[:, None]], [mean[None], 1.0]]
        )
    want = -np.linalg.solve(metric, np.full((9, 128), 100.0))
    eps = float(jnp.finfo(dtype).eps)
    assert_close(updates, {"bias": want[-1], "kernel": want[:-1]}, eps)


@pytest.mark.parametrize("dtype", [*NARROW, jnp.float32])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_lnb_is_the_same_step_at_any_scale_of_the_loss(solver, dtype):
    """The step is normalised: at the ends of a dtype, too, where squares overflow."""
    params, taps, grads, stats, _ = setup()
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    end = 2.0**15 if dtype == jnp.float16 else 2.0**90
    if isinstance(solver, lbo.ConjugateGradient):
        end = 2.0**15  # its own squares are float32's
    scale = end / 2 ** np.ceil(np.log2(largest))
    scaled = jax.tree.map(lambda g: (g * scale).astype(dtype), grads)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32) / scale, scaled)
    tx = lbo.scale_by_lnb(taps, solver, min_norm=1e-30)
    want, _ = tx.update(grads, tx.init(params), params, stats=stats)
    got, state = tx.update(scaled, tx.init(params), params, stats=stats)
    assert int(state.skipped) == 0
    assert_close(got, want, CLOSE)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))


# --- moving averages --------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("b_g", [0.9, 0.999])
def test_the_average_of_narrow_gradients_forgets_as_it_should(dtype, b_g):
    """100 gradients of 1, then 100 of -0.5, averaged in float64 by hand."""
    params = {"free": jnp.zeros(3, dtype)}
    tx = lbo.scale_by_lnb(lbo.Taps(()), b_g=b_g, min_norm=1e3)
    step = jax.jit(lambda g, state: tx.update({"free": g}, state, stats={}))
    state, average = tx.init(params), 0.0
    for value in [1.0] * 100 + [-0.5] * 100:
        updates, state = step(jnp.full(3, value, dtype), state)
        average = b_g * average + (1 - b_g) * value
    corrected = average / (1 - b_g**200)
    np.testing.assert_allclose(state.momentum["free"], average, rtol=1e-4)
    assert updates["free"].dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    # Through the smallest numbers of float16.
    got = np.asarray(updates["free"], np.float64) * 1e3
    np.testing.assert_allclose(got, corrected, rtol=eps, atol=1e-4)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_inner_optimizer_has_float32(dtype):
    """Squares of 300 overflow float16; an `eps` of 1e-8 is 0 there, and 0 / 0 bad."""
    params, taps, grads, stats, _ = setup()
    grads = {**grads, "kernel": 3e2 * jnp.sign(grads["kernel"]), "bias": jnp.zeros(128)}
    narrow = jax.tree.map(lambda g: g.astype(dtype), grads)
    tx = lbo.whiten(optax.adam(0.1), taps)
    low = jax.tree.map(lambda p: p.astype(dtype), params)

    def steps(grads, params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params, stats=stats)
        return updates, state

    (want, _), (got, state) = steps(grads, params), steps(narrow, low)
    assert_close(got, want, 8 * float(jnp.finfo(dtype).eps))
    assert optax.tree.dtype(got, "lowest") == dtype
    for leaf in jax.tree.leaves(optax.tree.get(state, "nu")):
        assert leaf.dtype == jnp.float32
        assert bool(jnp.isfinite(leaf).all())


def test_updates_without_params_have_the_gradients_dtype():
    params, taps, grads, stats, _ = setup()
    grads = jax.tree.map(lambda g: g.astype(jnp.float16), grads)
    for tx in (lbo.scale_by_lnb(taps), lbo.whiten(optax.sgd(0.1), taps)):
        updates, _ = tx.update(grads, tx.init(params), stats=stats)
        assert all(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(updates))
        updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("statistic", ["gram", "moments", lbo.Sketch(8), "inputs"])
@pytest.mark.parametrize("dtype", NARROW)
def test_statistics_of_narrow_inputs_are_summed_in_float32(dtype, statistic):
    """1000 inputs of 90 have squares that sum to 8.1e6, float16 ends at 65504."""
    x = jnp.full((1000, 10), 90.0, dtype)
    model = nn.Dense(3, dtype=dtype)
    params = model.init(jax.random.key(0), x)["params"]
    taps = linen.taps(model, x, statistic=statistic)

    def loss_fn(params):
        return jnp.sum(model.apply({"params": params}, x).astype(jnp.float32))

    _, _, stats = linen.value_and_grad(loss_fn, taps)(params)
    (layer,) = taps.layers
    moments = layer.statistic.moments(layer, stats[""])
    np.testing.assert_allclose(moments.count, 1000)
    np.testing.assert_allclose(moments.mean, np.full((1, 10), 90.0), rtol=CLOSE)
    np.testing.assert_allclose(moments.mean_sq, np.full((1, 10), 8100.0), rtol=CLOSE)
    assert moments.mean_sq.dtype == jnp.float32


# --- skipped steps are counted ----------------------------------------------------


@pytest.mark.parametrize("name", ["lnb", "whiten"])
def test_skipped_steps_are_counted(name):
    params, taps, grads, stats, _ = setup()
    tx = lbo.lnb(0.1, taps) if name == "lnb" else lbo.whiten(optax.adam(0.1), taps)
    tx = optax.chain(optax.clip(1e3), tx)
    step = jax.jit(lambda g, s: tx.update(g, s, params, stats=stats))
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    state, counts = tx.init(params), []
    for each in (grads, bad, bad, grads, bad):
        _, state = step(each, state)
        counts.append(int(optax.tree.get(state, "skipped")))
    assert counts == [0, 1, 2, 2, 3]
    skipped = optax.tree.get(state, "skipped")
    assert (skipped.dtype, skipped.shape) == (jnp.int32, ())
    full = optax.tree.set(state, skipped=jnp.iinfo(jnp.int32).max)
    _, state = step(bad, full)
    assert int(optax.tree.get(state, "skipped")) == jnp.iinfo(jnp.int32).max


# --- loss scaling -----------------------------------------------------------------

SCALE = 2.0**15
OPTIMIZERS = {
    "lnb": lambda taps: lbo.lnb(optax.linear_schedule(0.3, 0.03, 40), taps),
    "whiten": lambda taps: lbo.whiten(optax.adam(3e-2), taps),
    "polar": lambda taps: lbo.polar(optax.linear_schedule(0.15, 1e-2, 40), taps),
}


def narrow_network(dtype):
    """A network that computes in `dtype`; its parameters are float32."""

    class Narrow(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.tanh(nn.Dense(16, dtype=dtype)(x))
            return nn.Dense(3, dtype=dtype)(x)

    return Narrow()


def mean_squares(model):
    def loss_fn(params, x, y):
        out = model.apply({"params": params}, x).astype(jnp.float32)
        return jnp.mean(jnp.square(out - y))

    return loss_fn


def losses(name, dtype, scale, unscale, narrow_grads=False, steps=40):
    """The losses of `steps` steps, and the last state."""
    model, (x, y) = narrow_network(dtype), data(rows=64)
    params = narrow_network(jnp.float32).init(jax.random.key(1), x)["params"]
    taps = linen.taps(model, x)
    tx, loss_fn = OPTIMIZERS[name](taps), mean_squares(model)

    @jax.jit
    def step(params, state):
        def scaled(params):
            return scale * loss_fn(params, x, y)

        loss, grads, stats = linen.value_and_grad(scaled, taps)(params)
        if narrow_grads:
            grads = jax.tree.map(lambda g: g.astype(dtype), grads)
        if unscale:
            grads = jax.tree.map(lambda g: g.astype(jnp.float32) / scale, grads)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state, loss / scale

    state, seen = tx.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state)
        seen.append(float(loss))
    return seen, state


@pytest.fixture(scope="module")
def in_float32():
    return {name: losses(name, jnp.float32, 1.0, False)[0] for name in OPTIMIZERS}


@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_scaling_trains_like_float32(name, dtype, unscale, in_float32):
    want = in_float32[name]
    got, state = losses(name, dtype, SCALE, unscale, narrow_grads=True)
    assert int(optax.tree.get(state, "skipped")) == 0
    assert want[-1] < 0.3 * want[0]
    np.testing.assert_allclose(got[-1], want[-1], rtol=0.05)
