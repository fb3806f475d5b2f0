"""Whitened coordinates: one metric with LNB, any optimizer inside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import MLP, data, squared_error, train_step

CLOSE = 1e-5  # float32
EXACT = 1e-10  # float64

# Optax's own optimizers promote implicitly in many places.
pytestmark = pytest.mark.lenient("optimizers of Optax promote implicitly")

SOLVERS = [lbo.IncompleteCholesky(), lbo.Cholesky()]
INNER = {
    "adam": optax.adam(3e-2),
    "adamw": optax.adamw(3e-2, weight_decay=1e-3),
    "momentum": optax.sgd(3e-2, momentum=0.9),
    "lion": optax.lion(1e-2),
    "muon": optax.contrib.muon(3e-2),
    "schedule-free": optax.contrib.schedule_free_adamw(3e-2),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(1e-2)),
}


def setup(dtype=jnp.float32):
    model, batch = MLP(dtype=dtype), data(dtype=dtype)
    params = model.init(jax.random.key(1), batch[0])["params"]
    taps = linen.taps(model, batch[0])
    return model, params, batch, taps


def run(model, params, batch, taps, tx, steps):
    step = jax.jit(train_step(squared_error(model), taps, tx))
    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    return params, state, losses


def assert_trees_close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_lnb_without_its_scale_is_whitened_gradient_descent(solver):
    with jax.enable_x64(True):
        model, params, batch, taps = setup(jnp.float64)
        # A least norm far above any norm makes the trust region a constant.
        lnb = lbo.lnb(1e3 * 0.05, taps, solver, b_g=0.0, min_norm=1e3, weight_decay=0.0)
        sgd = lbo.whiten(optax.sgd(0.05), taps, solver)
        got, _, _ = run(model, params, batch, taps, lnb, 12)
        want, _, _ = run(model, params, batch, taps, sgd, 12)
        assert_trees_close(got, want, EXACT)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_lnb_is_whitened_normalised_gradient_descent(solver):
    with jax.enable_x64(True):
        model, params, batch, taps = setup(jnp.float64)
        lnb = lbo.lnb(0.1, taps, solver, b_g=0.9, min_norm=1e-9, weight_decay=0.0)
        inner = optax.chain(optax.normalize_by_update_norm(eps=0.0), optax.sgd(0.1))
        whitened = optax.chain(optax.ema(0.9), lbo.whiten(inner, taps, solver))
        got, _, _ = run(model, params, batch, taps, lnb, 12)
        want, _, _ = run(model, params, batch, taps, whitened, 12)
        assert_trees_close(got, want, EXACT)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("name", INNER)
def test_every_inner_optimizer_trains(name, solver):
    model, params, batch, taps = setup()
    tx = lbo.whiten(INNER[name], taps, solver)
    new, state, losses = run(model, params, batch, taps, tx, 150)
    assert losses[-1] < 0.3 * losses[0]
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert int(state.count) == 150


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_decoupled_weight_decay_decays_the_real_weights(solver):
    with jax.enable_x64(True):
        model, params, batch, taps = setup(jnp.float64)
        _, grads, stats = linen.value_and_grad(squared_error(model), taps)(
            params, batch
        )

        def step(decay):
            inner = optax.chain(
                optax.scale_by_adam(), optax.add_decayed_weights(decay), optax.scale(-1)
            )
            tx = lbo.whiten(inner, taps, solver)
            return tx.update(grads, tx.init(params), params, stats=stats)[0]

        decayed = jax.tree.map(jnp.subtract, step(0.3), step(0.0))
        want = jax.tree.map(lambda p: -0.3 * p, params)
        assert_trees_close(decayed, want, EXACT)


def test_inner_optimizer_sees_white_gradients():
    """Per-sample gradients of a linear layer have the covariance of its errors only."""
    with jax.enable_x64(True):
        model, params, batch, taps = setup(jnp.float64)
        _, grads, stats = linen.value_and_grad(squared_error(model), taps)(
            params, batch
        )
        seen = []

        def spy(updates, state, params=None):
            seen.append((updates, params))
            return updates, state

        inner = optax.GradientTransformation(lambda params: (), spy)
        tx = lbo.whiten(inner, taps, lbo.Cholesky(ridge=0.0, shrinkage=0.0))
        tx.update(grads, tx.init(params), params, stats=stats)
        (white, v), x = seen[0], np.asarray(batch[0])
        # f(x) = W^T x + b = V_w^T z + V_b with z the whitened input.
        centred = x - x.mean(axis=0)
        factor = np.linalg.cholesky(centred.T @ centred / x.shape[0])
        z = np.linalg.solve(factor, centred.T).T
        out = z @ v["Dense_0"]["kernel"] + v["Dense_0"]["bias"]
        weights = params["Dense_0"]
        np.testing.assert_allclose(out, x @ weights["kernel"] + weights["bias"], EXACT)
        error = np.linalg.lstsq(
            np.c_[x, np.ones(len(x))].T / len(x),
            np.r_[grads["Dense_0"]["kernel"], grads["Dense_0"]["bias"][None]],
        )[0]
        np.testing.assert_allclose(
            white["Dense_0"]["kernel"], z.T @ error / len(x), rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_parameters_outside_tapped_layers_pass_through(solver):
    model, params, batch, _ = setup()
    full = linen.taps(model, batch[0])
    one = lbo.Taps(full.layers[:1])
    _, grads, stats = linen.value_and_grad(squared_error(model), one)(params, batch)
    tx = lbo.whiten(optax.sgd(1.0), one, solver)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    plain = jax.tree.map(jnp.negative, grads["Dense_1"])
    assert_trees_close(updates["Dense_1"], plain, 0)


def test_params_are_optional_if_the_inner_optimizer_does_not_read_them():
    model, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(squared_error(model), taps)(params, batch)
    tx = lbo.whiten(optax.adam(0.1), taps)
    got, _ = tx.update(grads, tx.init(params), stats=stats)
    want, _ = tx.update(grads, tx.init(params), params, stats=stats)
    assert_trees_close(got, want, 0)


def test_extra_arguments_reach_the_inner_optimizer():
    model, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(squared_error(model), taps)(params, batch)
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append((value, sorted(extra)))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = lbo.whiten(inner, taps)
    tx.update(grads, tx.init(params), params, stats=stats, value=3.0)
    assert seen == [(3.0, [])]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_bad_numbers_skip_the_step(solver, bad):
    model, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(squared_error(model), taps)(params, batch)
    tx = lbo.whiten(optax.adam(0.1), taps, solver)
    _, state = tx.update(grads, tx.init(params), params, stats=stats)
    kernel = grads["Dense_0"]["kernel"].at[0, 0].set(bad)
    grads = {**grads, "Dense_0": {**grads["Dense_0"], "kernel": kernel}}
    updates, after = tx.update(grads, state, params, stats=stats)
    assert all(not bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates))
    assert int(optax.tree.get(after, "skipped")) == 1
    assert_trees_close(after._replace(skipped=state.skipped), state, 0)


def test_state_is_stable_under_jit_and_vmap():
    model, params, batch, taps = setup()
    tx = lbo.whiten(optax.adam(1e-2), taps, lbo.Cholesky(every=2))
    step = train_step(squared_error(model), taps, tx)
    members = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    states = jax.vmap(tx.init)(members)
    together = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    for _ in range(4):
        members, states, _ = together(members, states, batch)
    assert together._cache_size() == 1
    alone, _, _ = run(model, params, batch, taps, tx, 4)
    assert_trees_close(jax.tree.map(lambda m: m[0], members), alone, 1e-4)


def test_tree_map_params():
    model, params, batch, taps = setup()
    tx = lbo.whiten(optax.adam(1e-2), taps)
    marked = optax.tree.map_params(tx, lambda leaf: leaf + 1, tx.init(params))
    assert_trees_close(marked.inner[0].mu, jax.tree.map(jnp.ones_like, params), 0)


def test_bad_arguments():
    model, params, batch, taps = setup()
    with pytest.raises(TypeError, match=r"`inner` must be an optax.*got float"):
        lbo.whiten(1e-2, taps)
    with pytest.raises(TypeError, match=r"`taps` must be a Taps"):
        lbo.whiten(optax.adam(1e-2), model)
    wide = linen.taps(model, batch[0], statistic="sketch")
    for each in (taps, wide):
        match = r"`solver` Conj.*has no factor .* 'Dense_0'"
        with pytest.raises(ValueError, match=match):
            lbo.whiten(optax.adam(1e-2), each, lbo.ConjugateGradient())
    inputs = linen.taps(model, batch[0], statistic="inputs")
    with pytest.raises(ValueError, match=r"no factor for layer 'Dense_0' .*'inputs'"):
        lbo.whiten(optax.adam(1e-2), inputs)
    tx = lbo.whiten(optax.adam(1e-2), taps)
    with pytest.raises(ValueError, match=r"`stats` is missing"):
        tx.update(params, tx.init(params), params)


class Tokens(nn.Module):
    """An embedding and a dense layer."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(3)(nn.tanh(nn.Embed(7, 4, name="embedding")(tokens)))


