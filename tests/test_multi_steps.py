"""Micro-batches: k of them take the step of one large batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import MLP, data, squared_error, train_step

EXACT = 1e-10  # float64
CLOSE = 1e-5  # float32

SOLVERS = {
    "cholesky": lbo.Cholesky(every=2),
    "incomplete": lbo.IncompleteCholesky(),
    "cg": lbo.ConjugateGradient(),
}
CASES = {
    ("lnb", "cholesky"): ["gram", "moments", lbo.Sketch(3)],
    ("lnb", "incomplete"): ["moments"],
    ("lnb", "cg"): ["gram"],
    ("whiten", "cholesky"): ["gram", lbo.Sketch(3)],
    ("polar", "cholesky"): ["gram"],
}


def optimizer(name, taps, solver=SOLVERS["cholesky"]):
    if name == "lnb":
        return lbo.lnb(0.1, taps, solver)
    if name == "polar":
        return lbo.polar(0.1, taps, solver)
    return lbo.whiten(optax.adam(0.1), taps, solver)


def setup(statistic="gram", dtype=jnp.float32, rows=36):
    model, (x, y) = MLP(dtype=dtype), data(rows=rows, dtype=dtype)
    # Parts that are not alike: their statistics differ.
    x = x * jnp.linspace(0.5, 2.0, rows, dtype=dtype)[:, None]
    params = model.init(jax.random.key(1), x)["params"]
    taps = linen.taps(model, x[:1], statistic=statistic)
    return squared_error(model), params, (x, y), taps


def split(batch, *sizes):
    ends = np.cumsum((0, *sizes))
    return [tuple(a[i:j] for a in batch) for i, j in itertools.pairwise(ends)]


def assert_trees_close(got, want, tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.lenient("optax.adam promotes implicitly")
@pytest.mark.parametrize(
    ("name", "solver", "statistic"),
    [(*key, statistic) for key, each in CASES.items() for statistic in each],
    ids=str,
)
def test_k_micro_batches_are_one_large_batch(name, solver, statistic):
    with jax.enable_x64(True):
        loss_fn, params, batch, taps = setup(statistic, jnp.float64)
        tx = optimizer(name, taps, SOLVERS[solver])
        large = jax.jit(train_step(loss_fn, taps, tx))
        micro_tx = lbo.multi_steps(tx, taps, 3)
        small = jax.jit(train_step(loss_fn, taps, micro_tx))
        want, state = params, tx.init(params)
        got, micro_state = params, micro_tx.init(params)
        for _ in range(3):
            want, state, _ = large(want, state, batch)
            for part in split(batch, 12, 12, 12):
                got, micro_state, _ = small(got, micro_state, part)
            assert_trees_close(got, want, EXACT)
        assert_trees_close(micro_state.inner_opt_state, state, 1e-8)
        assert small._cache_size() == 1


def test_nothing_happens_between_steps():
    loss_fn, params, batch, taps = setup()
    tx = lbo.multi_steps(lbo.lnb(0.1, taps), taps, 3)
    state = start = tx.init(params)
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    for mini_step in (1, 2):
        updates, state = tx.update(grads, state, params, stats=stats)
        assert not any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates))
        assert_trees_close(state.inner_opt_state, start.inner_opt_state, 0)
        assert int(optax.tree.get(state, "mini_step")) == mini_step
    updates, state = tx.update(grads, state, params, stats=stats)
    assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates))
    assert int(state.mini_step) == 0
    assert int(optax.tree.get(state, "gradient_step")) == 1
    assert_trees_close(state.acc_grads, start.acc_grads, 0)
    assert_trees_close(state.acc_stats, start.acc_stats, 0)


def test_k_follows_its_schedule():
    loss_fn, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    tx = lbo.multi_steps(lbo.scale_by_lnb(taps), taps, lambda step: 1 + step)

    def body(state, _):
        updates, state = tx.update(grads, state, params, stats=stats)
        return state, jnp.any(updates["Dense_0"]["kernel"] != 0)

    state, moved = jax.jit(
        lambda state: jax.lax.scan(body, state, length=10)  # 1 + 2 + 3 + 4
    )(tx.init(params))
    assert np.flatnonzero(moved).tolist() == [0, 2, 5, 9]
    assert int(state.gradient_step) == 4


@pytest.mark.parametrize("where", ["gradient", "statistic"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_bad_micro_batch_is_left_out_and_counted(where, bad):
    loss_fn, params, batch, taps = setup()
    collect = jax.jit(linen.value_and_grad(loss_fn, taps))
    tx = lbo.multi_steps(lbo.lnb(0.1, taps), taps, 2)
    update = jax.jit(lambda g, st, state: tx.update(g, state, params, stats=st))

    def run(parts, spoil=()):
        state = tx.init(params)
        for i, part in enumerate(parts):
            _, grads, stats = collect(params, part)
            if i in spoil:
                one = lambda leaf: leaf.at[(0,) * leaf.ndim].set(bad)  # noqa: E731
                hit = grads if where == "gradient" else stats
                hit["Dense_1"] = jax.tree.map(one, hit["Dense_1"])
            updates, state = update(grads, stats, state)
            if i in spoil:
                assert not any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates))
        return updates, state

    first, second = split(batch, 18, 18)
    want, want_state = run([first, second])
    got, state = run([first, first, first, second], spoil=(0, 2))
    assert_trees_close(got, want, 0)
    assert int(optax.tree.get(state, "skipped_mini_steps")) == 2
    assert int(optax.tree.get(state, "skipped")) == 0
    kept = state._replace(skipped_mini_steps=want_state.skipped_mini_steps)
    assert_trees_close(kept, want_state, 0)


def test_micro_batches_of_unequal_size():
    """All statistics; of the gradients the mean of the means."""
    with jax.enable_x64(True):
        loss_fn, params, batch, taps = setup(dtype=jnp.float64)
        collect = linen.value_and_grad(loss_fn, taps)
        inner = lbo.lnb(0.1, taps)
        tx = lbo.multi_steps(inner, taps, 2)
        state, parts = tx.init(params), split(batch, 6, 30)
        gradients = []
        for part in parts:
            _, grads, stats = collect(params, part)
            gradients.append(grads)
            got, state = tx.update(grads, state, params, stats=stats)
        _, _, stats = collect(params, batch)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
        want, _ = inner.update(mean, inner.init(params), params, stats=stats)
        assert_trees_close(got, want, EXACT)


def test_rows_of_a_matrix_are_chosen_in_every_micro_batch():
    loss_fn, params, batch, taps = setup(statistic=lbo.Gram(max_samples=8))
    collect = linen.value_and_grad(loss_fn, taps)
    tx = lbo.multi_steps(lbo.lnb(0.1, taps), taps, 4)
    state = tx.init(params)
    for part in split(batch, 12, 12, 12):
        _, grads, stats = collect(params, part)
        _, state = tx.update(grads, state, params, stats=stats)
    sums = state.acc_stats["Dense_0"]
    np.testing.assert_array_equal(sums.count, [24.0])
    np.testing.assert_array_equal(sums.channels.count, [36.0])
    total = np.asarray(batch[0]).sum(0)[None]
    np.testing.assert_allclose(sums.channels.sum, total, rtol=CLOSE, atol=CLOSE)


def test_extra_arguments_are_those_of_the_last_micro_batch():
    loss_fn, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)

    def update(updates, state, params=None, *, value, **extra_args):
        del params
        assert set(extra_args) == {"stats"}
        return updates, value

    spy = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    tx = lbo.multi_steps(optax.chain(spy, lbo.lnb(0.1, taps)), taps, 2)
    state = tx.init(params)
    for value in (1.0, 2.0):
        value = jnp.asarray(value)
        _, state = tx.update(grads, state, params, stats=stats, value=value)
    assert float(state.inner_opt_state[0]) == 2


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_gradients_are_averaged_in_float32(dtype):
    params = {"free": jnp.zeros(2, dtype)}
    taps = lbo.Taps(())
    tx = lbo.multi_steps(optax.with_extra_args_support(optax.scale(1.0)), taps, 300)
    values = np.where(np.arange(300) % 3 == 0, 6e4, 1.0)

    def body(state, value):
        grads = {"free": jnp.full(2, value, dtype)}
        updates, state = tx.update(grads, state, params, stats={})
        return state, updates

    _, updates = jax.jit(lambda state: jax.lax.scan(body, state, jnp.asarray(values)))(
        tx.init(params)
    )
    assert updates["free"].dtype == dtype
    want = np.asarray(jnp.asarray(values).astype(dtype), np.float64).mean()
    got = np.asarray(updates["free"][-1], np.float64)
    np.testing.assert_allclose(got, want, rtol=float(jnp.finfo(dtype).eps))


def test_ensembles_and_placeholders():
    loss_fn, params, batch, taps = setup()
    tx = lbo.multi_steps(lbo.lnb(0.1, taps), taps, 2)
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    twice = lambda tree: jax.tree.map(lambda a: jnp.stack([a, 2 * a]), tree)  # noqa: E731
    state = jax.vmap(tx.init)(twice(params))
    update = jax.jit(
        jax.vmap(lambda g, s, p: tx.update(g, s, p, stats=stats), in_axes=(0, 0, 0))
    )
    alone = tx.init(params)
    for _ in range(2):
        got, state = update(twice(grads), state, twice(params))
        want, alone = tx.update(grads, alone, params, stats=stats)
    assert_trees_close(jax.tree.map(lambda a: a[0], got), want, CLOSE)
    marked = optax.tree.map_params(tx, lambda leaf: leaf + 1, alone)
    assert_trees_close(
        marked.acc_grads, jax.tree.map(lambda leaf: leaf + 1, alone.acc_grads), 0
    )
    assert_trees_close(marked.acc_stats, alone.acc_stats, 0)


def test_bad_arguments():
    _, params, batch, taps = setup()
    tx = lbo.lnb(0.1, taps)
    with pytest.raises(TypeError, match=r"`inner` must be an optax.*got Taps"):
        lbo.multi_steps(taps, taps, 2)
    with pytest.raises(TypeError, match=r"`taps` must be a Taps, got int"):
        lbo.multi_steps(tx, 2, 2)
    with pytest.raises(ValueError, match=r"`every_k_schedule` must be >= 1, got 0"):
        lbo.multi_steps(tx, taps, 0)
    with pytest.raises(TypeError, match=r"`every_k_schedule` must be a whole number"):
        lbo.multi_steps(tx, taps, 1.5)
    inputs = linen.taps(MLP(), batch[0], statistic="inputs")
    with pytest.raises(
        ValueError, match=r"'Dense_0' .*'inputs', which does not add up"
    ):
        lbo.multi_steps(tx, inputs, 2)
    multi = lbo.multi_steps(tx, taps, 2)
    state = multi.init(params)
    with pytest.raises(ValueError, match=r"`stats` is missing"):
        multi.update(params, state, params)


# --- optax.MultiSteps -------------------------------------------------------------


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("name", ["lnb", "whiten", "multi_steps"])
def test_multi_steps_of_optax_is_refused(name, jit):
    loss_fn, params, batch, taps = setup()
    inner = optimizer("lnb" if name == "multi_steps" else name, taps)
    inner = optax.chain(optax.clip_by_global_norm(1.0), inner)
    if name == "multi_steps":
        inner = lbo.multi_steps(inner, taps, 1)
    tx = optax.MultiSteps(inner, 2)
    step = train_step(loss_fn, taps, tx)
    step = jax.jit(step) if jit else step
    with pytest.raises(ValueError, match=r"`optax.MultiSteps` .*Use `lbo.multi_steps"):
        step(params, tx.init(params), batch)


def test_after_a_refusal_the_same_optimizer_still_works():
    loss_fn, params, batch, taps = setup()
    tx = lbo.lnb(0.1, taps)
    step = jax.jit(train_step(loss_fn, taps, tx))
    wrapped = optax.MultiSteps(tx, 2)
    state = wrapped.init(params)
    with pytest.raises(ValueError, match=r"`optax.MultiSteps`"):
        train_step(loss_fn, taps, wrapped)(params, state, batch)
    new, _, _ = step(params, tx.init(params), batch)
    assert bool(jnp.any(new["Dense_0"]["kernel"] != params["Dense_0"]["kernel"]))


def scaled(tx, *factors, dtype=jnp.float16):
    """Returns updates of parameters in float16, from gradients in float32."""
    loss_fn, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    tx = tx(taps)
    state = tx.init(params)
    for factor in factors:
        each = optax.tree.full_like(grads, factor)
        updates, state = tx.update(each, state, params, stats=stats)
    return updates, state


@pytest.mark.parametrize("size", [1e-8, 1e5])
def test_gradients_wider_than_the_parameters_stay_wide(size):
    # Unscaled after a scaled loss: float16 would hold neither of these.
    want, _ = scaled(lambda taps: lbo.lnb(0.1, taps, min_norm=1e-12), size)
    got, state = scaled(
        lambda taps: lbo.multi_steps(lbo.lnb(0.1, taps, min_norm=1e-12), taps, 1), size
    )
    assert optax.tree.get(state, "skipped") == 0
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(want))
    assert_trees_close(got, want, 1e-3)


def test_means_that_overflow_are_left_out():
    updates, state = scaled(
        lambda taps: lbo.multi_steps(optax.sgd(0.1, 0.9), taps, 3),
        3e38, -3e38, 1.0, dtype=jnp.float32,
    )  # fmt: skip
    assert state.skipped_mini_steps == 1
    for leaf in jax.tree.leaves((updates, state)):
        assert jnp.all(jnp.isfinite(leaf))


@pytest.mark.parametrize("axes", ["Explicit", "Auto"])
@pytest.mark.parametrize("name", ["lnb", "whiten"])
def test_on_a_mesh(name, axes):
    kind = getattr(jax.sharding.AxisType, axes)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
    loss_fn, params, batch, taps = setup()
    tx = lbo.multi_steps(optimizer(name, taps), taps, 2)
    place = jax.sharding.NamedSharding(mesh, jax.P("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.P())
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        batch = jax.device_put(batch, place)
        params = {
            key: {
                "kernel": jax.device_put(each["kernel"], place),
                "bias": jax.device_put(each["bias"], everywhere),
            }
            for key, each in params.items()
        }
        loss_fn = jax.sharding.auto_axes(loss_fn, out_sharding=jax.P())
        step = jax.jit(train_step(loss_fn, taps, tx))
        trained, state = params, tx.init(params)
        for _ in range(2):
            trained, state, _ = step(trained, state, batch)
    assert jax.tree.map(jax.typeof, trained) == jax.tree.map(jax.typeof, params)
