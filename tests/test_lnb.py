"""Linear Neuron Boosting: what it means, and how it behaves as an Optax citizen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._solvers.gram import Inverse
from linboost_optax._solvers.incomplete_cholesky import MomentsState
from linboost_optax._solvers.nystrom import LowRank
from tests.networks import MLP, data, squared_error, train_step

EXACT = 1e-10  # float64
CLOSE = 1e-5  # float32

SOLVERS = [lbo.IncompleteCholesky(), lbo.ConjugateGradient(), lbo.Cholesky()]


def setup(solver=None, statistic=None, dtype=jnp.float32, model=None, **options):
    model = model or MLP(dtype=dtype)
    batch = data(dtype=dtype)
    params = model.init(jax.random.key(1), batch[0])["params"]
    solver = solver or lbo.Cholesky()
    whole = isinstance(solver, lbo.ConjugateGradient)  # it asks for all rows
    statistic = statistic or ("gram" if whole else "auto")
    taps = linen.taps(model, batch[0], statistic=statistic)
    tx = lbo.lnb(0.1, taps, solver, **options)
    return model, params, batch, taps, tx


def collect(model, params, batch, taps):
    return linen.value_and_grad(squared_error(model), taps)(params, batch)


# --- what a step is ---------------------------------------------------------------


def whitened_step(x, w, b, y, ridge, learning_rate):
    """Gradient descent on V in `f(x) = (C^-1 [x; 1])^T V`, mapped back to weights."""
    tilde = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    penalty = jnp.diag(jnp.ones(tilde.shape[1]).at[-1].set(0))
    second = tilde.T @ tilde / x.shape[0] + ridge * penalty
    factor = jnp.linalg.cholesky(second)
    v = factor.T @ jnp.concatenate([w, b[None]])

    def loss(v):
        features = jnp.linalg.solve(factor, tilde.T).T
        return jnp.mean(jnp.square(features @ v - y))

    stepped = v - learning_rate * jax.grad(loss)(v)
    weights = jnp.linalg.solve(factor.T, stepped)
    return weights[:-1], weights[-1]


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_step_is_gradient_descent_on_the_whitened_dense_layer(ridge):
    with jax.enable_x64(True):
        x, y = data(dtype=jnp.float64)
        model = nn.Dense(3, param_dtype=jnp.float64)
        params = model.init(jax.random.key(0), x)["params"]
        taps = linen.taps(model, x)
        solver = lbo.Cholesky(ridge=ridge, shrinkage=0.0)
        # A huge least norm turns the trust region into the constant step 1e-3 * 1e3.
        tx = lbo.lnb(0.1 * 1e3, taps, solver, min_norm=1e3, weight_decay=0.0)
        step = train_step(squared_error(model), taps, tx)
        new, _, _ = step(params, tx.init(params), (x, y))
        w, b = whitened_step(x, params["kernel"], params["bias"], y, ridge, 0.1)
        np.testing.assert_allclose(new["kernel"], w, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(new["bias"], b, rtol=EXACT, atol=EXACT)


def patches_of(images):
    """All 2x2 patches of `[n, h, w, c]`, in the order of a kernel."""
    return jnp.concatenate(
        [
            images[:, i : i - 1 or None, j : j - 1 or None]
            for i in (0, 1)
            for j in (0, 1)
        ],
        axis=-1,
    )


def test_step_is_gradient_descent_on_the_whitened_convolution():
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (6, 4, 5, 2), jnp.float64) + 0.5
        model = nn.Conv(3, (2, 2), padding="VALID", param_dtype=jnp.float64)
        params = model.init(jax.random.key(1), images)["params"]
        y = jax.random.normal(jax.random.key(2), (6, 3, 4, 3), jnp.float64)
        taps = linen.taps(model, images)
        tx = lbo.lnb(
            1e2, taps, lbo.Cholesky(0.1, shrinkage=0.0), min_norm=1e3, weight_decay=0.0
        )
        step = train_step(squared_error(model), taps, tx)
        new, _, _ = step(params, tx.init(params), (images, y))
        rows = patches_of(images).reshape(-1, 8)
        w, b = whitened_step(
            rows,
            params["kernel"].reshape(8, 3),
            params["bias"],
            y.reshape(-1, 3),
            0.1,
            0.1,
        )
        kernel = new["kernel"].reshape(8, 3)
        np.testing.assert_allclose(kernel, w, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(new["bias"], b, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_function_learned_ignores_an_invertible_change_of_the_inputs(layer):
    """x -> A x + c with the weights changed to match: same outputs after training."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        mix = jax.random.normal(key, (3, 3), jnp.float64) + 2 * jnp.eye(3)
        if layer == "dense":
            shape, first = (32, 3), nn.Dense(6, param_dtype=jnp.float64)
        else:
            # Channels of every pixel are mixed; a shift would not survive padding.
            shape = (4, 5, 5, 3)
            first = nn.Conv(6, (2, 2), padding="VALID", param_dtype=jnp.float64)
        shift = jnp.asarray([1.0, -2.0, 0.5]).reshape((1,) * (len(shape) - 1) + (3,))
        x = jax.random.normal(jax.random.key(1), shape, jnp.float64)
        model = nn.Sequential([first, jnp.tanh, nn.Dense(2, param_dtype=jnp.float64)])
        params = model.init(jax.random.key(2), x)["params"]
        y = jnp.sin(model.apply({"params": params}, x) * 3)

        def train(x, params):
            taps = linen.taps(model, x, statistic="gram")
            tx = lbo.lnb(
                0.1, taps, lbo.Cholesky(0.0, every=2, shrinkage=0.0), weight_decay=0.0
            )
            step = jax.jit(train_step(squared_error(model), taps, tx))
            state = tx.init(params)
            for _ in range(5):
                params, state, _ = step(params, state, (x, y))
            return model.apply({"params": params}, x)

        kernel = params["layers_0"]["kernel"]
        mixed = jnp.einsum("cd,kdo->kco", jnp.linalg.inv(mix), kernel.reshape(-1, 3, 6))
        bias = params["layers_0"]["bias"] - jnp.sum(
            shift.reshape(3, 1) * mixed.sum(0), axis=0
        )
        first = {"kernel": mixed.reshape(kernel.shape), "bias": bias}
        changed = {**params, "layers_0": first}
        np.testing.assert_allclose(
            train(x @ mix + shift, changed), train(x, params), rtol=1e-8, atol=1e-8
        )


