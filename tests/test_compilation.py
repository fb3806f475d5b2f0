"""What a deep network costs to compile: layers that are alike are lowered once."""

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import extend, linen
from linboost_optax._precondition.outline import call, nameless
from linboost_optax._solvers.incomplete_cholesky import ArrowMetric
from tests.networks import MLP, data

TRANSFORMS = {
    "lnb": lambda taps, solver: lbo.lnb(0.1, taps, solver),
    "whiten": lambda taps, solver: lbo.whiten(optax.sgd(0.1), taps, solver),
    "polar": lambda taps, solver: lbo.polar(0.1, taps, solver),
}


adam = pytest.mark.lenient("Adam, for what is no kernel, promotes implicitly")
each_transform = pytest.mark.parametrize(
    "transform", ["lnb", "whiten", pytest.param("polar", marks=adam)]
)


def lowered(depth, transform="lnb", statistic: Any = "gram", solver=None):
    """An update of a network with `depth` equal layers after the first, lowered."""
    x, _ = data()
    model = MLP((5,) * depth)
    taps = linen.taps(model, x, statistic=statistic)
    params = model.init(jax.random.key(0), x)["params"]
    tx = TRANSFORMS[transform](taps, solver or lbo.Cholesky())
    stats = {key: tap.value for key, tap in taps.zeros().items()}
    arguments = jax.eval_shape(lambda: (params, tx.init(params), params, stats))
    return jax.jit(
        lambda grads, state, params, stats: tx.update(grads, state, params, stats=stats)
    ).lower(*arguments)


def functions(program):
    """Names of the functions in a lowered program that are ours to outline."""
    return re.findall(r"func\.func private @(_traced\w*)", program.as_text())


@pytest.mark.parametrize("statistic", ["gram", "sketch", "moments"])
@each_transform
def test_more_layers_of_a_kind_are_no_more_functions(transform, statistic):
    few, many = (lowered(depth, transform, statistic) for depth in (2, 6))
    assert len(functions(few)) == len(functions(many)) > 0


def test_conjugate_gradients_are_lowered_once():
    solver = lbo.ConjugateGradient()
    few, many = (lowered(depth, "lnb", "gram", solver) for depth in (2, 6))
    assert len(functions(few)) == len(functions(many)) > 0


@pytest.mark.usefixtures("optimized")  # it is fusion that repeats what is cheap
@each_transform
def test_looking_for_bad_numbers_is_not_repeated_in_every_array(transform):
    few, many = (
        str(lowered(depth, transform).compile().as_text()).count(" is-finite(")
        for depth in (4, 12)
    )
    # Three times the layers: nine times the looks, if each array had all of them.
    assert few > 0
    assert many <= 3 * few


# --- names ------------------------------------------------------------------------


def layer_at(*path, kernel="kernel", bias: str | None = "bias"):
    taps = lbo.dense_taps({"a": (3, 2)}, statistic="moments")
    return replace(taps.layers[0], path=path, kernel=kernel, bias=bias)


def test_layers_that_differ_in_names_alone_are_equal_without_them():
    one = layer_at("a")
    other = replace(layer_at("b", "c", kernel="w", bias="b"), source=("a",))
    assert one != other
    assert nameless(one) == nameless(other)
    assert nameless(one).shapes == one.shapes
    assert nameless(one) != nameless(layer_at("a", bias=None))
    assert nameless(one) != nameless(replace(one, stack=(2,)))
    assert nameless(one) != nameless(replace(one, dtype="float64"))


def test_metrics_hold_layers_however_deep():
    options = lbo.IncompleteCholesky()
    inner = [ArrowMetric(options, layer_at(name)) for name in "ab"]

    @dataclass(frozen=True)
    class Outer:
        inner: ArrowMetric
        ridge: float = 0.1

    one, other = (nameless(Outer(each)) for each in inner)
    assert one == other
    assert one.inner.options is options
    assert nameless(options) is options
    assert nameless(len) is len


@dataclass(frozen=True)
class ByName:
    """Divides by a number that a layer's name says: nothing like it is built in."""

    layer: extend.Layer

    def init(self):
        return ()

    def read(self, value):
        return self.layer.statistic.moments(self.layer, value)

    def update(self, state, view, step):
        return state

    def solve(self, state, view, g):
        scale = {"Dense_0": 2.0, "Dense_1": 5.0}[self.layer.key]
        return jax.tree.map(lambda leaf: leaf / scale, g)


class NamedSolver:
    def bind(self, layer):
        return ByName(layer)


def test_a_metric_of_ones_own_sees_its_layer_with_its_name():
    x, _ = data()
    model = MLP((5, 5))
    taps = linen.taps(model, x, statistic="moments")
    params: Any = model.init(jax.random.key(0), x)["params"]
    updates: Any

    def loss_fn(params):
        return jnp.mean(jnp.square(jnp.asarray(model.apply({"params": params}, x))))

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
    tx = lbo.scale_by_lnb(taps, NamedSolver(), b_g=0.0, min_norm=1e6)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    for name, scale in (("Dense_0", 2.0), ("Dense_1", 5.0)):
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(
                updates[name][leaf], grads[name][leaf] / (scale * 1e6), rtol=1e-5
            )


@dataclass(frozen=True)
class Counted:
    """A fact that says how often a function was traced with it."""

    layer: extend.Layer
    traces: ClassVar[list] = []


def _doubled(fact, x):
    fact.traces.append(fact)
    return 2 * x


@pytest.mark.parametrize("says_so", [True, False])
def test_functions_are_traced_once_for_what_says_that_it_is_nameless(says_so):
    class Fact(Counted):
        traces: ClassVar[list] = []
        nameless: ClassVar[bool] = says_so

    x = jnp.arange(3.0)
    for name in "abc":
        got = call(_doubled, (Fact(layer_at(name)),), x)
        np.testing.assert_array_equal(got, [0.0, 2.0, 4.0])
    assert len(Fact.traces) == (1 if says_so else 3)


def test_a_masked_bias_is_another_problem_than_its_source_s():
    x, _ = data()

    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(x) + nn.Dense(5)(x)

    model = Heads()
    taps = linen.taps(model, x, statistic="gram")
    params: Any = model.init(jax.random.key(0), x)["params"]
    updates: Any

    def loss_fn(params):
        return jnp.mean(jnp.square(jnp.asarray(model.apply({"params": params}, x))))

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
    mask = {"Dense_0": {"kernel": True, "bias": True}, "Dense_1": {"kernel": True}}
    mask["Dense_1"]["bias"] = False
    solver = lbo.Cholesky(ridge=0.03, decay=0.0, every=1, shrinkage=0.0)
    tx = optax.masked(
        lbo.scale_by_lnb(taps, solver, b_g=0.0, min_norm=1e6), lambda _: mask
    )
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    # By hand: with a bias the covariance, without one the second moment itself.
    x64 = np.asarray(x, np.float64)
    second, centred = x64.T @ x64 / len(x64), np.cov(x64.T, bias=True)
    for name, matrix, mean in (
        ("Dense_0", centred, x64.mean(0)),
        ("Dense_1", second, np.zeros(5)),
    ):
        g = np.asarray(grads[name]["kernel"], np.float64)
        g = g - np.outer(mean, np.asarray(grads[name]["bias"], np.float64))
        want = np.linalg.solve(matrix + 0.03 * np.eye(5), g)
        np.testing.assert_allclose(
            1e6 * np.asarray(updates[name]["kernel"], np.float64),
            want,
            rtol=1e-3,
            atol=1e-3 * np.abs(want).max(),
        )
