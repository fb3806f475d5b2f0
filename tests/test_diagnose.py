"""Diagnostics: eigenvalues, dead inputs and the size of a step, by NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import MLP, data, squared_error

EXACT = {"rtol": 1e-6}  # float64, eigenvalues of matrices with conditions up to 1e6
FLOAT32 = {"rtol": 2e-3}  # conditions up to 1e3, so that 1e-7 of the largest is 1e-4


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def inputs(rows, features, seed=0, mean=0.5):
    """Correlated inputs whose scales differ by a factor of ten."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(features, features)) / features**0.5
    scale = np.logspace(0, -1, features)
    return rng.normal(size=(rows, features)) @ mix * scale + mean


diagnose = jax.jit(lbo.diagnose, static_argnums=0)


def looked_at(x, statistic, bias=True, **arrays):
    """Diagnoses one dense layer with inputs ``x``; updates and gradients as given."""
    kind = lbo.extend.Dense((), (x.shape[1],), (2,))
    bias = "bias" if bias else None
    layer = lbo.extend.Layer((), kind, statistic, x.shape, str(x.dtype), bias=bias)
    stats = {"": statistic.measure(layer, x, jnp.ones((len(x), 2)))}
    return diagnose(lbo.Taps((layer,)), stats, **arrays)["."]


def second_moment(x, bias):
    x = np.asarray(x, np.float64)
    x = np.column_stack([x, np.ones(len(x))]) if bias else x
    return x.T @ x / len(x)


def participation(x):
    values = np.linalg.eigvalsh(np.cov(np.asarray(x, np.float64).T, bias=True))
    return values.sum() ** 2 / np.sum(values**2)


WHOLE = [lbo.Gram(), lbo.Inputs(), lbo.Sketch(6), lbo.Reached(lbo.Gram())]


