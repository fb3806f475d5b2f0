"""Rivals against their papers' equations, written down again in NumPy."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import linboost_optax as lbo
from benchmarks import needs, tasks, training
from benchmarks.optimizers import OPTIMIZERS, kernel_axes
from benchmarks.rivals import kfac, psgd
from benchmarks.rivals.shampoo import fourth_root
from benchmarks.tasks._models import MLP
from benchmarks.tasks._task import Task, squared_error, supervised
from linboost_optax import linen

RATE = 0.1
SHAPES = {"kernel": (2, 2, 4), "embedding": (5, 3), "bias": (4,)}
INSTALLED = {
    name: importlib.util.find_spec(name) is not None
    for name in ("psgd_jax", "kfac_jax")
}
needs_psgd = pytest.mark.skipif(not INSTALLED["psgd_jax"], reason="no psgd-jax")
needs_kfac = pytest.mark.skipif(not INSTALLED["kfac_jax"], reason="no kfac-jax")
lenient = pytest.mark.lenient("not ours: promotes implicitly")
KFAC = (needs_kfac, lenient)
MARKS = {"psgd": needs_psgd, "kfac": KFAC, "kfac_adaptive": KFAC}


def gradients(steps):
    """Random gradients whose scales differ from output to output, float64.

    Two words of the embedding are never seen. Else its first gradient would have fewer
    columns than rows, and the basis of what they do not span would be any.
    """
    rng = np.random.default_rng(0)
    for _ in range(steps):
        each = {
            name: rng.normal(size=shape) * np.logspace(-1, 1, shape[-1])
            for name, shape in SHAPES.items()
        }
        each["embedding"][3:] = 0
        yield each


def steps_of(name, grads, params=None):
    """The updates of an optimizer at a constant rate, in float64."""
    with jax.enable_x64(True):
        tx = OPTIMIZERS[name].build(optax.constant_schedule(RATE), None)
        grads = [jax.tree.map(jnp.asarray, each) for each in grads]
        params = jax.tree.map(jnp.ones_like, grads[0]) if params is None else params
        state, update = tx.init(params), jax.jit(tx.update)
        for each in grads:
            updates, state = update(each, state, params)
            yield jax.tree.map(np.asarray, updates)


class Moments:
    """Adam's two moments, corrected for their start."""

    def __init__(self, b1=0.9, b2=0.999):
        self.m = self.v = self.t = 0
        self.b1, self.b2 = b1, b2

    def mean(self, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        return self.m / (1 - self.b1**self.t)

    def scale(self, g):
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        return np.sqrt(self.v / (1 - self.b2**self.t)) + 1e-8

    def direction(self, g):
        return self.mean(g) / self.scale(g)


def sides(g, left, right):
    """Vyas et al., algorithm 3, lines 12 and 13; Gupta et al. without the sum."""
    return 0.95 * left + 0.05 * g @ g.T, 0.95 * right + 0.05 * g.T @ g


def soap_by_hand(grads):
    moments, left, right = Moments(), 0.0, 0.0
    for step, gradient in enumerate(grads):
        g = gradient.reshape(-1, gradient.shape[-1])
        left, right = sides(g, left, right)
        if step % 10 == 0:
            q_left, q_right = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
        m = q_left.T @ moments.mean(g) @ q_right
        direction = m / moments.scale(q_left.T @ g @ q_right)
        yield (q_left @ direction @ q_right.T).reshape(gradient.shape)


def shampoo_by_hand(grads):
    adam, left, right = Moments(), 0.0, 0.0

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        values = np.maximum(values, 0) + 1e-6 * values.max()
        return vectors @ np.diag(values ** (-1 / 4)) @ vectors.T

    for step, gradient in enumerate(grads):
        g = gradient.reshape(-1, gradient.shape[-1])
        left, right = sides(g, left, right)
        if step % 10 == 0:
            roots = root(left), root(right)
        graft = adam.direction(g)
        direction = roots[0] @ adam.m @ roots[1]
        direction *= np.linalg.norm(graft) / np.linalg.norm(direction)
        yield direction.reshape(gradient.shape)


@pytest.mark.parametrize(
    ("name", "by_hand"), [("soap", soap_by_hand), ("shampoo", shampoo_by_hand)]
)
def test_matrices_follow_the_paper_and_the_rest_adam(name, by_hand):
    """Over a refresh: the eleventh step is in another basis than the tenth."""
    grads = list(gradients(13))
    adam = Moments()
    expected = {
        "kernel": list(by_hand(each["kernel"] for each in grads)),
        "embedding": list(by_hand(each["embedding"] for each in grads)),
        "bias": [adam.direction(each["bias"]) for each in grads],
    }
    for step, got in enumerate(steps_of(name, grads)):
        for key in SHAPES:
            want = -RATE * expected[key][step]
            # The first gradient is diagonal in its own basis: off the diagonal, as in
            # unseen words, Adam divides rounding errors by its epsilon.
            np.testing.assert_allclose(got[key], want, rtol=1e-6, atol=1e-6)


def test_a_fourth_root_undoes_the_matrix():
    rng = np.random.default_rng(1)
    matrix = (factor := rng.normal(size=(5, 5))) @ factor.T
    with jax.enable_x64(True):
        root = np.asarray(fourth_root(jnp.asarray(matrix), ridge=0.0))
        zero = np.asarray(fourth_root(jnp.zeros((3, 3)), ridge=1e-6))
    np.testing.assert_allclose(
        np.linalg.matrix_power(root, 4) @ matrix, np.eye(5), atol=1e-9
    )
    assert np.all(np.isfinite(zero))


class Words(nn.Module):
    """An embedding, a layer with a bias, a layer without."""

    @nn.compact
    def __call__(self, tokens):
        wide = {"param_dtype": jnp.float64}
        x = nn.tanh(nn.Dense(4, **wide)(nn.Embed(7, 3, **wide)(tokens)))
        return nn.Dense(2, use_bias=False, **wide)(x)


def test_newton_muon_is_muon_on_gradients_divided_by_the_inputs_second_moment():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        tokens = [jnp.asarray(rng.integers(0, 7, 30)) for _ in range(12)]
        model = Words()
        params = model.init(jax.random.key(0), tokens[0])["params"]
        optimizer = OPTIMIZERS["newton_muon"]
        loss = lambda p, t: jnp.sum(model.apply({"params": p}, t) ** 3)  # noqa: E731
        taps = linen.taps(model, tokens[0], statistic=optimizer.statistic)
        value_and_grad = jax.jit(linen.value_and_grad(loss, taps))
        tx = optimizer.build(optax.constant_schedule(RATE), taps)
        muon = contrib.muon(
            RATE, muon_weight_dimension_numbers=kernel_axes, consistent_rms=0.2
        )
        state, update = tx.init(params), jax.jit(tx.update)
        muon_state, averages, inverses = muon.init(params), {}, {}
        for step, batch in enumerate(tokens):
            _, grads, stats = value_and_grad(params, batch)
            got, state = update(grads, state, params, stats=stats)
            layer = jax.tree.map(np.asarray, params["Dense_0"])
            x = np.asarray(params["Embed_0"]["embedding"])[np.asarray(batch)]
            hidden = np.tanh(x @ layer["kernel"] + layer["bias"])
            divided = {**grads}
            for name, inputs in (("Dense_0", x), ("Dense_1", hidden)):
                moment = inputs.T @ inputs / len(inputs)
                averages[name] = 0.95 * averages.get(name, 0) + 0.05 * moment
                if step % 10 == 0:
                    k, d = averages[name], len(moment)
                    ridge = 0.2 * np.trace(k) / d
                    inverses[name] = np.linalg.inv(k + ridge * np.eye(d))
                kernel = inverses[name] @ grads[name]["kernel"]
                divided[name] = {**grads[name], "kernel": kernel}
            want, muon_state = muon.update(divided, muon_state, params)
            for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
            params = optax.apply_updates(params, got)


def test_newton_muon_needs_a_gram_matrix():
    taps = linen.taps(nn.Dense(2), jnp.zeros((4, 3)), statistic=lbo.Moments())
    with pytest.raises(ValueError, match=r"statistic 'gram', and layer '\.' has 'mom"):
        OPTIMIZERS["newton_muon"].build(optax.constant_schedule(RATE), taps)


def test_newton_muon_leaves_a_layer_without_inputs_alone():
    """A second moment of zero has no inverse, and is nobody's news."""
    taps = linen.taps(nn.Dense(2), jnp.zeros((4, 3)), statistic=lbo.Gram())
    tx = OPTIMIZERS["newton_muon"].build(optax.constant_schedule(RATE), taps)
    params = nn.Dense(2).init(jax.random.key(0), jnp.zeros((4, 3)))["params"]
    loss = lambda p, x: jnp.sum(nn.Dense(2).apply({"params": p}, x) + 1)  # noqa: E731
    _, grads, stats = linen.value_and_grad(loss, taps)(params, jnp.zeros((4, 3)))
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    assert np.all(np.asarray(updates["kernel"]) == 0)
    assert np.all(np.isfinite(updates["bias"]))
    assert np.all(np.asarray(updates["bias"]) != 0)


@lenient
@needs_psgd
def test_psgd_makes_all_coordinates_of_a_gradient_nearly_equal(capsys):
    """At its fixed point `E[(Q^T Q g)^2] = 1`; the noise of its fit leads below."""
    g = jnp.array([1.0, -10.0, 0.1, 3.0])
    tx = OPTIMIZERS["psgd"].build(optax.constant_schedule(RATE), None)
    state, update = tx.init(g), jax.jit(tx.update)
    steps = []
    for _ in range(1000):
        updates, state = update(g, state)
        steps.append(np.asarray(updates) / -RATE)
    assert capsys.readouterr().out == ""
    # A scale of 1 for every coordinate at first, apart from a clip of the norm.
    np.testing.assert_allclose(steps[0] / steps[0][0], g, rtol=0.5)
    got = np.mean(steps[500:], axis=0) * np.sign(g)
    assert 0.6 < got.min() < got.max() < 1.1


@pytest.mark.parametrize(
    ("build", "name"), [(psgd._module, "psgd-jax"), (kfac._package, "kfac-jax")]
)
def test_a_package_that_is_missing_is_named(build, name, monkeypatch):
    real = importlib.import_module

    def missing(module):
        if module.startswith(("psgd_jax", "kfac_jax")):
            raise ImportError(module)
        return real(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf"package {name}\. .*\[rivals\]"):
        build()


def regression(features=3, samples=20):
    """Linear regression on one output, every batch all samples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, features)) * np.array([1.0, 3.0, 0.3])
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(rng.normal(size=(samples, 1)))
    data = {"x": x, "y": y.astype(jnp.float32)}
    model = MLP((1,), use_bias=False, linear=True)
    loss, metrics = supervised(model, squared_error)
    return Task(
        title="Regression",
        model=model,
        train=data,
        test=data,
        loss=loss,
        metrics=metrics,
        batch_size=samples,
        steps=20,
        criterion=squared_error,
    )


@lenient
@needs_kfac
@pytest.mark.parametrize("adaptive", [False, True])
def test_kfac_takes_damped_gauss_newton_steps_on_linear_regression(adaptive):
    """With one output the Kronecker product is exact, and so is where damping goes.

    A second step adds 0.9 of the first.
    """
    task, damping = regression(), 0.7
    tx = kfac.kfac(optax.constant_schedule(RATE), task, damping, adaptive)
    x, y = (np.asarray(task.train[key], np.float64) for key in "xy")
    params = {"Dense_0": {"kernel": jnp.ones((3, 1))}}
    state = jax.jit(tx.init)(params)
    update = jax.jit(lambda s, p: tx.update(p, s, p, batch=task.train))
    w, velocity = np.ones((3, 1)), 0.0
    for _ in range(3):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        gradient = 2 * x.T @ (x @ w - y) / len(x)
        curvature = 2 * x.T @ x / len(x) + damping * np.eye(3)
        velocity = 0.9 * velocity - RATE * np.linalg.solve(curvature, gradient)
        w = w + velocity
        np.testing.assert_allclose(params["Dense_0"]["kernel"], w, rtol=1e-4)


@lenient
@needs_kfac
def test_adaptive_damping_falls_where_the_model_is_right():
    """A quadratic is its own model: the damping goes down after five steps."""
    task = regression()
    tx = kfac.kfac(optax.constant_schedule(RATE), task, 0.7, adaptive=True)
    params = {"Dense_0": {"kernel": jnp.ones((3, 1))}}
    state = jax.jit(tx.init)(params)
    update = jax.jit(lambda s, p: tx.update(p, s, p, batch=task.train))
    dampings = []
    for _ in range(5):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        dampings.append(float(state.damping))
    np.testing.assert_allclose(dampings, [0.7] * 4 + [0.7 * 0.9**5], rtol=1e-5)


def test_kfac_refuses_a_task_whose_loss_it_does_not_know():
    task = tasks.load("factorisation", quick=True)
    unknown = Task(**{**vars(task), "criterion": None})
    with pytest.raises(ValueError, match=r"names none. Give the task a `criterion`"):
        kfac.kfac(optax.constant_schedule(RATE), unknown, damping=1.0)


def test_adamw_decays_the_weights_apart_from_the_gradients():
    params, grads = {"w": jnp.array([2.0, -1.0])}, [{"w": np.array([0.3, 0.5])}] * 2
    adam = Moments()
    for got in steps_of("adamw", grads, params):
        want = adam.direction(grads[0]["w"]) + 1e-2 * np.asarray(params["w"])
        np.testing.assert_allclose(got["w"], -RATE * want, rtol=1e-6)


def test_momentum_looks_ahead():
    first, second = np.array([1.0, -2.0]), np.array([0.5, 4.0])
    got = list(steps_of("momentum", [{"w": first}, {"w": second}]))
    np.testing.assert_allclose(got[0]["w"], -RATE * (first + 0.9 * first))
    trace = 0.9 * first + second
    np.testing.assert_allclose(got[1]["w"], -RATE * (second + 0.9 * trace))


def test_line_search_sees_the_whole_loss():
    """Training hands L-BFGS what it asks for: the steps are those of a loop by hand."""
    task = regression()
    trainer = training.compile_trainer(task, OPTIMIZERS["lbfgs"])
    order = training.batches(task, seed=0)
    carry = trainer.init(0)
    params = jax.tree.map(jnp.copy, carry.params)
    entry = training.Entry(trainer, 1.0)
    carry, _ = training.run_block(entry, carry, task, order, steps=20)

    tx, loss = optax.lbfgs(), lambda params: task.loss(params, {}, task.train)[0]
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grad, "value_fn": loss}
        updates, state = tx.update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    got, want = (np.asarray(p["Dense_0"]["kernel"]) for p in (carry.params, params))
    np.testing.assert_allclose(got, want, rtol=1e-3)
    x, y = (np.asarray(task.train[key], np.float64) for key in "xy")
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(got, best, rtol=1e-2)


@pytest.mark.parametrize(
    ("names", "task", "reason"),
    [
        (("value_fn",), "digits_autoencoder", r"a batch is 256 of \d+ samples. Take a"),
        (("task", "batch"), "cnn", "names no criterion. Take a dense task"),
        (("value_fn",), None, "more of a task than the job has"),
    ],
)
def test_what_a_task_cannot_give_is_told(names, task, reason):
    task = None if task is None else tasks.load(task)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(needs.refusal(names, task))


def test_what_a_task_gives_is_not_refused():
    whole = tasks.load("factorisation")
    for name in ("lbfgs", "kfac"):
        assert needs.refusal(OPTIMIZERS[name].needs, whole) is None
        assert set(OPTIMIZERS[name].needs) <= set(needs.NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=MARKS.get(name, ()))
        for name in list(OPTIMIZERS)[list(OPTIMIZERS).index("soap") :]
    ],
)
def test_every_rival_trains(name):
    task = tasks.load("factorisation", quick=True)
    optimizer = OPTIMIZERS[name]
    trainer = training.compile_trainer(task, optimizer)
    entry = training.Entry(trainer, 0.1 * optimizer.centre)
    evaluate = training.compile_evaluate(task)
    losses = training.race(task, {"": entry}, evaluate)[""]["train_loss"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]