def test_one_exact_step_solves_linear_regression():
    with jax.enable_x64(True):
        x, y = data(rows=50, dtype=jnp.float64)
        model = nn.Dense(3, param_dtype=jnp.float64)
        params = model.init(jax.random.key(0), x)["params"]
        taps = linen.taps(model, x)

        def loss_fn(params, batch):
            residual = model.apply({"params": params}, batch[0]) - batch[1]
            return 0.5 * jnp.sum(jnp.square(residual)) / batch[0].shape[0]

        tx = lbo.scale_by_lnb(
            taps, lbo.Cholesky(ridge=0.0, shrinkage=0.0), min_norm=1e-12
        )
        _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, (x, y))
        updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
        # <H, G> with H = updates * norm gives the norm back from the update itself.
        norm = sum(
            jnp.vdot(u, g)
            for u, g in zip(
                jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True
            )
        )
        got = jax.tree.map(lambda p, u: p - norm * u, params, updates)
        tilde = np.concatenate([x, np.ones((50, 1))], axis=1)
        want = np.linalg.lstsq(tilde, y)[0]
        np.testing.assert_allclose(got["kernel"], want[:-1], rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(got["bias"], want[-1], rtol=EXACT, atol=EXACT)


def test_updates_have_unit_functional_norm_and_least_norm_bounds_them():
    model, params, batch, taps, _ = setup()
    _, grads, stats = collect(model, params, batch, taps)

    def inner(tx):
        updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
        return optax.tree.vdot(updates, grads)

    unit, capped = lbo.scale_by_lnb(taps), lbo.scale_by_lnb(taps, min_norm=1e6)
    # u = H / norm, so <u, G> is the norm itself, or <H, G> / min_norm.
    norm = inner(unit)
    np.testing.assert_allclose(inner(capped), norm**2 / 1e6, rtol=1e-4)


# --- it trains --------------------------------------------------------------------


@pytest.mark.lenient("optax.adam mixes int and float in its bias correction")
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_trains_better_than_adam_on_correlated_inputs(solver):
    model, params, batch, taps, _ = setup(solver)
    schedule = optax.cosine_decay_schedule

    def final(tx, rate):
        tx = tx(schedule(rate, 100))
        step = jax.jit(train_step(squared_error(model), taps, tx))
        new, state = params, tx.init(params)
        for _ in range(100):
            new, state, loss = step(new, state, batch)
        return float(loss)

    adam = min(
        final(lambda s: optax.with_extra_args_support(optax.adam(s)), rate)
        for rate in (1e-3, 1e-2, 1e-1)
    )
    assert final(lambda s: lbo.lnb(s, taps, solver, weight_decay=0.0), 0.3) < adam


# --- an Optax citizen -------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_state_is_stable_and_nothing_recompiles(solver):
    model, params, batch, taps, tx = setup(solver)
    traces = []

    @jax.jit
    def step(params, state, batch):
        traces.append(1)
        return train_step(squared_error(model), taps, tx)(params, state, batch)

    state = tx.init(params)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (params, state))
    for _ in range(3):
        params, state, _ = step(params, state, batch)
        got = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (params, state))
        assert got == shapes  # also: the trained parameters are the model's own
    assert len(traces) == 1


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_donated_state(solver):
    model, params, batch, taps, tx = setup(solver)
    step = jax.jit(train_step(squared_error(model), taps, tx), donate_argnums=(0, 1))
    params, state, _ = step(params, tx.init(params), batch)
    _, _, loss = step(params, state, batch)
    assert bool(jnp.isfinite(loss))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_ensemble_by_vmap_is_training_each_member(solver):
    model, _, batch, taps, tx = setup(solver)
    step = jax.jit(train_step(squared_error(model), taps, tx))

    def init(key):
        return model.init(key, batch[0])["params"]

    keys = jax.random.split(jax.random.key(0), 3)
    members = jax.vmap(init)(keys)
    states = jax.vmap(tx.init)(members)
    together = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    for _ in range(3):
        members, states, _ = together(members, states, batch)
    for i, key in enumerate(keys):
        alone = init(key)
        state = tx.init(alone)
        for _ in range(3):
            alone, state, _ = step(alone, state, batch)
        for got, want in zip(
            jax.tree.leaves(members), jax.tree.leaves(alone), strict=True
        ):
            np.testing.assert_allclose(got[i], want, rtol=1e-3, atol=1e-4)