@pytest.mark.parametrize("statistic", WHOLE, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_condition_and_rank_are_numpys(statistic, bias, float64):
    x = inputs(50, 6)
    found = looked_at(jnp.asarray(x), statistic, bias)
    want = np.linalg.cond(second_moment(x, bias))
    np.testing.assert_allclose(found.condition, want, **EXACT)
    np.testing.assert_allclose(found.rank, participation(x), **EXACT)
    assert found.exact


@pytest.mark.parametrize("statistic", WHOLE, ids=str)
def test_condition_in_float32(statistic):
    x = inputs(50, 6, mean=0.1).astype(np.float32)
    found = looked_at(jnp.asarray(x), statistic, bias=False)
    want = np.linalg.cond(second_moment(x, False))
    assert want > 100
    np.testing.assert_allclose(found.condition, want, **FLOAT32)
    np.testing.assert_allclose(found.rank, participation(x), **FLOAT32)


@pytest.mark.parametrize("statistic", [lbo.Gram(), lbo.Inputs()], ids=str)
def test_of_fewer_samples_than_inputs_condition_is_along_them(statistic, float64):
    x = inputs(5, 12)
    found = looked_at(jnp.asarray(x), statistic)
    values = np.linalg.eigvalsh(second_moment(x, True))[::-1]
    np.testing.assert_allclose(found.condition, values[0] / values[4], **EXACT)
    np.testing.assert_allclose(found.rank, participation(x), **EXACT)


@pytest.mark.parametrize("statistic", WHOLE, ids=str)
def test_a_duplicated_input_has_no_condition(statistic):
    x = inputs(50, 6).astype(np.float32)
    x[:, 4] = x[:, 1]
    assert looked_at(jnp.asarray(x), statistic).condition == np.inf


@pytest.mark.parametrize("statistic", [*WHOLE, lbo.Moments()], ids=str)
def test_dead_inputs_are_counted_and_left_out(statistic, float64):
    x = inputs(50, 6)
    x[:, [1, 4]] = 0
    found = looked_at(jnp.asarray(x), statistic)
    np.testing.assert_allclose(found.dead, 2 / 6)
    alive = np.delete(x, [1, 4], axis=1)
    want = np.linalg.cond(second_moment(alive, True))
    if statistic == lbo.Moments():
        assert 1 < found.condition < want
    else:
        np.testing.assert_allclose(found.condition, want, **EXACT)
    assert found.samples == 50
    ratio = np.max(np.abs(alive.mean(0)) / alive.std(0))
    np.testing.assert_allclose(found.mean_to_std, ratio, **EXACT)


@pytest.mark.parametrize("statistic", [*WHOLE, lbo.Moments()], ids=str)
def test_a_constant_input_is_not_dead(statistic):
    x = inputs(50, 6).astype(np.float32)
    x[:, 2] = 3.7
    found = looked_at(jnp.asarray(x), statistic)
    assert found.dead == 0
    assert found.mean_to_std == np.inf


def test_inputs_that_are_all_zero():
    found = looked_at(jnp.zeros((8, 3)), lbo.Gram())
    assert (found.dead, found.rank, found.mean_to_std) == (1, 0, 0)
    assert found.condition == 1  # of the constant alone


@pytest.mark.parametrize("rows", [200, 15])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("statistic", [lbo.Moments(), lbo.Sketch(8)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_and_tell_something(statistic, rows, bias, seed, float64):
    # A few directions that dominate: diagonals know little, and a sketch much.
    rng = np.random.default_rng(seed)
    low = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, 30))
    x = low + 0.1 * rng.normal(size=(rows, 30)) + 0.3
    found = looked_at(jnp.asarray(x), statistic, bias)
    values = np.linalg.eigvalsh(second_moment(x, bias))[::-1]
    directions = min(rows, 30 + bias)
    assert not found.exact
    assert 1 < found.condition <= values[0] / values[directions - 1]
    assert participation(x) <= found.rank < min(rows, 30.5)
    if statistic == lbo.Sketch(8):
        assert found.condition > 100
        assert found.rank < participation(x) * 1.01


def test_embeddings_are_exact():
    tokens = jnp.array([[1, 1, 1], [1, 4, 0]])
    model = nn.Embed(5, 2)
    params = model.init(jax.random.key(0), tokens)
    taps = linen.taps(model, tokens)
    loss = lambda params: jnp.mean(model.apply(params, tokens) ** 2)  # noqa: E731
    _, _, stats = linen.value_and_grad(loss, taps)(params)
    found = lbo.diagnose(taps, stats)["."]
    one_hot = np.eye(5)[np.asarray(tokens).reshape(-1)]
    np.testing.assert_allclose(found.condition, 4, rtol=1e-6)
    np.testing.assert_allclose(found.rank, participation(one_hot), rtol=1e-6)
    np.testing.assert_allclose(found.dead, 2 / 5, rtol=1e-6)
    assert (found.exact, found.samples) == (True, 6)


def test_a_convolution_is_looked_at_by_its_patches(float64):
    x = jax.random.normal(jax.random.key(0), (3, 7, 2)) + 0.2
    model = nn.Conv(4, (3,), padding="VALID", param_dtype=x.dtype)
    params = model.init(jax.random.key(1), x)
    taps = linen.taps(model, x, statistic="gram")
    loss = lambda params: jnp.mean(model.apply(params, x) ** 2)  # noqa: E731
    _, _, stats = linen.value_and_grad(loss, taps)(params)
    patches = np.stack([x[i, j : j + 3].ravel() for i in range(3) for j in range(5)])
    found = lbo.diagnose(taps, stats)["."]
    want = np.linalg.cond(second_moment(patches, True))
    np.testing.assert_allclose(found.condition, want, **EXACT)


def stacked(x):
    """Statistics of layers one after the other, ``[layer, sample, feature]``."""
    params = {"dense": {"w": jnp.ones((len(x), 4, 3)), "b": jnp.ones((len(x), 3))}}

    def model(params, x):
        def turn(layer):
            return layer[0] @ layer[1]["w"] + layer[1]["b"][None]

        return jax.lax.map(turn, (x, params["dense"]))

    taps = lbo.taps(model, params, x, statistic="gram")
    loss = lambda params: jnp.mean(model(params, x) ** 2)  # noqa: E731
    _, _, stats = lbo.value_and_grad(loss, taps)(params)
    return taps, stats


def test_of_stacked_layers_the_worst_counts():
    x = np.stack([inputs(40, 4, seed) for seed in range(3)]).astype(np.float32)
    x[1, :, 2] = 0
    x[2] += 4
    taps, stats = stacked(jnp.asarray(x))
    found = lbo.diagnose(taps, stats)["dense"]
    whole = [second_moment(x[i], True) for i in (0, 2)]
    whole.append(second_moment(np.delete(x[1], 2, axis=1), True))
    np.testing.assert_allclose(
        found.condition, max(np.linalg.cond(m) for m in whole), rtol=0.05
    )
    ranks = [participation(each) for each in (x[0], x[2], np.delete(x[1], 2, axis=1))]
    np.testing.assert_allclose(found.rank, min(ranks), rtol=1e-3)
    np.testing.assert_allclose(found.dead, 1 / 4)
    assert found.samples == 40


def test_layers_that_saw_nothing_do_not_count():
    x = np.stack([inputs(40, 4, seed) for seed in range(2)]).astype(np.float32)
    taps, stats = stacked(jnp.asarray(x))
    both = lbo.diagnose(taps, stats)["dense"]
    without = jax.tree.map(lambda leaf: leaf.at[0].set(0), stats)
    found = lbo.diagnose(taps, without)["dense"]
    assert found.samples == 0
    want = np.linalg.cond(second_moment(x[1], True))
    np.testing.assert_allclose(found.condition, want, **FLOAT32)
    assert found.condition <= both.condition
    none = lbo.diagnose(taps, jax.tree.map(jnp.zeros_like, stats))["dense"]
    assert np.isnan([none.condition, none.rank, none.dead, none.mean_to_std]).all()


def trained(tx_of, statistic, dtype=jnp.float64):
    """Takes a step and returns all that there is of it."""
    model, batch = MLP((8, 3), dtype=dtype), data(dtype=dtype)
    params = model.init(jax.random.key(0), batch[0])["params"]
    taps = linen.taps(model, batch[0], statistic=statistic)
    tx = tx_of(taps)
    state = tx.init(params)
    collect = linen.value_and_grad(squared_error(model), taps)

    @jax.jit
    def step(params, state):
        _, grads, stats = collect(params, batch)
        updates, state = tx.update(grads, state, params, stats=stats)
        found = lbo.diagnose(taps, stats, updates=updates, grads=grads)
        return found, state, updates, grads

    found, state, updates, grads = step(params, state)
    first = jax.tree.map(np.asarray, params["Dense_0"])
    hidden = np.tanh(np.asarray(batch[0]) @ first["kernel"] + first["bias"])
    updates, grads = jax.tree.map(np.asarray, (updates, grads))
    seen = {"Dense_0": np.asarray(batch[0]), "Dense_1": hidden}
    return found, state, updates, grads, seen


@pytest.mark.parametrize("statistic", ["gram", lbo.Sketch(8)], ids=str)
@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.sign_sgd(0.1)], ids=["sgd", "sign"]
)
def test_step_is_the_change_of_the_outputs(statistic, optimizer, float64):
    of = lambda taps: optax.with_extra_args_support(optimizer)  # noqa: E731
    found, _, updates, grads, seen = trained(of, statistic)
    for name, x in seen.items():
        change = x @ updates[name]["kernel"] + updates[name]["bias"]
        want = np.sqrt(np.mean(np.sum(np.square(change), axis=1)))
        np.testing.assert_allclose(found[name].step, want, **EXACT)
        products = jax.tree.map(lambda u, g: np.sum(u * g), updates[name], grads[name])
        want = -sum(jax.tree.leaves(products))
        np.testing.assert_allclose(found[name].decrease, want, **EXACT)


