"""A kind of layer, a statistic and a solver from outside the package."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import extend, linen
from tests.networks import data, squared_error, train_step

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32

pytestmark = pytest.mark.lenient("what is added here is user code")


# --- a layer whose kernel is [out, in] --------------------------------------------


class Transposed(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        weight = self.param("weight", init, (self.size, x.shape[-1]))
        return x @ weight.T + self.param("offset", nn.initializers.zeros, self.size)


@dataclass(frozen=True)
class Rows(extend.Kind):
    inputs: int
    size: int

    name = "Rows"
    kernel_shape = property(lambda self: (self.size, self.inputs))
    bias_shape = property(lambda self: (self.size,))
    channels = property(lambda self: self.inputs)

    def design(self, x, limit=None):
        x = x.reshape(1, -1, self.inputs)
        rows = extend.some_rows(x.shape[1], limit)
        return x if rows is None else x[:, rows]

    def to_matrix(self, kernel):
        return kernel.mT[:, None]

    def from_matrix(self, w):
        return w[:, 0].mT


linen.register(
    Transposed,
    lambda module, x: Rows(x.shape[-1], module.size),
    kernel="weight",
    bias="offset",
)


# --- the moments of what is positive ----------------------------------------------


class Matrix(NamedTuple):
    """Products with the second moment of what is positive."""

    count: jax.Array
    mean: jax.Array
    outer: jax.Array

    def product(self, v):
        w = jnp.einsum("kde,keo->kdo", self.outer, v.w)
        return extend.with_constant(self.mean, w, v)


@dataclass(frozen=True)
class Positive(extend.Statistic):
    def shapes(self, layer):
        each = extend.struct(layer, layer.kind.groups, layer.kind.features)
        outer = extend.struct(layer, *each.shape, layer.kind.features)
        return {"count": extend.struct(layer, 1), "sum": each, "outer": outer}

    def measure(self, layer, x, g):
        x = jnp.maximum(layer.kind.design(x), 0)
        count = jnp.sum(extend.batched_ones(x[0, :, :1], x.dtype), axis=0)
        outer = jnp.einsum("gnd,gne->gde", x, x)
        return {"count": count, "sum": x.sum(axis=1), "outer": outer}

    def moments(self, layer, value):
        count, mean, outer = self.second_moment(layer, value)
        return extend.BlockMoments(count, mean, jnp.diagonal(outer, axis1=1, axis2=2))

    def second_moment(self, layer, value):
        count = extend.per_block(layer, value["count"])
        sums = (value["sum"], value["outer"])
        return Matrix(count, *(extend.mean_of(layer, s, count) for s in sums))


# --- a solver that divides by the mean square -------------------------------------


@dataclass(frozen=True)
class MeanSquare:
    ridge: float = 0.1

    def bind(self, layer):
        return OfLayer(layer, self.ridge)

    def bind_factor(self, layer):
        return OfLayer(layer, self.ridge)


@dataclass(frozen=True)
class OfLayer(extend.Solves, extend.Whitens):
    layer: extend.Layer
    ridge: float

    def init(self):
        return jnp.ones((self.layer.blocks, self.layer.features, 1))

    def read(self, value):
        return self.layer.statistic.moments(self.layer, value)

    def update(self, state, view, step):
        new = view.mean_sq[..., None] + self.ridge
        return extend.where_seen(view.count > 0, new, state)

    def solve(self, state, view, g):
        return g._replace(w=g.w / state)

    def whiten(self, state, g):
        return g._replace(w=g.w / jnp.sqrt(state))

    unwhiten = whiten

    def coordinates(self, state, w):
        return w._replace(w=w.w * jnp.sqrt(state))


class OnlySolves:
    """What a solver has at least."""

    def bind(self, layer):
        return OfLayer(layer, 0.1)


MODELS = {
    "toy": nn.Sequential([Transposed(8), nn.tanh, Transposed(3)]),
    "flax": nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)]),
}


def setting(name, statistic):
    model, batch = MODELS[name], data()
    params = model.init(jax.random.key(1), batch[0])["params"]
    return model, batch, params, linen.taps(model, batch[0], statistic=statistic)


def train(model, batch, params, taps, tx, steps=60):
    step = jax.jit(train_step(squared_error(model), taps, tx))
    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    return params, losses


@pytest.mark.parametrize("statistic", ["moments", "gram", lbo.Sketch(3), Positive()])
@pytest.mark.parametrize("solver", [MeanSquare(), lbo.Cholesky()], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_each_trains_with_each(name, solver, statistic):
    model, batch, params, taps = setting(name, statistic)
    schedule = optax.linear_schedule(0.1, 0.0, 60)
    for tx in (
        lbo.lnb(schedule, taps, solver),
        lbo.whiten(optax.adamw(schedule), taps, solver),
    ):
        _, losses = train(model, batch, params, taps, tx)
        assert losses[-1] < 0.6 * losses[0]


def test_whitened_gradient_descent_is_the_solver_itself():
    model, batch, params, taps = setting("flax", Positive())
    lnb = lbo.lnb(10.0, taps, MeanSquare(), b_g=0.0, min_norm=1e3, weight_decay=0.0)
    sgd = lbo.whiten(optax.sgd(0.01), taps, MeanSquare())
    got, want = (train(model, batch, params, taps, tx, 5)[0] for tx in (lnb, sgd))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def as_flax(params):
    """The toy's parameters as those of `nn.Dense`."""
    return {
        name: {"kernel": layer["weight"].T, "bias": layer["offset"]}
        for name, layer in params.items()
    }