def test_training_inside_scan():
    model, params, batch, taps, tx = setup()
    step = train_step(squared_error(model), taps, tx)

    def body(carry, _):
        new, state, loss = step(*carry, batch)
        return (new, state), loss

    _, losses = jax.jit(
        lambda params: jax.lax.scan(body, (params, tx.init(params)), length=30)
    )(params)
    assert losses[-1] < 0.5 * losses[0]


def test_chain_and_schedule():
    model, params, batch, taps, _ = setup()
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        lbo.lnb(optax.linear_schedule(0.1, 0.0, 2), taps, weight_decay=0.0),
    )
    step = train_step(squared_error(model), taps, tx)
    state = tx.init(params)
    for _ in range(2):
        params, state, _ = step(params, state, batch)
    frozen, _, _ = step(params, state, batch)  # the schedule has reached zero
    for got, want in zip(jax.tree.leaves(frozen), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.lenient("optax.inject_hyperparams promotes its step count")
def test_inject_hyperparams():
    model, params, batch, taps, _ = setup()
    tx = optax.inject_hyperparams(lbo.lnb, static_args=("taps", "solver"))(
        learning_rate=0.1, taps=taps, weight_decay=1e-3, b_g=0.8
    )
    plain = lbo.lnb(0.1, taps, weight_decay=1e-3, b_g=0.8)
    _, grads, stats = collect(model, params, batch, taps)
    got, state = tx.update(grads, tx.init(params), params, stats=stats)
    want, _ = plain.update(grads, plain.init(params), params, stats=stats)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.1)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=CLOSE, atol=CLOSE)