def test_step_from_moments_is_that_of_uncorrelated_inputs(float64):
    rng = np.random.default_rng(0)
    signs = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)])
    x = np.tile(signs * [1.0, 3.0] + [0.5, -2.0], (5, 1))  # uncorrelated, exactly
    updates = {"kernel": rng.normal(size=(2, 2)), "bias": np.ones(2)}
    change = x @ updates["kernel"] + updates["bias"]
    updates = jax.tree.map(jnp.asarray, updates)
    found = looked_at(jnp.asarray(x), lbo.Moments(), updates=updates)
    want = np.sqrt(np.mean(np.sum(np.square(change), axis=1)))
    np.testing.assert_allclose(found.step, want, **EXACT)
    assert np.isnan(found.decrease)


def test_step_from_a_sketch_is_close_where_directions_are_few(float64):
    rng = np.random.default_rng(0)
    low = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 40))
    x = low + 0.05 * rng.normal(size=(200, 40)) + 0.3
    kernel, bias = rng.normal(size=(40, 2)), np.ones(2)
    updates = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    found = looked_at(jnp.asarray(x), lbo.Sketch(10), updates=updates)
    want = np.sqrt(np.mean(np.sum(np.square(x @ kernel + bias), axis=1)))
    np.testing.assert_allclose(found.step, want, rtol=0.01)


