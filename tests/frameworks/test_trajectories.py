"""Twins train alike: one trajectory in every framework, and that of an oracle."""

import functools
import itertools
from typing import NamedTuple

import jax
import optax
import pytest
from flax import nnx

import linboost_optax as lbo
from linboost_optax import linen
from tests.frameworks import mlp_oracle, task
from tests.frameworks.twin import MODELS, assert_same, build

# float64 after 20 steps: rounding, which differs in the order of sums, and its growth.
TOLERANCE = 1e-9
STEPS = 20

pytestmark = pytest.mark.lenient("layers of the frameworks and Adam promote implicitly")

# Keys' biases have no gradient but rounding, which Adam divides by eps.
RATE, EPS = 1e-2, 1e-6
OPTIMIZERS = {
    "lnb": lambda taps: lbo.lnb(0.1, taps),
    "whiten": lambda taps: lbo.whiten(optax.adam(RATE, eps=EPS), taps),
    "polar": lambda taps: lbo.polar(RATE, taps),
}
ORACLES = {
    "lnb": lambda: mlp_oracle.LNB(0.1),
    "whiten": lambda: mlp_oracle.WhitenedAdam(RATE, eps=EPS),
    "polar": lambda: mlp_oracle.Polar(RATE),
}
FRAMEWORKS = ["linen", "nnx", "equinox", "haiku"]


class Setting(NamedTuple):
    """How to train; ``many`` rows are more than ``lbo.Auto()`` makes a matrix of."""

    optimizer: str
    statistic: str
    many: bool = False


ALL = [
    Setting(*pair)
    for pair in itertools.product(OPTIMIZERS, ("gram", "moments", "auto"))
]
SOME = [Setting("lnb", "gram"), Setting("whiten", "moments")]
SOME.append(Setting("whiten", "auto", many=True))
SETTINGS = {"mlp": [*ALL, SOME[-1]], "cnn": SOME, "gru": SOME, "transformer": SOME}
# Where some frameworks have one kernel for all gates, it is another matrix to balance.
for model in ("cnn", "transformer"):
    SETTINGS[model] = [*SETTINGS[model], Setting("polar", "auto")]


def train(model, one, taps_of, value_and_grad, setting):
    """Returns the common weights after training with a tree of parameters."""
    batches = task.batches(model, STEPS, many=setting.many)
    params = one.from_common(task.weights(model))
    taps = taps_of(one, params, batches[0][0], setting.statistic)
    tx = OPTIMIZERS[setting.optimizer](taps)
    collect = value_and_grad(task.loss_of(one.forward), taps)

    @jax.jit
    def step(params, state, *batch):
        _, grads, stats = collect(params, *batch)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for batch in batches:
        params, state = step(params, state, *batch)
    return one.to_common(params)


def any_function(model, one, setting):
    """Trains with ``lbo.taps`` of the function alone."""

    def taps_of(one, params, x, statistic):
        return lbo.taps(one.forward, params, x, statistic=statistic)

    return train(model, one, taps_of, lbo.value_and_grad, setting)


def linen_module(model, one, setting):
    """Trains with ``linen.taps`` of the module."""

    def taps_of(one, params, x, statistic):
        return linen.taps(one.module, x, statistic=statistic)

    return train(model, one, taps_of, linen.value_and_grad, setting)


def nnx_model(model, one, setting):
    """Trains a stateful NNX model with ``nnx.Optimizer``."""
    batches = task.batches(model, STEPS, many=setting.many)
    network = one.module(one.from_common(task.weights(model)))
    taps = lbo.nnx.taps(network, batches[0][0], statistic=setting.statistic)
    tx = OPTIMIZERS[setting.optimizer](taps)
    optimizer_state = nnx.Optimizer(network, tx, wrt=nnx.Param)
    collect = lbo.nnx.value_and_grad(task.loss_of(lambda model, x: model(x)), taps)

    @nnx.jit
    def step(network, optimizer_state, *batch):
        _, grads, stats = collect(network, *batch)
        optimizer_state.update(network, grads, stats=stats)

    for batch in batches:
        step(network, optimizer_state, *batch)
    return one.to_common(nnx.state(network, nnx.Param))


@functools.cache
def hand_written(model, setting):
    return any_function(model, build("jax", model), setting)


def cases(*models):
    """Models in their settings; what takes seconds to compile is slow."""
    return pytest.mark.parametrize(
        ("model", "setting"),
        [
            pytest.param(
                model,
                setting,
                id="-".join([model, *setting[:2], *["many"] * setting.many]),
                marks=pytest.mark.slow if model in ("gru", "transformer") else (),
            )
            for model in models
            for setting in SETTINGS[model]
        ],
    )


def oracle(setting):
    statistic = "moments" if setting.statistic == "moments" else "gram"  # of all rows
    batches, optimizer = task.batches("mlp", STEPS), ORACLES[setting.optimizer]()
    return mlp_oracle.train(task.weights("mlp"), batches, statistic, optimizer)


every_setting = pytest.mark.parametrize(
    "setting", ALL, ids=lambda s: f"{s.optimizer}-{s.statistic}"
)


@every_setting
def test_linen_mlp_trains_like_the_oracle(setting):
    with jax.enable_x64(True):
        got = linen_module("mlp", build("linen", "mlp"), setting)
    assert_same(got, oracle(setting), TOLERANCE)


@every_setting
def test_hand_written_mlp_trains_like_the_oracle(setting):
    with jax.enable_x64(True):
        got = hand_written("mlp", setting)
    assert_same(got, oracle(setting), TOLERANCE)


@cases(*MODELS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_function_trains_like_hand_written_jax(framework, model, setting):
    with jax.enable_x64(True):
        got = any_function(model, build(framework, model), setting)
        assert_same(got, hand_written(model, setting), TOLERANCE)


@cases(*MODELS)
def test_linen_module_trains_like_hand_written_jax(model, setting):
    with jax.enable_x64(True):
        got = linen_module(model, build("linen", model), setting)
        assert_same(got, hand_written(model, setting), TOLERANCE)


@cases(*MODELS)
def test_nnx_model_trains_like_hand_written_jax(model, setting):
    with jax.enable_x64(True):
        got = nnx_model(model, build("nnx", model), setting)
        assert_same(got, hand_written(model, setting), TOLERANCE)


@cases("gru")
def test_gru_cell_of_linen_trains_like_hand_written_jax(model, setting):
    """With its further bias held at zero, which is no parameter of the function."""
    with jax.enable_x64(True):
        got = any_function(model, build("linen", "native_gru"), setting)
        assert_same(got, hand_written(model, setting), TOLERANCE)