def micro_batches():
    model, params, (x, y), taps, _ = setup(statistic="gram")
    parts = [(x[:16], y[:16]), (3 * x[16:], y[16:])]  # halves that are not alike
    whole = (jnp.concatenate([x for x, _ in parts]), y)
    return model, params, taps, parts, whole


def test_micro_batches_of_different_statistics_are_one_large_batch():
    """The mean of the gradients and the sum of the statistics."""
    model, params, taps, parts, whole = micro_batches()
    results = [collect(model, params, part, taps) for part in parts]
    grads = jax.tree.map(lambda *g: sum(g) / len(g), *(r[1] for r in results))
    stats = jax.tree.map(lambda *s: sum(s), *(r[2] for r in results))
    tx = lbo.lnb(0.1, taps)
    got, _ = tx.update(grads, tx.init(params), params, stats=stats)
    _, grads, stats = collect(model, params, whole, taps)
    want, _ = tx.update(grads, tx.init(params), params, stats=stats)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=CLOSE)


def test_statistics_of_micro_batches_add_up():
    model, params, batch, taps, _ = setup(statistic="gram")
    _, _, whole = collect(model, params, batch, taps)
    x, y = batch
    halves = [
        collect(model, params, (x[part], y[part]), taps)[2]
        for part in (slice(0, 16), slice(16, None))
    ]
    total = jax.tree.map(jnp.add, *halves)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=CLOSE, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_masked_layer_is_left_alone(solver):
    model, params, batch, taps, _ = setup(solver)
    mask = {"Dense_0": True, "Dense_1": False}
    tx = optax.masked(lbo.scale_by_lnb(taps, solver), mask)
    _, grads, stats = collect(model, params, batch, taps)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    np.testing.assert_array_equal(
        updates["Dense_1"]["kernel"], grads["Dense_1"]["kernel"]
    )
    assert bool(jnp.any(updates["Dense_0"]["kernel"] != grads["Dense_0"]["kernel"]))


def test_masked_bias_leaves_a_layer_without_bias():
    with jax.enable_x64(True):
        model, params, batch, taps, _ = setup(dtype=jnp.float64)
        mask = {name: {"kernel": True, "bias": False} for name in params}
        tx = optax.masked(
            lbo.scale_by_lnb(taps, lbo.Cholesky(0.0, shrinkage=0.0)), mask
        )
        _, grads, stats = collect(model, params, batch, taps)
        updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
        second = batch[0].T @ batch[0] / batch[0].shape[0]
        h = jnp.linalg.solve(second, grads["Dense_0"]["kernel"])
        got = updates["Dense_0"]["kernel"]
        np.testing.assert_allclose(got * (h[0, 0] / got[0, 0]), h, rtol=1e-7)
        np.testing.assert_array_equal(
            updates["Dense_0"]["bias"], grads["Dense_0"]["bias"]
        )


