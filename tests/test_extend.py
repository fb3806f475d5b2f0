"""A kind of layer, a statistic and a solver from outside the package."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import extend, linen
from linboost_optax._statistics.gram import GramSums
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


@dataclass(frozen=True)
class Positive(extend.Statistic):
    name = "positive"

    def shapes(self, layer):
        each = extend.struct(layer, layer.kind.groups, layer.kind.channels)
        return {"count": extend.struct(layer, 1), "sum": each, "sum_sq": each}

    def measure(self, layer, x, g):
        x = jnp.maximum(layer.kind.samples(x), 0)
        ones = extend.batched_ones(x[:, 0, :1], x.dtype)
        return {"count": ones.sum(0), "sum": x.sum(0), "sum_sq": jnp.square(x).sum(0)}

    def moments(self, layer, value):
        count = extend.per_block(layer, value["count"])
        sums = (value["sum"], value["sum_sq"])
        return extend.BlockMoments(
            count, *(extend.mean_of(layer, s, count) for s in sums)
        )


# --- a solver that divides by the mean square -------------------------------------


@dataclass(frozen=True)
class MeanSquare:
    ridge: float = 0.1

    def bind(self, layer):
        return OfLayer(layer, self.ridge)


@dataclass(frozen=True)
class OfLayer(extend.Solves):
    layer: extend.Layer
    ridge: float

    def init(self):
        return ()

    def read(self, value):
        return self.layer.statistic.moments(self.layer, value)

    def update(self, state, view, step):
        return state

    def solve(self, state, view, g, start):
        return g._replace(w=g.w / (view.mean_sq[:, :, None] + self.ridge))


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
    tx = lbo.lnb(optax.linear_schedule(0.1, 0.0, 60), taps, solver)
    _, losses = train(model, batch, params, taps, tx)
    assert losses[-1] < 0.6 * losses[0]


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


def test_a_statistic_and_a_solver_are_what_they_say():
    model, batch, params, taps = setting("flax", Positive())
    _, grads, stats = linen.value_and_grad(squared_error(model), taps)(params, batch)
    positive = np.maximum(np.asarray(batch[0], np.float64), 0)
    np.testing.assert_allclose(stats["layers_0"]["sum"][0], positive.sum(0), **CLOSE)
    tx = lbo.scale_by_lnb(taps, MeanSquare(0.5), b_g=0.0, min_norm=1e3)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    square = np.square(positive).mean(0)[:, None] + 0.5
    want = np.asarray(grads["layers_0"]["kernel"]) / square / 1e3
    np.testing.assert_allclose(updates["layers_0"]["kernel"], want, **CLOSE)


def test_a_solver_without_a_factor_does_not_whiten():
    _, _, _, taps = setting("flax", "gram")
    with pytest.raises(ValueError, match=r"MeanSquare.* has no factor for layer 'lay"):
        lbo.whiten(optax.adam(0.1), taps, MeanSquare())


def test_cholesky_can_be_taught_a_statistic():
    @dataclass(frozen=True)
    class Doubled(extend.Statistic):
        name = "doubled"

        def shapes(self, layer):
            return lbo.Gram().shapes(layer)

        def measure(self, layer, x, g):
            return lbo.Gram().measure(layer, x, g)

        def moments(self, layer, value):
            return lbo.Gram().moments(layer, value)

        def second_moment(self, layer, value):
            twice = GramSums(value.count, value.sum, 2 * value.outer)
            return lbo.Gram().second_moment(layer, twice)

    @extend.solve_with.register
    def _(statistic: Doubled, solver, layer):
        gram = extend.solve_with.dispatch(lbo.Gram)
        return gram(statistic, solver, layer)

    def updates(statistic, ridge, biased=False):
        model, (x, y) = nn.Dense(2, use_bias=biased), data(outputs=2)
        params = model.init(jax.random.key(0), x)["params"]
        taps = linen.taps(model, x, statistic=statistic)
        grad = linen.value_and_grad(squared_error(model), taps)
        _, grads, stats = grad(params, (x, y))
        tx = lbo.scale_by_lnb(taps, lbo.Cholesky(ridge=ridge), min_norm=1e3)
        return tx.update(grads, tx.init(params), params, stats=stats)[0]["kernel"]

    got, want = updates(Doubled(), 0.2), updates(lbo.Gram(), 0.1)
    np.testing.assert_allclose(2 * got, want, **CLOSE)


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
        def __call__(self, *, other=1.0, signal=None):
            del other
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (5, 2))
            return signal @ (jnp.tanh(kernel) if self.gate else kernel)

    def describe(module, x):
        return "gated kernel" if module.gate else extend.Dense((), (5,), (2,))

    with pytest.raises(TypeError, match="`module` must take its input first"):
        linen.register(Gated, describe)

    class Positional(Gated):
        @nn.compact
        def __call__(self, signal, other=1.0):
            return super().__call__(other=other, signal=signal)

    linen.register(Positional, describe)
    x = data()[0]
    model = nn.Sequential([nn.Dense(5), Positional(True)])
    assert linen.taps(model, x).plain[0].reason == "gated kernel"

    class ByName(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Positional(False)(other=2.0, signal=x)

    (layer,) = linen.taps(ByName(), x).layers
    assert layer.input_shape == x.shape