@pytest.mark.parametrize("rate", [0.3, 0.05])
def test_steps_of_lnb_add_up_to_the_learning_rate(rate, float64):
    def of(taps):
        solver = lbo.Cholesky(ridge=1e-12, shrinkage=0.0)
        return lbo.lnb(rate, taps, solver, b_g=0.0, weight_decay=0.0)

    found, state, _, grads, seen = trained(of, "gram")
    scalars = lbo.as_scalars(found, state)
    np.testing.assert_allclose(scalars["step"], rate, **EXACT)
    squared = 0.0  # of the trust region's norm, by least squares
    for name, x in seen.items():
        g = np.vstack([grads[name]["kernel"], grads[name]["bias"]])
        squared += np.sum(np.linalg.solve(second_moment(x, True), g) * g)
    norm = scalars["decrease"] / scalars["step"]
    np.testing.assert_allclose(norm, np.sqrt(squared), **EXACT)
    assert scalars["skipped"] == 0


def test_scalars_are_flat_and_named():
    found, state, *_ = trained(lambda taps: lbo.lnb(0.1, taps), "gram", jnp.float32)
    scalars = lbo.as_scalars(found, state)
    of_layers = {f"{name}/{f}" for name in found for f in lbo.LayerDiagnosis._fields}
    assert set(scalars) == of_layers | {"step", "decrease", "skipped"}
    assert {jnp.shape(value) for value in scalars.values()} == {()}
    assert scalars["Dense_1/rank"] is found["Dense_1"].rank
    assert set(lbo.as_scalars(found)) == of_layers | {"step", "decrease"}
    steps = [float(each.step) for each in found.values()]
    np.testing.assert_allclose(scalars["step"], np.hypot(*steps), rtol=1e-6)


def test_scalars_of_a_state_that_knows_more():
    def of(taps):
        make = optax.inject_hyperparams(lbo.lnb, static_args=("taps", "solver"))
        return make(learning_rate=0.25, taps=taps)

    found, state, *_ = trained(of, "gram", jnp.float32)
    scalars = jax.jit(lbo.as_scalars)(found, state)
    assert scalars["learning_rate"] == 0.25
    assert scalars["skipped"] == 0
    assert not {"skipped", "learning_rate"} & set(
        lbo.as_scalars(found, optax.EmptyState())
    )


def test_scalars_without_updates_are_no_numbers():
    x = jnp.asarray(inputs(20, 3), jnp.float32)
    found = {"a": looked_at(x, lbo.Gram())}
    scalars = lbo.as_scalars(found)
    assert np.isnan([scalars["step"], scalars["decrease"]]).all()
    one = found["a"]._replace(step=jnp.float32(2.0))
    assert lbo.as_scalars({**found, "b": one})["step"] == 2
    assert lbo.as_scalars({}) == {}


def test_layers_that_are_masked_out_have_no_step():
    model, batch = MLP((8, 3)), data()
    params = model.init(jax.random.key(0), batch[0])["params"]
    taps = linen.taps(model, batch[0])
    _, grads, stats = linen.value_and_grad(squared_error(model), taps)(params, batch)
    updates = {**grads, "Dense_0": optax.MaskedNode()}
    found = lbo.diagnose(taps, stats, updates=updates, grads=grads)
    assert np.isnan(found["Dense_0"].step)
    assert found["Dense_1"].step > 0
    assert found["Dense_1"].decrease < 0  # what is added is the gradient itself