@pytest.mark.parametrize("masked", ["a", "b"])
@pytest.mark.parametrize(
    "solver", [lbo.Cholesky(0.1, shrinkage=0.0), lbo.ConjugateGradient(0.1, 60)]
)
def test_masked_bias_among_layers_that_share_an_input(solver, masked):
    """Each layer is solved with its own bias or without: the source's, too."""
    with jax.enable_x64(True):
        x, _ = data(dtype=jnp.float64)

        class Heads(nn.Module):
            @nn.compact
            def __call__(self, x):
                a = nn.Dense(3, name="a", param_dtype=jnp.float64)(x)
                return a * nn.Dense(3, name="b", param_dtype=jnp.float64)(x)

        model = Heads()
        params = model.init(jax.random.key(0), x)["params"]
        taps = linen.taps(model, x, statistic="gram")
        assert taps.layers[1].source == ("a",)
        mask = {name: {"kernel": True, "bias": name != masked} for name in "ab"}
        scale = lbo.scale_by_lnb(taps, solver, b_g=0.0, min_norm=1e6)
        tx = optax.masked(scale, mask)
        _, grads, stats = collect(model, params, (x, x[:, :3]), taps)
        updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
        tilde = np.c_[x, np.ones(len(x))]
        for name in "ab":
            rows, g = tilde, np.r_[grads[name]["kernel"], grads[name]["bias"][None]]
            if name == masked:
                rows, g = rows[:, :-1], g[:-1]
            ridge = 0.1 * np.eye(rows.shape[1])
            ridge[5:] = 0
            h = np.linalg.solve(rows.T @ rows / len(rows) + ridge, g)
            got = 1e6 * updates[name]["kernel"]
            np.testing.assert_allclose(got, h[:5], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("statistic", ["auto", "moments", "gram", lbo.Sketch(3)])
def test_an_empty_batch_changes_nothing(statistic):
    model, params, _, taps, _ = setup(statistic=statistic)
    nothing = (jnp.zeros((0, 5)), jnp.zeros((0, 3)))

    def loss_fn(params, batch):
        return jnp.sum(jnp.square(model.apply({"params": params}, batch[0]) - batch[1]))

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, nothing)
    tx = lbo.lnb(0.1, taps, weight_decay=0.0)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    assert all(not bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates))


def test_tree_map_params():
    _, params, _, _, tx = setup()
    state = tx.init(params)
    marked = optax.tree.map_params(tx, lambda leaf: leaf + 1, state)
    for leaf in jax.tree.leaves(marked[0].momentum):
        np.testing.assert_array_equal(leaf, 1)
    np.testing.assert_array_equal(marked[0].count, 0)


def test_low_precision_parameters_keep_their_dtype():
    model, params, batch, taps, tx = setup(dtype=jnp.bfloat16)
    step = jax.jit(train_step(squared_error(model), taps, tx))
    state, losses = tx.init(params), []
    for _ in range(20):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    assert losses[-1] < 0.8 * losses[0]


def test_variables_with_their_collection_work_as_well():
    model, params, batch, taps, tx = setup()

    def loss_fn(variables, batch):
        return squared_error(model)(variables["params"], batch)

    inside, _, _ = train_step(loss_fn, taps, tx)(
        {"params": params}, tx.init({"params": params}), batch
    )
    alone, _, _ = train_step(squared_error(model), taps, tx)(
        params, tx.init(params), batch
    )
    for a, b in zip(
        jax.tree.leaves(inside["params"]), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_array_equal(a, b)


# --- bad numbers and bad arguments ------------------------------------------------


@pytest.mark.parametrize("where", ["gradient", "statistic"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_bad_numbers_skip_the_step(solver, bad, where):
    model, params, batch, taps, tx = setup(solver)
    _, grads, stats = collect(model, params, batch, taps)
    _, state = tx.update(grads, tx.init(params), params, stats=stats)
    if where == "gradient":
        kernel = grads["Dense_0"]["kernel"].at[0, 0].set(bad)
        grads = {**grads, "Dense_0": {**grads["Dense_0"], "kernel": kernel}}
    else:
        one = lambda leaf: leaf.at[(0,) * leaf.ndim].set(bad)  # noqa: E731
        stats = {**stats, "Dense_1": jax.tree.map(one, stats["Dense_1"])}
    scale = lbo.scale_by_lnb(taps, solver)
    updates, after = scale.update(grads, state[0], params, stats=stats)
    assert all(not bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates))
    assert int(optax.tree.get(after, "skipped")) == 1
    after = after._replace(skipped=state[0].skipped)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state[0]), strict=True):
        np.testing.assert_array_equal(new, old)