@pytest.mark.parametrize("statistic", ["auto", "moments", "inputs"])
def test_a_kind_trains_like_the_same_map_in_flax(statistic):
    model, batch, params, taps = setting("toy", statistic)
    flax, _, _, flax_taps = setting("flax", statistic)
    rows = [line.split() for line in str(taps).splitlines()]
    assert rows[1][:5] == ["layers_0", "Rows", "+", "bias", "8x5"]

    def make(taps):
        if statistic == "inputs":
            return lbo.lnb(0.1, taps, lbo.ConjugateGradient())
        return lbo.whiten(optax.adamw(1e-2), taps)

    got, _ = train(model, batch, params, taps, make(taps), 10)
    want, _ = train(flax, batch, as_flax(params), flax_taps, make(flax_taps), 10)
    for a, b in zip(jax.tree.leaves(as_flax(got)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def first_update(solver, statistic=None):
    """What becomes of the first layer's gradient, and both by hand."""
    model, batch, params, taps = setting("flax", statistic or Positive())
    _, grads, stats = linen.value_and_grad(squared_error(model), taps)(params, batch)
    tx = lbo.scale_by_lnb(taps, solver, b_g=0.0, min_norm=1e3)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    positive = np.maximum(np.asarray(batch[0], np.float64), 0)
    g = {k: np.asarray(v, np.float64) for k, v in grads["layers_0"].items()}
    return 1e3 * updates["layers_0"]["kernel"], g, positive, stats["layers_0"]


def test_a_statistic_and_a_solver_are_what_they_say():
    got, g, positive, stats = first_update(MeanSquare(0.5))
    np.testing.assert_allclose(stats["sum"][0], positive.sum(0), **CLOSE)
    square = np.square(positive).mean(0)[:, None] + 0.5
    np.testing.assert_allclose(got, g["kernel"] / square, **CLOSE)


def test_conjugate_gradients_multiply_by_a_statistic_that_can():
    solver = lbo.ConjugateGradient(ridge=0.5, iterations=40, tolerance=0.0)
    got, g, positive, _ = first_update(solver)
    tilde = np.c_[positive, np.ones(len(positive))]
    second = tilde.T @ tilde / len(tilde) + np.diag([0.5] * 5 + [0])
    want = np.linalg.solve(second, np.r_[g["kernel"], g["bias"][None]])
    np.testing.assert_allclose(got, want[:-1], rtol=1e-3, atol=1e-4)


def test_cholesky_can_be_taught_a_statistic():
    @dataclass(frozen=True)
    class Taught(Positive):
        pass

    @extend.cholesky_on.register
    def _(statistic: Taught, solver, layer, whitens):
        return OfLayer(layer, solver.ridge)

    got, g, positive, _ = first_update(lbo.Cholesky(ridge=0.5, shrinkage=0.0), Taught())
    square = np.square(positive).mean(0)[:, None] + 0.5
    np.testing.assert_allclose(got, g["kernel"] / square, **CLOSE)


def test_a_solver_without_a_factor_does_not_whiten():
    _, _, _, taps = setting("flax", "gram")
    assert lbo.lnb(0.1, taps, OnlySolves())
    with pytest.raises(ValueError, match=r"OnlySolves.* has no factor for layer 'lay"):
        lbo.whiten(optax.adam(0.1), taps, OnlySolves())


def test_a_contract_that_is_not_kept_is_an_error():
    class Forgetful(extend.Solves):
        def init(self):
            return ()

    with pytest.raises(TypeError, match="abstract"):
        Forgetful()


def test_statistics_are_chosen_by_rules():
    class Narrow:
        def choose(self, kind):
            return lbo.Gram() if kind.features < 6 else lbo.Moments()

    _, _, _, taps = setting("flax", Narrow())
    assert [layer.statistic.name for layer in taps.layers] == ["gram", "moments"]

    class Wrong:
        def choose(self, kind):
            return "gram"

    with pytest.raises(TypeError, match=r"must choose a statistic for Dense .*'gram'"):
        setting("flax", Wrong())


@pytest.mark.parametrize(
    ("module", "describe", "message"),
    [
        (Transposed(3), lambda module, x: None, "`module` must be a class of flax"),
        (int, lambda module, x: None, "`module` must be a class of flax"),
        (Transposed, "Dense", r"`describe` must map \(module, input\) to a Kind"),
    ],
)
def test_bad_registrations(module, describe, message):
    with pytest.raises(TypeError, match=message):
        linen.register(module, describe)


def test_a_registered_layer_may_decline():
    class Gated(nn.Module):
        gate: bool

        @nn.compact
        def __call__(self, signal, other=1.0):
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (5, 2))
            return other * signal @ (jnp.tanh(kernel) if self.gate else kernel)

    def describe(module, x):
        return "gated kernel" if module.gate else extend.Dense((), (5,), (2,))

    linen.register(Gated, describe)
    x = data()[0]
    model = nn.Sequential([nn.Dense(5), Gated(True)])
    assert linen.taps(model, x).plain[0].reason == "gated kernel"

    class ByName(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Gated(False)(other=2.0, signal=x)

    (layer,) = linen.taps(ByName(), x).layers
    assert layer.input_shape == x.shape


def test_a_class_that_takes_no_input_first_is_refused():
    class KeywordsOnly(nn.Module):
        def __call__(self, *, x):
            return x

    with pytest.raises(TypeError, match="`module` must take its input first, got Key"):
        linen.register(KeywordsOnly, lambda module, x: "nothing")


def test_a_subclass_is_registered_for_itself():
    class Special(nn.Dense):
        pass

    linen.register(Special, lambda module, x: "left alone")
    model = nn.Sequential([nn.Dense(4), Special(3)])
    taps = linen.taps(model, data()[0])
    assert [layer.key for layer in taps.layers] == ["layers_0"]
    assert {p.reason for p in taps.plain} == {"left alone"}


def test_a_decorated_call_is_found():
    def logged(method):
        @functools.wraps(method)
        def wrapper(self, x):
            return method(self, x)

        return wrapper

    class Logged(nn.Module):
        @nn.compact
        @logged
        def __call__(self, x):
            return x @ self.param("kernel", nn.initializers.lecun_normal(), (5, 2))

    linen.register(Logged, lambda module, x: extend.Dense((), (5,), (2,)))
    (layer,) = linen.taps(nn.remat(Logged)(), data()[0]).layers
    assert layer.kind.kernel_shape == (5, 2)


@pytest.mark.parametrize(
    ("describe", "options", "error", "message"),
    [
        (lambda m, x: None, {}, TypeError, "must return a Kind or the reason .*None"),
        (
            lambda m, x: extend.Dense((), (5,), (2,)),
            {"kernel": "w"},
            ValueError,
            r"must have a parameter `w`, got \['kernel'\]",
        ),
        (
            lambda m, x: extend.Dense((), (5,), (3,)),
            {},
            ValueError,
            r"a kind of its kernel's shape \(5, 2\), got a Dense with .*\(5, 3\)",
        ),
    ],
)
def test_descriptions_that_do_not_fit(describe, options, error, message):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("kernel", nn.initializers.lecun_normal(), (5, 2))

    linen.register(Linear, describe, **options)
    with pytest.raises(error, match=message):
        linen.taps(Linear(), data()[0])


@dataclass(frozen=True)
class PositiveRows(Positive):
    """Takes masks, too."""

    reads_rows = True

    def measure(self, layer, x, g, rows=None):
        x = extend.only(rows, jnp.maximum(layer.kind.design(x), 0), axis=1)
        ones = extend.ones_of(x[0, :, :1], x.dtype, rows)
        outer = jnp.einsum("gnd,gne->gde", x, x)
        return {"count": ones.sum(0), "sum": x.sum(axis=1), "outer": outer}


@pytest.mark.parametrize("name", MODELS)
def test_a_statistic_takes_masks(name):
    model, (x, y), params, taps = setting(name, PositiveRows())
    rows = jnp.arange(len(x)) % 3 > 0

    def loss(params):
        with lbo.only_rows(rows):
            return jnp.mean((model.apply({"params": params}, x) - y) ** 2)

    _, _, stats = linen.value_and_grad(loss, taps)(params)
    kept = np.maximum(np.asarray(x)[np.asarray(rows)], 0)
    assert stats["layers_0"]["count"].tolist() == [len(kept)]
    np.testing.assert_allclose(stats["layers_0"]["outer"][0], kept.T @ kept, **CLOSE)