def test_layers_with_one_input_share_what_is_said_of_it():
    x = jax.random.normal(jax.random.key(0), (4, 5, 6))
    model = nn.MultiHeadDotProductAttention(2)
    params = model.init(jax.random.key(1), x)
    taps = linen.taps(model, x)
    loss = lambda params: jnp.mean(model.apply(params, x) ** 2)  # noqa: E731
    _, grads, stats = linen.value_and_grad(loss, taps)(params)
    found = lbo.diagnose(taps, stats, updates=grads)
    assert set(found) == {"query", "key", "value", "out"}
    want = np.linalg.cond(second_moment(x.reshape(-1, 6), True))
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(found[name].condition, want, **FLOAT32)
    assert len({float(found[n].step) for n in ("query", "key", "value")}) == 3


def test_nothing_else_changes_under_jit():
    x = jnp.asarray(inputs(20, 3), jnp.float32)
    taps = lbo.dense_taps({"a": (3, 2)}, "gram")
    zeros = taps.zeros()
    kernel = jnp.ones((3, 2))
    loss = lambda t: jnp.sum(lbo.tap(x, t["a"]) @ kernel)  # noqa: E731
    stats = jax.grad(loss)(zeros)  # still taps, as hand-written code has them
    plain = lbo.diagnose(taps, stats)
    jitted = jax.jit(functools.partial(lbo.diagnose, taps))(stats)
    assert plain.keys() == jitted.keys() == {"a"}
    for a, b in zip(plain["a"], jitted["a"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_arguments_that_do_not_fit_are_refused():
    taps = lbo.dense_taps({"a": (3, 2)}, "gram")
    stats = {key: tap.value for key, tap in taps.zeros().items()}
    with pytest.raises(TypeError, match="`taps` must be a Taps, got dict"):
        lbo.diagnose(stats, stats)
    with pytest.raises(ValueError, match="`stats` lacks layer 'a'"):
        lbo.diagnose(taps, {})
    with pytest.raises(ValueError, match="`taps` has layer 'a' with parameter 'a/ker"):
        lbo.diagnose(taps, stats, updates={"b": jnp.ones(2)})


@pytest.fixture
def history():
    x = jnp.asarray(inputs(20, 3), jnp.float32)
    one = looked_at(x, lbo.Gram())
    other = looked_at(x.at[:, 0].set(1.0), lbo.Moments())
    return [{"a": one, "b": other}, {"a": one._replace(rank=1.5), "b": other}]


def test_plot_has_a_row_a_layer(history):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    figure = lbo.plot.diagnostics(history, steps=[10, 20])
    assert len(figure.axes) == 10
    first, second = figure.axes[0], figure.axes[5]
    assert (first.get_ylabel(), second.get_ylabel()) == ("a", "b")
    curve = first.get_lines()[0]
    np.testing.assert_allclose(curve.get_xdata(), [10, 20])
    np.testing.assert_allclose(curve.get_ydata(), [history[0]["a"].condition] * 2)
    ranks = figure.axes[1].get_lines()[0].get_ydata()
    np.testing.assert_allclose(ranks, [history[0]["a"].rank, 1.5])
    texts = [[t.get_text() for t in axis.texts] for axis in figure.axes[5:]]
    assert texts == [["lower bound"], ["upper bound"], [], ["infinite"], ["none"]]
    figure.canvas.draw()
    matplotlib.pyplot.close(figure)


def test_plot_draws_into_a_figure(history):
    figure_type = pytest.importorskip("matplotlib.figure").Figure
    figure = figure_type()
    assert lbo.plot.diagnostics(history[:1], figure=figure) is figure
    assert figure.axes[0].get_lines()[0].get_marker() == "."


def test_histories_that_do_not_fit_are_refused(history):
    with pytest.raises(
        ValueError, match="`history` must hold what `diagnose` returned"
    ):
        lbo.plot.diagnostics([])
    with pytest.raises(ValueError, match=r"of the same layers .* got \['a', 'b'\] and"):
        lbo.plot.diagnostics([history[0], {"a": history[0]["a"]}])
    with pytest.raises(
        ValueError, match=r"`steps` must have one number for each .* 1 f"
    ):
        lbo.plot.diagnostics(history, steps=[1])