def test_what_a_solver_does_not_read_does_no_harm():
    model, params, batch, taps, _ = setup(statistic=lbo.Gram(max_samples=16))
    _, grads, stats = collect(model, params, batch, taps)
    lost = jax.tree.map(lambda leaf: leaf * jnp.nan, stats["Dense_1"])

    def step(solver, first, second):
        tx, stats = lbo.scale_by_lnb(taps, solver), {"Dense_0": first}
        stats["Dense_1"] = second
        return tx.update(grads, tx.init(params), params, stats=stats)[0]

    whole = stats["Dense_1"]
    for solver, harmless in [
        (lbo.Cholesky(), whole._replace(channels=lost.channels)),
        (lbo.IncompleteCholesky(), lost._replace(channels=whole.channels)),
    ]:
        want = step(solver, stats["Dense_0"], whole)
        got = step(solver, stats["Dense_0"], harmless)
        assert bool(jnp.any(want["Dense_1"]["kernel"] != 0))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_layer_without_samples_passes_its_gradient_through():
    model, params, batch, taps, _ = setup()
    _, grads, stats = collect(model, params, batch, taps)
    stats = {**stats, "Dense_1": jax.tree.map(jnp.zeros_like, stats["Dense_1"])}
    tx = lbo.scale_by_lnb(taps)
    updates, state = tx.update(grads, tx.init(params), params, stats=stats)
    ratio = updates["Dense_1"]["kernel"] / grads["Dense_1"]["kernel"]
    np.testing.assert_allclose(ratio, jnp.full_like(ratio, ratio[0, 0]), rtol=1e-4)
    assert not bool(jnp.any(state.metric["Dense_1"].average.weight))


def test_missing_statistics():
    _, params, _, _, tx = setup()
    with pytest.raises(ValueError, match=r"`stats` is missing.*linen.value_and_grad"):
        tx.update(params, tx.init(params), params)


def test_statistics_that_do_not_fit():
    model, params, batch, taps, tx = setup()
    _, grads, stats = collect(model, params, batch, taps)
    state = tx.init(params)

    def update(stats):
        return tx.update(grads, state, params, stats=stats)

    with pytest.raises(TypeError, match=r"`stats` must be a dict"):
        update(list(stats.values()))
    with pytest.raises(ValueError, match=r"`stats` lacks layer 'Dense_1'"):
        update({"Dense_0": stats["Dense_0"]})
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), stats)
    with pytest.raises(ValueError, match=r"`stats\['Dense_0'\]` must have shapes"):
        update(stacked)
    moments = linen.taps(model, batch[0], statistic="moments")
    _, _, other = collect(model, params, batch, moments)
    with pytest.raises(
        ValueError,
        match=r"must be what statistic 'gram' measures, GramSums, got MomentSums",
    ):
        update(other)


def test_taps_of_another_model():
    _, params, batch, taps, _ = setup()
    wider = MLP((9, 3))
    other = wider.init(jax.random.key(0), batch[0])["params"]
    with pytest.raises(ValueError, match=r"'Dense_0' with kernel of shape \(5, 8\)"):
        lbo.scale_by_lnb(taps).init(other)
    with pytest.raises(ValueError, match=r"which the parameters lack"):
        lbo.scale_by_lnb(taps).init({"Dense_0": params["Dense_0"]})
    changed = {**params, "Dense_0": {**params["Dense_0"], "bias": jnp.zeros(9)}}
    with pytest.raises(ValueError, match=r"'Dense_0' with bias of shape \(8,\)"):
        lbo.scale_by_lnb(taps).init(changed)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"taps": "model"}, TypeError, r"`taps` must be a Taps, got str"),
        ({"solver": lbo.Cholesky}, TypeError, r"`solver` must be .*Pass an instance"),
        ({"b_g": 1.0}, ValueError, r"`b_g` must be in \[0, 1\), got 1"),
        ({"min_norm": 0.0}, ValueError, r"`min_norm` must be > 0, got 0"),
        ({"weight_decay": -1.0}, ValueError, r"`weight_decay` must be >= 0, got -1"),
    ],
)
def test_bad_arguments(options, error, message):
    taps = setup()[3]
    with pytest.raises(error, match=message):
        lbo.lnb(**{"learning_rate": 0.1, "taps": taps, **options})