def test_partition_leaves_an_embedding_to_plain_adam():
    model, tokens = Tokens(), jnp.arange(12).reshape(4, 3) % 7
    params = model.init(jax.random.key(0), tokens)["params"]
    asked = lbo.Auto(embeddings=lbo.Counts(whitened=True))
    taps = linen.taps(model, tokens, statistic=asked)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)
    tx = optax.partition(
        {"Dense_0": lbo.whiten(optax.adam(0.1), taps), "embedding": optax.adam(0.1)},
        labels,
    )

    def loss_fn(params):
        return jnp.mean((model.apply({"params": params}, tokens) - 1.0) ** 2)

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    everything = lbo.whiten(optax.adam(0.1), taps)
    whitened, _ = everything.update(grads, everything.init(params), params, stats=stats)
    plain = optax.adam(0.1)
    raw, _ = plain.update(grads, plain.init(params))
    assert_trees_close(updates["Dense_0"], whitened["Dense_0"], CLOSE)
    assert_trees_close(updates["embedding"], raw["embedding"], CLOSE)
    assert bool(
        jnp.any(whitened["embedding"]["embedding"] != raw["embedding"]["embedding"])
    )


def test_an_inner_state_that_starts_at_infinity():
    # The best value so far of `reduce_on_plateau`, until it has seen enough of them.
    inner = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(accumulation_size=3)
    )
    model, x = MLP(), jax.random.normal(jax.random.key(0), (8, 3))
    params = model.init(jax.random.key(1), x)["params"]
    taps = linen.taps(model, x)
    tx = lbo.whiten(inner, taps)
    state = tx.init(params)
    assert any(jnp.any(jnp.isinf(leaf)) for leaf in jax.tree.leaves(state))
    loss_fn = lambda p: jnp.mean(model.apply({"params": p}, x) ** 2)  # noqa: E731
    for _ in range(2):
        value, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
        updates, state = tx.update(grads, state, params, stats=stats, value=value)
    assert optax.tree.get(state, "skipped") == 0
    assert all(jnp.any(u != 0) for u in jax.tree.leaves(updates))


