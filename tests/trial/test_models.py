"""Three frameworks: one loss, one gradient; states go where they belong."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import linboost_optax as lbo
from linboost_optax._trial import models, training
from linboost_optax._trial.competitors import competitors
from linboost_optax._trial.task import Task
from tests.trial.tasks import TASKS, X, batches


@pytest.fixture(scope="module")
def setups():
    return {name: training.set_up(task) for name, task in TASKS.items()}


def test_frameworks_are_told_apart(setups):
    kinds = [type(setup.framework) for setup in setups.values()]
    assert kinds == [models.Tree, models.Variables, models.Module]


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_the_loss_and_the_layers_are_those_of_functions(setups, name):
    losses = []
    for setup in (setups["tree"], setups[name]):
        params, state = setup.start(3)
        losses.append(setup.loss(params, state, setup.batch, jax.random.key(0))[0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    layers = [
        [(str(each), each.kind.kernel_shape) for each in setups[each].taps.layers]
        for each in ("tree", name)
    ]
    assert layers[0] == layers[1] == [("a", (3, 4)), ("b", (4, 1))]


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.lenient("Optax's Muon promotes")
def test_all_optimizers_train_alike_in_all_frameworks(setups, name):
    setup = setups[name]
    for competitor in competitors(setup.task).values():
        ends = []
        for each in (setups["tree"], setup):
            trainer = training.compile_trainer(each, competitor)
            carry = trainer.init(0)
            carry, _ = training.run(trainer, carry, [each.batch] * 12, 0, 1e-2, 12)
            ends.append(each.evaluate(carry)["test_loss"])
        assert ends[0] == pytest.approx(ends[1], rel=1e-4), competitor.label


class Normed(nn.Module):
    """A layer with running averages and one that drops."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


def normed_variables(key):
    return Normed().init(key, X[:2], train=False)


def normed_loss(variables, batch, key):
    (x, y), train = batch, key is not None
    out, changed = Normed().apply(
        variables,
        x,
        train,
        rngs={"dropout": key} if train else None,
        mutable=["batch_stats"] if train else [],
    )
    value = jnp.mean((out - y) ** 2)
    return (value, changed) if train else value


class NormedModule(nnx.Module):
    """The same, as an object."""

    def __init__(self, key):
        rngs = nnx.Rngs(params=key, dropout=key)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


def normed_module_loss(module, batch):
    x, y = batch
    return jnp.mean((module(x) - y) ** 2)


NORMED = {
    "linen": Task("linen", normed_variables, normed_loss, batches),
    "nnx": Task("nnx", NormedModule, normed_module_loss, batches),
}


def averages(state):
    """The running means, whatever the framework calls them."""
    found = jax.tree.leaves_with_path(state)
    return next(leaf for path, leaf in found if "mean" in jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", list(NORMED))
@pytest.mark.lenient("Flax's BatchNorm promotes")
def test_running_averages_move_in_training_alone(name):
    setup = training.set_up(NORMED[name])
    params, state = setup.start(0)
    before = np.asarray(averages(state))
    x = np.asarray(setup.batch[0])
    layer = jax.tree.leaves_with_path(params)
    kernel, bias = (
        next(leaf for path, leaf in layer if leaf.shape == shape)
        for shape in ((3, 4), (4,))
    )
    expected = 0.5 * before + 0.5 * (x @ np.asarray(kernel) + np.asarray(bias)).mean(0)
    _, after = setup.loss(params, state, setup.batch, jax.random.key(1))
    np.testing.assert_allclose(averages(after), expected, rtol=1e-4, atol=1e-5)
    carry = training.Carry(params, state, (), jnp.int32(0))
    assert setup.evaluate(carry) == setup.evaluate(carry)
    np.testing.assert_array_equal(averages(state), before)


@pytest.mark.parametrize("name", list(NORMED))
@pytest.mark.lenient("Flax's BatchNorm promotes")
def test_dropout_drops_in_training_alone(name):
    setup = training.set_up(NORMED[name])
    params, state = setup.start(0)
    first, second = (
        setup.loss(params, state, setup.batch, jax.random.key(seed))
        for seed in range(2)
    )
    if name == "linen":  # a module draws its own
        assert first[0] != second[0]
    again = setup.loss(params, second[1], setup.batch, jax.random.key(0))
    assert again[0] != second[0]


def test_a_tree_with_functions_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"tree of arrays.*eqx\.partition"):
        models.recognise({"w": jnp.ones(3), "activation": jnp.tanh})


@pytest.mark.parametrize("name", list(TASKS))
def test_the_change_is_that_of_the_framework(setups, name):
    change = setups[name].framework.change.format(tx="lbo.polar(0.01, taps)")
    call = {"tree": "lbo.taps", "linen": "linen.taps", "nnx": "lbo.nnx.taps"}[name]
    assert call in change
    assert "lbo.polar(0.01, taps)" in change
    assert change.count("\n+") + 1 == 4
    assert "stats=stats" in change


def test_sums_over_batches_are_not_needed_for_a_scalar():
    assert models.scalar(jnp.float32(2)) == 2
    with pytest.raises(TypeError, match=r"scalar, got an array of shape \(2,\)"):
        models.scalar(jnp.ones(2))


def test_tapped_gradients_are_plain_ones(setups):
    setup = setups["nnx"]
    args = (*setup.start(0), setup.batch, jax.random.key(0))
    plain = jax.grad(setup.loss, has_aux=True)(*args)[0]
    grads = lbo.value_and_grad(setup.loss, setup.taps, has_aux=True)(*args)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, plain)