def test_default_solver_follows_the_statistics():
    def state(statistic):
        _, params, _, taps, _ = setup(statistic=statistic)
        return lbo.lnb(0.1, taps).init(params)[0].metric["Dense_0"]

    assert isinstance(state("moments"), MomentsState)
    assert isinstance(state("gram").factor.value, Inverse)
    assert isinstance(state("sketch").factor.value, LowRank)


@pytest.mark.parametrize("widths", [(8, 3), (200, 3)])
@pytest.mark.parametrize(
    ("statistic", "why"),
    [
        ("auto", "is of some of its rows"),
        (lbo.Gram(64), "is of some of its rows"),
        ("sketch", "has no products with it"),
        ("moments", "has no products with it"),
    ],
)
def test_conjugate_gradients_refuse_less_than_the_whole_matrix(statistic, why, widths):
    """A user who reproduces the paper must not be given another algorithm."""
    model, batch = MLP(widths), data()
    taps = linen.taps(model, batch[0], statistic=statistic)
    match = rf"ridge=0.5.* of the whole batch, .* of layer 'Dense_0' {why}.*='gram'"
    with pytest.raises(ValueError, match=match):
        lbo.lnb(0.1, taps, lbo.ConjugateGradient(ridge=0.5))


def test_conjugate_gradients_on_wide_default_taps_say_so():
    x = jax.ShapeDtypeStruct((32, 300), jnp.float32)
    with pytest.raises(ValueError, match="has no products with it"):
        lbo.lnb(0.1, linen.taps(nn.Dense(3), x), lbo.ConjugateGradient())


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(3)(nn.tanh(nn.Embed(7, 4, name="embed")(tokens)))


def test_conjugate_gradients_solve_embeddings_with_their_frequencies():
    model, tokens = Tokens(), jnp.array([[0, 1, 1, 6], [2, 1, 6, 0]])
    params = model.init(jax.random.key(0), tokens)["params"]
    taps = linen.taps(model, tokens, statistic="gram")

    def loss_fn(params):
        return jnp.mean((model.apply({"params": params}, tokens) - 1.0) ** 2)

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
    solver = lbo.ConjugateGradient(ridge=0.1, iterations=40, tolerance=0.0)
    tx = lbo.scale_by_lnb(taps, solver, min_norm=1e3, b_g=0.0)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    share = np.bincount(tokens.ravel(), minlength=7) / 8
    want = np.asarray(grads["embed"]["embedding"]) / (share + 0.1)[:, None]
    got = 1e3 * np.asarray(updates["embed"]["embedding"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=CLOSE)


@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("statistic", ["moments", "gram", "sketch", "inputs"])
def test_parameters_and_inputs_of_different_precision(dtypes, statistic):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        of_params, of_inputs = map(jnp.dtype, dtypes)
        model, (x, y) = nn.Dense(3, param_dtype=of_params), data(dtype=of_inputs)
        params = model.init(jax.random.key(1), x)["params"]
        taps = linen.taps(model, x, statistic=statistic)
        solver = lbo.Cholesky(ridge=0.1, every=1, shrinkage=0.0)
        transforms = [lbo.lnb(0.1, taps, solver)]
        if statistic != "inputs":
            transforms.append(lbo.whiten(optax.adamw(0.1), taps, solver))
        if statistic in ("gram", "inputs"):
            transforms.append(lbo.lnb(0.1, taps, lbo.ConjugateGradient()))
        for tx in transforms:
            step = jax.jit(train_step(squared_error(model), taps, tx))
            new, state = params, tx.init(params)
            for _ in range(2):
                new, after, _ = step(new, state, (x, y))
                assert optax.tree.dtype(new, "lowest") == of_params
                same = jax.tree.map(lambda a, b: a.dtype == b.dtype, after, state)
                assert all(jax.tree.leaves(same))
                state = after
            assert bool(jnp.all(new["kernel"] != params["kernel"]))