def tokens_model():
    model = nn.Sequential([nn.Embed(7, 4), nn.Dense(3)])
    tokens = jnp.array([[0, 1, 1, 2], [0, 0, 0, 6]])
    params = model.init(jax.random.key(0), tokens)["params"]

    def loss_fn(params, tokens):
        return jnp.mean(jnp.sin(model.apply({"params": params}, tokens)))

    return model, params, tokens, loss_fn


def first_step(embeddings, make):
    model, params, tokens, loss_fn = tokens_model()
    taps = linen.taps(model, tokens, statistic=lbo.Auto(embeddings=embeddings))
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, tokens)
    tx = lbo.whiten(make(), taps)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    return updates["layers_0"]["embedding"], grads["layers_0"]["embedding"]


def test_embeddings_are_left_in_their_own_coordinates():
    updates, grads = first_step(lbo.Counts(), lambda: optax.sgd(1.0))
    np.testing.assert_array_equal(updates, -grads)


def test_embeddings_are_whitened_where_that_is_asked_for():
    """Gradient descent then divides by the frequency, shrunk as moments are."""
    updates, grads = first_step(lbo.Counts(whitened=True), lambda: optax.sgd(1.0))
    share = np.array([4, 2, 1, 0, 0, 0, 1]) / 8
    variance = share - share**2
    metric = 0.9 * variance + 0.1 * variance.mean() + share**2
    np.testing.assert_allclose(updates, -grads / metric[:, None], rtol=1e-5)


def test_embeddings_have_no_statistic_but_counts():
    with pytest.raises(TypeError, match=r"`embeddings` must be lbo.Counts\(\)"):
        lbo.Auto(embeddings="moments")
