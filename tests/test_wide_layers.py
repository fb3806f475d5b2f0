"""Layers too wide for a matrix of their inputs: nothing is as large as that."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._jaxprs import subjaxprs
from tests.networks import train_step

pytestmark = pytest.mark.lenient("optimizers of Optax promote implicitly")

OPTIMIZERS = {
    "lnb": lambda taps: lbo.lnb(0.1, taps),
    "whiten": lambda taps: lbo.whiten(optax.adam(1e-3), taps),
    "polar": lambda taps: lbo.polar(1e-2, taps),
    "whitened embeddings": lambda taps: lbo.lnb(0.1, taps, lbo.IncompleteCholesky()),
}
MODELS = {
    "inputs": (nn.Dense(8), jnp.zeros((512, 16_384))),
    "outputs": (nn.Dense(16_384), jnp.zeros((512, 8))),
    "both": (nn.Dense(12_288), jnp.zeros((16, 16_384))),
    "vocabulary": (nn.Embed(256_000, 8), jnp.zeros((4, 32), jnp.int32)),
    "head": (nn.Dense(256_000), jnp.zeros((4, 8))),
}
WIDE = 2 * lbo.Auto().rank  # up to here a matrix is smaller than a sketch
STATE = {  # numbers kept of one layer, by width; a polar root is of the shorter side
    "lnb": 132,  # a sketch and a basis of 64 each, two moments, a mean and a scale
    "whiten": 132,
    "polar": 132 + 192,
}


def shapes(jaxpr):
    """Yields the shape of everything that a program computes."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape
        for inner in subjaxprs(equation.params):
            yield from shapes(inner)


def traced(model, x, tx_of):
    """Returns a step as a program, and the state, from shapes alone."""
    taps = linen.taps(model, x)
    tx = tx_of(taps)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    state = jax.eval_shape(tx.init, params)

    def loss(params, x):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    program = jax.make_jaxpr(train_step(loss, taps, tx))(params, state, x)
    return program.jaxpr, params, state


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_is_as_large_as_a_width_squared(model, optimizer):
    program, _, _ = traced(*MODELS[model], OPTIMIZERS[optimizer])
    found = set(shapes(program))
    assert any(max(shape, default=0) > WIDE for shape in found)
    for shape in found:
        wide = [size for size in shape if size > WIDE]
        assert len(wide) == len(set(wide)), shape


@pytest.mark.parametrize("model", ["inputs", "both"])
@pytest.mark.parametrize("optimizer", STATE)
def test_states_of_wide_layers_are_as_large_as_the_guide_says(model, optimizer):
    """Beside what is kept of every parameter: a momentum, or Adam's two moments."""
    layer, x = MODELS[model]
    _, params, state = traced(layer, x, OPTIMIZERS[optimizer])
    moments = {"lnb": 1, "whiten": 2, "polar": 1}[optimizer]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    kept = sum(leaf.size for leaf in jax.tree.leaves(state)) - moments * size
    assert 0 < kept <= STATE[optimizer] * x.shape[-1] + 4 * layer.features + 1000
